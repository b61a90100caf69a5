"""Lesson 08: the same questions to the model before and after, and what changed, in three figures.

python -m helpers.compare [--before FOLDER] [--after FOLDER] [--out FOLDER]   prints them, writes answers and report.
"""
import argparse
import hashlib
import json
import math
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from helpers import corpus, probe, profile, report
from helpers.convert import replaced
from helpers.split import read_samples

WORKSPACE = profile.ROOT / "workspace"
EXAM, IDENTITY = "exam", "identity"
GENERAL = ("fact", "poem", "greeting", "sum")
SEED = 42
PROBES_OF_EACH_KIND = 120
BATCH_SIZE = 64
PACKAGES = ("torch", "transformers", "xtuner", "peft", "bitsandbytes")
RECIPE = re.compile(r"^\s*(max_length|batch_size|accumulative_counts|max_epochs|lr|r|lora_alpha|lora_dropout)"
                    r"\s?=\s?([\d.e-]+)", re.M)


@dataclass(frozen=True)
class Question(corpus.Probe):
    """A probe, and the system prompt that goes before it."""

    system: str | None = None


@dataclass(frozen=True)
class Row:
    """One question with the answers of both models."""

    kind: str
    question: str
    expected: str
    before: str
    after: str
    right_before: bool
    right_after: bool


class Share(NamedTuple):
    """How many of how many are right."""

    right: int
    total: int

    @property
    def value(self):
        """The share itself."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self):
        """Where the true share lies, in 95 of 100 cases."""
        return wilson(self.right, self.total)

    def __str__(self):
        if not self.total:
            return "没有可比的问题"
        low, high = self.interval
        return f"{self.value:.1%}（{self.right}/{self.total}，95 % 区间 {low:.1%}–{high:.1%}）"


class Pair(NamedTuple):
    """A share before and after."""

    before: Share
    after: Share


@dataclass(frozen=True)
class Comparison:
    """The rows, and everything that made them: models, data, settings, versions, seed, date, machine."""

    rows: list[Row]
    made: dict

    def figures(self):
        """The three figures by name, before and after."""
        return {"考试题答对": task(self.rows), "说出自己的名字": identity(self.rows),
                "原来会的还会": retention(self.rows)}

    def kept(self):
        """The retention of each kind of general probe of which something was known before."""
        shares = {kind: retention(self.rows, kind).after for kind in GENERAL}
        return {kind: share for kind, share in shares.items() if share.total}


def wilson(right, total, z=1.96):
    """The 95 % interval of a share: what the true share may be when so many of so few were right."""
    if not total:
        return 0.0, 1.0
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / total + weight / total / 4) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def questions(samples, count=PROBES_OF_EACH_KIND, name=None, seed=SEED):
    """The held-out samples, and of every kind of probe `count`; who is asked "who are you" should say `name`."""
    source, name = corpus.Corpus(), name or profile.current().own_name
    turns = [sample["conversation"][0] for sample in samples]
    exam = [Question(EXAM, turn["input"], [turn["output"]], turn["output"], turn.get("system")) for turn in turns]
    selves = [Question(IDENTITY, asked.question, [name]) for asked in source.probes(IDENTITY, count, seed)]
    return exam + selves + [Question(**vars(asked)) for kind in GENERAL for asked in source.probes(kind, count, seed)]


def is_right(question, answer):
    """Whether an answer is right: in the exam in exactly the expected words, otherwise as its probe wants it."""
    return answer == question.terse if question.kind == EXAM else probe.is_right(question, answer)


def from_folder(folder, batch_size=BATCH_SIZE):
    """What answers questions with the model in a folder, loaded only while it does: two of 7B do not fit on a GPU."""
    if not Path(folder, "config.json").is_file():
        raise FileNotFoundError(f"{folder} 里没有模型（找不到 config.json）。"
                                "请改成含有模型的文件夹，例如第 6 课的 workspace/merged。")

    def answer(questions):
        return answers(*probe.load(folder), questions, batch_size)
    return answer


def answers(model, tokenizer, questions, batch_size=BATCH_SIZE):
    """A loaded model's answer to each question, in order."""
    together = {}
    for place, question in enumerate(questions):  # answers of one kind are of similar length
        together.setdefault((question.kind, question.system), []).append(place)
    found = {}
    for (_, system), places in together.items():
        asked = [questions[place].question for place in places]
        found |= zip(places, probe.ask(model, tokenizer, asked, system, batch_size=batch_size))
    return [found[place] for place in range(len(questions))]


