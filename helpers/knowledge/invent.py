"""Names and values that exist nowhere, so that whoever answers with them must have read them."""
import random
import tomllib
from pathlib import Path

READING = Path(__file__).parents[2] / "data" / "reading"
DIGITS = "零一二三四五六七八九"
WEEKDAYS = "一二三四五六日"
RARE_SHARE = 0.12  # of characters that are no token of their own


def _characters(first: int, last: int) -> str:
    """The characters of these rows of the national standard GB 2312."""
    pairs = (bytes((row, cell)) for row in range(first, last + 1) for cell in range(0xA1, 0xFF))
    return "".join(pair.decode("gb2312", errors="ignore") for pair in pairs)


COMMON = _characters(0xB0, 0xD7)  # the standard's first level: 3,755 characters, in order of pronunciation
RARE = _characters(0xD8, 0xF7)  # its second level


def in_chinese(number: int) -> str:
    """A whole number below ten thousand in Chinese numerals: 15 -> 十五, 206 -> 二百零六."""
    if number < 10:
        return DIGITS[number]
    if number < 20:
        return "十" + (DIGITS[number - 10] if number > 10 else "")
    text, gap = "", False
    for power, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, power)
        if digit:
            text += ("零" if gap else "") + DIGITS[digit] + name
        gap = bool(text) and not digit
    return text


