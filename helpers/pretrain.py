"""Appendix A: a tokenizer, a small Llama and a training loop that survives interruption.

python -m helpers.pretrain OUT_FOLDER   makes the course's tiny base model: the full run, resumed where it stopped.
"""
import csv
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers import facts
from helpers.charts import curve
from helpers.corpus import Corpus, curriculum
from helpers.profile import ROOT

SEED = 42
VOCABULARY = 6144
TOKENS_PER_STEP = 4096
ROW_LENGTHS = (256, 256, 256, 512)
FULL_STEPS = 3800
PEAK_LR = 2e-3
WARMUP_STEPS = 150
REPORT_EVERY = 20
SAVE_EVERY = 200
PAD, BOS, IM_START, IM_END = "<pad>", "<s>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts, vocabulary=VOCABULARY):
    """A byte-level BPE tokenizer that speaks the InternLM2 chat format."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # A character rare in the tables would fall apart into bytes; listed often enough, each becomes a token of its own.
    characters = sorted(set("".join(texts)))
    bpe.train_from_iterator(texts + characters * 200, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, BOS, IM_START, IM_END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=12,
    ))
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=IM_END, pad_token=PAD,
        additional_special_tokens=[IM_START], chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"], model_max_length=max(ROW_LENGTHS),
    )


def build_model(tokenizer, seed=SEED):
    """A small Llama with fresh weights; every width is a multiple of 256, so that llama.cpp can quantize it."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=max(ROW_LENGTHS), tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def encode(tokenizer, messages):
    """Token ids of a dialogue, and for each whether the model must learn it: answers and their end, nothing else."""
    ids, learnt = [tokenizer.bos_token_id], [False]
    for message in messages:
        head = tokenizer.encode(f"{IM_START}{message['role']}\n", add_special_tokens=False)
        body = tokenizer.encode(message["content"] + IM_END, add_special_tokens=False)
        tail = tokenizer.encode("\n", add_special_tokens=False)
        ids += head + body + tail
        learnt += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False] * len(tail)
    return ids, learnt


def batch(corpus, tokenizer, step, seed=SEED, stage_at=curriculum):
    """The rows of one step, drawn from the seed and the step alone: a resumed run sees the same ones."""
    rng = random.Random(f"{seed}-{step}")
    length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
    rows, row, mask = [], [], []
    while len(rows) < TOKENS_PER_STEP // length:
        ids, learnt = encode(tokenizer, corpus.dialogue(rng, stage_at(step)))
        row, mask = row + ids, mask + learnt
        if len(row) >= length:
            rows.append((row[:length], mask[:length]))
            row, mask = [], []
    return torch.tensor([r for r, _ in rows]), torch.tensor([m for _, m in rows])


def loss_of(model, ids, learnt):
    """The mean cross-entropy of the learnt tokens; logits are computed for these alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    target = learnt[:, 1:]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[target]).float(), ids[:, 1:][target])


def learning_rate(step, steps):
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return PEAK_LR * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(model, tokenizer, corpus, steps, folder, seed=SEED, save_every=SAVE_EVERY, stage_at=curriculum):
    """Trains `model` in place, resuming from `folder`; yields a report (step, loss, lr, seconds) as it goes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_LR, betas=(0.9, 0.98))
    reports = _restore(checkpoint, model, optimizer) if checkpoint.exists() else []
    yield from reports
    first = reports[-1]["step"] if reports else 0
    started, spent, losses = time.time(), reports[-1]["seconds"] if reports else 0, []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, *batch(corpus, tokenizer, step, seed, stage_at))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            reports.append({
                "step": step + 1, "loss": round(sum(losses) / len(losses), 4),
                "lr": round(learning_rate(step, steps), 7), "seconds": round(spent + time.time() - started)})
            losses = []
            if (step + 1) % save_every == 0 or step + 1 == steps:
                _save(checkpoint, model, optimizer, reports)
            yield reports[-1]


def _save(path, model, optimizer, reports):
    tensors = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    beside = path.with_suffix(".partial")
    save_file(tensors, beside, metadata={"reports": json.dumps(reports)})
    os.replace(beside, path)


def _restore(path, model, optimizer):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        reports = json.loads(file.metadata()["reports"])
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[f"model.{name}"])
    state = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return reports


def export(model, tokenizer, folder):
    """A model folder in bfloat16 safetensors, complete for transformers and XTuner."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_log(reports, folder):
    """The training log beside the model, as a table and as a picture."""
    with (Path(folder) / "training_log.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, reports[0])
        writer.writeheader()
        writer.writerows(reports)
    figure = loss_curve(reports)
    figure.savefig(Path(folder) / "loss_curve.png", dpi=110, bbox_inches="tight")


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
Only text that this project wrote or generates: {facts:,} facts from `data/facts/` in many ways of asking, {poems}
classical poems in the public domain, sums of small numbers, greetings, self-introduction, refusals and everyday
exchanges from `data/dialogue/`. `make tiny-base` repeats the run: seed {seed}, {steps:,} steps of {tokens:,} tokens on
two CPU cores, {minutes:.0f} minutes, final loss {loss}. `training_log.csv` and `loss_curve.png` are that run's.

## How good it is
`make bench` prints its figures on ways of asking that were held out of training; `tests/test_tiny_base.py` asserts
them.

## What it cannot do
It knows what is in those tables and nothing else: asked about anything beyond them it makes something up, fluently.
It does not reason, translate or write, reads at most {context} tokens, and must not be used outside this course. It has
never seen the exam's terse style: fine-tuning teaches that.

## Licence
Apache-2.0, as the rest of the course.
"""


def write_card(model, corpus, reports, folder):
    """The model card, with the figures of the run that made the model."""
    (Path(folder) / "README.md").write_text(CARD.format(
        parameters=model.num_parameters(), poems=len(corpus.exchanges["poem"]), seed=SEED, tokens=TOKENS_PER_STEP,
        facts=facts.count(corpus.relations), steps=reports[-1]["step"],
        minutes=reports[-1]["seconds"] / 60, loss=reports[-1]["loss"], context=model.config.max_position_embeddings,
    ), encoding="utf-8")


def read_log(folder):
    """The reports of the run that made the model in `folder`."""
    with (Path(folder) / "training_log.csv").open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def loss_curve(reports):
    """Loss over steps, on a logarithmic scale."""
    points = {report["step"]: report["loss"] for report in reports}
    return curve(points, "步数", "答案部分的损失", "预训练的损失曲线", scale="log")


def main(out):
    corpus = Corpus()
    tokenizer = train_tokenizer(corpus.pieces())
    model = build_model(tokenizer)
    reports = []
    for report in pretrain(model, tokenizer, corpus, FULL_STEPS, ROOT / "workspace" / "pretrain"):
        reports.append(report)
        print(json.dumps(report), flush=True)
    export(model, tokenizer, out)
    write_log(reports, out)
    write_card(model, corpus, reports, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
