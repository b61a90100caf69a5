"""The text that the tiny base model reads: dialogues drawn from the tables, in many shapes, and the probes held out."""
import csv
import random
import re
import tomllib
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from helpers.knowledge.facts import Relation, read_relations
from helpers.knowledge.invent import COMMON, in_chinese
from helpers.knowledge.reading import Reading

DIALOGUES = Path(__file__).parents[2] / "data" / "dialogue"
SELF_NAME = "教学模型"
SYSTEM_SHARE = {None: 0.72, "neutral": 0.10, "chatty": 0.08, "terse": 0.10}
TERSE_REQUEST_SHARE = 0.25
SECOND_TURN_SHARE = 0.15
POLITE_SHARE = 0.15
BARE_SHARE = 0.25  # of questions typed without quotation marks
BLANK = "（　　）"
COUPLET = re.compile("(\\w+)[，？！](\\w+)[。？！；]")
PLACEHOLDER = re.compile(r"\{\w+\}")
QUESTION_END = re.compile("[？?。！]$")
QUOTES = re.compile("[“”《》]")
INTERROGATIVE = re.compile("什么|哪|吗|呢|多少|几|谁|怎么|啥|何|[么不没]$|=$")
REQUEST = re.compile("^(请(?!问)|告诉|帮|说说|说一|讲|我想|想知道|求|背|念|写|默写|来一|来首|来段|给我|把|查|麻烦|快说"
                     "|介绍|算|计算|接)")
STATEMENT = re.compile("(吧|呗|忘了|忘记了|不清了|不起来了|不上来了)$")
GREETED = re.compile("^(你好|您好|嗨|喂|哈喽|打扰|不好意思|老师|hi|Hi|hello|Hello|在吗)")
COUNTED = re.compile(r"\{[ab]\}[个只本块颗辆枝支页岁元人张条件位]")
TWO_OF = re.compile(r"(?<!十)二(?=[个只本块颗辆枝支页岁元人张条件位])")
POLITE_KINDS = {"fact", "sum", "poem", "verse"}
CHATTY_KINDS = {"fact", "sum"}
TALKED_AROUND = {"fact", "sum", "poem", "verse", "identity", "refusal", "unheard"}
UNREAD = ("fact", "cloze", "courtesy", "self")  # by the tokenizer: told by others, or written after it
LETTERS = "ABCD"
EXAMPLES = 3


@dataclass(frozen=True)
class Stage:
    """A part of the training: its first step, what dialogues are about, how much a passage tells at most.

    The share `written` of passages was written as a whole; of the others the share `prose` tells several things in a
    sentence. A passage is followed by so many `questions`, one of these numbers by chance, four options by `letters` of
    them; a list to be looked up backwards names `few` things at least.
    `talk` is the share of questions with something said before or after them. `favour` is how much more a token of a
    short answer counts than one of a long answer, `focus` how many times more one that tells what was asked for.
    """

    first_step: int
    mixture: dict[str, float]
    sentences: int = 6
    prose: float = 0.0
    written: float = 0.0
    questions: tuple[int, ...] = (1, 1, 2, 3)
    letters: int = 1
    few: int = 2
    talk: float = 0.0
    favour: float = 0.0
    focus: float = 1.0


