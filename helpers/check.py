"""Look at an XTuner config before it trains: model, data, template, lengths, steps, saving, machine, memory.

python -m helpers.check CONFIG   prints what it finds, a line each, and exits 1 on a [FAIL].
"""
import argparse
import json
import math
import re
import sys
from dataclasses import dataclass, field
from functools import reduce
from html import escape
from itertools import zip_longest
from pathlib import Path

import datasets
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from xtuner.dataset.map_fns import template_map_fn
from xtuner.dataset.utils import encode_fn
from xtuner.registry import BUILDER
from xtuner.utils import PROMPT_TEMPLATE

from helpers import memory, profile

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ROWS_NAMED = 5
LOST_SHARE = 0.05  # of the tokens: packing may lose so many unmentioned
CPU_ANSWER = 128  # tokens of an evaluation answer
DIALOGUE = [{"system": "你是助手。", "input": "你好", "output": "你好！"}, {"input": "再见", "output": "再见！"}]
ROLES = {"system": "system", "input": "user", "output": "assistant"}
MISTAKES = {
    "没有 conversation，或者它不是非空的列表": "用第 01 课的转换重做这个文件",
    "input 或 output 缺失，或者不是字符串": "补上；数字也要写成字符串",
    "system 不是字符串": "写成字符串，或者去掉",
    "output 是空的（XTuner 不报错，模型会学着不回答）": "补上答案，或者删掉这一行",
}
NO_CONVERSATION, NO_TEXT, NO_SYSTEM_TEXT, NO_ANSWER = MISTAKES
LEARNT, READ = "background:#ffd54f;font-weight:bold", "background:#f5f5f5"


@dataclass
class Report:
    """What a check found: lines, a training sample as (text of a token, learnt), iterations, their learning rates."""

    path: Path
    lines: list[str] = field(default_factory=list)
    sample: list[tuple[str, bool]] = field(default_factory=list)
    steps: int | None = None
    learning_rates: list[float] = field(default_factory=list)

    @property
    def ok(self):
        """Whether nothing failed."""
        return not any(line.startswith("[FAIL]") for line in self.lines)

    def add(self, level, text, setting=None):
        """Notes a finding, and the row of the config where the setting stands."""
        rows = self.path.read_text(encoding="utf-8").split("\n") if setting else []
        at = [n for n, row in enumerate(rows, 1) if "=" in row and re.search(rf"\b{setting}\b", row)]
        self.lines.append(f"{f'[{level}]':<6} {text}" + (f"（{self.path.name} 第 {at[0]} 行）" if at else ""))

    def sample_html(self):
        """The sample with a box around each token; the learnt ones are coloured."""
        boxes = (f'<span style="color:#1b1b1b;border:1px solid #ccc;{LEARNT if learnt else READ}">'
                 f"{escape(text)}</span>".replace("\n", "↵\n") for text, learnt in self.sample)
        return f'<div style="white-space:pre-wrap;line-height:2">{"".join(boxes)}</div>'


def check(config_path, machine=None):
    """What can be known about a config before it trains on this machine, or on another."""
    report = Report(Path(config_path))
    try:
        machine = machine or profile.current()
        config = Config.fromfile(report.path)
        dataset, folder = config.train_dataloader.dataset, config.model.llm.pretrained_model_name_or_path
    except profile.ProfileError as error:
        report.add("FAIL", f"机器：{error}")
        return report
    except Exception as error:  # a config is a program: anything can go wrong in it
        report.add("FAIL", f"配置：{report.path} 读不懂：{_brief(error)}。修复：改正它，或者从模板重新改起。")
        return report
    tokenizer = _check_model(report, folder, dataset.tokenizer, machine.base_model)
    rows = _check_data(report, dataset)
    template = _read_template(report, dataset.get("template_map_fn"))
    if tokenizer and template:
        _check_template(report, template, tokenizer)
    if tokenizer and template and rows:
        tokens = _check_lengths(report, rows, template, tokenizer, dataset.max_length, folder)
        if report.ok:
            _check_steps(report, config, tokens)
    _check_saving(report, config)
    _check_evaluation(report, config, machine)
    _check_machine(report, config, machine)
    _check_memory(report, machine.gpu)
    return report


