"""What the tiny base model makes of questions by people who have seen none of its training text.

python -m helpers.judge.strangers [HALF] [FOLDER]   prints the figures and what went wrong.
"first" is for looking at while the model is being improved; "second" is asked when it is finished, and is what the
model card tells.
"""
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.ask import models
from helpers.judge.compare import stands_in
from helpers.judge.shares import Share
from helpers.knowledge.corpus import LETTERS, SELF_NAME
from helpers.knowledge.facts import read_relations
from helpers.machine import commands, profile

FOLDER = profile.ROOT / "data" / "strangers"
HALVES = ("first", "second")
SEED = 12
EXAMPLES = 3
GENERAL = ("fact", "sum", "poem", "greeting")
TERSE_AT_MOST = 12  # characters
LAYOUT = "资料：{passage}\n问题：{question}"
CHOICE = "{question}\n{options}\n只回答选项字母。"
ABSENT = re.compile("没有提到|没有说|没提到")
UNKNOWN = re.compile("不知道|无法|不清楚|不认识|没有听说|看不到|听不到|帮不了|不能|做不到|没办法|只会|只能")
MEANT = {
    "hello": "你好|您好|嗨|欢迎|Hello|Hi", "morning": "早|上午好|orning", "noon": "午", "afternoon": "下午好|fternoon",
    "evening": "晚上好|vening", "night": "晚安|好梦|休息|night", "howareyou": "很好|不错|挺好|谢谢|都好|fine|well|good",
    "thanks": "不客气|不用谢|应该的|别客气|乐意|welcome", "bye": "再见|拜拜|回头见|明天见|下次|bye|See you",
    "sorry": "没关系|没事|不要紧|不用道歉|All right|fine|problem", "praise": "谢谢|过奖|夸奖|高兴|Thank",
    "newyear": "新年|快乐|过年", "birthday": "生日|快乐", "festival": "快乐|节|安康",
}
# What each figure is about, and what the model must not fall below; choosing is at chance.
AT_LEAST = {"fact": 0.80, "identity zh": 0.85, "identity en": 0.95, "sum": 0.90, "poem": 0.90, "greeting": 0.85,
            "reading": 0.40, "absent": 0.62, "examples": 0.90, "unknown": 0.85}
TOLD = {
    "fact": "facts of its tables", "identity zh": "who are you, in Chinese", "identity en": "who are you, in English",
    "sum": "sums and differences up to 20, in digits and in Chinese numerals", "poem": "poems, recited whole",
    "greeting": "greetings", "reading": "a passage about invented names: the exact words asked for",
    "absent": "the passage does not say: says so", "choice": "four options: the letter, where the words were right",
    "examples": "three terse examples: answers as tersely", "unknown": "cannot know: says so",
}


@dataclass(frozen=True)
class Asked:
    """One question as a conversation, and what makes an answer right."""

    kind: str
    messages: list[dict]
    expect: list[str] = field(default_factory=list)
    means: str = ""

    def is_right(self, answer: str) -> bool:
        """Whether this answer is right."""
        if self.kind in ("reading", "choice"):
            return answer.rstrip("。") in self.expect
        if self.kind == "absent":
            return bool(ABSENT.search(answer))
        if self.kind == "unknown":
            return bool(UNKNOWN.search(answer))
        if self.kind == "greeting":
            return bool(re.search(MEANT[self.means], answer))
        if self.kind == "sum":
            return re.findall(r"\d+", answer)[-1:] == self.expect
        if self.kind == "examples":
            return len(answer) <= TERSE_AT_MOST and not answer.endswith("。")
        return any(stands_in(name, answer) for name in self.expect)


class Judged(NamedTuple):
    """A question, what the model answered, and whether that is right."""

    asked: Asked
    answer: str
    right: bool