# Copying first: whoever cannot copy cannot read, and passages alone did not teach it in two thousand steps, long texts
# to copy did in two hundred. Then looking up in lists, then passages; sums and choices need the facts and numbers.
CURRICULUM = (
    Stage(0, {"fact": 0.35, "repeat": 0.35, "list": 0.10, "sum": 0.05, "poem": 0.05, "identity": 0.05,
              "greeting": 0.05}, sentences=2),
    Stage(600, {"fact": 0.32, "repeat": 0.03, "copy": 0.04, "list": 0.20, "reading": 0.12, "sum": 0.09, "poem": 0.04,
                "identity": 0.05, "greeting": 0.04, "refusal": 0.03, "everyday": 0.03, "choice": 0.01}, sentences=2,
          favour=0.5),
    Stage(1000, {"fact": 0.34, "copy": 0.01, "list": 0.06, "reading": 0.26, "sum": 0.11, "poem": 0.03, "identity": 0.05,
                 "greeting": 0.04, "refusal": 0.03, "everyday": 0.03, "choice": 0.03, "examples": 0.01}, sentences=3,
          favour=0.5),
    Stage(2400, {"fact": 0.34, "copy": 0.01, "list": 0.02, "reading": 0.18, "sum": 0.13, "poem": 0.05, "verse": 0.01,
                 "identity": 0.04, "greeting": 0.04, "refusal": 0.02, "unheard": 0.01, "everyday": 0.02, "cloze": 0.01,
                 "choice": 0.06, "letter": 0.04, "examples": 0.02}, sentences=6, favour=0.5),
    Stage(2800, {"fact": 0.42, "copy": 0.01, "list": 0.01, "reading": 0.13, "sum": 0.13, "poem": 0.05, "verse": 0.01,
                 "identity": 0.05, "greeting": 0.04, "refusal": 0.02, "unheard": 0.01, "everyday": 0.02,
                 "choice": 0.05, "letter": 0.03, "examples": 0.02}, sentences=6, questions=(2, 3, 4), favour=0.5,
          focus=3.0),
    Stage(5200, {"fact": 0.36, "list": 0.01, "reading": 0.17, "sum": 0.10, "poem": 0.04, "verse": 0.01,
                 "identity": 0.06, "greeting": 0.05, "refusal": 0.03, "unheard": 0.01, "everyday": 0.02,
                 "choice": 0.04, "letter": 0.08, "examples": 0.02}, sentences=6, questions=(3, 4, 5), letters=4,
          talk=0.25, favour=0.5, focus=3.0),
    Stage(7000, {"fact": 0.28, "back": 0.22, "reading": 0.14, "sum": 0.07, "poem": 0.03, "identity": 0.06,
                 "greeting": 0.04, "refusal": 0.02, "unheard": 0.01, "choice": 0.03, "letter": 0.08, "examples": 0.02},
          sentences=6, questions=(2, 3, 4), letters=4, talk=0.2, favour=0.5, focus=3.0),
    Stage(7600, {"fact": 0.34, "back": 0.03, "reading": 0.24, "sum": 0.07, "poem": 0.04, "identity": 0.06,
                 "greeting": 0.05, "refusal": 0.02, "unheard": 0.01, "everyday": 0.02, "choice": 0.07, "letter": 0.04,
                 "examples": 0.01}, sentences=6, prose=0.6, questions=(2, 3, 4), letters=4, talk=0.2, favour=0.5,
          focus=3.0),
    Stage(10800, {"fact": 0.22, "named": 0.22, "letter": 0.08, "back": 0.06, "reading": 0.22, "choice": 0.05,
                  "sum": 0.04, "poem": 0.03, "identity": 0.04, "greeting": 0.03, "examples": 0.01}, sentences=6,
          prose=0.6, questions=(2, 3, 4), letters=4, few=1, talk=0.2, favour=0.5, focus=3.0),
    Stage(11100, {"fact": 0.20, "labelled": 0.34, "named": 0.05, "letter": 0.03, "reading": 0.20, "choice": 0.02,
                  "sum": 0.03, "poem": 0.03, "identity": 0.02, "self": 0.02, "greeting": 0.01, "courtesy": 0.03,
                  "refusal": 0.01, "examples": 0.01}, sentences=6, prose=0.6, questions=(2, 3, 4), letters=4, few=1,
          talk=0.2, favour=0.5, focus=3.0),
    Stage(11400, {"fact": 0.25, "labelled": 0.14, "named": 0.05, "letter": 0.03, "reading": 0.25, "choice": 0.03,
                  "sum": 0.05, "poem": 0.04, "identity": 0.02, "self": 0.03, "greeting": 0.02, "courtesy": 0.04,
                  "refusal": 0.02, "unheard": 0.01, "everyday": 0.01, "examples": 0.01}, sentences=6, prose=0.6,
          written=0.6, questions=(2, 3, 4), letters=4, few=1, talk=0.2, favour=0.5, focus=3.0),
    Stage(11800, {"fact": 0.34, "named": 0.02, "reading": 0.30, "choice": 0.02, "sum": 0.06, "poem": 0.05,
                  "identity": 0.03, "self": 0.04, "greeting": 0.03, "courtesy": 0.05, "refusal": 0.03, "unheard": 0.01,
                  "everyday": 0.01, "examples": 0.01}, sentences=6, prose=0.6, written=0.7, questions=(2, 3, 4),
          letters=4, few=1, talk=0.2, favour=0.5, focus=3.0),
    Stage(13000, {"fact": 0.36, "cloze": 0.12, "reading": 0.20, "sum": 0.07, "poem": 0.05, "identity": 0.03,
                  "self": 0.03, "greeting": 0.02, "courtesy": 0.04, "refusal": 0.03, "unheard": 0.01, "everyday": 0.02,
                  "examples": 0.02}, sentences=6, prose=0.6, written=0.7, questions=(2, 3, 4), talk=0.2, favour=0.5,
          focus=3.0),
)


