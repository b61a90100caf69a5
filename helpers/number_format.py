"""Numbers as Excel displays them: 0.125 formatted 0% is 13%, 43466 formatted yyyy/m/d is 2019/1/1."""
import re
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache

GENERAL = "General"
# What the numbers below 164 mean in a Chinese Excel.
BUILTIN = {
    1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 11: "0.00E+00", 14: "yyyy/m/d", 15: "d-mmm-yy",
    16: "d-mmm", 17: "mmm-yy", 18: "h:mm AM/PM", 19: "h:mm:ss AM/PM", 20: "h:mm", 21: "h:mm:ss", 22: "yyyy/m/d h:mm",
    27: 'yyyy"年"m"月"', 28: 'm"月"d"日"', 29: 'm"月"d"日"', 30: "m-d-yy", 31: 'yyyy"年"m"月"d"日"',
    32: 'h"时"mm"分"', 33: 'h"时"mm"分"ss"秒"', 34: '上午/下午h"时"mm"分"', 35: '上午/下午h"时"mm"分"ss"秒"',
    36: 'yyyy"年"m"月"', 37: "#,##0;-#,##0", 38: "#,##0;-#,##0", 39: "#,##0.00;-#,##0.00", 40: "#,##0.00;-#,##0.00",
    45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0", 48: "##0.0E+0", 50: 'yyyy"年"m"月"', 51: 'm"月"d"日"',
    52: 'yyyy"年"m"月"', 53: 'm"月"d"日"', 54: 'm"月"d"日"', 55: '上午/下午h"时"mm"分"',
    56: '上午/下午h"时"mm"分"ss"秒"', 57: 'yyyy"年"m"月"', 58: 'm"月"d"日"',
}
TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"|\\(?P<escaped>.)|_.|\*.|\[\$(?P<currency>[^\]-]*)[^\]]*\]|\[(?P<elapsed>h+|m+|s+)\]|\[[^\]]*\]'
    r"|(?P<noon>AM/PM|A/P|上午/下午)|(?P<date>y+|m+|d+|h+|s+(?:\.0+)?|aaaa?)|(?P<digits>[0#?][0#?,.]*(?:E[+-][0#]+)?)"
    r"|(?P<plain>.)", re.IGNORECASE | re.DOTALL)
WEEKDAYS = "一二三四五六日"


@lru_cache(2**12)
def display(number, code, epoch_1904=False):
    """The text that Excel shows for a number in a cell with that number format."""
    tokens, is_date = _section(code, (number > 0) - (number < 0))
    if is_date:
        return _date(number, tokens, epoch_1904)
    if tokens is None:
        return general(number)
    negative = number < 0 and len(_sections(code)) == 1
    return ("-" if negative else "") + _number(abs(number), tokens)


def general(number):
    """A number without a format: whole numbers in full, others in the eleven characters that Excel has for them."""
    if number == int(number):
        return str(int(Decimal(repr(number))))
    if abs(number) < 1e-4:
        return f"{number:.6G}"
    places = max(0, 10 - len(str(int(abs(number)))))
    return f"{_rounded(number, places).normalize():f}"


@lru_cache
def _sections(code):
    """The parts of a format for positive, negative, zero and text; semicolons in quotes do not part them."""
    return re.findall(r'((?:"[^"]*"|\\.|[^;"\\])*)(?:;|$)', code)[:-1] or [code]


@lru_cache
def _section(code, sign):
    """The tokens of the part for that sign, and whether it is a date; no tokens where Excel's general form applies."""
    parts = _sections(code)
    part = parts[0] if sign > 0 or len(parts) == 1 else parts[1] if sign < 0 or len(parts) == 2 else parts[2]
    if re.search(r"General|@|\[[<>=]|[#0?] *[/?]", part, re.IGNORECASE):
        return None, False
    tokens = [(match.lastgroup, match[match.lastgroup]) for match in TOKEN.finditer(part) if match.lastgroup]
    return tokens, any(kind in ("date", "elapsed") for kind, _ in tokens)


