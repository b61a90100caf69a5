"""The text that the tiny base model reads: dialogues drawn from the tables, in many shapes, and the probes held out."""
import csv
import random
import re
import tomllib
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from helpers.facts import read_relations

FOLDER = Path(__file__).parent.parent / "data" / "dialogue"
SELF_NAME = "教学模型"
SYSTEM_SHARE = {None: 0.70, "neutral": 0.10, "chatty": 0.08, "terse": 0.12}
TERSE_REQUEST_SHARE = 0.3
SECOND_TURN_SHARE = 0.12
POLITE_SHARE = 0.2
BLANK = "（　　）"
COUPLET = re.compile("(\\w+)[，？！](\\w+)[。？！；]")
PLACEHOLDER = re.compile(r"\{\w+\}")
QUESTION_END = re.compile("[？?。]$")
INTERROGATIVE = re.compile("什么|哪|吗|呢|多少|几|谁|怎么|=$")
REQUEST = re.compile("^(请|告诉|帮|说|我|求|算|计算|把|给|背|念|来|写|默写|能|查|接|你)")
ACTION = re.compile("^(告诉|帮我|说说|算|计算|求|把|给我|背|念|来|写|默写|接|陪)")
FAVOURS = (("请你", ""), ("能不能", ""), ("我想请你", ""), ("希望你", ""), ("麻烦你", ""),
           ("你能", "吗"), ("可以", "吗"))
POLITE_KINDS = {"fact", "sum", "poem", "verse", "identity"}
CHATTY_KINDS = {"fact", "sum"}


@dataclass(frozen=True)
class Stage:
    """A part of the training: its first step, what its turns are about, the share of requests asked as a favour."""

    first_step: int
    mixture: dict[str, float]
    favour_share: float = 0.0


# Sums and fill-ins need the facts and the numbers to be there already: they come later, and grow.
CURRICULUM = (
    Stage(0, {"fact": 0.61, "sum": 0.10, "poem": 0.05, "verse": 0.03, "identity": 0.06, "greeting": 0.05,
              "refusal": 0.03, "everyday": 0.07}),
    Stage(1200, {"fact": 0.53, "sum": 0.17, "poem": 0.05, "verse": 0.02, "identity": 0.05, "greeting": 0.06,
                 "refusal": 0.02, "everyday": 0.05, "cloze": 0.05}),
    Stage(2000, {"fact": 0.46, "sum": 0.24, "poem": 0.06, "verse": 0.02, "identity": 0.04, "greeting": 0.08,
                 "refusal": 0.02, "everyday": 0.04, "cloze": 0.04}, favour_share=0.2),
)


@dataclass(frozen=True)
class Exchange:
    """Ways of asking one thing, some of them held out of training, and the answers that fit."""

    kind: str
    ask: list[str]
    held_out: list[str]
    say: list[str]
    expect: list[str]
    terse: str | None = None


@dataclass(frozen=True)
class Probe:
    """A question in words never trained on; an answer is right when it contains one of `expect`."""

    kind: str
    question: str
    expect: list[str]
    terse: str | None = None


def curriculum(step):
    """The stage that a step belongs to."""
    return [stage for stage in CURRICULUM if stage.first_step <= step][-1]


def _read_toml(name):
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def end_of(question):
    """The punctuation that a question or a request ends with."""
    return "？" if INTERROGATIVE.search(question) else "。"


def _fill(forms, **values):
    return [form.format(**values) for form in forms]


def fact_exchanges(relations):
    """One exchange per fact and per reversed fact."""
    return [
        Exchange("fact", _fill(r.ask, subject=subject), _fill(r.held_out, subject=subject),
                 _fill(r.say, subject=subject, answer=answer), [answer], terse=answer)
        for r in relations for subject, answer in r.facts
    ]


def cloze_exchanges(relations):
    """One exchange per fact: its sentences with a blank, to be answered in the whole sentence."""
    return [
        Exchange("cloze", _fill(r.say, subject=subject, answer=BLANK), [],
                 _fill(r.say, subject=subject, answer=answer), [answer], terse=answer)
        for r in relations for subject, answer in r.facts
    ]


def sum_exchanges():
    """One exchange per addition and subtraction of small numbers with a result of at least zero."""
    meta = _read_toml("arithmetic.toml")
    results = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b}
    exchanges = []
    for operation in meta["operation"]:
        for a, b in product(range(meta["largest"] + 1), repeat=2):
            c = results[operation["name"]](a, b)
            if c >= 0:
                exchanges.append(Exchange(
                    "sum", _fill(operation["ask"], a=a, b=b), _fill(operation["held_out"], a=a, b=b),
                    _fill(operation["say"], a=a, b=b, c=c), [str(c)], terse=str(c)))
    return exchanges