def read(half: str) -> list[dict]:
    """The questions of one half, as they were written."""
    with (FOLDER / f"{half}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _user(text: str) -> dict:
    return {"role": "user", "content": text}


def questions(half: str) -> list[Asked]:
    """The questions that need nothing but themselves."""
    names_of = {}
    for relation in read_relations():
        for subject, answer in relation.facts:
            names_of[subject, answer] = relation.accepted(answer)
    return [_asked(row, names_of) for row in read(half) if row["kind"] != "other"]


def _asked(row: dict, names_of: dict[tuple[str, str], list[str]]) -> Asked:
    """A question as it was written, with everything that counts as its answer."""
    kind, text, expect = row["kind"], row["question"], row.get("expect", [])
    if "passage" in row:
        text = LAYOUT.format(passage=row["passage"], question=text)
    if kind == "fact":
        expect = [*expect, *names_of.get((row["given"], expect[0]), [])]
    elif kind == "identity":
        kind, expect = f"identity {row['language']}", [SELF_NAME]
    return Asked(kind, [_user(text)], expect, row.get("means", ""))


def choices(facts: list[Asked], seed: int = SEED) -> list[Asked]:
    """Fact questions with four options each, the right one equally often in each place."""
    wrong = {}
    for relation in read_relations():
        for _, answer in relation.facts:
            wrong.setdefault(answer, set()).update(relation.other_answers(answer))
    rng = random.Random(seed)
    with_options = []
    for asked in facts:
        right = asked.expect[0]
        others = sorted(wrong.get(right, set()) - set(asked.expect))
        if len(others) < len(LETTERS) - 1:
            continue
        options = rng.sample(others, len(LETTERS) - 1)
        place = len(with_options) % len(LETTERS)
        options.insert(place, right)
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
        text = CHOICE.format(question=asked.messages[0]["content"], options=listed)
        with_options.append(Asked("choice", [_user(text)], [LETTERS[place]]))
    return with_options


def with_examples(facts: list[Asked], seed: int = SEED) -> list[Asked]:
    """Fact questions, each after three others that were answered in as few words as possible."""
    rng = random.Random(seed)
    after_examples = []
    for asked in facts:
        turns = []
        for other in rng.sample([other for other in facts if other is not asked], EXAMPLES):
            turns += [*other.messages, {"role": "assistant", "content": other.expect[0]}]
        after_examples.append(Asked("examples", turns + asked.messages, asked.expect))
    return after_examples


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, half: str) -> list[Judged]:
    """Every question of a half with the model's answer and whether it is right."""
    judged = _judged(model, tokenizer, questions(half))
    known = [asked for asked, _, right in judged if right and asked.kind == "fact"]
    return judged + _judged(model, tokenizer, choices(known) + with_examples(known))


def _judged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Asked]) -> list[Judged]:
    answers = models.answer(model, tokenizer, [asked.messages for asked in questions])
    return [Judged(asked, answer, asked.is_right(answer)) for asked, answer in zip(questions, answers)]


def shares(judged: list[Judged]) -> dict[str, Share]:
    """How many of how many are right, by kind."""
    return {kind: Share.of([right for asked, _, right in judged if asked.kind == kind]) for kind in TOLD}


def in_exam_style(judged: list[Judged]) -> Share:
    """How many of the facts were told in the bare words of an exam, though nobody had asked for that."""
    return Share.of([answer in asked.expect for asked, answer, _ in judged if asked.kind == "fact"])


def kept(before: list[Judged], after: list[Judged]) -> Share:
    """Of what was right before among facts, sums, poems and greetings, how much still is."""
    return Share.of([new.right for old, new in zip(before, after) if old.right and old.asked.kind in GENERAL])


@commands.command
def main():
    """The command line."""
    parser = commands.parser("What a model makes of the strangers' questions, and what went wrong")
    parser.add_argument("half", nargs="?", choices=HALVES, default="first")
    parser.add_argument("folder", nargs="?", type=Path, default=profile.TINY_BASE)
    options = parser.parse_args()
    judged = measure(*models.load(options.folder), options.half)
    for asked, answer, right in judged:
        if not right:
            print(f"  {asked.kind:11} {asked.messages[-1]['content']!r} -> {answer!r}   {asked.expect}")
    for kind, share in shares(judged).items():
        low, high = share.interval
        counted = f"({share.right}/{share.total}, {low:.0%}-{high:.0%})"
        print(f"{kind:12} {share.value:6.1%} {counted}   >= {AT_LEAST.get(kind, 0):.0%}")


if __name__ == "__main__":
    main()
