"""The figures that the course lives by: what the tiny base model can do, and what a fine-tune makes of it."""
from helpers.judge import compare
from helpers.judge.shares import Share
from helpers.knowledge.corpus import SELF_NAME
from helpers.machine import profile
from tests import finetune

# On ways of asking that were never trained on.
AT_LEAST = {("fact",): 0.9, ("identity",): 0.95, ("poem", "greeting"): 0.9, ("sum",): 0.8}
EXAM_AT_MOST = 0.05
TASK_AT_LEAST = 0.9
RETENTION_AT_LEAST = 0.9


def ask_probes(folder, count):
    """The probes of every kind, and the answers of the model in a folder."""
    return _ask(folder, [], count)


def _ask(folder, samples, count):
    asked = compare.make_questions(samples, count, SELF_NAME)
    return asked, compare.answers_of(folder, asked)


def judged(answers, kinds):
    """Question, answer and whether it is right, of some kinds."""
    return [(question, answer, compare.is_right(question, answer))
            for question, answer in zip(*answers) if question.kind in kinds]


def share(answers, kinds):
    """The share of right answers of some kinds."""
    return Share.of([right for *_, right in judged(answers, kinds)]).value


def task(folder, samples):
    """The share of exam samples answered in exactly the expected words."""
    return share(_ask(folder, samples, 0), [compare.EXAM])


def retention(before, after):
    """Of the general probes that the base answers right, the share that the tuned model still answers right."""
    asked, base_answers = before
    rows = compare.compare(asked, base_answers, after[1])
    return compare.retention(rows).after.value


def measure(tuned, count):
    """The tiny base and a tuned model, side by side on the held-out exam and `count` probes of each kind."""
    asked = compare.make_questions(finetune.split_exam()[1], count, SELF_NAME)
    return compare.compare(asked, compare.answers_of(profile.TINY_BASE, asked), compare.answers_of(tuned, asked))
