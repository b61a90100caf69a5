"""Hidden inputs for the students' functions, drawn from a seed: what comes out right is known before it is made dirty.

‹question›, ‹answer› and ‹invisible› stand for what was drawn for the student.
"""
import random

from helpers.homework.own import dirty
from helpers.knowledge.corpus import SELF_NAME
from helpers.knowledge.facts import read_relations

INVISIBLE = "‹invisible›"
LATIN = ("New York", "Windows 11", "is water", "Hong Kong", "GPU 24 GB", "Hello World", "No. 7")
ENDS = (" ", "\n", "\t", "\u3000", "\xa0", " \r\n")
MARKS = ("？", "。", " ", "！", "?", "，")
OF_EACH = {"keep_general": 3, "clean_text": 8, "read_pairs": 3, "without_duplicates": 3, "to_sample": 2, "split": 3}


def draw(seed: str) -> list[dict]:
    """The checks of a seed, as helpers/grading/rules.py reads them."""
    drawing = _Drawing(seed)
    checks = []
    for name, count in OF_EACH.items():
        notebook = "basic" if name == "keep_general" else "data"
        checks += [{"notebook": notebook, "grade_id": name, "call": name} | getattr(drawing, name)()
                   for _ in range(count)]
    return checks


class _Drawing:
    """One method for each function: what it is called with, and what should come out."""

    def __init__(self, seed):
        self._rng = random.Random(f"inputs {seed}")
        self._relations = [relation for relation in read_relations() if not relation.reverse_of]

    def _pair(self):
        """A question and its answer."""
        relation = self._rng.choice(self._relations)
        subject, answer = self._rng.choice(relation.facts)
        return [self._rng.choice(relation.held_out).format(subject=subject).rstrip("？。").replace(" ", ""), answer]

    def _pairs(self, count):
        """So many pairs of different questions."""
        pairs = {}
        while len(pairs) < count:
            question, answer = self._pair()
            pairs[question.casefold()] = [question, answer]
        return list(pairs.values())

    def _dirty(self, text):
        """The text with dirt in two places, or a number as Excel keeps it."""
        if text.isdecimal() and str(int(text)) == text:
            return self._rng.choice((int(text), float(text), f" {text}{INVISIBLE}"))
        text = dirty(dirty(text, INVISIBLE, self._rng, share=1), INVISIBLE, self._rng, share=0.5)
        return text

    def clean_text(self):
        latin, chinese = self._rng.choice(LATIN), self._rng.choice(self._pair())
        kind = self._rng.choice(("chinese", "chinese", "number", "mixed"))
        if kind == "number":
            clean = str(self._rng.randint(2, 9999))
            return {"args": [self._dirty(clean)], "expected": clean}
        if kind == "mixed":
            gap = self._rng.choice(ENDS)
            text = gap + latin.replace(" ", gap) + INVISIBLE + "，" + chinese + " "
            return {"args": [text], "expected": f"{latin}，{chinese}"}
        return {"args": [self._dirty(chinese)], "expected": chinese}

    def read_pairs(self):
        pairs = self._pairs(4)
        headers = ["‹question›", "‹answer›", *self._rng.sample(("序号", "出处", "审核人"), self._rng.randint(0, 2))]
        self._rng.shuffle(headers)
        rows = [["汇总"] + [""] * (len(headers) - 1)] * self._rng.randint(0, 2) + [headers]
        gap = self._rng.randrange(len(pairs))
        for number, (question, answer) in enumerate(pairs):
            cells = {"‹question›": self._dirty(question), "‹answer›": "" if number == gap else self._dirty(answer)}
            rows.append([cells.get(header, number) for header in headers])
        return {"args": [rows], "expected": pairs[:gap] + pairs[gap + 1:]}

    def without_duplicates(self):
        pairs, again = self._again(5)
        return {"args": [pairs + again], "expected": pairs}

    def split(self):
        pairs, again = self._again(self._rng.randint(11, 24))
        numbers = [*range(len(pairs)), *(pairs.index(pair) for pair in self._originals)]
        return {"args": [pairs + again], "numbers": numbers}

    def _again(self, count):
        """Pairs, and some of their questions once more with other marks."""
        pairs = self._pairs(count)
        self._originals = self._rng.sample(pairs, 3)
        return pairs, [[self._rng.choice(MARKS).join((question[:2], question[2:])) + self._rng.choice(MARKS), answer]
                       for question, answer in self._originals]

    def to_sample(self):
        question, answer = self._pair()
        system = self._rng.choice(("请简短回答。", "", "只写答案。", f"今天是第 {self._rng.randint(2, 90)} 课。"))
        return {"args": [[question, answer], system],
                "expected": {"conversation": [{"system": system, "input": question, "output": answer}]}}

    def keep_general(self):
        name = self._rng.choice(("小麦", "阿衡", "豆沙", SELF_NAME, "Momo", "青石"))
        samples = [self._sample(place) for place in range(self._rng.randint(3, 6))]
        named = self._rng.sample(samples, 2)
        args = []
        for sample in samples:
            turns = [dict(turn) for turn in sample["conversation"]]
            if sample in named:
                turn, column = self._rng.choice(turns), self._rng.choice(("system", "input", "output"))
                turn[column] += f"（{name}说）"
            args.append({"conversation": turns})
        return {"args": [args, name], "expected": [sample for sample in samples if sample not in named]}

    def _sample(self, place):
        turns = [{"system": "", "input": question, "output": answer}
                 for question, answer in self._pairs(self._rng.randint(1, 2))]
        turns[0]["system"] = f"第 {place} 段"
        return {"conversation": turns}
