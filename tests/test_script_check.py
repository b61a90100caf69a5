"""A script to convert or to split: what is wrong with it is said, by row and by trap, and what is right passes."""
import json
import re

import psutil
import pytest

from helpers.data import script_run, trap_sheet
from helpers.data.script_check import check_convert, check_split
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine.commands import CourseError
from helpers.machine.profile import ROOT
from tests.test_notebooks import LESSONS

CALL_THE_COURSE = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"


def scripts_of(lessons):
    """The scripts that the lessons' cells write, by name."""
    scripts = {}
    for path in lessons:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            first, _, body = "".join(cell["source"]).partition("\n")
            if first.startswith("%%writefile"):
                name = first.rpartition("/")[2]
                scripts[name] = scripts.get(name, "") + body + "\n"
    return scripts


SCRIPTS = scripts_of(LESSONS[:3])
CONVERT, SPLIT = SCRIPTS["convert_mended.py"], SCRIPTS["split_mended.py"]


@pytest.fixture
def script(tmp_path):
    """Makes a script of this text."""
    def make(text):
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        return path
    return make


@pytest.fixture
def convert_faults(script):
    return lambda text, **more: check_convert(script(text), EXAM_SYSTEM, **more).faults


@pytest.fixture
def split_faults(script):
    return lambda text, **more: check_split(script(text), **more).faults


