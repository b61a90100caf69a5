"""What students' adapters can do, asked in the sandbox and judged out here. Slow to import: torch comes with it."""
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from helpers.data.split import question_key
from helpers.grading import adapter_exam, rerun, secret
from helpers.grading.rules import Rules
from helpers.grading.sandbox import Ended
from helpers.homework.package import DATA, WEIGHTS
from helpers.judge import compare
from helpers.judge.shares import Share
from helpers.knowledge.facts import told_facts
from helpers.machine import profile

ASKED = 80  # questions of the exam, as far as the student's own training data does not tell what they ask for
FEWEST = 40  # with fewer there is no telling


class Asked(NamedTuple):
    """What an adapter can do, by measure, and the memory that it took to find out.

    And of how many questions of the exam the training data has the very words, tells the fact, and of how many in all.
    """

    counts: dict[str, Share]
    peak: int
    in_the_data: tuple[int, int, int]

    @property
    def remarks(self) -> list[str]:
        """What the instructor and the student should know."""
        _, told, count = self.in_the_data
        if count - told >= min(FEWEST, count):
            return []
        return [f"考卷有 {count} 题，其中 {told} 题问的事，交上来的训练数据里都讲过：剩下的太少，考试题没有量。"]


class Examiner:
    """Asks adapters the hidden questions; the base model's own answers are asked for once."""

    def __init__(self, rules: Rules, protected: bool = True):
        self._protected = protected
        self._hidden = secret.read(rules.questions)
        self._before = self._answers_of_the_base()

    def _answers_of_the_base(self):
        try:
            answers, _ = adapter_exam.ask([one.question for one in self._hidden], protected=self._protected)
            return answers
        except Ended as error:
            why = rerun.printable((error.said or str(error)).splitlines()[-1])
            raise Ended(f"还没有开始评分：基座模型 {profile.current().base_model} 在沙箱里没有答出题来（{why}）。"
                        "请先用第 0 课看它能不能回答：模型不完整就重新下载，内存或显存不够就关掉别的程序。") from error

    def examine(self, folder: Path, settings: dict, name: str) -> Asked:
        """What the adapter in an unpacked submission can do, where its assistant has this name."""
        chosen, in_the_data = self._chosen(rerun.samples(folder / DATA))
        questions = [self._of(self._hidden[place], name) for place in chosen]
        before = [self._before[place] for place in chosen]
        after, peak = adapter_exam.ask(questions, folder / WEIGHTS, settings, self._protected)
        rows = compare.compare(questions, before, after)
        counts = compare.counted(rows, name)
        if compare.identity(rows).before.right:  # a word that everybody says is no name
            counts["identity"] = Share(0, counts["identity"].total)
        return Asked(counts, peak, in_the_data)

    def _of(self, hidden, name):
        """The question, which an assistant of this name is asked."""
        return replace(hidden.question, expect=[name]) if hidden.question.kind == compare.IDENTITY else hidden.question

    def _chosen(self, samples):
        """The places of the questions to ask, of the exam's none that the training data gives away; what it does."""
        exam = [place for place, one in enumerate(self._hidden) if one.subject]
        told = told_facts(samples, [self._hidden[place].fact for place in exam])
        untold = [place for place in exam if self._hidden[place].fact not in told]
        others = [place for place, one in enumerate(self._hidden) if not one.subject]
        keys = {question_key({"conversation": [turn]}) for sample in samples for turn in sample["conversation"]}
        leaked = sum(question_key({"conversation": [{"input": self._hidden[place].question.question}]}) in keys
                     for place in exam)
        asked = untold[:ASKED] if len(untold) >= min(FEWEST, len(exam)) else []
        return asked + others, (leaked, len(exam) - len(untold), len(exam))