def _brief(error):
    return str(error.__cause__ or error).strip().split("\n")[0].rstrip(".。")


def _check_model(report, folder, tokenizer_config, example):
    """The tokenizer, if the model is there with its own."""
    setting, mend = "pretrained_model_name_or_path", f"修复：改成本机的模型文件夹，例如 {example}。"
    for place in dict.fromkeys([folder, tokenizer_config.pretrained_model_name_or_path]):
        if not Path(place).is_dir():
            hub = "像 Hugging Face 上的名字，XTuner 会去联网下载" if HUB_NAME.fullmatch(place) else "在本机不存在"
            return report.add("FAIL", f"模型：{place} {hub}。{mend}", setting)
    files = list(Path(folder).iterdir())
    if Path(folder, "config.json") not in files or not {".safetensors", ".bin"} & {file.suffix for file in files}:
        return report.add("FAIL", f"模型：{folder} 里缺 config.json 或权重（.safetensors、.bin）。{mend}", setting)
    try:
        tokenizer = BUILDER.build(tokenizer_config)
    except Exception as error:  # a tokenizer may be the model's own program
        return report.add("FAIL", f"模型：{folder} 的分词器读不出来：{_brief(error)}。{mend}", setting)
    report.add("OK", f"模型：{folder} 有 config.json、权重和分词器")
    return tokenizer


def _check_data(report, dataset):
    """The conversations that can be trained on, by the place where each stands; nothing if the file is unusable."""
    files = dataset.dataset.get("data_files")
    name = files.get("train") if isinstance(files, dict) else files
    if dataset.dataset.get("path") != "json" or not isinstance(name, str):
        return report.add("FAIL", "数据：要从一个本机的 JSON 文件读。修复：dataset=dict(type=load_dataset, "
                                  "path='json', data_files=dict(train=文件))。", "load_dataset")
    if dataset.get("dataset_map_fn"):
        report.add("FAIL", "数据：转换过的数据不能再转换一次。修复：dataset_map_fn=None。", "dataset_map_fn")
    try:
        rows, broken = read_rows(name)
    except OSError:
        return report.add("FAIL", f"数据：读不到 {name}。修复：改正路径，最好写绝对路径；没有数据就先做第 01、02 课。")
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        return report.add("FAIL", f"数据：{name} 第 {row} 行不是 UTF-8。修复：用第 01 课的转换重做，或者另存为 UTF-8。")
    if broken or not rows:
        problem = f"不是一行一条完整的 JSON：{_places(broken)}" if broken else "是空的"
        return report.add("FAIL", f"数据：{name} {problem}。修复：改正它，或者用第 01 课的转换重做。")
    if "第 1 条" in rows:
        report.add("WARN", f"数据：{name} 不是 JSON Lines，而是一整个 JSON 数组：XTuner 读得了，按行读的工具读不了。"
                           "修复：用第 01 课的转换重做，一行一条。")
    found = {place: _mistake(row) for place, row in rows.items()}
    for mistake, mend in MISTAKES.items():
        if places := [place for place in found if found[place] == mistake]:
            report.add("FAIL", f"数据：{name} {_places(places)}：{mistake}。修复：{mend}。")
    if not any(found.values()):
        report.add("OK", f"数据：{name} 有 {len(rows)} 条，每条都有 conversation，没有空的回答")
    return {place: row["conversation"] for place, row in rows.items() if not found[place]}