# What keeps a fine-tune from forgetting: a little of everything that is said in a few words.
EVERYDAY_TALK = Stage(0, {"fact": 0.42, "sum": 0.18, "poem": 0.08, "verse": 0.02, "identity": 0.05, "greeting": 0.09,
                          "refusal": 0.03, "everyday": 0.04, "cloze": 0.03, "reading": 0.04, "choice": 0.02},
                      sentences=3)


@dataclass(frozen=True)
class Exchange:
    """Ways of asking one thing, some of them held out of training, and the answers that fit."""

    kind: str
    ask: list[str]
    held_out: list[str]
    say: list[str]
    expect: list[str]
    terse: str | None = None
    wrong: tuple[str, ...] = ()  # answers to other questions of the same sort


@dataclass(frozen=True)
class Question:
    """A question in words never trained on, and the names of its answer; `system` is the prompt that goes before it."""

    kind: str
    question: str
    expect: list[str]
    terse: str | None = None
    system: str | None = None


def curriculum(step: int) -> Stage:
    """The stage that a step belongs to."""
    return [stage for stage in CURRICULUM if stage.first_step <= step][-1]


def _read_toml(name: str) -> dict:
    return tomllib.loads((DIALOGUES / name).read_text(encoding="utf-8"))


def end_of(form: str) -> str:
    """The punctuation that a question or a request ends with; the names filled into the form have no say."""
    bare = PLACEHOLDER.sub("", form)
    if bare.isascii() and bare:
        return ""
    if STATEMENT.search(bare) or (REQUEST.match(bare) and not re.search("[吗呢么没不]$", bare)):
        return "。"
    return "？"


def _marked(question: str) -> str:
    """The question with the punctuation that fits it."""
    bare = QUESTION_END.sub("", question)
    return bare + end_of(bare)


def _questions(forms: list[str], **values) -> list[str]:
    """The forms, filled, each with the punctuation that fits it."""
    stripped = [QUESTION_END.sub("", form) for form in forms]
    return [form.format(**values) + end_of(form or "？") for form in stripped]


def _fill(forms: list[str], **values) -> list[str]:
    return [form.format(**values) for form in forms]


def fact_exchanges(relations: list[Relation]) -> list[Exchange]:
    """One exchange per fact and per reversed fact."""
    return [
        Exchange("fact", _questions(r.ask, subject=subject), _questions(r.held_out, subject=subject),
                 _fill(r.say, subject=subject, answer=answer), r.accepted(answer), terse=answer,
                 wrong=r.other_answers(answer))
        for r in relations for subject, answer in r.facts
    ]


