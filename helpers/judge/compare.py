"""Lesson 08: the same questions to the model before and after, and what changed, in three figures.

python -m helpers.judge.compare [--before FOLDER] [--after FOLDER] [--out FOLDER]   prints them and writes a report.
"""
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.ask import models
from helpers.data.split import read_samples
from helpers.judge import report
from helpers.judge.provenance import provenance
from helpers.judge.shares import Pair, Share
from helpers.knowledge.corpus import SELF_NAME, Corpus, Question
from helpers.knowledge.facts import right_names
from helpers.machine import commands, profile
from helpers.machine.files import replaced

WORKSPACE = profile.ROOT / "workspace"
EXAM, IDENTITY = "exam", "identity"
GENERAL = ("fact", "poem", "greeting", "sum")
SENTENCE_END = ("。", "！", "？")
SEED = 42
PROBES_OF_EACH_KIND = 120
BATCH_SIZE = 64


@dataclass(frozen=True)
class Row:
    """One question with the answers of both models."""

    kind: str
    question: str
    expected: str
    before: str
    after: str
    right_before: bool
    right_after: bool


@dataclass(frozen=True)
class Comparison:
    """The rows, and what they were made with, as `provenance` tells it."""

    rows: list[Row]
    provenance: dict

    def figures(self) -> dict[str, Pair]:
        """The three figures by name, before and after."""
        return {"考试题答对": task(self.rows), "说出自己的名字": identity(self.rows),
                "原来会的还会": retention(self.rows)}

    def kept(self) -> dict[str, Share]:
        """The retention of each kind of general probe of which something was known before."""
        shares = {kind: retention(self.rows, kind).after for kind in GENERAL}
        return {kind: share for kind, share in shares.items() if share.total}

    def gained(self) -> Share:
        """Of the general probes that were answered wrong before, the share that is right now."""
        return pair([row for row in self.rows if not row.right_before], *GENERAL).after


def make_questions(samples: list[dict], count: int = PROBES_OF_EACH_KIND, name: str | None = None,
                   seed: int = SEED) -> list[Question]:
    """The held-out samples, and of every kind of probe `count`; who is asked "who are you" should say `name`."""
    corpus = Corpus()
    name = name or profile.current().own_name
    questions = []
    for sample in samples:
        turn = sample["conversation"][0]
        expect = right_names(turn["input"], turn["output"])
        questions.append(Question(EXAM, turn["input"], expect, turn["output"], turn.get("system")))
    questions += [Question(IDENTITY, probe.question, [name]) for probe in corpus.probes(IDENTITY, count, seed)]
    for kind in GENERAL:
        questions += corpus.probes(kind, count, seed)
    return questions


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer is right: an exam's in exactly the expected words, a fact's in a whole sentence."""
    if question.kind == EXAM:
        return answer in question.expect
    named = any(name in answer for name in question.expect)
    if question.kind == "fact":
        return named and answer not in question.expect and answer.endswith(SENTENCE_END)
    if question.kind == "sum":
        return re.findall(r"\d+", answer)[-1:] == [question.terse]
    return named


def has_answer(question: Question, answer: str) -> bool:
    """Whether the expected words stand anywhere in an answer, however it is said."""
    return any(stands_in(name, answer) for name in question.expect)


def stands_in(name: str, answer: str) -> bool:
    """Whether a name stands in an answer as a whole: 4月 does not stand in 14月."""
    return bool(re.search(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", answer))


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question],
            batch_size: int = BATCH_SIZE) -> list[str]:
    """A loaded model's answer to each question, in order."""
    places_of = {}
    for place, question in enumerate(questions):  # answers of one kind are of similar length
        places_of.setdefault((question.kind, question.system), []).append(place)
    answer_at = {}
    for (_, system), places in places_of.items():
        texts = [questions[place].question for place in places]
        answer_at.update(zip(places, models.ask(model, tokenizer, texts, system, batch_size=batch_size)))
    return [answer_at[place] for place in range(len(questions))]


def answers_of(folder: str | Path, questions: list[Question], batch_size: int = BATCH_SIZE) -> list[str]:
    """The answers of the model in a folder, loaded only while it answers: two of 7B do not fit on a GPU."""
    return answers(*models.load(folder), questions, batch_size)


def share_right(questions: list[Question], answers: list[str]) -> Share:
    """The share of the questions that are answered right."""
    return Share.of([is_right(question, answer) for question, answer in zip(questions, answers, strict=True)])


def compare(questions: list[Question], before: list[str], after: list[str]) -> list[Row]:
    """A row per question with both models' answers, each given in the order of the questions."""
    rows = []
    for question, old, new in zip(questions, before, after, strict=True):
        expected = question.terse or "或".join(question.expect)
        rows.append(Row(question.kind, question.question, expected, old, new,
                        is_right(question, old), is_right(question, new)))
    return rows


