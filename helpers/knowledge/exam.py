"""Multiple-choice questions: drawn from the course's facts, and read back from the text that lists their options."""
import random
import re

from helpers.data.cleaning import Cleaning
from helpers.knowledge.facts import read_relations

LETTERS = "ABCD"
OPTION = re.compile(r"([A-D])\. (.+?)[；。]")
# Three of each theme. In each of them an answer is right for its own subjects and wrong for all others.
RELATIONS = {
    ("capitals", "capital"), ("cities", "city_province"), ("province_seats", "seat"),
    ("events", "year"), ("battles", "battle_commander"), ("emperors", "personal_name"),
    ("chinese_works", "author"), ("courtesy_names", "courtesy_name"), ("poem_lines", "line_author"),
    ("elements", "symbol"), ("formulas", "formula"), ("common_names", "chemical_name"),
    ("organizations", "organization_seat"), ("organizations_abbr", "organization_abbr"), ("law_numbers", "law_number"),
    ("festivals", "festival_date"), ("paintings", "painter"), ("solar_terms", "next"),
}
PER_RELATION = 20


def exam(rng: random.Random) -> list[dict]:
    """The questions, each with four options: the theme, the question, the options and the right one of them."""
    questions = []
    for relation in read_relations():
        if (relation.table, relation.name) not in RELATIONS:
            continue
        answers = {answer for _, answer in relation.facts}
        for subject, answer in rng.sample(relation.facts, min(PER_RELATION, len(relation.facts))):
            question = rng.choice(relation.exam).format(subject=subject)
            options = _options(answer, answers - {subject}, rng)
            questions.append({"theme": relation.theme, "question": question, "answer": answer, "options": options})
    rng.shuffle(questions)
    return questions


def _options(answer: str, answers: set[str], rng: random.Random) -> list[str]:
    """The answer and three others, those that look most like it: the same last character, about as long."""
    others = sorted(answers - {answer})
    rng.shuffle(others)
    others.sort(key=lambda other: (other[-1] != answer[-1], abs(len(other) - len(answer))))
    return rng.sample([answer, *others[:3]], 4)


def options(question: str) -> dict[str, str]:
    """The text of each option by its letter."""
    return dict(OPTION.findall(question))


def stem(question: str) -> str:
    """What is asked, without the options before it."""
    *_, last_option = OPTION.finditer(question)
    return question[last_option.end():].strip()


def choice(question: str, answer: str) -> str | None:
    """The letter of the option that an answer names, however untidily; None if it names none."""
    named = Cleaning()(answer)
    for letter, text in options(question).items():
        if text == named:
            return letter
    return None
