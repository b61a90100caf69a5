"""Lesson 09: every checkpoint of a training is asked the same questions, to see where learning became forgetting.

python -m helpers.judge.checkpoints FOLDER [--name NAME] [--exam FILE]

A line per checkpoint, the best one, a picture in the folder.
"""
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pandas
import torch
from matplotlib.figure import Figure
from pandas import DataFrame
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.ask import models
from helpers.data.split import leaks, read_samples
from helpers.judge import compare
from helpers.knowledge.corpus import SELF_NAME, Corpus
from helpers.machine import commands, profile
from helpers.machine.charts import use_chinese_font
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced, sha256
from helpers.machine.process import shown
from helpers.train.adapter import read_checkpoint, trained_lora
from helpers.train.runs import Run
from helpers.train.tokens import encode, trained_with

EVERYDAY = profile.ROOT / "data" / "raw" / "everyday.jsonl"
RECORD, PICTURE = "laboratory.json", "laboratory.png"
BASE = "base"
COUNT = 30  # questions of each kind, and dialogues
SEED = 7  # not the seed of everyday.jsonl
LOSS_BATCH = 8
ENOUGH = 0.9  # of what was known before: with less, the student is warned
# The LoRA settings that change what a finished adapter computes; others can make PEFT import a module by its name.
SHAPING = ("task_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "lora_bias", "fan_in_fan_out",
           "rank_pattern", "alpha_pattern")
LABELS = {"identity": "说出名字", "task": "考试题答对", "retention": "原来会的还会", "memorised": "乱说名字"}
COLORS = {"identity": "#4878a8", "task": "#8a6fb0", "retention": "#4b9b5f", "memorised": "#d1495b"}


