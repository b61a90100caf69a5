"""Lesson 09: every checkpoint of a training is asked the same questions, to see where learning became forgetting.

python -m helpers.overfit FOLDER [--name NAME]   a line per checkpoint, the best one, a picture in the folder.
"""
import argparse
import hashlib
import json
import random
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

import torch
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from xtuner.utils import PROMPT_TEMPLATE

from helpers import compare, probe, profile
from helpers.adapter import AdapterError, read_checkpoint, trained_lora
from helpers.charts import use_chinese_font
from helpers.check import encode
from helpers.convert import replaced
from helpers.corpus import SELF_NAME, Corpus
from helpers.process import Failed, shown
from helpers.split import leaks, read_samples
from helpers.train import Run

EXAM = profile.ROOT / "workspace" / "test.jsonl"
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
    """What the model answered at one step, and its loss on dialogue that it was not trained on."""

    step: int
    rows: list[compare.Row]
    loss: float
    name: str | None = None

    @property
    def shares(self):
        """The shares that could be counted, by name; with a new name also where it is said but has no business."""
        found = {"identity": compare.identity(self.rows).after, "task": compare.task(self.rows).after,
                 "retention": compare.retention(self.rows).after, "memorised": self._memorised()}
        return {key: share.value for key, share in found.items() if share.total}

    @property
    def weaker(self):
        """The lower of two shares: of what was to be learnt, and of what was to be kept."""
        return min(self.shares[self.goal], self.shares["retention"])

    @property
    def goal(self):
        """What was to be learnt: a name, or else the exam."""
        return "identity" if self.name else "task"

    def intruders(self):
        """The general questions that are answered with the new name, where the base did not speak of itself."""
        return [row for row in self._general() if self.name in row.after and SELF_NAME not in row.before]

    def _general(self):
        return [row for row in self.rows if row.kind in compare.GENERAL]

    def _memorised(self):
        return compare.Share(len(self.intruders()), len(self._general())) if self.name else compare.Share(0, 0)

    def __str__(self):
        shares = "　".join(f"{LABELS[key]} {value:4.0%}" for key, value in self.shares.items())
        return f"第 {self.step:3} 步　{shares}　新对话的损失 {self.loss:.2f}"


@dataclass(frozen=True)
class Examination:
    """A training under the microscope: the base, then every checkpoint."""

    folder: Path
    before: Look
    looks: list[Look]

    @property
    def last(self):
        """The checkpoint that a student would take without looking."""
        return self.looks[-1]

    @property
    def best(self):
        """The checkpoint whose weaker share is the highest; the earliest of equals."""
        return max(self.looks, key=lambda look: look.weaker)

    def table(self):
        """A line for the base and for every checkpoint."""
        return [str(look) + ("　← 最好" if look is self.best else "") for look in [self.before, *self.looks]]

    def verdict(self):
        """Which checkpoint to take, what the last one would cost, and a warning if it has forgotten."""
        best, last, goal = self.best, self.last, LABELS[self.last.goal]
        lines = [f"最好的是第 {best.step} 步。规则：在“{goal}”和“原来会的还会”里看较低的那个，"
                 "谁的高就选谁，一样高选早的。"]
        if best is last:
            lines.append("最后一个检查点就是最好的。")
        else:
            gained, lost = (_points(last.shares[key] - best.shares[key]) for key in (last.goal, "retention"))
            lines.append(f"如果只拿最后一个（第 {last.step} 步）：{goal}{gained}，原来会的还会{lost}。")
        forgetful = [look.step for look in self.looks if look.shares["retention"] < ENOUGH]
        if last.step in forgetful:
            lines.append(f"警告：从第 {forgetful[0]} 步起，模型忘掉了一成以上原来会的；到最后只剩 "
                         f"{last.shares['retention']:.0%}。修复：用最好的检查点，或者掺普通对话、减小 lr、少训练几步。")
        return lines

    def chart(self):
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


def _points(difference):
    if abs(difference) < 0.005:
        return "一样"
    return f"{'多' if difference > 0 else '少'} {abs(difference):.0%}"