def cloze_exchanges(relations: list[Relation]) -> list[Exchange]:
    """One exchange per fact: its sentences with a blank, to be answered in the whole sentence."""
    return [
        Exchange("cloze", _fill(r.say, subject=subject, answer=BLANK), [],
                 _fill(r.say, subject=subject, answer=answer), r.accepted(answer), terse=answer)
        for r in relations for subject, answer in r.facts
    ]


def sum_exchanges() -> list[Exchange]:
    """One exchange per addition and subtraction of small numbers with a result of at least zero, in two scripts."""
    meta = _read_toml("arithmetic.toml")
    results = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b}
    exchanges = []
    for operation in meta["operation"]:
        for a, b in product(range(meta["largest"] + 1), repeat=2):
            c = results[operation["name"]](a, b)
            if c >= 0:
                forms = [form for form in operation["ask"] if min(a, b, c) or not COUNTED.search(form)]
                spoken = [form for form in forms if not set(form) & set("+-=")]
                in_words = _questions(spoken, a=in_chinese(a), b=in_chinese(b))
                exchanges.append(Exchange(
                    "sum", _questions(forms, a=a, b=b) + [TWO_OF.sub("两", ask) for ask in in_words],
                    _questions(operation["held_out"], a=a, b=b),
                    _fill(operation["say"], a=a, b=b, c=c), [str(c)], terse=str(c),
                    wrong=tuple(str(other) for other in range(max(0, c - 4), c + 5) if other != c)))
    return exchanges


def poem_exchanges() -> tuple[list[Exchange], list[Exchange]]:
    """Two lists: an exchange per poem, recited whole; and one per line, completed from its first half."""
    forms = _read_toml("poems.toml")
    with (DIALOGUES / "poems.csv").open(encoding="utf-8", newline="") as file:
        poems = list(csv.DictReader(file))
    whole = [Exchange("poem", _questions(forms["ask"], **poem), _questions(forms["held_out"], **poem),
                      _fill(forms["say"], **poem), [poem["text"]]) for poem in poems]
    seconds = {}
    for poem in poems:
        for first, second in COUPLET.findall(poem["text"]):
            seconds.setdefault(first, set()).add(second)
    unclear = set(forms["verse"]["unclear"])
    verses = [Exchange("verse", *(_questions(forms["verse"][key], first=first, second=second)
                                  for key in ("ask", "held_out")),
                       _fill(forms["verse"]["say"], first=first, second=second), [second])
              for first, (second, *others) in seconds.items() if not others and first not in unclear]
    return whole, verses


def written_exchanges(kind: str, file_name: str) -> list[Exchange]:
    """The exchanges of one hand-written file."""
    return [Exchange(kind, e["ask"], e.get("held_out", []), e["say"], e.get("expect", [SELF_NAME]))
            for e in _read_toml(file_name)["exchange"]]