def read_rows(path):
    """Each row of a JSON Lines file, or element of a JSON array, by its place; and the places that are not JSON."""
    text = Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff")
    if text.lstrip().startswith("["):
        try:
            return {f"第 {number} 条": row for number, row in enumerate(json.loads(text), 1)}, []
        except json.JSONDecodeError:
            pass
    rows, broken = {}, []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows |= {f"第 {number} 行": json.loads(line)} if line.strip() else {}
        except json.JSONDecodeError:
            broken.append(f"第 {number} 行")
    return rows, broken


def _places(places):
    return "、".join(places[:ROWS_NAMED]) + (f"等 {len(places)} 处" if len(places) > ROWS_NAMED else "")


def _mistake(row):
    """What keeps a row from being trained on, one of MISTAKES, or None."""
    turns = row.get("conversation") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        return NO_CONVERSATION
    if not all(isinstance(turn.get(key), str) for turn in turns for key in ("input", "output")):
        return NO_TEXT
    if not all(isinstance(turn.get("system"), str | None) for turn in turns):
        return NO_SYSTEM_TEXT
    return None if all(turn["output"].strip() for turn in turns) else NO_ANSWER


def encode(turns, template, tokenizer):
    """A conversation's token ids, and for each whether it is learnt, as XTuner makes them before it cuts."""
    example = template_map_fn({"conversation": [dict(turn) for turn in turns]}, template)
    encoded = encode_fn(example, tokenizer, max_length=math.inf)
    return encoded["input_ids"], [label >= 0 for label in encoded["labels"]]


def _read_template(report, factory):
    """The config's template, if conversations with a system prompt can be written in it."""
    template = BUILDER.build(factory).keywords["template"] if factory else {}
    if "SYSTEM" in template:
        return template
    return report.add("FAIL", "模板：没有 template_map_fn，或者它的模板写不了 system。修复：template_map_fn="
                              "dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm2_chat)。")


def _check_template(report, template, tokenizer):
    """Whether the config's template writes a dialogue as the model's own does."""
    messages = [{"role": ROLES[key], "content": text} for turn in DIALOGUE for key, text in turn.items()]
    try:
        wanted = tokenizer.apply_chat_template(messages)
    except Exception as error:  # no template, or one that refuses a system prompt
        return report.add("WARN", f"模板：模型的 chat_template 没法核对（{_brief(error)}）。"
                                  "修复：照模型的说明自己核对。", "prompt_template")
    ids, _ = encode(DIALOGUE, template, tokenizer)
    if ids == wanted:
        return report.add("OK", f"模板：和模型自己的 chat_template 一致，一段对话的 {len(ids)} 个词元逐个相同")
    at, *pair = next((i, a, b) for i, (a, b) in enumerate(zip_longest(ids, wanted), 1) if a != b)
    ours, theirs = ("什么也没有" if token is None else repr(tokenizer.decode([token])) for token in pair)
    right = [name for name, other in PROMPT_TEMPLATE.items()
             if "SYSTEM" in other and encode(DIALOGUE, other, tokenizer)[0] == wanted]
    mend = f"改成 PROMPT_TEMPLATE.{right[0]}" if right else "照模型的说明换一个 PROMPT_TEMPLATE"
    texts = {tokenizer.decode(tokens).replace(" ", "") for tokens in (ids, wanted)}
    level = "FAIL" if len(texts) == 2 else "WARN"  # some tokenizers put spaces where XTuner joins its pieces
    report.add(level, f"模板：和模型的 chat_template 从第 {at} 个词元起不同，配置写 {ours}，模型要 {theirs}。"
                      f"修复：{mend}。", "prompt_template")