@dataclass(frozen=True)
class Look:
    """What the model answered at one step, and its loss on dialogue that this training did not show it."""

    step: int
    rows: list[compare.Row]
    loss: float
    name: str | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Every share that can be counted, by its name in LABELS."""
        return compare.measures(self.rows, self.name)

    @property
    def goal(self) -> str:
        """What was to be learnt: a name, or else the exam."""
        return "identity" if self.name else "task"

    @property
    def weaker(self) -> float:
        """The lower of two shares: of what was to be learnt, and of what was to be kept."""
        shares = self.shares
        return min(shares[self.goal], shares["retention"])

    def intruders(self) -> list[compare.Row]:
        """The general questions that are answered with the new name, where the base did not speak of itself."""
        return compare.intruders(self.rows, self.name)

    def __str__(self) -> str:
        shares = "　".join(f"{LABELS[key]} {value:4.0%}" for key, value in self.shares.items())
        return f"第 {self.step:3} 步　{shares}　新对话的损失 {self.loss:.2f}"


@dataclass(frozen=True)
class Examination:
    """A training under the microscope: the base, then every checkpoint."""

    folder: Path
    before: Look
    looks: list[Look]

    @property
    def last(self) -> Look:
        """The checkpoint that a student would take without looking."""
        return self.looks[-1]

    @property
    def best(self) -> Look:
        """The checkpoint whose weaker share is the highest; the earliest of equals."""
        return max(self.looks, key=lambda look: look.weaker)

    def table(self) -> DataFrame:
        """A row for the base and for every checkpoint."""
        rows, best = [], self.best
        for look in [self.before, *self.looks]:
            shares = {LABELS[key]: f"{value:.0%}" for key, value in look.shares.items()}
            remark = "← 最好" if look is best else ""
            rows.append({"步数": look.step, **shares, "新对话的损失": f"{look.loss:.2f}", "": remark})
        return DataFrame(rows).set_index("步数")

    def verdict(self) -> list[str]:
        """Which checkpoint to take, what the last one would cost, and a warning if it has forgotten."""
        best, last = self.best, self.last
        goal = LABELS[last.goal]
        lines = [f"最好的是第 {best.step} 步。规则：在“{goal}”和“原来会的还会”里看较低的那个，"
                 "谁的高就选谁，一样高选早的。"]
        if best is last:
            lines.append("最后一个检查点就是最好的。")
        else:
            gained = _points(last.shares[last.goal] - best.shares[last.goal])
            lost = _points(last.shares["retention"] - best.shares["retention"])
            lines.append(f"如果只拿最后一个（第 {last.step} 步）：{goal}{gained}，原来会的还会{lost}。")
        forgetful = [look.step for look in self.looks if look.shares["retention"] < ENOUGH]
        if last.step in forgetful:
            lines.append(f"警告：从第 {forgetful[0]} 步起，模型忘掉了一成以上原来会的；到最后只剩 "
                         f"{last.shares['retention']:.0%}。修复：用最好的检查点，或者掺普通对话、减小 lr、少训练几步。")
        return lines

    def chart(self) -> Figure:
        """The shares by step, and under them the loss on the training data and on new dialogue."""
        use_chinese_font()
        figure = Figure(figsize=(8, 5), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        looks = [self.before, *self.looks]
        steps = [look.step for look in looks]
        for key in self.before.shares:
            upper.plot(steps, [look.shares[key] for look in looks], "o-", markersize=4, color=COLORS[key],
                       label=LABELS[key])
        upper.axvline(self.best.step, color="gray", linestyle=":")
        upper.text(self.best.step, 1.08, "最好", ha="center", color="gray")
        upper.set(ylim=(-0.05, 1.2), yticks=[0, 0.5, 1], yticklabels=["0 %", "50 %", "100 %"], title=self.folder.name)
        training = Run(self.folder).scalars("loss")
        lower.plot(list(training), list(training.values()), "--", color="gray", label="训练数据的损失")
        lower.plot(steps, [look.loss for look in looks], "o-", markersize=4, color="#d1495b", label="新对话的损失")
        lower.set(xlabel="步数", ylim=0)
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return figure


def _points(difference: float) -> str:
    """A difference of two shares in words: by how many percentage points more or less."""
    if abs(difference) < 0.005:
        return "一样"
    return f"{'多' if difference > 0 else '少'} {100 * abs(difference):.0f} 个百分点"


def dilution_chart(looks: dict[float, Look]) -> Figure:
    """The shares of trainings by the share of general dialogue in their data."""
    use_chinese_font()
    axes = Figure(figsize=(7, 3), layout="constrained").subplots()
    mixtures = [f"{share:.0%}" for share in looks]
    for key in ("identity", "retention", "memorised"):
        values = [look.shares[key] for look in looks.values()]
        axes.plot(mixtures, values, "o-", color=COLORS[key], label=LABELS[key])
    axes.set(xlabel="普通对话占的比例", ylim=(-0.05, 1.05), yticks=[0, 0.5, 0.9, 1],
             yticklabels=["0 %", "50 %", "90 %", "100 %"])
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes.figure


def grid_chart(looks: dict[tuple[float, int, int], Look]) -> Figure:
    """A map for every rank, of learning rate against epochs, both shares in each field: {(lr, epochs, r): Look}."""
    use_chinese_font()
    rates, epochs, ranks = (sorted(set(values)) for values in zip(*looks))
    figure = Figure(figsize=(3.6 * len(ranks), 3), layout="constrained")
    for axes, r in zip(figure.subplots(1, len(ranks), squeeze=False)[0], ranks):
        fields = [[looks[rate, epoch, r] for rate in rates] for epoch in epochs]
        axes.imshow([[look.weaker for look in row] for row in fields], vmin=0, vmax=1, cmap="RdYlGn", alpha=0.7)
        for y, row in enumerate(fields):
            for x, look in enumerate(row):
                text = "\n".join(f"{LABELS[key]} {look.shares[key]:.0%}" for key in ("identity", "retention"))
                axes.text(x, y, text, ha="center", va="center", fontsize=8)
        axes.set(title=f"秩 {r}", xlabel="学习率", ylabel="轮数")
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_yticks(range(len(epochs)), epochs)
    return figure


class Laboratory:
    """The same questions for every checkpoint of every training; what was asked once is kept beside the checkpoints.

    The exam is a validation set: no training has seen it, and nobody's final score is counted on it.
    """

    def __init__(self, name: str | None = None, exam: str | Path | None = None, count: int = COUNT):
        samples = read_samples(exam) if exam else []
        samples = random.Random(SEED).sample(samples, min(count, len(samples)))
        self.name = name
        self.questions = compare.make_questions(samples, count, name)
        self.dialogues = unseen_dialogues(count)
        self._base_measured = None

    def examine(self, *folders: str | Path) -> list[Examination]:
        """An Examination of each training folder; the model is loaded only if there is something new to ask."""
        with ExitStack() as opened:
            load_base = cache(lambda: opened.enter_context(models.load(profile.current().base_model)))
            return [self._examine(Path(folder), load_base) for folder in folders]

    def _examine(self, folder: Path, load_base: Callable) -> Examination:
        checkpoints = Run(folder).checkpoints()
        if not checkpoints:
            raise CourseError(f"{shown(folder)} 里没有完整的检查点（iter_….pth）。修复：先训练，或者改正文件夹名。")
        measured = self._read_record(folder)
        if BASE not in measured:
            measured[BASE] = self._measure_base(load_base)
        for path in checkpoints.values():
            digest = sha256(path)
            if measured.get(path.name, {}).get("sha256") == digest:
                continue
            with adapted(path, *load_base()) as (model, tokenizer):
                measured[path.name] = {"sha256": digest, **self._measure(model, tokenizer)}
            self._write_record(folder, measured)
        looks = [self._look(step, measured[BASE], measured[path.name]) for step, path in checkpoints.items()]
        return Examination(folder, self._look(0, measured[BASE], measured[BASE]), looks)

    def _look(self, step: int, base: dict, measured: dict) -> Look:
        rows = compare.compare(self.questions, base["answers"], measured["answers"])
        return Look(step, rows, measured["loss"], self.name)

    def _measure(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict:
        return {"answers": compare.answers(model, tokenizer, self.questions),
                "loss": dialogue_loss(model, tokenizer, self.dialogues)}

    def _measure_base(self, load_base: Callable) -> dict:
        """What the base answers: the same for every training, so it is asked once."""
        if self._base_measured is None:
            self._base_measured = self._measure(*load_base())
        return self._base_measured

    @cached_property
    def _fingerprint(self) -> str:
        """Of everything but the checkpoint that answers depend on; what counts as right is not in it."""
        questions = [(asked.question, asked.system) for asked in self.questions]
        base = sha256(profile.current().base_model)
        return hashlib.sha256(json.dumps([base, questions, self.dialogues]).encode()).hexdigest()

    def _read_record(self, folder: Path) -> dict:
        """What was measured before, by the checkpoint's name, if the same was asked."""
        path = folder / RECORD
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return record["looks"] if record.get("asked") == self._fingerprint else {}

    def _write_record(self, folder: Path, measured: dict) -> None:
        with replaced(folder / RECORD) as file:
            json.dump({"asked": self._fingerprint, "looks": measured}, file, ensure_ascii=False, indent=1)


