"""Lesson 09: the options of a multiple-choice question, and which of them an answer chooses."""
import re

from helpers.convert import Cleaning

OPTION = re.compile(r"([A-D])\. (.+?)[；。]")


def options(question):
    """The text of each option by its letter."""
    return dict(OPTION.findall(question))


def choice(question, answer):
    """The letter of the option that an answer names, however untidily; None if it names none."""
    named = Cleaning()(answer)
    return next((letter for letter, text in options(question).items() if text == named), None)