def _check_lengths(report, rows, template, tokenizer, limit, folder):
    """How many tokens XTuner keeps of the rows; the first of them becomes the sample."""
    encoded = {place: encode(turns, template, tokenizer) for place, turns in rows.items()}
    ids, learnt = next(iter(encoded.values()))
    report.sample = [(tokenizer.decode([token]), is_learnt) for token, is_learnt in zip(ids[:limit], learnt)]
    answer = tokenizer.decode([token for token, is_learnt in zip(ids[:limit], learnt) if is_learnt])
    report.add("OK", f"样本：{next(iter(rows))}一共 {len(ids)} 个词元，模型只学 {answer!r}")
    longest = max(len(learnt) for _, learnt in encoded.values())
    dropped = [place for place, (_, learnt) in encoded.items() if not any(learnt[:limit])]
    cut = [place for place, (_, learnt) in encoded.items() if any(learnt[limit:]) and place not in dropped]
    mend = f"XTuner 不报错。修复：max_length 改成至少 {longest}，或者把它们改短。"
    if dropped:
        level = "WARN" if len(dropped) < len(rows) else "FAIL"
        report.add(level, f"长度：问题就超过 max_length={limit}，整条被丢掉：{_places(dropped)}。{mend}", "max_length")
    if cut:
        report.add("WARN", f"长度：答案超过 max_length={limit}，被截断：{_places(cut)}。{mend}", "max_length")
    if not dropped and not cut:
        report.add("OK", f"长度：最长的一条 {longest} 个词元，max_length={limit} 放得下")
    shape = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    positions = shape.get("max_position_embeddings", limit)
    if limit > positions:
        report.add("WARN", f"长度：max_length={limit} 超过模型的上限。修复：改成不大于 {positions}。", "max_length")
    return sum(min(len(learnt), limit) for _, learnt in encoded.values() if any(learnt[:limit]))


def _check_steps(report, config, tokens):
    """Builds the very dataset that XTuner trains on and counts the iterations as mmengine does."""
    loader, loop, setting = config.train_dataloader, config.train_cfg, "warmup_ratio"
    datasets.disable_progress_bars()
    try:
        lengths = BUILDER.build(loader.dataset)["length"]
    except Exception as error:  # of Arrow, of multiprocessing, of the disk
        return report.add("FAIL", f"数据：XTuner 用它做不成训练集：{_brief(error)}。"
                                  "修复：让每一行同名的字段都是同一类型。")
    per_epoch = math.ceil(len(lengths) / loader.batch_size)
    report.steps = int(loop.get("max_iters") or loop.max_epochs * per_epoch)
    text = f"步数：{len(lengths)} 个样本，每轮 {per_epoch} 步，一共 {report.steps} 步"
    lost = 1 - sum(lengths) / tokens
    if lost > LOST_SHARE:
        report.add("WARN", f"步数：装成定长样本时丢了 {lost:.0%} 的词元，每个进程丢一截装不满的尾巴。"
                           "修复：map_num_proc=1，或者减小 max_length。", "map_num_proc")
    ratio = f"warmup_ratio 改成 {(200 // report.steps + 1) / 100}，或者" if report.steps > 2 else ""
    mend = f"修复：{ratio}加数据、加大 max_epochs、减小 batch_size。"
    try:
        report.learning_rates = learning_rates(config, per_epoch, report.steps)
    except ValueError as error:
        return report.add("FAIL", f"{text}，预热连一步也分不到，XTuner 一开始就退出（{error}）。{mend}", setting)
    highest, wanted = max(report.learning_rates), config.optim_wrapper.optimizer.lr
    if highest < wanted / 2:
        return report.add("WARN", f"{text}，预热只有一步，学习率停在 {highest:.0e}，到不了 {wanted:.0e}，"
                                  f"几乎什么也学不到。{mend}", setting)
    updates = math.ceil(report.steps / config.optim_wrapper.get("accumulative_counts", 1))
    report.add("OK", f"{text}，更新权重 {updates} 次，学习率最高 {highest:.0e}")


