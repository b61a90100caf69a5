"""Lessons 01 and 02: whether a script that someone, or a chat model, wrote converts and splits as it should."""
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.data import trap_sheet
from helpers.data.convert import convert
from helpers.data.readers import read
from helpers.data.script_run import Broke, line, read_json_lines, run
from helpers.data.split import leaks, question_key, read_samples, text_key, write_samples
from helpers.data.trap_sheet import Row
from helpers.machine import process
from helpers.machine.commands import CourseError

SHEET, SAMPLES = "sheet.xlsx", "samples.jsonl"
ALL, TRAIN, TEST = "all.jsonl", "train.jsonl", "test.jsonl"
TEST_SHARE, TOLERANCE = 0.3, 0.03
DIFFERENT, AGAIN, REWORDED = 140, 40, 20
FIELDS = {"input": "问题", "output": "答案"}
NOTHING = ("", "None", "nan", "NaT")  # an empty cell, as Python and pandas write it

Turn = dict[str, object]  # the only turn of a sample, in XTuner's fields


@dataclass(frozen=True, repr=False)
class Verdict:
    """What is wrong with a script on what it was tried on, a sentence each; nothing if it is right."""

    script: str
    tried_on: str
    faults: list[str]

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __repr__(self) -> str:
        result = "对" if self.right else f"不对，有 {len(self.faults)} 处"
        return "\n  ".join([f"{self.script}：{result}（{self.tried_on}）", *self.faults])


def check_convert(script: str | Path, system: str, seed: int = 42) -> Verdict:
    """What a script called as `python SCRIPT SHEET.xlsx SAMPLES.jsonl` makes of a sheet of traps, against `convert`."""
    blocks = trap_sheet.blocks(seed)
    tried_on = f"一张 {sum(map(len, blocks))} 行的表，{len(trap_sheet.TRAPS)} 种陷阱"
    return Verdict(Path(script).name, tried_on, _convert_faults(_existing(script), blocks, system))


def check_split(script: str | Path, seed: int = 42) -> Verdict:
    """Whether a script called as `python SCRIPT ALL.jsonl TRAIN.jsonl TEST.jsonl` splits as lesson 02 does."""
    samples = _sums_asked_again(seed)
    tried_on = f"{len(samples)} 个样本，其中 {AGAIN + REWORDED} 个的题和别的重复"
    return Verdict(Path(script).name, tried_on, _split_faults(_existing(script), samples))


def _existing(script):
    if not Path(script).is_file():
        raise CourseError(f"找不到脚本 {process.shown(script)}：请先把它存成文件，或者检查路径。")
    return Path(script).resolve()


# Converting


def _convert_faults(script: Path, blocks: list[list[Row]], system: str) -> list[str]:
    """A sentence for each fault; traps that break the script are looked for, told and left out of the next try."""
    rows = list(chain(*blocks))
    try:
        turns, faults, expected = _convert_with(script, rows, system)
    except Broke as error:
        plain = [row for row in rows if row.trap == trap_sheet.NO_TRAP]
        breaking = [] if _breaks(script, plain, system) else _breaking(script, blocks, plain, system)
        if not breaking:
            return [str(error)]
        told = [f"{_place(block[-1])}：{why}" for block, why in breaking]
        others = [block for block in blocks if block not in [block for block, _ in breaking]]
        return told + _convert_faults(script, others, system)
    other_systems = {str(turn["system"]) for turn in turns} - {system}
    if other_systems:
        faults.append(f"系统提示词写成了 {'、'.join(map(repr, sorted(other_systems)))}，应该是 {system!r}")
    return faults + _row_faults(rows, expected, turns)


def _breaking(script: Path, blocks: list[list[Row]], plain: list[Row], system: str) -> list[tuple[list[Row], str]]:
    """The traps that break a script, each alone among plain rows, and why."""
    why = _breaks(script, [*plain, *chain(*blocks)], system)
    if not why:
        return []
    if len(blocks) == 1:
        return [(blocks[0], why)]
    half = len(blocks) // 2
    return _breaking(script, blocks[:half], plain, system) + _breaking(script, blocks[half:], plain, system)


def _breaks(script: Path, rows: Sequence[Row], system: str) -> str:
    """Why a script breaks on these rows; nothing if it does not."""
    try:
        _convert_with(script, rows, system)
    except Broke as error:
        return str(error)
    return ""


def _convert_with(script: Path, rows: Sequence[Row], system: str) -> tuple[list[Turn], list[str], dict[int, Turn]]:
    """What a script makes of these rows, what is wrong with its run and its file, and by place what `convert` makes."""
    with TemporaryDirectory() as folder:
        sheet, target = Path(folder) / SHEET, Path(folder) / SAMPLES
        trap_sheet.write(rows, sheet)
        report = convert(sheet, target, system, trap_sheet.LAYOUT)
        places = [sample.place for sample in read(sheet, trap_sheet.LAYOUT)[1]]
        written = [place for place in places if place not in report.empty + report.hidden]
        expected = dict(zip(written, _turns(read_samples(target))))
        contents, faults = run(script, sheet, [SAMPLES])
    (samples,), form_faults = read_json_lines({SAMPLES: contents[0]})
    return _turns(samples), faults + form_faults, expected


def _turns(samples: Sequence[dict]) -> list[Turn]:
    return [sample["conversation"][0] for sample in samples]