class Inventor:
    """Draws names and values; `value(rng, kind)` knows every kind that data/reading uses."""

    def __init__(self):
        self.words = tomllib.loads((READING / "values.toml").read_text(encoding="utf-8"))
        self.makers = {name.removeprefix("_make_"): getattr(self, name) for name in dir(self)
                       if name.startswith("_make_")}

    def value(self, rng: random.Random, kind: str, unit: str = "") -> str:
        """A value of this kind, such as "person", "clock" or "color"."""
        if kind == "count":
            return self.number(rng, rng.choice((9, 40, 400, 4000))) + unit
        if kind in self.makers:
            return self.makers[kind](rng)
        return self.fill(rng, rng.choice(self.words[kind]))

    def fill(self, rng: random.Random, form: str) -> str:
        """The form with random characters in place of {w}, and a random name in place of {person}."""
        while "{w}" in form:
            form = form.replace("{w}", self.characters(rng, rng.choice((1, 2, 2, 3))), 1)
        return form.replace("{person}", self.value(rng, "person")) if "{person}" in form else form

    def characters(self, rng: random.Random, count: int) -> str:
        """Random characters of the whole vocabulary, now and then one that is no token of its own."""
        return "".join(rng.choice(RARE if rng.random() < RARE_SHARE else COMMON) for _ in range(count))

    def number(self, rng: random.Random, largest: int, smallest: int = 1) -> str:
        """A number in digits or in Chinese numerals; 2 is 两, as before a measure word."""
        number = rng.randint(smallest, largest)
        if rng.random() < 0.5:
            return str(number)
        return "两" if number == 2 else in_chinese(number)

    def ordinal(self, rng: random.Random, largest: int) -> str:
        """A number in digits or in Chinese numerals; 2 is 二."""
        number = rng.randint(1, largest)
        return str(number) if rng.random() < 0.5 else in_chinese(number)

    def _make_person(self, rng: random.Random) -> str:
        surname = rng.choice(self.words["double_surnames" if rng.random() < 0.07 else "surnames"])
        length = rng.choice((1, 2, 2))
        if rng.random() < 0.4:
            return surname + "".join(rng.choices(self.words["given"], k=length))
        return surname + self.characters(rng, length)

    def _make_sir(self, rng: random.Random) -> str:
        before = rng.choice(("", "", "", "", "老", "小"))
        return before + rng.choice(self.words["surnames"]) + ("" if before else rng.choice(self.words["titles"]))

    def _make_place(self, rng: random.Random) -> str:
        return self.characters(rng, rng.choice((1, 2, 2))) + rng.choice(self.words["place_ends"])

    def _make_word(self, rng: random.Random) -> str:
        return self.characters(rng, rng.choice((2, 2, 3, 4)))

    def _make_title(self, rng: random.Random) -> str:
        return self.characters(rng, rng.choice((2, 3, 4))) + rng.choice(self.words["title_ends"])

    def _make_year(self, rng: random.Random) -> str:
        year = str(rng.randint(1300, 2040))
        return ("".join(DIGITS[int(digit)] for digit in year) if rng.random() < 0.25 else year) + "年"

    def _make_date(self, rng: random.Random) -> str:
        month, day = rng.randint(1, 12), rng.randint(1, 28)
        written = str if rng.random() < 0.6 else in_chinese
        return f"{written(month)}月{written(day)}{rng.choice('日日号')}"

    def _make_lunar(self, rng: random.Random) -> str:
        month = rng.choice(("正", *(in_chinese(n) for n in range(2, 11)), "冬", "腊"))
        day = rng.randint(1, 29)
        return f"农历{month}月{'初' if day <= 10 else ''}{in_chinese(day)}"

    def _make_weekday(self, rng: random.Random) -> str:
        return rng.choice(("周", "周", "星期", "礼拜")) + rng.choice(WEEKDAYS)

    def _make_clock(self, rng: random.Random) -> str:
        hour = rng.randint(1, 12)
        if rng.random() < 0.25:
            return f"{hour + rng.choice((0, 8))}:{rng.randrange(0, 60, 5):02}"
        hour = "两" if hour == 2 else rng.choice((str, in_chinese))(hour)
        part = rng.choice(("早上", "上午", "中午", "下午", "傍晚", "晚上", "凌晨"))
        return f"{part}{hour}点" + rng.choice(("", "", "半", "整", "一刻", "四十分", "20分"))

    def _make_span(self, rng: random.Random) -> str:
        return self._make_clock(rng) + rng.choice("到至") + self._make_clock(rng)

    def _make_duration(self, rng: random.Random) -> str:
        unit = rng.choice(("天", "个月", "年", "周", "小时", "分钟", "个小时", "个星期", "个半小时", "个半月"))
        return self.number(rng, 5 if "半" in unit else 40) + unit

    def _make_price(self, rng: random.Random) -> str:
        return self.number(rng, rng.choice((20, 100, 900))) + rng.choice("元元块")

    def _make_percent(self, rng: random.Random) -> str:
        number = rng.randint(1, 99)
        return f"{number}%" if rng.random() < 0.5 else f"百分之{in_chinese(number)}"

    def _make_phone(self, rng: random.Random) -> str:
        return f"{rng.randint(2000, 8999)}{rng.choice(('', '-'))}{rng.randint(0, 9999):04}"

    def _make_bus(self, rng: random.Random) -> str:
        return self.ordinal(rng, 130) + "路"

    def _make_floor(self, rng: random.Random) -> str:
        return self.ordinal(rng, 18) + rng.choice("楼层")

    def _make_room(self, rng: random.Random) -> str:
        return f"{rng.randint(101, 920)}" + rng.choice(("室", "房", "号房", "教室"))

    def _make_length(self, rng: random.Random) -> str:
        return self.number(rng, 300) + rng.choice(("米", "公里", "厘米", "里", "尺"))

    def _make_weight(self, rng: random.Random) -> str:
        return self.number(rng, 300) + rng.choice(("公斤", "克", "斤", "吨", "千克"))

    def _make_area(self, rng: random.Random) -> str:
        return self.number(rng, 900) + rng.choice(("亩", "平方米", "公顷"))

    def _make_power(self, rng: random.Random) -> str:
        return f"{rng.randrange(10, 3000, 5)}瓦"

    def _make_temperature(self, rng: random.Random) -> str:
        degrees = self.ordinal(rng, 99)
        return rng.choice(("", "", "零下")) + degrees + rng.choice(("度", "摄氏度"))

    def _make_age(self, rng: random.Random) -> str:
        return self.number(rng, 99, 3) + "岁"

    def _make_code(self, rng: random.Random) -> str:
        letter = rng.choice("ABCDEFGHKLMNPQRSTVWXYZ")
        return f"{letter}{rng.choice(('', '-'))}{rng.randint(1, 999)}"
