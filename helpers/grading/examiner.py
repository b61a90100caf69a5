"""What students' adapters can do, asked in the sandbox and judged out here. Slow to import: torch comes with it."""
from dataclasses import replace
from pathlib import Path

from helpers.data.split import read_samples
from helpers.grading import adapter_exam
from helpers.grading.rerun import printable
from helpers.grading.rules import Rules
from helpers.grading.sandbox import Ended
from helpers.homework.package import WEIGHTS
from helpers.judge import compare
from helpers.machine import profile


class Examiner:
    """Asks adapters the hidden questions; the base model's own answers are asked for once."""

    def __init__(self, rules: Rules, protected: bool = True):
        self._protected = protected
        exam = read_samples(rules.exam) if rules.exam else []
        self._questions = compare.make_questions(exam, rules.count, "", rules.seed)
        self._before = self._answers_of_the_base()

    def _answers_of_the_base(self):
        try:
            answers, _ = adapter_exam.ask(self._questions, protected=self._protected)
            return answers
        except Ended as error:
            why = printable((error.said or str(error)).splitlines()[-1])
            raise Ended(f"还没有开始评分：基座模型 {profile.current().base_model} 在沙箱里没有答出题来（{why}）。"
                        "请先用第 0 课看它能不能回答：模型不完整就重新下载，内存或显存不够就关掉别的程序。") from error

    def shares(self, folder: Path, settings: dict, name: str) -> tuple[dict[str, float], int]:
        """What the adapter in an unpacked submission can do, by measure, and the memory that it took to find out."""
        after, peak = adapter_exam.ask(self._questions, folder / WEIGHTS, settings, self._protected)
        questions = [replace(question, expect=[name]) if question.kind == compare.IDENTITY else question
                     for question in self._questions]
        rows = compare.compare(questions, self._before, after)
        shares = compare.measures(rows, name)
        if compare.identity(rows).before.right:  # a word that everybody says is no name
            shares["identity"] = 0.0
        return shares, peak
