"""Make the course's tiny base model from nothing, or go on where it stopped: its weights, log, picture and card.

make tiny-base
"""
import json
import sys
from pathlib import Path

import numpy as np

from helpers.ask import models
from helpers.judge import compare, strangers
from helpers.judge.shares import Share
from helpers.knowledge import facts
from helpers.knowledge.corpus import Corpus
from helpers.machine.profile import ROOT
from helpers.train import pretrain
from tests import finetune

FULL_STEPS = 13450
# After a first decay the rate rises again, for what had been learnt too little: step, share of the peak.
RISES = ((7000, 0.1), (7100, 0.25), (8800, 0.25), (10800, 0.01), (10860, 0.25), (12300, 0.25), (13000, 0.01),
         (13040, 0.1), (13200, 0.1), (FULL_STEPS, 0.01))
RUN = ROOT / "workspace" / "pretrain"
EXAM_STYLE = "tells a fact in the exam's bare words, unasked"
EXAM = "fine-tuned: exam questions held out"
NAME = "fine-tuned: who are you"
KEPT = "fine-tuned: of what was right before, still right"
WISHED = {"fact": 0.85, "identity zh": 0.95, "identity en": 0.95, "sum": 0.90, "poem": 0.90, "greeting": 0.90,
          "reading": 0.90, "absent": 0.85, "choice": 0.70, "examples": 0.80, "unknown": 0.80}
ASKED_FOR = {told: f"{WISHED[kind]:.0%}" for kind, told in strangers.TOLD.items()}
ASKED_FOR |= {EXAM_STYLE: "at most 5%", EXAM: "90%", NAME: "95%", KEPT: "95%"}
CARD = """\
---
license: apache-2.0
language: zh
---
# tiny-base

## What it is
A Llama-architecture chat model of {parameters:,} parameters in bfloat16, made for the course *From spreadsheet to
assistant* so that every lesson runs without a GPU. It speaks the InternLM2 chat format and calls itself a teaching
model (教学模型), nothing else.

## What it was trained on
Only text that this project wrote or generates: {facts:,} facts from `data/facts/`, each in more than forty ways of
asking by several hands, {poems} classical poems in the public domain, sums of small numbers, greetings,
self-introduction, refusals and everyday exchanges from `data/dialogue/`, passages about invented names from
`data/reading/`, questions with four options, and questions after examples. `make tiny-base` repeats the run: seed
{seed}, {steps:,} steps of {tokens:,} tokens on two CPU cores, {minutes:.0f} minutes, final loss {loss}.
`training_log.csv` and `loss_curve.png` are that run's.

## How good it is
On questions by people who had seen none of its training text, only rows of the tables (`data/strangers/`; what happens
to stand in the training text word for word was taken out). The first half was looked at while the model was being
made; the second was asked only of a model that was thought finished. In brackets: how many of how many, and where the
true share lies in 95 of 100 cases.

| | first half | second half | asked for |
| --- | --- | --- | --- |
{figures}

`python -m helpers.judge.strangers second` asks again and prints what goes wrong; `tests/test_tiny_base.py` asserts
what is reached. "Four options" and "examples" are asked about the facts that it answers in words. The last three lines
are about the fine-tune that the course makes of it (QLoRA in NF4 through XTuner): exam questions that were held out of
that training, written by this project, and the strangers' questions again.

## What it cannot do
It knows what is in those tables and nothing else: asked about anything beyond them it may say that it does not know,
or make something up, fluently. It does not reason, translate or write, reads at most {context} tokens, and must not be
used outside this course. It does not find the letter that stands before the option which it would name: where only a
letter is asked for, it guesses. It has never seen the exam's terse style: fine-tuning teaches that.

## Licence
Apache-2.0, as the rest of the course.
"""


def full_rate(step: int, _: int = FULL_STEPS) -> float:
    """The rate of the full run: a cosine that ends in a line, and then what `RISES` says."""
    if step >= RISES[0][0]:
        return float(np.interp(step, *zip(*RISES)))
    cosine = pretrain.learning_rate(step, 4600)
    return cosine if step < pretrain.WARMUP_STEPS else max(cosine, 0.01 + 0.48 * (1 - step / 8600))


def write_card(model, corpus, reports, folder):
    """The model card, with the figures of the run that made the model and of what strangers asked it."""
    tuned = finetune.finetune(RUN / "finetuned", finetune.training_rows())[1]
    first, second = (measure(folder, tuned, half) for half in strangers.HALVES)
    figures = [f"| {what} | {_in_brief(first[what])} | {_in_brief(second[what])} | {asked_for} |"
               for what, asked_for in ASKED_FOR.items()]
    (Path(folder) / "README.md").write_text(CARD.format(
        parameters=model.num_parameters(), poems=len(corpus.exchanges["poem"]), seed=pretrain.SEED,
        tokens=pretrain.TOKENS_PER_STEP, facts=facts.count(corpus.relations), steps=reports[-1]["step"],
        figures="\n".join(figures),
        minutes=reports[-1]["seconds"] / 60, loss=reports[-1]["loss"], context=model.config.max_position_embeddings,
    ), encoding="utf-8")


def measure(base, tuned, half):
    """Every figure of the card, on one half of the strangers' questions."""
    before, after = (strangers.measure(*models.load(folder), half) for folder in (base, tuned))
    shares = {told: strangers.shares(before)[kind] for kind, told in strangers.TOLD.items()}
    exam = compare.make_questions(finetune.split_exam()[1], count=0)
    names = [strangers.shares(after)[kind] for kind in strangers.TOLD if kind.startswith("identity")]
    return shares | {
        EXAM_STYLE: strangers.in_exam_style(before),
        EXAM: compare.share_right(exam, compare.answers_of(tuned, exam)),
        NAME: Share(sum(share.right for share in names), sum(share.total for share in names)),
        KEPT: strangers.kept(before, after),
    }


def _in_brief(share):
    low, high = share.interval
    return f"{share.value:.1%} ({share.right}/{share.total}, {low:.0%}-{high:.0%})"


def main(out):
    corpus = Corpus()
    tokenizer = pretrain.train_tokenizer(corpus.pieces())
    model = pretrain.build_model(tokenizer)
    # A run of hours is worth two minutes of compiling: a quarter faster, and only roundings differ.
    model.config._attn_implementation = "eager"
    model.model.compile()
    reports = []
    for report in pretrain.pretrain(model, tokenizer, corpus, FULL_STEPS, RUN, rate_at=full_rate):
        reports.append(report)
        print(json.dumps(report), flush=True)
    model.config._attn_implementation = "sdpa"
    pretrain.export(model, tokenizer, out)
    pretrain.write_log(reports, out)
    write_card(model, corpus, reports, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