def learning_rates(config, per_epoch, steps):
    """The learning rate of each iteration, from the very schedulers that mmengine builds."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.optim_wrapper.optimizer.lr)
    with_defaults = {"optimizer": optimizer, "epoch_length": per_epoch}
    schedulers = [PARAM_SCHEDULERS.build(scheduler, default_args=with_defaults) for scheduler in config.param_scheduler]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def _check_saving(report, config):
    """Whether an interrupted training can be resumed without loss."""
    checkpoint, accumulated = config.default_hooks.checkpoint, config.optim_wrapper.get("accumulative_counts", 1)
    every, kept = checkpoint.interval, checkpoint.get("max_keep_ckpts", -1)
    problems = []
    if every % accumulated:
        problems.append(("save_steps", f"save_steps={every} 不是 accumulative_counts={accumulated} 的倍数，"
                                       f"恢复时会丢梯度。修复：改成 {math.ceil(every / accumulated) * accumulated}。"))
    if report.steps and every > report.steps:
        problems.append(("save_steps", f"save_steps={every}，一共却只有 {report.steps} 步，中断了没有检查点可以恢复。"
                                       f"修复：改成 {math.ceil(report.steps / 4 / accumulated) * accumulated}。"))
    if kept == 1:
        problems.append(("save_total_limit", "只留一个检查点，XTuner 先删旧的再写新的，这时中断就什么都不剩。"
                                             "修复：save_total_limit=2。"))
    for setting, text in problems:
        report.add("WARN", f"保存：{text}", setting)
    if not problems:
        report.add("OK", f"保存：每 {every} 步存一次，" + (f"留最近 {kept} 个" if kept > 0 else "全都留着"))


def _check_machine(report, config, machine):
    """Whether the config has the edits that this machine's profile asks for."""
    settings = config.to_dict()
    missing = [name for name, value in machine.config_edits.items() if _lacks(settings, name, value)]
    missing += [f"from {module} import {name}" for name, module in machine.imports.items()
                if f"{module}.{name}" not in str(settings)]
    if missing:
        report.add("FAIL", f"机器：配置不适合 {machine.name}，还要改 {'、'.join(missing)}。修复：用 "
                           "profile.current() 的 imports 和 config_edits（第 03 课）。")
    else:
        report.add("OK", f"机器：配置适合 {machine.name}")


def _check_evaluation(report, config, machine):
    """Whether the questions asked during training can be asked, and in bearable time."""
    for hook in config.to_dict().get("custom_hooks", []):
        answer = hook.get("max_new_tokens", 600)
        if "evaluation_inputs" in hook and machine.device == "cpu" and answer > CPU_ANSWER:
            report.add("WARN", f"评测：每个问题最多写 {answer} 个词元，CPU 上要等很久。修复：max_new_tokens=64。",
                       "EvaluateChatHook")
        if set("{}") & set(hook.get("system") or ""):
            report.add("FAIL", "评测：SYSTEM 里有花括号，XTuner 一开始就退出。修复：去掉花括号。", "SYSTEM")


def _lacks(settings, name, value):
    """Whether an edit of the profile has not been made, though the config has a place for it."""
    *path, last = name.split(".")
    place = reduce(lambda node, part: node.get(part) or {}, path, settings)
    found, wanted = place.get(last), value and value.strip("'\"")
    if wanted is None or found is None:
        return bool(place) and found != wanted
    return str(found).split(".")[-1] != wanted.split(".")[-1]


def _check_memory(report, gpu):
    """Whether the training fits this machine's GPU."""
    if gpu is None:
        return report.add("OK", "显存：这台机器没有 GPU，不用估算")
    room = int(gpu.gigabytes)
    try:
        needed = memory.estimate(memory.read_settings(report.path))
    except (memory.UnknownConfig, FileNotFoundError) as error:
        return report.add("WARN", f"显存：没法估算，{error}")
    report.add("OK" if needed.total <= room * memory.GB else "FAIL", f"显存：{gpu.name} {needed.verdict(room)}")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.check", description="训练之前检查一份 XTuner 配置")
    parser.add_argument("config", help="XTuner 配置文件")
    report = check(parser.parse_args().config)
    print("\n".join(report.lines))
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