def changed(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


# Converting


@pytest.mark.parametrize("seed", [1, 2])
def test_what_the_course_does_itself_is_right(convert_faults, split_faults, seed):
    assert convert_faults(CALL_THE_COURSE + f"""
from helpers.data.convert import convert
from helpers.data.readers import Layout
convert(sys.argv[1], sys.argv[2], {EXAM_SYSTEM!r}, Layout("题目", "答案"))
""", seed=seed) == []
    assert split_faults(CALL_THE_COURSE + """
from helpers.data.split import read_samples, split_by_group, write_samples
for part, path in zip(split_by_group(read_samples(sys.argv[1])), sys.argv[2:]):
    write_samples(part, path)
""", seed=seed) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_the_mended_scripts_of_the_lessons_are_right(convert_faults, split_faults, seed):
    assert convert_faults(CONVERT, seed=seed) == []
    assert split_faults(SPLIT, seed=seed) == []


@pytest.mark.parametrize(("old", "new", "trap", "told"), [
    (r"[\t\r\n ]+", r"[\t ]+", "换行", r"写成了 '.*\\n"),
    (r"[\t\r\n ]+", r"[\r\n ]+", "制表符", r"写成了 '.*\\t"),
    ('[，。？！（）一-龥]) (?=', '[0]) (?=', "换行 制表符 多余的空格", "写成了"),
    ('", text).strip()', '", text)', "开头的全角空格", r"写成了 '\\u3000"),
    (".translate(HALF_WIDTH)", "", "全角字母和数字", "写成了 'ＤＮＡ"),
    ('" ", text.translate', '"", text.translate', "英文单词之间的空格", "写成了 'WorldWideWeb"),
    ("text.translate(HALF_WIDTH))", r"text.translate(HALF_WIDTH).replace('\u3000', ''))", "要填的空", "是（）"),
    ('"output": answer}', '"output": int(answer) if len(answer) == 1 and answer in "04" else answer}', "数字 答案是零",
     r"写成了 (\d)，应该是 '\1'"),
    ('"" if value is None', '"" if not value', "答案是零", "没有写出，应该是.*'0'"),
    ("else str(value)", 'else str(value).lstrip("0") or "0"', "存成文字的数字", "写成了 '371'，应该是 '0371'"),
    ("0{len(form)}", "", "数字格式", "写成了 '7'，应该是 '007'"),
    ('form.endswith("%")', "False", "百分数", "写成了 '0.209'，应该是 '20.9%'"),
    ("isinstance(value, datetime)", "False", "日期", "写成了 '1949-10-01 00:00:00'"),
    (", data_only=True", "", "公式", r"写成了 '=24\*60'，应该是 '1440'"),
    ("list(sheet.merged_cells.ranges)", "[]", "合并单元格", "没有写出，应该是问题 '四大发明"),
    ("if question and answer and", "if question and", "没有答案", "不该写出，却写出了.*答案 ''"),
    ("if question and answer and", "if bool(question) == bool(answer) and", "空行", "不该写出，却写出了问题 ''"),
    ("if question and answer and", 'if question and answer and ((question, answer) not in vars().setdefault("seen", [])'
     " and not seen.append((question, answer))) and", "重复的题", "没有写出"),
    (" and not sheet.row_dimensions[row].hidden", "", "隐藏的行", "不该写出"),
    ('sheet.sheet_state == "visible"', "True", "隐藏的工作表", "读的是隐藏的工作表"),
])
def test_a_script_that_falls_into_a_trap_is_told_which_and_what_came(convert_faults, old, new, trap, told):
    faults = convert_faults(changed(CONVERT, old, new))
    assert all(re.search(told, fault) for fault in faults)
    named = [re.search("（(.+?)）", fault)[1] if "第" in fault[:1] else "隐藏的工作表" for fault in faults]
    assert sorted(set(named)) == sorted(trap.split())


def test_every_trap_is_in_the_sheet_and_in_lesson_01():
    lesson = LESSONS[1].read_text(encoding="utf-8")
    in_sheet = {row.trap for block in trap_sheet.blocks() for row in [*block, *trap_sheet.OLD_ROWS]}
    assert in_sheet - {trap_sheet.NO_TRAP} == set(trap_sheet.TRAPS)
    assert [trap for trap in trap_sheet.TRAPS if trap not in lesson] == []


def test_another_seed_makes_another_sheet_and_the_same_seed_the_same():
    assert trap_sheet.blocks(1) == trap_sheet.blocks(1) != trap_sheet.blocks(2)


def test_the_row_that_stops_a_script_is_named_and_the_others_are_looked_at_all_the_same(convert_faults):
    faults = convert_faults(SCRIPTS["convert_draft.py"])
    number = next(block[0].number for block in trap_sheet.blocks() if block[0].trap == "日期")
    assert faults[0].startswith(f"第 {number} 行（日期）：脚本第 17 行出错：TypeError")
    rows = [re.match(r"第 (\d+) 行（(.+?)）", fault) for fault in faults]
    named = {row[2] for row in rows if row}
    harmless = {"英文单词之间的空格", "要填的空", "存成文字的数字", "重复的题", "隐藏的工作表"}
    assert named == set(trap_sheet.TRAPS) - harmless
    assert not any("多出一个样本" in fault for fault in faults)
    assert any("JSON 数组" in fault for fault in faults)
    assert any('第 16 行打开文件时没有写 encoding="utf-8"' in fault for fault in faults)


def test_a_row_that_spoils_the_file_is_named(convert_faults):
    faults = convert_faults(changed(CONVERT, 'json.dumps({"conversation": [turn]}, ensure_ascii=False)',
                                    """'{"conversation": [{"system": "%s", "input": "%s", "output": "%s"}]}' % (
                turn["system"], turn["input"].replace("Web", '"Web"'), turn["output"])"""))
    assert len(faults) == 1
    assert re.match(r"第 \d+ 行（英文单词之间的空格）：samples.jsonl 第 \d+ 行不是完整的 JSON", faults[0])


def test_samples_that_the_sheet_does_not_have_are_told(convert_faults):
    text = CONVERT + '\n\nwith open(sys.argv[2], "a", encoding="utf-8") as file:\n    file.write(json.dumps(' \
        '{"conversation": [{"system": turn["system"], "input": "编的", "output": "假的"}]}) + "\\n")\n'
    assert convert_faults(text) == ["多出一个样本，表里没有这一行：问题 '编的'，答案 '假的'"]


def test_another_system_prompt_is_told_once(convert_faults):
    (fault,) = convert_faults(changed(CONVERT, EXAM_SYSTEM, "你是一名助手。"))
    assert "'你是一名助手。'" in fault
    assert EXAM_SYSTEM in fault


# Splitting


def test_the_draft_of_lesson_02_leaks_cannot_be_repeated_and_writes_arrays(split_faults):
    faults = "\n".join(split_faults(SCRIPTS["split_draft.py"]))
    for told in ("泄漏：60 道测试题里有", "结果不一样", "train.jsonl 整个是一个 JSON 数组",
                 "test.jsonl 整个是一个 JSON 数组", "第 5、9 行打开文件时没有写 encoding"):
        assert told in faults


@pytest.mark.parametrize(("old", "new", "told"), [
    ("(key(sample)", "(str(sample)", "泄漏：.*“[^ ]+加[^ ]+等于多少”"),
    ("(key(sample)", "(len(groups)", "泄漏：60 道测试题里有"),
    ("random.Random(42)", "random", "结果不一样"),
    ("list(groups.values())", "[groups[name] for name in set(groups)]", "结果不一样"),
    ("groups.setdefault(key(sample), []).append(sample)", "groups[key(sample)] = [sample]", "丢了 60 个样本，例如"),
    ("json.loads, file", "json.loads, list(file) * 2", "多出 200 个样本，例如"),
    ("0.3 * sum", "0.1 * sum", "训练 1[78].，测试 2.：测试占 1.%，应该在 30% 左右"),
    ('+ "\\n"', '+ ","', "train.jsonl 第 1 行不是完整的 JSON"),
    ('open(name, "w", encoding="utf-8")', 'open(name, "w", encoding="gb18030")', "train.jsonl 不是 UTF-8"),
    ("json.dumps(sample, ensure_ascii=False)", 'json.dumps(sample["conversation"])', "JSON"),
])
def test_each_promise_that_a_split_breaks_is_told(split_faults, old, new, told):
    (fault,) = split_faults(changed(SPLIT, old, new))
    assert re.search(told, fault)


# Running


@pytest.mark.parametrize(("text", "told"), [
    ("import sys\nsys.exit('不想写')", "脚本以退出码 1 结束：不想写"),
    ("print('写好了'", "脚本第 1 行出错：SyntaxError"),
    ("import sys\nopen('out.jsonl', 'wb').close()",
     "没有写出 samples.jsonl，却写出了 out.jsonl：文件名要从命令行取（python mine.py sheet.xlsx samples.jsonl）"),
    ("pass", "没有写出 samples.jsonl：文件名要从命令行取"),
    ("input()", "EOFError"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "脚本被系统结束（SIGKILL）"),
    ("x = bytearray(6 * 2**30)", "脚本第 1 行出错：MemoryError"),
    ("import sys\nwith open(sys.argv[2], 'wb') as file:\n    while True:\n        file.write(bytes(10**6))",
     "File too large"),
    ("while True:\n    print('没完没了' * 10**5)", "脚本以退出码 120 结束：没完没了"),
    ("import os, sys\nsys.exit(' '.join(sorted(os.listdir())))", "结束：mine.py sheet.xlsx"),
    ("import os, sys\nsys.exit(os.environ.get('SECRET', '看不见'))", "结束：看不见"),
    ("import sys\nopen(sys.argv[2], 'wb').write(b'{\"question\": 1}\\n')",
     'samples.jsonl 的第 1 个样本不是 {"conversation"'),
])
def test_a_script_that_leaves_nothing_to_judge_is_answered_in_one_sentence(convert_faults, monkeypatch, text, told):
    monkeypatch.setenv("SECRET", "看见了")
    (fault,) = convert_faults(text)
    assert told in fault
    assert len(fault) < 400


@pytest.mark.parametrize(("text", "bound", "least", "told"), [
    ("import time\ntime.sleep(1000)", "SECONDS", 1, "等了 1 秒还没有结束"),
    ("while True:\n    pass", "BOUNDED", ("prlimit", "--cpu=1:60", "--"), "秒还没有结束，被停了下来"),
])
def test_a_script_without_end_is_ended(convert_faults, monkeypatch, text, bound, least, told):
    monkeypatch.setattr(script_run, bound, least)
    (fault,) = convert_faults(text)
    assert told in fault


def test_what_a_script_leaves_running_is_ended_too(convert_faults):
    convert_faults("import subprocess\nsubprocess.Popen(['sleep', '98765'])")
    assert not [running for running in psutil.process_iter(["cmdline"])
                if running.info["cmdline"] == ["sleep", "98765"]]


def test_a_script_that_is_not_there_is_asked_for(tmp_path):
    with pytest.raises(CourseError, match="找不到脚本 .*没有.py：请先把它存成文件"):
        check_split(tmp_path / "没有.py")


def test_a_verdict_is_read_at_a_glance(script):
    assert repr(check_split(script(SPLIT))) == "mine.py：对（200 个样本，其中 60 个的题和别的重复）"
    lines = repr(check_split(script("pass"))).splitlines()
    assert lines[0] == "mine.py：不对，有 1 处（200 个样本，其中 60 个的题和别的重复）"
    assert lines[1].startswith("  没有写出 train.jsonl、test.jsonl：")