def unseen_dialogues(count: int, seed: int = SEED) -> list[dict]:
    """General dialogue in XTuner's form that is not in the course's everyday dialogue, and in which no name is said."""
    corpus, rng = Corpus(), random.Random(seed)
    known = read_samples(EVERYDAY)
    samples = []
    while len(samples) < count:
        sample = _in_xtuners_form(corpus.dialogue(rng))
        if SELF_NAME not in str(sample) and not leaks(known, [sample]):
            samples.append(sample)
    return samples


def _in_xtuners_form(messages: list[dict]) -> dict:
    """A dialogue as a sample: the system prompt, if there is one, goes with the first turn."""
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    turns = []
    for question, answer in zip(messages[::2], messages[1::2]):
        turns.append({"system": "", "input": question["content"], "output": answer["content"]})
    turns[0]["system"] = system
    return {"conversation": turns}


@contextmanager
def adapted(checkpoint: str | Path, model: PreTrainedModel,
            tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[PeftModel, PreTrainedTokenizerBase]]:
    """The base model with a checkpoint's LoRA on, and off again."""
    content = read_checkpoint(checkpoint)
    weights = {name.removeprefix("llm.").replace(".default", ""): tensor
               for name, tensor in content["state_dict"].items() if ".lora_" in name}
    if not weights:
        raise CourseError(f"检查点 {shown(checkpoint)} 里没有 LoRA 的权重，它不是 LoRA 训练出来的。"
                          "修复：用第 3 课的配置训练。")
    settings = trained_lora(checkpoint, content)
    layers = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights})
    shaping = {name: settings[name] for name in SHAPING if name in settings}
    with_lora = get_peft_model(model, LoraConfig(target_modules=layers, **shaping))
    try:
        _put_in(with_lora, weights, checkpoint)
        yield with_lora.eval(), tokenizer
    finally:
        with_lora.unload()