def poem_exchanges():
    """One exchange per poem, recited whole; and one per line, completed from its first half."""
    forms = _read_toml("poems.toml")
    with (FOLDER / "poems.csv").open(encoding="utf-8", newline="") as file:
        poems = list(csv.DictReader(file))
    whole = [Exchange("poem", _fill(forms["ask"], **poem), _fill(forms["held_out"], **poem),
                      _fill(forms["say"], **poem), [poem["text"]]) for poem in poems]
    seconds = {}
    for poem in poems:
        for first, second in COUPLET.findall(poem["text"]):
            seconds.setdefault(first, set()).add(second)
    verses = [Exchange("verse", *(_fill(forms["verse"][key], first=first, second=second)
                                  for key in ("ask", "held_out", "say")), [second])
              for first, (second, *others) in seconds.items() if not others]
    return whole, verses


def written_exchanges(kind, file_name):
    """The exchanges of one hand-written file."""
    return [Exchange(kind, e["ask"], e.get("held_out", []), e["say"], e.get("expect", [SELF_NAME]))
            for e in _read_toml(file_name)["exchange"]]


class Corpus:
    """Everything the tiny base model learns from."""

    def __init__(self):
        self.relations = read_relations()
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
        }
        # An identity file has few exchanges with many ways of asking: every way counts the same.
        self.weights = {kind: [len(e.ask) for e in exchanges] if kind == "identity" else None
                        for kind, exchanges in self.exchanges.items()}
        self.systems = _read_toml("system_prompts.toml")
        self.phrases = _read_toml("phrases.toml")

    def dialogue(self, rng, stage=CURRICULUM[-1]):
        """One training dialogue as a list of messages."""
        style = rng.choices(list(SYSTEM_SHARE), list(SYSTEM_SHARE.values()))[0]
        messages = [{"role": "system", "content": rng.choice(self.systems[style])}] if style else []
        for _ in range(2 if rng.random() < SECOND_TURN_SHARE else 1):
            question, answer = self._turn(rng, stage, terse=style == "terse")
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def _turn(self, rng, stage, terse):
        kind = rng.choices(list(stage.mixture), list(stage.mixture.values()))[0]
        exchange = rng.choices(self.exchanges[kind], self.weights[kind])[0]
        question, answer = QUESTION_END.sub("", rng.choice(exchange.ask)), rng.choice(exchange.say)
        if stage.favour_share and ACTION.match(question) and rng.random() < stage.favour_share:
            before, after = rng.choice(FAVOURS)
            question = before + question + after
        ending = rng.choice(["", end_of(question)])
        requested = exchange.terse and not terse and rng.random() < TERSE_REQUEST_SHARE
        if requested and rng.random() < 0.5:
            return rng.choice(self.phrases["prefix"]) + question + ending, exchange.terse
        if requested:
            return question + ending + rng.choice(self.phrases["suffix"]), exchange.terse
        if kind in POLITE_KINDS and rng.random() < POLITE_SHARE:
            fitting = ["polite_prefix"] if REQUEST.match(question) else ["polite_prefix", "question_prefix"]
            question = rng.choice(self.phrases[rng.choice(fitting)]) + question
        if kind in POLITE_KINDS and rng.random() < POLITE_SHARE:
            ending = rng.choice(self.phrases["polite_suffix"])
        return question + ending, exchange.terse if exchange.terse and terse else self._chattily(rng, kind, answer)

    def _chattily(self, rng, kind, answer):
        if kind not in CHATTY_KINDS:
            return answer
        if rng.random() < POLITE_SHARE / 2:
            answer = rng.choice(self.phrases["chatty_prefix"]) + answer
        if rng.random() < POLITE_SHARE / 2:
            answer = answer + rng.choice(self.phrases["chatty_suffix"])
        return answer

    def probes(self, kind, count=None, seed=42):
        """Questions of one kind in held-out words: all of them, or a sample of `count`."""
        probes = [Probe(kind, question + ("" if question[-1] in "？?。！" else end_of(question)), e.expect, e.terse)
                  for e in self.exchanges[kind] for question in e.held_out]
        return probes if count is None or count >= len(probes) else random.Random(seed).sample(probes, count)

    def pieces(self):
        """Every wording and every value once, apart, so that the tokenizer's words do not straddle them."""
        texts = set()
        for relation in self.relations:
            texts.update(*relation.facts)
            texts.update(*(PLACEHOLDER.split(form) for form in relation.ask + relation.say))
        for exchange in chain.from_iterable(es for kind, es in self.exchanges.items() if kind not in ("fact", "cloze")):
            texts.update(exchange.ask, exchange.say)
        texts.update(*self.systems.values(), *self.phrases.values())
        return sorted(texts - {""})
