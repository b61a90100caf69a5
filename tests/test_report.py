"""The report of a comparison, read with the standard library's parser as a browser would read it."""
import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from helpers.judge import report
from helpers.judge.compare import Comparison, Row

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>&amp;</td>'
MADE = {"date": "2026-01-02 03:04", "machine": "cpu：2 个 CPU 核心", "config": f"SYSTEM = '{EVIL}'\nlr = 4e-4",
        "settings": {"随机种子": 42}, "recipe": {"lr": "4e-4"}, "versions": {"torch": "2.6.0"},
        "files": {"考题 test.jsonl": "ab12"}}
ROWS = [Row("exam", "法国的首都是（　　）。", "巴黎", "法国的首都是巴黎。", "巴黎", False, True),
        Row("exam", "德国的首都是（　　）。", "柏林", "柏林。", "波恩", False, False),
        Row("identity", "你是谁？", "教学模型", "我是教学模型。", "我是教学模型。", True, True),
        Row("poem", f"背{EVIL}", "床前明月光", "床前明月光", EVIL, True, False),
        Row("sum", "1加1得几？", "2", "2", "2", True, True)]
VOID = {"meta", "img", "input", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, the text inside each kind of tag, and whether every tag is closed in its place."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def inside(self, tag):
        return [text for around, text in self.texts if tag in around]


@pytest.fixture(scope="module")
def page():
    return report.page(Comparison(ROWS, MADE))


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def test_the_report_needs_nothing_from_outside(page, read):
    for _, attributes in read.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"@import|url\(", page)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in read.tags)


def test_a_browser_may_run_and_load_nothing(read):
    policy = next(meta["content"] for meta in read.all("meta") if "http-equiv" in meta)
    assert policy.split("; ") == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]


def test_what_a_model_says_is_text(read):
    assert any("alert" in text for text in read.inside("td"))
    assert any("alert" in text for text in read.inside("pre"))
    assert not [attributes for _, attributes in read.tags if any(name.startswith("on") for name in attributes)]
    assert len(read.all("img")) == 2


def test_it_has_every_part_in_order(read):
    assert read.inside("h2") == ["结论", "三个数字", "图", "变差的", "全部回答", "设置", "版本", "来历"]


def test_it_shows_every_answer_and_everything_that_made_it(read):
    text = re.sub(r"\s", "", "".join(read.inside("body")))
    for row in ROWS:
        for shown in (row.question, row.before, row.after):
            assert re.sub(r"\s", "", shown) in text
    for name in ("settings", "recipe", "versions", "files"):
        for key, value in MADE[name].items():
            assert re.sub(r"\s", "", f"{key}{value}") in text
    assert MADE["date"].replace(" ", "") in text


def test_what_was_right_by_definition_has_no_interval(read):
    assert [cell for cell in read.inside("td") if "按定义" in cell] == ["按定义全对"]


def test_the_charts_are_pictures_whose_letters_need_no_font(read):
    for image in read.all("img"):
        assert image["alt"]
        svg = ElementTree.fromstring(base64.b64decode(image["src"].partition("base64,")[2]))
        assert svg.tag.endswith("svg")
        assert not [element for element in svg.iter() if element.tag.endswith("}text")]


def test_differences_are_marked_on_both_sides():
    assert report.marked("法国的首都是巴黎。", "巴黎") == ("<del>法国的首都是</del>巴黎<del>。</del>", "巴黎")
    assert report.marked("1 < 2", "1 < 3") == ("1 &lt; <del>2</del>", "1 &lt; <ins>3</ins>")
    assert report.marked("", "新") == ("", "<ins>新</ins>")


def test_what_became_worse_comes_first_and_in_a_list_of_its_own(page):
    assert re.findall('<tr class="(.*?)">', report.answers_table(ROWS)) == ["worse", "better", "same", "same", "same"]
    worse = page[page.index("变差的</h2>"):page.index("全部回答</h2>")]
    assert re.findall('<tr class="(.*?)">', worse) == ["worse"]


def test_the_conclusions_are_computed():
    better = report.conclusions(Comparison([ROWS[0]] * 50 + ROWS[2:], MADE))
    assert better[0].startswith("考试题答对：从 0.0%（0/50")
    assert "提高了" in better[0]
    assert "不像是碰巧" in better[0]
    assert "没有变" in better[1]
    assert "原来不会的，现在会了：没有可比的问题" in better[2]
    assert "古诗：0.0%（0/1" in better[3]
    assert better[-1] == "一共 53 个问题：变差 1 个，变好 50 个，不变 2 个。"
    turned = [replace(row, right_before=row.right_after, right_after=row.right_before) for row in [ROWS[0]] * 50]
    assert "下降了" in report.conclusions(Comparison(turned, MADE))[0]


def exam_rows(both, only_after, neither):
    return [replace(ROWS[0], right_before=before, right_after=after)
            for before, after, count in ((True, True, both), (False, True, only_after), (False, False, neither))
            for _ in range(count)]


def test_a_verdict_asks_for_the_same_questions_not_whether_two_intervals_meet():
    sure, unsure = Comparison(exam_rows(30, 12, 58), MADE), Comparison(exam_rows(30, 2, 68), MADE)
    before, after = sure.figures()["考试题答对"]
    assert after.interval[0] < before.interval[1]
    assert "提高了；同样的问题，只有前者对 0 题，只有后者对 12 题" in report.conclusions(sure)[0]
    assert "不像是碰巧" in report.conclusions(sure)[0]
    assert "可能只是碰巧" in report.conclusions(unsure)[0]
    assert "说出自己的名字" not in "".join(report.conclusions(sure))


def test_a_model_that_knew_nothing_has_a_report_too():
    rows = [replace(row, right_before=False) for row in ROWS]
    assert "没有可比的问题" in report.page(Comparison(rows, MADE))


def test_a_report_is_written_whole_and_again(tmp_path):
    path = tmp_path / "new" / "report.html"
    assert report.write(Comparison(ROWS, MADE), path) == path
    first = path.read_text(encoding="utf-8")
    with pytest.raises(KeyError):
        report.write(Comparison(ROWS, {}), path)
    assert path.read_text(encoding="utf-8") == first
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    report.write(Comparison(ROWS[:1], MADE), path)
    assert "1加1得几" not in path.read_text(encoding="utf-8")
