"""Numbers as Excel displays them: 0.125 formatted 0% is 13%, 43466 formatted yyyy/m/d is 2019/1/1.

openpyxl, which gives the stored number and its format and leaves the rest to Excel, does not do this.
"""
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
SECONDS = {"h": 3600, "m": 60, "s": 1}
Token = tuple[str, str]  # its kind, a group of TOKEN or "minute", and its text


@lru_cache(2**12)
def display(number: float, code: str, epoch_1904: bool = False) -> str:
    """The text that Excel shows for a number in a cell with that number format."""
    tokens, is_date = _section(code, (number > 0) - (number < 0))
    if is_date:
        return _date(number, tokens, epoch_1904)
    if tokens is None:
        return general(number)
    negative = number < 0 and len(_sections(code)) == 1
    return ("-" if negative else "") + _number(abs(number), tokens)


def general(number: float) -> str:
    """A number without a format: whole numbers in full, others in the eleven characters that Excel has for them."""
    if number == int(number):
        return str(int(Decimal(repr(number))))
    if abs(number) < 1e-4:
        return f"{number:.6G}"
    places = max(0, 10 - len(str(int(abs(number)))))
    return f"{_rounded(number, places).normalize():f}"


@lru_cache
def _sections(code: str) -> list[str]:
    """The parts of a format for positive, negative, zero and text; semicolons in quotes do not part them."""
    return re.findall(r'((?:"[^"]*"|\\.|[^;"\\])*)(?:;|$)', code)[:-1] or [code]


@lru_cache
def _section(code: str, sign: int) -> tuple[list[Token] | None, bool]:
    """The tokens of the part for that sign, and whether it is a date; no tokens where Excel's general form applies."""
    parts = _sections(code)
    if sign > 0 or len(parts) == 1:
        part = parts[0]
    elif sign < 0 or len(parts) == 2:
        part = parts[1]
    else:
        part = parts[2]
    if re.search(r"General|@|\[[<>=]|[#0?] *[/?]", part, re.IGNORECASE):
        return None, False
    tokens = [(match.lastgroup, match[match.lastgroup]) for match in TOKEN.finditer(part) if match.lastgroup]
    return _with_minutes(tokens), any(kind in ("date", "elapsed") for kind, _ in tokens)


def _with_minutes(tokens: list[Token]) -> list[Token]:
    """The tokens, with an m that follows hours or comes before seconds told from one that is a month."""
    timed = [index for index, (kind, _) in enumerate(tokens) if kind in ("date", "elapsed")]
    letters = "".join(tokens[index][1][0].lower() for index in timed)
    told = list(tokens)
    for place, index in enumerate(timed):
        kind, text = tokens[index]
        between_hours_and_seconds = letters[:place].endswith("h") or letters[place + 1:].startswith("s")
        if kind == "date" and letters[place] == "m" and between_hours_and_seconds:
            told[index] = "minute", text
    return told


def _rounded(number: float, places: int) -> Decimal:
    # Excel rounds half away from zero what fifteen digits show.
    return Decimal(f"{number:.15g}").quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _number(number: float, tokens: list[Token]) -> str:
    scaled = number * 100 ** tokens.count(("plain", "%"))
    shown, has_digits = [], False
    for kind, text in tokens:
        if kind != "digits":
            shown.append(text)
        elif not has_digits:
            shown.append(_digits(scaled, text.upper()))
            has_digits = True
    return "".join(shown)


def _digits(number: float, pattern: str) -> str:
    mantissa, _, exponent = pattern.partition("E")
    whole, point, decimals = mantissa.rstrip(",").partition(".")
    if exponent:
        digits, power = f"{number:.{len(decimals)}E}".split("E")
        sign = "-" if int(power) < 0 else "+" if exponent[0] == "+" else ""
        return f"{digits}E{sign}{abs(int(power)):0{len(exponent) - 1}d}"
    thousands = len(mantissa) - len(mantissa.rstrip(","))
    text = f"{_rounded(number / 1000 ** thousands, len(decimals)):{',' if ',' in whole else ''}f}"
    integer, _, fraction = text.partition(".")
    least = len(decimals.rstrip("#?"))
    fraction = fraction[:least] + fraction[least:].rstrip("0")
    integer = "" if integer == "0" and "0" not in whole else integer.zfill(whole.count("0"))
    return integer + point + fraction


def _date(number: float, tokens: list[Token], epoch_1904: bool) -> str:
    first = datetime(1904, 1, 1) if epoch_1904 else datetime(1899, 12, 30 if number >= 60 else 31)
    finest = max((len(text) - 3 for kind, text in tokens if kind == "date" and "." in text), default=0)
    seconds = round(number * 86400, finest)
    try:
        moment = first + timedelta(seconds=seconds)
    except OverflowError:
        return general(number)
    if number < 0:
        return general(number)
    half_days = any(kind == "noon" for kind, _ in tokens)
    shown = []
    for kind, text in tokens:
        if kind == "date":
            shown.append(_date_field(text.lower(), moment, half_days))
        elif kind == "minute":
            shown.append(_padded(moment.minute, text))
        elif kind == "elapsed":
            shown.append(f"{int(seconds // SECONDS[text[0].lower()]):0{len(text)}d}")
        elif kind == "noon":
            morning, afternoon = text.split("/")
            shown.append(morning if moment.hour < 12 else afternoon)
        else:
            shown.append(text)
    return "".join(shown)


def _date_field(text: str, moment: datetime, half_days: bool) -> str:
    """What one run of equal letters shows of a moment."""
    match text[0]:
        case "y":
            return f"{moment.year:04d}" if len(text) > 2 else f"{moment.year % 100:02d}"
        case "m":
            return _named(moment.strftime("%B"), text) if len(text) > 2 else _padded(moment.month, text)
        case "d":
            return _named(moment.strftime("%A"), text) if len(text) > 2 else _padded(moment.day, text)
        case "a":
            return ("星期" if len(text) == 4 else "") + WEEKDAYS[moment.weekday()]
        case "h":
            return _padded((moment.hour - 1) % 12 + 1 if half_days else moment.hour, text)
        case "s":
            whole, point, decimals = text.partition(".")
            return _padded(moment.second, whole) + point + f"{moment.microsecond:06d}"[:len(decimals)]


def _padded(value: int, text: str) -> str:
    return f"{value:0{min(2, len(text))}d}"


def _named(name: str, text: str) -> str:
    """An English month or weekday: mmm is Jan, mmmm is January, mmmmm is J."""
    if len(text) == 4:
        return name
    return name[:1] if len(text) == 5 else name[:3]