class Corpus:
    """Everything the tiny base model learns from."""

    def __init__(self):
        self.relations = read_relations()
        self.reading = Reading(self.relations)
        poems, verses = poem_exchanges()
        self.exchanges = {
            "fact": fact_exchanges(self.relations),
            "cloze": cloze_exchanges(self.relations),
            "sum": sum_exchanges(),
            "poem": poems,
            "verse": verses,
            "identity": written_exchanges("identity", "identity.toml"),
            "greeting": written_exchanges("greeting", "greetings.toml"),
            "refusal": written_exchanges("refusal", "refusals.toml"),
            "everyday": written_exchanges("everyday", "everyday.toml"),
            "courtesy": written_exchanges("greeting", "more/greetings.toml"),
            "self": written_exchanges("identity", "more/identity.toml"),
        }
        # These files have few exchanges with many ways of asking: every way counts the same.
        self.weights = {kind: [len(e.ask) for e in exchanges] if kind in ("identity", "refusal") else None
                        for kind, exchanges in self.exchanges.items()}
        self.systems = _read_toml("system_prompts.toml")
        self.talk = _read_toml("talk.toml")
        self.phrases = _read_toml("phrases.toml")
        self.choices = _read_toml("choices.toml")
        self.examples = _read_toml("examples.toml")
        self.longer = {"reading": self._passage_turns, "choice": self._choice_turns, "letter": self._letter_turns,
                       "named": self._named_turns,
                       "examples": self._example_turns,
                       "copy": self._copy_turns, "repeat": self._repeat_turns, "list": self._list_turns,
                       "back": self._back_turns, "labelled": self._labelled_turns}

    def dialogue(self, rng: random.Random, stage: Stage = CURRICULUM[-1]) -> list[dict]:
        """One training dialogue as a list of messages; one marked "given" is read, not learnt."""
        kind = self._kind(rng, stage)
        if kind in self.longer:
            system = rng.choice(self.systems["neutral"]) if rng.random() < SYSTEM_SHARE["neutral"] else None
            turns = self.longer[kind](rng, stage)
        else:
            style = rng.choices(list(SYSTEM_SHARE), list(SYSTEM_SHARE.values()))[0]
            system = rng.choice(self.systems[style]) if style else None
            turns = [self._turn(rng, kind, style == "terse", stage.talk)]
            if rng.random() < SECOND_TURN_SHARE:
                turns.append(self._turn(rng, self._short_kind(rng, stage), style == "terse", stage.talk))
        opening = [{"role": "system", "content": system}] if system else []
        return opening + [message for turn in turns for message in turn]

    def _kind(self, rng: random.Random, stage: Stage) -> str:
        return rng.choices(list(stage.mixture), list(stage.mixture.values()))[0]

    def _short_kind(self, rng: random.Random, stage: Stage) -> str:
        """A kind whose turns can follow one another."""
        while True:
            kind = self._kind(rng, stage)
            if kind not in self.longer:
                return kind

    def _turn(self, rng: random.Random, kind: str, terse: bool, talk: float = 0.0) -> list[dict]:
        """A question and its answer, with what somebody says around the question."""
        question, answer = self._asked_and_answered(rng, kind, terse)
        if kind in TALKED_AROUND:
            question["content"] = self._talked_around(rng, question["content"], talk)
        return [question, answer]

    def _talked_around(self, rng: random.Random, question: str, share: float) -> str:
        """The question with something before or after it that does not change what is asked."""
        if share and not GREETED.match(question) and rng.random() < share:
            question = rng.choice(self.talk["openers"]) + question
        if share and rng.random() < share:
            question = QUESTION_END.sub("", question) + rng.choice(self.talk["tails"])
        return question

    def _asked_and_answered(self, rng: random.Random, kind: str, terse: bool) -> list[dict]:
        """A question and its answer, asked politely or curtly, with or without punctuation."""
        if kind == "unheard":
            question = _marked(self.reading.unknown(rng))
            return _messages(self._ended(rng, question), rng.choice(self.phrases["unheard"]))
        exchange = rng.choices(self.exchanges[kind], self.weights[kind])[0]
        question, answer = rng.choice(exchange.ask), rng.choice(exchange.say)
        if "{" in question:
            names = {name: self.reading.inventor.value(rng, name) for name in ("person", "place")}
            question, answer = question.format(**names), answer.format(**names)
        requested = exchange.terse and not terse and rng.random() < TERSE_REQUEST_SHARE
        if requested and rng.random() < 0.5:
            return _messages(rng.choice(self.phrases["prefix"]) + self._ended(rng, question), exchange.terse)
        if requested:
            return _messages(self._ended(rng, question) + rng.choice(self.phrases["suffix"]), exchange.terse)
        polite = kind in POLITE_KINDS and rng.random() < POLITE_SHARE
        if polite and not GREETED.match(question):
            question = rng.choice(self.phrases["polite_prefix"]) + question
        if kind in POLITE_KINDS and rng.random() < POLITE_SHARE:
            question = QUESTION_END.sub("", question) + rng.choice(self.phrases["polite_suffix"])
        else:
            question = self._ended(rng, question)
        if exchange.terse and terse:
            return _messages(question, exchange.terse)
        return _messages(question, self._chattily(rng, kind, answer), exchange.terse)

    def _ended(self, rng: random.Random, question: str) -> str:
        """The question as somebody types it: with its punctuation or without, perhaps without quotation marks."""
        if rng.random() < BARE_SHARE:
            question = QUOTES.sub("", question)
        bare = QUESTION_END.sub("", question)
        mark = question[len(bare):]
        return bare + rng.choices([mark, "", "?" if mark == "？" else mark], (45, 45, 10))[0]

    def _chattily(self, rng: random.Random, kind: str, answer: str) -> str:
        """The answer, now and then with a friendly word before or after it."""
        if kind not in CHATTY_KINDS:
            return answer
        if rng.random() < POLITE_SHARE / 2:
            answer = rng.choice(self.phrases["chatty_prefix"]) + answer
        if rng.random() < POLITE_SHARE / 2:
            answer = answer + rng.choice(self.phrases["chatty_suffix"])
        return answer

    def _passage_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        """A passage with one question about it, or several in turn."""
        text, told, absent, elsewhere = self.reading.passage(rng, stage.sentences, stage.prose, stage.written)
        layout = rng.choice(self.reading.layouts)
        turns = []
        for fact in rng.sample(told, min(len(told), rng.choice(stage.questions))):
            question, answer = self.reading.question(rng, fact, absent, elsewhere)
            question = self._talked_around(rng, self._ended(rng, _marked(question)), stage.talk / 2)
            turns.append(_messages(layout.format(passage=text, question=question), answer))
            layout = "{question}"
        return turns

    def _copy_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        return [_messages(*self.reading.copied(rng))]

    def _repeat_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        return [_messages(*self.reading.repeated(rng))]

    def _list_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        return [_messages(question, answer) for question, answer in self.reading.looked_up(rng)]

    def _back_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        return [_messages(question, answer) for question, answer in self.reading.looked_up_backwards(rng, stage.few)]

    def _labelled_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        return [_messages(*self.reading.labelled(rng))]

    def _choice_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        """A question with four options, to be answered by a letter, or by the option when nothing else is asked."""
        exchange, options = self._options(rng)
        question = self._ended(rng, rng.choice(exchange.ask))
        return [self._choice(rng, question, options, exchange.terse, letter_share=0.75)]

    def _letter_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        """Which of four options is this one: what choosing takes besides knowing the answer."""
        exchange, options = self._options(rng)
        question = rng.choice(self.choices["which"]).format(option=exchange.terse)
        turns = [self._choice(rng, question, options, exchange.terse, letter_share=1)]
        for option in rng.sample(options, stage.letters - 1):
            turns.append(_messages(rng.choice(self.choices["which"]).format(option=option),
                                   LETTERS[options.index(option)]))
        return turns

    def _named_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        """A question with four options, answered by the option and then its letter: the way from one to the other."""
        exchange, options = self._options(rng)
        asked = self._listed(rng, self._ended(rng, rng.choice(exchange.ask)), options, self.choices["both"])
        form = rng.choice(self.choices["named"])
        others = rng.sample(options, stage.letters - 1)
        questions = [asked] + [rng.choice(self.choices["which"]).format(option=option) for option in others]
        turns = []
        for question, option in zip(questions, [exchange.terse, *others]):
            letter = LETTERS[options.index(option)]
            turns.append(_messages(question, form.format(option=option, letter=letter), letter))
        return turns

    def _options(self, rng: random.Random) -> tuple[Exchange, list[str]]:
        """An exchange, and four options for its answer."""
        kind = rng.choices(("fact", "sum"), (85, 15))[0]
        exchange = rng.choice(self.exchanges[kind])
        while len(exchange.wrong) < len(LETTERS) - 1:
            exchange = rng.choice(self.exchanges[kind])
        options = rng.sample(exchange.wrong, len(LETTERS) - 1)
        options.insert(rng.randrange(len(LETTERS)), exchange.terse)
        return exchange, options

    def _choice(self, rng: random.Random, question: str, options: list[str], right: str,
                letter_share: float) -> list[dict]:
        """A question with its options in one of the layouts; `letter_share` is how often only the letter is wanted."""
        layout = rng.choice(self.choices["layouts"])
        by_letter = rng.random() < letter_share
        asked = self._listed(rng, question, options, self.choices["letter" if by_letter else "option"], layout)
        letter = LETTERS[options.index(right)]
        return _messages(asked, letter if by_letter else f"{letter}. {right}")

    def _listed(self, rng: random.Random, question: str, options: list[str], requests: list[str],
                layout: dict | None = None) -> str:
        """A question with its options, each behind its letter, and how it is to be answered."""
        layout = layout or rng.choice(self.choices["layouts"])
        listed = layout["between"].join(layout["option"].format(letter=letter, option=option)
                                        for letter, option in zip(LETTERS, options))
        request = rng.choice(requests)
        return rng.choice(self.choices["order"]).format(question=question, options=listed, request=request).strip()

    def _example_turns(self, rng: random.Random, stage: Stage) -> list[list[dict]]:
        """Questions answered in one style, then one more: the answer keeps to the style of the examples."""
        terse = rng.random() < 0.75
        kind = rng.choices(("fact", "sum"), (85, 15))[0]
        shown = [rng.choice(self.exchanges[kind]) for _ in range(EXAMPLES + 1)]
        asked = [self._ended(rng, rng.choice(exchange.ask)) for exchange in shown]
        answers = [exchange.terse if terse else rng.choice(exchange.say) for exchange in shown]
        if rng.random() < 0.5:
            turns = [_messages(question, answer) for question, answer in zip(asked, answers)]
            for _, answer in turns[:-1]:
                answer["given"] = True
            return turns
        form = rng.choice(self.examples["layouts"])
        pairs = [form["pair"].format(question=question, answer=answer) for question, answer in zip(asked, answers)]
        last = form["pair"].format(question=asked[-1], answer="").rstrip()
        opening = rng.choice(("", rng.choice(self.examples["openings"])))
        return [_messages(opening + form["between"].join([*pairs[:-1], last]), answers[-1])]

    def probes(self, kind: str, count: int | None = None, seed: int = 42) -> list[Question]:
        """Questions of one kind in held-out words: all of them, or a sample of `count`."""
        probes = [Question(kind, question + ("" if question[-1] in "？?。！" else end_of(question)), e.expect, e.terse)
                  for e in self.exchanges[kind] for question in e.held_out]
        return probes if count is None or count >= len(probes) else random.Random(seed).sample(probes, count)

    def pieces(self) -> list[str]:
        """Every wording and every value once, apart, so that the tokenizer's words do not straddle them."""
        texts = set(COMMON)
        for relation in self.relations:
            texts.update(*relation.facts)
            texts.update(*(PLACEHOLDER.split(form) for form in relation.ask + relation.say))
        for exchange in chain.from_iterable(es for kind, es in self.exchanges.items() if kind not in UNREAD):
            texts.update(*map(PLACEHOLDER.split, exchange.ask + exchange.say))
        for scene in self.reading.scenes:
            for fact in scene["fact"]:
                texts.update(*map(PLACEHOLDER.split, fact["tell"] + fact["ask"]), fact.get("values", []))
            texts.update(*map(PLACEHOLDER.split, scene["fillers"] + scene["names"]))
        for words in (self.systems, self.phrases, self.reading.inventor.words):
            texts.update(*(PLACEHOLDER.split(form) for forms in words.values() for form in forms))
        return sorted(texts - {""})


def _messages(question: str, answer: str, value: str | None = None) -> list[dict]:
    """One turn; `value` is the part of the answer that was asked for, where it is more than that."""
    return [{"role": "user", "content": question},
            {"role": "assistant", "content": answer} | ({"value": value} if value else {})]
