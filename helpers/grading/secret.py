"""An exam that nobody has: questions and inputs drawn for a class from a seed that only the instructor knows.

make exam SEED=secret   writes the rules that `make grade` then grades by; without a seed it thinks of one.

The facts asked for are in no file that the lessons make; the words are put together from data/homework/wordings.toml,
and stand nowhere in the repository. The same seed always gives the same questions.
"""
import json
import random
import shutil
import tomllib
from dataclasses import asdict
from pathlib import Path
from secrets import token_urlsafe
from typing import NamedTuple

from helpers.data.split import question_key, read_samples, write_samples
from helpers.grading import inputs
from helpers.grading.rules import DEFAULT, OWN
from helpers.homework import own
from helpers.judge.compare import EXAM, GENERAL, IDENTITY
from helpers.knowledge import self_talk
from helpers.knowledge.corpus import BLANK, DIALOGUES, QUESTION_END, Corpus, Question, end_of
from helpers.knowledge.facts import EXAM_SYSTEM, Relation, told_facts
from helpers.machine import commands
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced, replaced_folder
from helpers.machine.process import shown
from helpers.machine.profile import ROOT

WORDINGS = ROOT / "data" / "homework" / "wordings.toml"
QUESTIONS, CHECKS, SEED = "questions.jsonl", "checks.jsonl", "seed.txt"
EXAM_QUESTIONS = 160  # more than one student is asked: those that his own training data tells are left out
OF_EACH_KIND = 40
SHORTEST_SEED = 12  # who has the repository can try all short ones


class Hidden(NamedTuple):
    """A question, and the subject of the fact that it asks for, if it asks for one of the exam's."""

    question: Question
    subject: str | None = None

    @property
    def fact(self) -> tuple[str, str]:
        """The subject and the answer."""
        return self.subject, self.question.terse


def draw(seed: str) -> list[Hidden]:
    """The questions of a seed: of the exam, who are you, and of every kind that a fine-tune should leave alone."""
    return _Draw(seed).questions()


class _Draw:
    """Puts questions together from the parts, in a random order that the seed decides."""

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self._corpus = Corpus()
        self._parts = tomllib.loads(WORDINGS.read_text(encoding="utf-8"))
        self._talk = tomllib.loads((DIALOGUES / "talk.toml").read_text(encoding="utf-8"))
        self._known = set()  # what stands in the repository or has been drawn

    def questions(self):
        drawn = [self._exam_question(*one) for one in self._facts()]
        drawn += [Hidden(self._self_question()) for _ in range(OF_EACH_KIND)]
        for kind in GENERAL:
            drawn += [Hidden(question) for question in self._general_questions(kind)]
        return drawn

    def _facts(self):
        """Facts that no file of the lessons tells, however worded, each with its relation."""
        relation_of = {fact: relation for relation in self._corpus.relations if not relation.reverse_of
                       for fact in relation.facts}
        known = told_facts(own.of_the_lessons(), relation_of)
        unknown = [(relation, *fact) for fact, relation in relation_of.items() if fact not in known]
        return self._rng.sample(unknown, EXAM_QUESTIONS)

    def _exam_question(self, relation: Relation, subject, answer):
        parts = self._parts["exam"]
        public = _keys(form.format(subject=subject) for form in relation.exam + relation.ask + relation.held_out)

        def worded():
            blank = self._rng.choice(parts["blanks"])
            if self._rng.random() < 0.5:
                asked = self._rng.choice(relation.exam).format(subject=subject).replace(BLANK, blank)
            else:
                form = QUESTION_END.sub("", self._rng.choice(relation.ask + relation.held_out))
                question = form.format(subject=subject) + end_of(form)
                asked = self._rng.choice(parts["asked"]).format(question=question, blank=blank)
            opening = self._rng.choice(parts["openings"]).format(number=self._rng.randint(2, 60), theme=relation.theme)
            return opening + asked + self._rng.choice(parts["endings"])

        expect = relation.accepted(answer)
        return Hidden(Question(EXAM, self._unheard(worded, public), expect, answer, EXAM_SYSTEM), subject)

    def _self_question(self):
        parts = self._parts["identity"]

        def worded():
            text = "".join(self._rng.choice(parts[part]) for part in ("openings", "asked", "endings"))
            person = self._corpus.reading.inventor.value(self._rng, "person")
            return text.format(person=person, other=self._rng.choice(parts["others"]))

        taught = [ask for topic in self_talk.topics("", "") for ask, _ in topic]
        heard = [ask for kind in ("identity", "self") for exchange in self._corpus.exchanges[kind]
                 for ask in exchange.ask + exchange.held_out]
        return Question(IDENTITY, self._unheard(worded, _keys(taught + heard)), [])

    def _general_questions(self, kind):
        if kind == "greeting":
            return [self._greeting() for _ in range(OF_EACH_KIND)]
        probes = self._corpus.probes(kind, OF_EACH_KIND, self._rng.randrange(2**32))
        return [self._talked_around(probe) for probe in probes]

    def _greeting(self):
        """Two greetings that mean the same, one after the other."""
        def worded():
            first, second = self._rng.sample(exchange.ask + exchange.held_out, 2)
            return first + ("" if QUESTION_END.search(first) else "，") + second

        exchange = self._rng.choice(self._corpus.exchanges["greeting"])
        return Question("greeting", self._unheard(worded, set()), exchange.expect)

    def _talked_around(self, probe: Question):
        """The question with something around it that people say."""
        def worded():
            before, after = self._rng.choice(((True, False), (False, True), (True, True)))
            bare = QUESTION_END.sub("", probe.question)
            text = bare + self._rng.choice(self._talk["tails"]) if after else probe.question
            return self._rng.choice(self._talk["openers"]) + text if before else text

        return Question(probe.kind, self._unheard(worded, _keys([probe.question])), probe.expect, probe.terse)

    def _unheard(self, worded, public):
        """The first of the wordings that is not public and was not drawn before."""
        self._known |= public
        while (key := _key(text := worded())) in self._known:
            pass
        self._known.add(key)
        return text