def _row_faults(rows: Sequence[Row], expected: dict[int, Turn], turns: Sequence[Turn]) -> list[str]:
    """A sentence for each row that arrived otherwise than `convert` writes it."""
    wanted = [expected.get(place) for place in range(2, len(rows) + 2)] + [None] * len(trap_sheet.OLD_ROWS)
    rows = [*rows, *trap_sheet.OLD_ROWS]
    arrived, invented = _by_row(rows, wanted, turns)
    if arrived and all(rows[index].trap == trap_sheet.HIDDEN_SHEET for index in arrived):
        return [f"读的是隐藏的工作表“{trap_sheet.OLD_SHEET}”，应该读第一张看得见的"]
    faults = [_row_fault(row, wanted[index], arrived.get(index)) for index, row in enumerate(rows)]
    faults += [f"多出一个样本，表里没有这一行：{_shown(turn)}" for turn in invented]
    return [fault for fault in faults if fault]


def _by_row(rows: Sequence[Row], wanted: Sequence[Turn | None],
            turns: Sequence[Turn]) -> tuple[dict[int, Turn], list[Turn]]:
    """The turns by the index of the row that they came from, known by what they say; and the turns of no row."""
    known = [turn or {"input": row.question, "output": row.answer} for row, turn in zip(rows, wanted)]
    arrived, left = {}, list(turns)
    for fields in (["input", "output"], ["input"], ["output"]):
        free = {}
        for index, row in enumerate(known):
            if index not in arrived:
                free.setdefault(_key(row, fields), []).append(index)
        free.pop(("",), None)  # one empty cell is like another
        for turn in list(left):
            if same := free.get(_key(turn, fields)):
                arrived[same.pop(0)] = turn
                left.remove(turn)
    return arrived, left


def _key(turn: Turn, fields: Sequence[str]) -> tuple[str, ...]:
    """What a turn says in those fields, whatever its dirt and types."""
    texts = [str(turn[field]) for field in fields]
    return tuple("" if text in NOTHING else text_key(text) for text in texts)


def _row_fault(row: Row, wanted: Turn | None, arrived: Turn | None) -> str:
    """What is wrong with a row; nothing if it arrived as it should."""
    if wanted is None:
        return f"{_place(row)}：不该写出，却写出了{_shown(arrived)}" if arrived else ""
    if arrived is None:
        return f"{_place(row)}：没有写出，应该是{_shown(wanted)}"
    wrong = [f"{name}写成了 {arrived[field]!r}，应该是 {wanted[field]!r}"
             for field, name in FIELDS.items() if arrived[field] != wanted[field]]
    return f"{_place(row)}：{'；'.join(wrong)}" if wrong else ""


def _place(row: Row) -> str:
    return f"第 {row.number} 行（{row.trap}）"


def _shown(turn: Turn) -> str:
    return "，".join(f"{name} {turn[field]!r}" for field, name in FIELDS.items())


# Splitting


def _sums_asked_again(seed: int) -> list[dict]:
    """Samples of sums; some come twice in the same words, some with other spaces and punctuation."""
    rng = random.Random(seed)
    sums = rng.sample([(first, second) for first in range(10, 60) for second in range(10, 60)], DIFFERENT)
    asked = [(f"{first} 加 {second} 等于多少？", first + second) for first, second in sums]
    reworded = [(f"{first}加{second}等于多少", first + second) for first, second in sums[AGAIN:AGAIN + REWORDED]]
    samples = [{"conversation": [{"system": "你是一名算术老师。", "input": question, "output": str(answer)}]}
               for question, answer in asked + asked[:AGAIN] + reworded]
    return rng.sample(samples, len(samples))


def _split_faults(script: Path, samples: list[dict]) -> list[str]:
    """A sentence for each promise of a split that is broken."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / ALL
        write_samples(samples, source)
        try:
            contents, faults = run(script, source, [TRAIN, TEST])
            again, _ = run(script, source, [TRAIN, TEST])
            (train, test), form_faults = read_json_lines(dict(zip([TRAIN, TEST], contents)))
        except Broke as error:
            return [str(error)]
    faults += form_faults
    if contents != again:
        faults.append("同一条命令运行两次，结果不一样：没有写死随机种子，或者照着集合（set）的次序来")
    given, written = Counter(map(line, samples)), Counter(map(line, train + test))
    if lost := list((given - written).elements()):
        faults.append(f"丢了 {len(lost)} 个样本，例如 {lost[0]}")
    if invented := list((written - given).elements()):
        faults.append(f"多出 {len(invented)} 个样本，例如 {invented[0]}")
    share = len(test) / max(1, len(train + test))
    if abs(share - TEST_SHARE) > TOLERANCE:
        faults.append(f"训练 {len(train)}，测试 {len(test)}：测试占 {share:.0%}，应该在 {TEST_SHARE:.0%} 左右")
    train, test = ([sample for sample in part if line(sample) in given] for part in (train, test))
    if leaked := leaks(train, test):
        key = question_key(leaked[0])
        twin = next(sample for sample in train if question_key(sample) == key)
        faults.append(f"泄漏：{len(test)} 道测试题里有 {len(leaked)} 道训练时见过，"
                      f"例如测试集有“{_question(leaked[0])}”，训练集有“{_question(twin)}”")
    return faults


def _question(sample: dict) -> str:
    return sample["conversation"][0]["input"]