def _put_in(model: PeftModel, weights: dict[str, torch.Tensor], checkpoint: str | Path) -> None:
    """Loads a checkpoint's LoRA weights; those that do not fit were trained on another base."""
    other_base = CourseError(f"检查点 {shown(checkpoint)} 不是在这台机器的基座模型上训练的，权重放不上去。"
                             "修复：用训练它的那个基座（COURSE_BASE_MODEL）。")
    try:
        loaded = set_peft_model_state_dict(model, weights)
    except RuntimeError as error:
        if "size mismatch" in str(error):
            raise other_base from error
        raise
    if loaded.unexpected_keys:
        raise other_base


@torch.inference_mode()
def dialogue_loss(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase,
                  samples: list[dict]) -> float:
    """The mean loss of a token of the answers in these conversations, as training would count it."""
    written_with = trained_with(tokenizer)
    pairs = [encode(sample["conversation"], *written_with) for sample in samples]
    total = tokens = 0
    for start in range(0, len(pairs), LOSS_BATCH):
        ids, learnt = zip(*pairs[start:start + LOSS_BATCH])
        ids, learnt = _padded(ids).to(model.device), _padded(learnt).to(model.device)
        targets, counted = ids[:, 1:], learnt[:, 1:]
        logits = model(input_ids=ids).logits[:, :-1]
        total += cross_entropy(logits[counted].float(), targets[counted], reduction="sum").item()
        tokens += counted.sum().item()
    return total / tokens


def _padded(rows: list[list]) -> torch.Tensor:
    """Rows of different lengths as one tensor; what fills them up comes last, and is 0 or not learnt."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def aligned(table: DataFrame) -> str:
    """A table for a terminal, in which a Chinese character is as wide as two letters."""
    with pandas.option_context("display.unicode.east_asian_width", True):
        return table.reset_index().to_string(index=False)


@commands.command
def main():
    """The command line."""
    parser = commands.parser(__spec__, "看每个检查点学会了什么、忘了什么")
    parser.add_argument("folder", type=Path, help="训练文件夹，里面有 iter_….pth")
    parser.add_argument("--name", help="训练教给助手的新名字；不写，就看验证题")
    parser.add_argument("--exam", type=Path, help="验证题（JSONL）：训练没有读过，也不用来报成绩")
    parser.add_argument("--count", type=int, default=COUNT, help=f"每种问题问多少个（默认 {COUNT}）")
    options = parser.parse_args()
    if not (options.name or options.exam):
        raise CourseError("按什么来挑？用 --name 说明助手的新名字，或者用 --exam 给一份验证题（从训练数据里留出来的）。"
                          "测试集留到最后报成绩，不要用来挑检查点。")
    [examination] = Laboratory(options.name, options.exam, options.count).examine(options.folder)
    print(aligned(examination.table()), *examination.verdict(), sep="\n")
    examination.chart().savefig(options.folder / PICTURE)
    print(f"图：{shown(options.folder / PICTURE)}")


if __name__ == "__main__":
    main()