def dilution_chart(looks):
    """The shares of trainings by the share of general dialogue in their data: {0.25: Look}."""
    use_chinese_font()
    axes = Figure(figsize=(7, 3), layout="constrained").subplots()
    for key in ("identity", "retention", "memorised"):
        axes.plot([f"{share:.0%}" for share in looks], [look.shares[key] for look in looks.values()], "o-",
                  color=COLORS[key], label=LABELS[key])
    axes.set(xlabel="普通对话占的份额", ylim=(-0.05, 1.05), yticks=[0, 0.5, 0.9, 1],
             yticklabels=["0 %", "50 %", "90 %", "100 %"])
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes.figure


def grid_chart(looks):
    """A map for every rank of learning rate against epochs, both shares in each field: {(lr, epochs, r): Look}."""
    use_chinese_font()
    rates, epochs, ranks = (sorted(set(values)) for values in zip(*looks))
    figure = Figure(figsize=(3.6 * len(ranks), 3), layout="constrained")
    for axes, r in zip(figure.subplots(1, len(ranks), squeeze=False)[0], ranks):
        fields = [[looks[rate, epoch, r] for rate in rates] for epoch in epochs]
        axes.imshow([[look.weaker for look in row] for row in fields], vmin=0, vmax=1, cmap="RdYlGn", alpha=0.7)
        for (y, row), x in product(enumerate(fields), range(len(rates))):
            shares = row[x].shares
            axes.text(x, y, f"{LABELS['identity']} {shares['identity']:.0%}\n"
                            f"{LABELS['retention']} {shares['retention']:.0%}", ha="center", va="center", fontsize=8)
        axes.set(title=f"秩 {r}", xlabel="学习率", ylabel="轮数")
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_yticks(range(len(epochs)), epochs)
    return figure


class Laboratory:
    """The same questions for every checkpoint of every training; what was asked once is kept beside the checkpoints."""

    def __init__(self, name=None, exam=EXAM, count=COUNT):
        samples = read_samples(exam) if Path(exam).exists() else []
        samples = random.Random(SEED).sample(samples, min(count, len(samples)))
        self.name = name
        self.questions = compare.questions(samples, count, name)
        self.dialogues = unseen_dialogues(count)

    def examine(self, *folders):
        """An Examination of each training folder; the model is loaded only if there is something new to ask."""
        load = cache(lambda: probe.load(profile.current().base_model))
        return [self._examine(Path(folder), load) for folder in folders]

    def _examine(self, folder, load):
        checkpoints = Run(folder).checkpoints()
        if not checkpoints:
            raise Failed(f"{shown(folder)} 里没有完整的检查点（iter_….pth）。修复：先训练，或者改正文件夹名。")
        kept = self._kept(folder)
        found = {BASE: kept.get(BASE) or self._base(load)}
        for path in checkpoints.values():
            digest = compare.sha256(path)
            if kept.get(path.name, {}).get("sha256") == digest:
                found[path.name] = kept[path.name]
            else:
                with wearing(path, *load()) as dressed:
                    found[path.name] = {"sha256": digest, **self._ask(*dressed)}
            self._keep(folder, kept | found)
        before = found[BASE]["answers"]
        looks = [self._look(step, before, found[path.name]) for step, path in checkpoints.items()]
        return Examination(folder, self._look(0, before, found[BASE]), looks)

    def _look(self, step, before, seen):
        rows = compare.compare(lambda _: before, lambda _: seen["answers"], self.questions)
        return Look(step, rows, seen["loss"], self.name)

    def _ask(self, model, tokenizer):
        return {"answers": compare.answers(model, tokenizer, self.questions),
                "loss": dialogue_loss(model, tokenizer, self.dialogues)}

    def _base(self, load):
        if not hasattr(self, "_base_seen"):
            self._base_seen = self._ask(*load())
        return self._base_seen

    @cached_property
    def _asked(self):
        """A fingerprint of everything but the checkpoint that answers depend on; what counts as right is not in it."""
        questions = [(asked.question, asked.system) for asked in self.questions]
        base = compare.sha256(profile.current().base_model)
        return hashlib.sha256(json.dumps([base, questions, self.dialogues]).encode()).hexdigest()

    def _kept(self, folder):
        path = folder / RECORD
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return record["looks"] if record.get("asked") == self._asked else {}

    def _keep(self, folder, looks):
        with replaced(folder / RECORD) as file:
            json.dump({"asked": self._asked, "looks": looks}, file, ensure_ascii=False, indent=1)