def _rounded(number, places):
    # Excel rounds half away from zero what fifteen digits show.
    return Decimal(f"{number:.15g}").quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _number(number, tokens):
    scaled = number * 100 ** sum(token == ("plain", "%") for token in tokens)
    shown, done = [], False
    for kind, text in tokens:
        if kind == "digits":
            shown.append("" if done else _digits(scaled, text.upper()))
            done = True
        else:
            shown.append(text)
    return "".join(shown)


def _digits(number, pattern):
    mantissa, _, exponent = pattern.partition("E")
    thousands = len(mantissa) - len(mantissa.rstrip(","))
    whole, point, decimals = mantissa.rstrip(",").partition(".")
    if exponent:
        digits, power = f"{number:.{len(decimals)}E}".split("E")
        sign = "-" if int(power) < 0 else "+" if exponent[0] == "+" else ""
        return f"{digits}E{sign}{abs(int(power)):0{len(exponent) - 1}d}"
    text = f"{_rounded(number / 1000 ** thousands, len(decimals)):{',' if ',' in whole else ''}f}"
    integer, _, fraction = text.partition(".")
    least = len(decimals.rstrip("#?"))
    fraction = fraction[:least] + fraction[least:].rstrip("0")
    integer = "" if integer == "0" and "0" not in whole else integer.zfill(whole.count("0"))
    return integer + point + fraction


def _date(number, tokens, epoch_1904):
    first = datetime(1904, 1, 1) if epoch_1904 else datetime(1899, 12, 30 if number >= 60 else 31)
    finest = max((len(text) - 3 for kind, text in tokens if kind == "date" and "." in text), default=0)
    seconds = round(number * 86400, finest)
    try:
        moment = first + timedelta(seconds=seconds)
    except OverflowError:
        return general(number)
    if number < 0:
        return general(number)
    half_day = any(kind == "noon" for kind, _ in tokens)
    return "".join(_date_part(index, tokens, moment, seconds, half_day) for index in range(len(tokens)))


def _date_part(index, tokens, moment, seconds, half_day):
    kind, text = tokens[index]
    if kind == "elapsed":
        return f"{int(seconds // {'h': 3600, 'm': 60, 's': 1}[text[0].lower()]):0{len(text)}d}"
    if kind == "noon":
        morning, afternoon = text.split("/")
        return morning if moment.hour < 12 else afternoon
    if kind != "date":
        return text
    text = text.lower()
    letter, size = text[0], len(text)
    if letter == "y":
        return f"{moment.year:04d}" if size > 2 else f"{moment.year % 100:02d}"
    if letter == "a":
        return ("星期" if size == 4 else "") + WEEKDAYS[moment.weekday()]
    if letter in "md" and size > 2 and not _is_minute(index, tokens):
        name = moment.strftime("%B" if letter == "m" else "%A")
        return name[:1] if size == 5 else name if size == 4 else name[:3]
    if letter == "s":
        fraction = f"{moment.microsecond:06d}"[:size - text.find(".") - 1] if "." in text else ""
        return f"{moment.second:0{min(2, text.count('s'))}d}" + ("." + fraction if fraction else "")
    hour = (moment.hour - 1) % 12 + 1 if half_day else moment.hour
    value = {"m": moment.minute if _is_minute(index, tokens) else moment.month, "d": moment.day, "h": hour}[letter]
    return f"{value:0{min(2, size)}d}"


def _is_minute(index, tokens):
    """Whether an m follows hours or comes before seconds; otherwise it is a month."""
    timed = [(place, text[0].lower()) for place, (kind, text) in enumerate(tokens) if kind in ("date", "elapsed")]
    before = [letter for place, letter in timed if place < index]
    after = [letter for place, letter in timed if place > index]
    return tokens[index][1][0].lower() == "m" and (before[-1:] == ["h"] or after[:1] == ["s"])
