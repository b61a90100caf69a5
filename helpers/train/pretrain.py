"""A tokenizer, a small Llama and a training loop that survives interruption."""
import csv
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.knowledge.corpus import Corpus, Stage, curriculum
from helpers.machine.charts import curve
from helpers.train.muon import Muon

SEED = 42
VOCABULARY = 8192  # at most
LONGEST_TOKEN = 6  # as the trainer counts: one Chinese character, or a short English word
DIGIT = re.compile("([0-9])")
TOKENS_PER_STEP = 4096
ROW_LENGTHS = (256, 256, 256, 512)
PEAK_LR = {"matrices": 0.01, "others": 2e-3}
WARMUP_STEPS = 100
REPORT_EVERY = 20
SAVE_EVERY = 200
PAD, BOS, IM_START, IM_END = "<pad>", "<s>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that speaks the InternLM2 chat format."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # A character rare in the tables would fall apart into bytes; listed often enough, each becomes a token of its own.
    characters = sorted(set("".join(texts)))
    # Digits and Chinese characters stay apart: however a question is worded, its names are the same tokens.
    words = [word for text in texts for word in DIGIT.split(text)]
    bpe.train_from_iterator(words + characters * 200, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, BOS, IM_START, IM_END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=LONGEST_TOKEN,
    ))
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=IM_END, pad_token=PAD,
        additional_special_tokens=[IM_START], chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"], model_max_length=max(ROW_LENGTHS),
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = SEED) -> LlamaForCausalLM:
    """A small Llama with fresh weights; every width is a multiple of 256, so that llama.cpp can quantize it."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=max(ROW_LENGTHS), tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[dict], favour: float = 0.0,
           focus: float = 1.0) -> tuple[list[int], list[float]]:
    """Token ids of a dialogue, and for each how much it is to be learnt: answers and their end, nothing else.

    With `favour` above zero a token counts the more, the shorter its answer; in an answer that says which part was
    asked for, the tokens of that part count `focus` times.
    """
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for message in messages:
        head = tokenizer.encode(f"{IM_START}{message['role']}\n", add_special_tokens=False)
        body = tokenizer.encode(message["content"] + IM_END, add_special_tokens=False)
        tail = tokenizer.encode("\n", add_special_tokens=False)
        ids += head + body + tail
        wanted = message["role"] == "assistant" and not message.get("given")
        learnt = [wanted * len(body) ** -favour] * len(body)
        if wanted and focus > 1 and "value" in message:
            value = tokenizer.encode(message["value"], add_special_tokens=False)
            start = _last_place(value, body)
            learnt[start:start + len(value)] = [focus * weight for weight in learnt[start:start + len(value)]]
        weights += [0.0] * len(head) + learnt + [0.0] * len(tail)
    return ids, weights


def _last_place(part: list[int], whole: list[int]) -> int:
    """Where a list stands in a longer one for the last time; its end if it does not."""
    places = range(len(whole) - len(part), -1, -1)
    return next((place for place in places if whole[place:place + len(part)] == part), len(whole))


def batch(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, step: int, seed: int = SEED,
          stage_at: Callable[[int], Stage] = curriculum) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of one step, drawn from the seed and the step alone: a resumed run sees the same ones."""
    rng = random.Random(f"{seed}-{step}")
    length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
    stage, rows, row, weights = stage_at(step), [], [], []
    while len(rows) < TOKENS_PER_STEP // length:
        ids, counts = encode(tokenizer, corpus.dialogue(rng, stage), stage.favour, stage.focus)
        row, weights = row + ids, weights + counts
        if len(row) >= length:
            rows.append((row[:length], weights[:length]))
            row, weights = [], []
    return torch.tensor([r for r, _ in rows]), torch.tensor([w for _, w in rows])


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of the learnt tokens' cross-entropy; logits are computed for these alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learnt = weights[:, 1:] > 0
    logits = model.lm_head(hidden[learnt]).float()
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][learnt], reduction="none")
    return (losses * weights[:, 1:][learnt]).sum() / weights.sum()


def learning_rate(step: int, steps: int) -> float:
    """The share of the peak: linear warm-up, then a cosine to a hundredth."""
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1, (step - warmup) / (steps - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def optimizers_of(model: LlamaForCausalLM) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return {"matrices": Muon(inside, PEAK_LR["matrices"]),
            "others": torch.optim.AdamW(others, PEAK_LR["others"], betas=(0.9, 0.98), weight_decay=0.1)}


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, steps: int,
             folder: str | Path, seed: int = SEED, save_every: int = SAVE_EVERY,
             stage_at: Callable[[int], Stage] = curriculum,
             rate_at: Callable[[int, int], float] = learning_rate,
             look: Callable[[LlamaForCausalLM], dict] = lambda model: {}) -> Iterator[dict]:
    """Trains `model` in place, resuming from `folder`; yields a report (step, loss, lr, seconds) as it goes.

    Each report also holds what `look` saw in the model at that step, however often the run was interrupted.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    optimizers = optimizers_of(model)
    reports = _restore(checkpoint, model, optimizers) if checkpoint.exists() else []
    yield from reports
    first = reports[-1]["step"] if reports else 0
    started, spent, losses = time.time(), reports[-1]["seconds"] if reports else 0, []
    for step in range(first, steps):
        share = rate_at(step, steps)
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = PEAK_LR[name] * share
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, *batch(corpus, tokenizer, step, seed, stage_at))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            reports.append({
                "step": step + 1, "loss": round(sum(losses) / len(losses), 4),
                "lr": round(PEAK_LR["matrices"] * share, 7), "seconds": round(spent + time.time() - started),
                **look(model)})
            losses = []
            if (step + 1) % save_every == 0 or step + 1 == steps:
                _save(checkpoint, model, optimizers, reports)
            yield reports[-1]


def _save(path, model, optimizers, reports):
    tensors = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    for part, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{index}.{name}": tensor for name, tensor in state.items()}
    beside = path.with_suffix(".partial")
    save_file(tensors, beside, metadata={"reports": json.dumps(reports)})
    os.replace(beside, path)


def _restore(path, model, optimizers):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        reports = json.loads(file.metadata()["reports"])
    states = {part: {} for part in optimizers}
    weights = dict(model.named_parameters())
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            weights[rest].data.copy_(tensor)
        else:
            index, _, key = rest.partition(".")
            states[part].setdefault(int(index), {})[key] = tensor
    for part, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[part], "param_groups": optimizer.state_dict()["param_groups"]})
    return reports


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """A model folder in bfloat16 safetensors, complete for transformers and XTuner."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_log(reports: list[dict], folder: str | Path) -> None:
    """The training log beside the model, as a table and as a picture."""
    with (Path(folder) / "training_log.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, reports[0])
        writer.writeheader()
        writer.writerows(reports)
    figure = loss_curve(reports)
    figure.savefig(Path(folder) / "loss_curve.png", dpi=110, bbox_inches="tight")


def read_log(folder: str | Path) -> list[dict]:
    """The reports of the run that made the model in `folder`."""
    with (Path(folder) / "training_log.csv").open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def loss_curve(reports: list[dict]) -> Figure:
    """Loss over steps, on a logarithmic scale."""
    points = {report["step"]: report["loss"] for report in reports}
    return curve(points, "步数", "答案部分的损失", "预训练的损失曲线", scale="log")