def unseen_dialogues(count, seed=SEED):
    """General dialogue in XTuner's form that is not in the course's everyday dialogue, and in which no name is said."""
    source, rng, found = Corpus(), random.Random(seed), []
    known = read_samples(EVERYDAY)
    while len(found) < count:
        messages = source.dialogue(rng)
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        turns = [{"system": "", "input": asked["content"], "output": said["content"]}
                 for asked, said in zip(messages[::2], messages[1::2])]
        turns[0]["system"] = system
        sample = {"conversation": turns}
        if SELF_NAME not in str(sample) and not leaks(known, [sample]):
            found.append(sample)
    return found


@contextmanager
def wearing(checkpoint, model, tokenizer):
    """The base model with a checkpoint's LoRA on, and off again."""
    content = read_checkpoint(checkpoint)
    weights = {name.removeprefix("llm."): tensor for name, tensor in content["state_dict"].items() if ".lora_" in name}
    if not weights:
        raise AdapterError(f"检查点 {shown(checkpoint)} 里没有 LoRA 的权重，它不是 LoRA 训练出来的。"
                           "修复：用第 3 课的配置训练。")
    settings = trained_lora(checkpoint, content)
    layers = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights})
    chosen = {name: settings[name] for name in SHAPING if name in settings}
    dressed = get_peft_model(model, LoraConfig(target_modules=layers, **chosen))
    try:
        unknown = dressed.load_state_dict(weights, strict=False).unexpected_keys
        if unknown:
            raise RuntimeError(unknown[0])
        yield dressed.eval(), tokenizer
    except RuntimeError as error:
        if "size mismatch" not in str(error) and ".lora_" not in str(error):
            raise
        raise AdapterError(f"检查点 {shown(checkpoint)} 不是在这台机器的基座模型上训练的，权重放不上去。"
                           "修复：用训练它的那个基座（COURSE_BASE_MODEL）。") from error
    finally:
        dressed.unload()


@torch.inference_mode()
def dialogue_loss(model, tokenizer, samples):
    """The mean loss of a token of the answers in these conversations, as training would count it."""
    pairs = [encode(sample["conversation"], PROMPT_TEMPLATE.internlm2_chat, tokenizer) for sample in samples]
    total = tokens = 0
    for start in range(0, len(pairs), LOSS_BATCH):
        batch = pairs[start:start + LOSS_BATCH]
        ids, learnt = (torch.nn.utils.rnn.pad_sequence([torch.tensor(pair[side]) for pair in batch], batch_first=True)
                       .to(model.device) for side in (0, 1))
        logits = model(input_ids=ids).logits[:, :-1][learnt[:, 1:]].float()  # padding comes after, and is not learnt
        total += torch.nn.functional.cross_entropy(logits, ids[:, 1:][learnt[:, 1:]], reduction="sum").item()
        tokens += len(logits)
    return total / tokens


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.overfit", description="看每个检查点学会了什么、忘了什么")
    parser.add_argument("folder", type=Path, help="训练文件夹，里面有 iter_….pth")
    parser.add_argument("--name", help="训练教给助手的新名字；不写，就看考试题")
    parser.add_argument("--count", type=int, default=COUNT, help=f"每种问题问多少个（默认 {COUNT}）")
    options = parser.parse_args()
    if not options.name and not EXAM.exists():
        sys.exit(f"[FAIL] 缺少 {shown(EXAM)}：请先运行第 2 课，或者用 --name 说明助手的新名字。")
    try:
        [examination] = Laboratory(options.name, count=options.count).examine(options.folder)
    except (Failed, AdapterError, profile.ProfileError) as error:
        sys.exit(f"[FAIL] {error}")
    print(*examination.table(), *examination.verdict(), sep="\n")
    examination.chart().savefig(options.folder / PICTURE)
    print(f"图：{shown(options.folder / PICTURE)}")


if __name__ == "__main__":
    main()