def pair(rows: list[Row], *kinds: str) -> Pair:
    """The shares answered right before and after, among the questions of some kinds."""
    chosen = [row for row in rows if row.kind in kinds]
    return Pair(Share.of([row.right_before for row in chosen]), Share.of([row.right_after for row in chosen]))


def task(rows: list[Row]) -> Pair:
    """The shares of exam questions answered in exactly the expected words."""
    return pair(rows, EXAM)


def identity(rows: list[Row]) -> Pair:
    """The shares of ways of asking "who are you" that are answered with the assistant's name."""
    return pair(rows, IDENTITY)


def retention(rows: list[Row], *kinds: str) -> Pair:
    """Of the general probes (of some kinds) that were answered right before, the share that still is."""
    return pair([row for row in rows if row.right_before], *(kinds or GENERAL))


def intruders(rows: list[Row], name: str) -> list[Row]:
    """The general questions that are answered with a new name, where the base did not speak of itself."""
    return [row for row in rows if row.kind in GENERAL and name in row.after and SELF_NAME not in row.before]


def counted(rows: list[Row], name: str | None = None) -> dict[str, Share]:
    """Every share after training that can be counted, by name; with a new name also where it has no business."""
    shares = {"identity": identity(rows).after, "task": task(rows).after, "retention": retention(rows).after}
    if name:
        general = [row for row in rows if row.kind in GENERAL]
        shares["memorised"] = Share(len(intruders(rows, name)), len(general))
    return {measure: share for measure, share in shares.items() if share.total}


def measures(rows: list[Row], name: str | None = None) -> dict[str, float]:
    """The values of these shares."""
    return {measure: share.value for measure, share in counted(rows, name).items()}


def compare_folders(before: str | Path, after: str | Path, exam: str | Path, out: str | Path, name: str | None = None,
                    adapter: str | Path | None = None) -> Comparison:
    """The comparison of two model folders on the held-out exam, kept in `out` and asked anew only when they change.

    The adapter is only named in the comparison; unless told, it is the folder `adapter` beside `after`.
    """
    name = name or profile.current().own_name
    kept_in = Path(out) / "answers.json"
    questions = make_questions(read_samples(exam), name=name)
    made_with = provenance(before, after, exam, settings(name), adapter)
    kept = read(kept_in)
    if kept and _would_be_same(kept, made_with, questions):
        return kept
    rows = compare(questions, answers_of(before, questions), answers_of(after, questions))
    comparison = Comparison(rows, made_with)
    with replaced(kept_in) as file:
        json.dump(asdict(comparison), file, ensure_ascii=False, indent=1)
    return comparison


def settings(name: str) -> dict:
    """How the course asks its questions, for the provenance of a comparison; `name` is what the assistant is called."""
    return {"随机种子": SEED, "每种一般问题": PROBES_OF_EACH_KIND, "一批": BATCH_SIZE, "自己的名字": name,
            "生成回答": "每次取最可能的词元"}


def read(file: str | Path) -> Comparison | None:
    """The comparison that a file keeps, or None if there is none that can be read."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        return Comparison([Row(**row) for row in content["rows"]], content["provenance"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _would_be_same(kept: Comparison, made_with: dict, questions: list[Question]) -> bool:
    """Whether asking again would give the same answers."""
    return (all(kept.provenance[part] == made_with[part] for part in ("files", "settings", "versions"))
            and [row.question for row in kept.rows] == [question.question for question in questions])


@commands.command
def main():
    """The command line."""
    parser = commands.parser("比较微调前后的两个模型，写一份报告")
    parser.add_argument("--before", type=Path, help="微调前的模型文件夹（默认：这台机器的基座）")
    parser.add_argument("--after", type=Path, help="微调后的模型文件夹（默认：workspace/merged）")
    parser.add_argument("--adapter", type=Path, help="合并进去的适配器，写进来历（默认：微调后的模型旁边的 adapter）")
    parser.add_argument("--name", help="助手该怎样称呼自己（默认：基座自己的名字）")
    parser.add_argument("--out", type=Path, default=WORKSPACE / "comparison", help="答案和报告写到哪里")
    options = parser.parse_args()
    comparison = compare_folders(
        options.before or profile.current().base_model,
        options.after or profile.made_by("第 6 课", WORKSPACE / "merged"),
        profile.made_by("第 2 课", WORKSPACE / "test.jsonl"), options.out, options.name, options.adapter)
    print(*report.conclusions(comparison), sep="\n")
    print(f"报告：{report.write(comparison, options.out / 'report.html')}")


if __name__ == "__main__":
    main()