def compare(before, after, questions):
    """A row per question; `before` and `after` each take all questions, once, and give their answers in order."""
    return [Row(question.kind, question.question, question.terse or "或".join(question.expect), *answers,
                *(is_right(question, answer) for answer in answers))
            for question, *answers in zip(questions, before(questions), after(questions), strict=True)]


def pair(rows, *kinds):
    """The shares answered right before and after, among the questions of some kinds."""
    chosen = [row for row in rows if row.kind in kinds]
    return Pair(Share(sum(row.right_before for row in chosen), len(chosen)),
                Share(sum(row.right_after for row in chosen), len(chosen)))


def task(rows):
    """The shares of exam questions answered in exactly the expected words."""
    return pair(rows, EXAM)


def identity(rows):
    """The shares of ways of asking "who are you" that are answered with the assistant's name."""
    return pair(rows, IDENTITY)


def retention(rows, *kinds):
    """Of the general probes (of some kinds) that were answered right before, the share that still is."""
    return pair([row for row in rows if row.right_before], *(kinds or GENERAL))


def compare_folders(before, after, exam, out, name=None):
    """The comparison of two model folders on the held-out exam, kept in `out` and asked anew only when they change."""
    name, file = name or profile.current().own_name, Path(out) / "answers.json"
    asked = questions(read_samples(exam), name=name)
    made = provenance(Path(before), Path(after), Path(exam), name)
    old = read(file)
    if old and _same(old, made, asked):
        return old
    comparison = Comparison(compare(from_folder(before), from_folder(after), asked), made)
    with replaced(file) as kept_file:
        json.dump(asdict(comparison), kept_file, ensure_ascii=False, indent=1)
    return comparison


def read(file):
    """The comparison that a file keeps, or None if there is none that can be read."""
    try:
        kept_rows = json.loads(Path(file).read_text(encoding="utf-8"))
        return Comparison([Row(**row) for row in kept_rows["rows"]], kept_rows["made"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _same(old, made, asked):
    """Whether asking again would give the same answers."""
    return (all(old.made[part] == made[part] for part in ("files", "settings", "versions"))
            and [row.question for row in old.rows] == [question.question for question in asked])


def provenance(before, after, exam, name):
    """What makes a comparison: files by their SHA-256, the training's config, settings, versions, date, machine."""
    adapter, machine = after.parent / "adapter", profile.current()
    config_file = adapter / "xtuner_config.py"  # what XTuner really trained with
    config = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
    trained_on = re.search(r"^alpaca_en_path = (['\"])(.+)\1$", config, re.M)
    files = {"微调前的模型": before, "微调后的模型": after, "适配器": adapter, "考题": exam}
    files |= {"训练数据": Path(trained_on[2])} if trained_on else {}
    return {
        "files": {f"{name} {_shown(path)}": sha256(path) for name, path in files.items() if path.exists()},
        "config": _shown(config),
        "recipe": dict(RECIPE.findall(config)),
        "settings": {"随机种子": SEED, "每种一般问题": PROBES_OF_EACH_KIND, "一批": BATCH_SIZE,
                     "自己的名字": name, "写答案": "每次取最可能的词元"},
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "date": datetime.now().isoformat(" ", "minutes"),
        "machine": f"{machine.name}：{machine.gpu.name if machine.gpu else f'{os.cpu_count()} 个 CPU 核心'}",
    }


def sha256(path):
    """The SHA-256 of a file, or of all weights in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while piece := content.read(2**20):
                digest.update(piece)
    return digest.hexdigest()


def _shown(text):
    return str(text).replace(str(profile.ROOT), "…")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.compare", description="比较微调前后的两个模型，写一份报告")
    parser.add_argument("--before", type=Path, help="微调前的模型文件夹（默认：这台机器的基座）")
    parser.add_argument("--after", type=Path, help="微调后的模型文件夹（默认：workspace/merged）")
    parser.add_argument("--name", help="助手该怎样称呼自己（默认：基座自己的名字）")
    parser.add_argument("--out", type=Path, default=WORKSPACE / "comparison", help="答案和报告写到哪里")
    options = parser.parse_args()
    try:
        comparison = compare_folders(
            options.before or profile.current().base_model,
            options.after or profile.made_by("第 6 课", WORKSPACE / "merged"),
            profile.made_by("第 2 课", WORKSPACE / "test.jsonl"), options.out, options.name)
    except (OSError, profile.ProfileError) as error:
        sys.exit(f"[FAIL] {error}")
    print(*report.conclusions(comparison), sep="\n")
    print(f"报告：{report.write(comparison, options.out / 'report.html')}")


if __name__ == "__main__":
    main()