def _key(question):
    return question_key({"conversation": [{"input": question}]})


def _keys(questions):
    return set(map(_key, questions))


def write(questions: list[Hidden], path: Path) -> None:
    """Writes the questions as JSON Lines."""
    with replaced(path) as file:
        for one in questions:
            file.write(json.dumps(asdict(one.question) | {"subject": one.subject}, ensure_ascii=False) + "\n")


def read(path: str | Path) -> list[Hidden]:
    """The questions in a file."""
    rows = read_samples(path)
    try:
        return [Hidden(subject=row.pop("subject", None), question=Question(**row)) for row in rows]
    except TypeError as error:
        raise CourseError(f"{shown(Path(path))} 里有不是问题的行（{error}）：请用 make exam 重新抽一份。") from error


def make(seed: str, folder: Path = OWN) -> None:
    """Writes the rules of a seed into a folder; what was drawn there from another seed is not replaced."""
    if len(seed) < SHORTEST_SEED:
        raise CourseError(f"种子“{seed}”太好猜：题库是公开的，有人会一个一个试。"
                          f"请用 {SHORTEST_SEED} 个字符以上的，或者不写，让它自己想一个。")
    if folder.exists() and _seed_of(folder) != seed:
        raise CourseError(f"{shown(folder)} 里已经有用另一个种子抽的考卷，评过分的作业会因此重评。"
                          "要换考卷，请先把这个文件夹移走。")
    questions = draw(seed)
    with replaced_folder(folder) as beside:
        (beside / SEED).write_text(seed + "\n", encoding="utf-8")
        shutil.copy(DEFAULT, beside)
        write(questions, beside / QUESTIONS)
        write_samples(inputs.draw(seed), beside / CHECKS)


def _seed_of(folder):
    """The seed that a folder was drawn from, None if it is something else."""
    return (folder / SEED).read_text(encoding="utf-8").strip() if (folder / SEED).is_file() else None


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser("给一个班抽一份谁也没见过的考卷")
    parser.add_argument("seed", nargs="?", default=token_urlsafe(16), help="只有老师知道的一串字（默认：随机想一个）")
    parser.add_argument("--into", type=Path, default=OWN, help="写到哪里（默认：workspace/rules）")
    options = parser.parse_args()
    make(options.seed, options.into)
    print(f"抽好了：{shown(options.into)}。这个文件夹不要交给学生，也不要放进公开的仓库。\n"
          f"种子是 {options.seed}，记在那里的 {SEED} 里；换一台机器评分，用同一个种子再抽。")


if __name__ == "__main__":
    main()
