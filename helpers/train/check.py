"""Look at an XTuner config before it trains: model, data, template, lengths, steps, saving, machine, memory.

python -m helpers.train.check CONFIG   prints what it finds, a line each, and exits 1 on a [FAIL].
"""
import json
import math
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from transformers import PreTrainedTokenizerBase
from xtuner.registry import BUILDER
from xtuner.utils import PROMPT_TEMPLATE

from helpers.machine import commands, model_folder, profile
from helpers.machine.commands import CourseError
from helpers.train import families, memory, tokens
from helpers.train.tokens import DIALOGUE, WITHOUT_SYSTEM, encode

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ROWS_NAMED = 5
LOST_SHARE = 0.05  # of the tokens: packing may lose so many unmentioned
CPU_ANSWER = 128  # tokens of an evaluation answer
FOR_MODEL = "用 helpers.train.config 的 for_model 写进配置（第 03 课）"
MISTAKES = {
    "没有 conversation，或者它不是非空的列表": "用第 01 课的转换重做这个文件",
    "input 或 output 缺失，或者不是字符串": "补上；数字也要写成字符串",
    "system 不是字符串": "写成字符串，或者去掉",
    "output 是空的（XTuner 不报错，模型会学着不回答）": "补上答案，或者删掉这一行",
}
NO_CONVERSATION, NO_TEXT, NO_SYSTEM_TEXT, NO_ANSWER = MISTAKES


@dataclass
class Report:
    """What a check found: lines, a training sample as (text of a token, learnt), iterations, their learning rates."""

    path: Path
    lines: list[str] = field(default_factory=list)
    sample: list[tuple[str, bool]] = field(default_factory=list)
    steps: int | None = None
    learning_rates: list[float] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not any(line.startswith("[FAIL]") for line in self.lines)

    def add(self, level: str, text: str, setting: str | None = None) -> None:
        """Notes a finding, and the row of the config where the setting stands."""
        row = self._row_of(setting) if setting else None
        place = f"（{self.path.name} 第 {row} 行）" if row else ""
        self.lines.append(f"{f'[{level}]':<6} {text}{place}")

    @cached_property
    def _rows(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").split("\n")

    def _row_of(self, setting):
        """The number of the first row of the config that sets something by this name."""
        for number, row in enumerate(self._rows, 1):
            if "=" in row and re.search(rf"\b{setting}\b", row):
                return number
        return None


def check_config(config_path: str | Path, machine: profile.Profile | None = None) -> Report:
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
    conversations = _check_data(report, dataset)
    template = _read_template(report, dataset.get("template_map_fn"))
    if tokenizer:
        _check_family(report, config, folder)
    can_encode = tokenizer and template and _check_template(report, template, tokenizer)
    if can_encode and conversations:
        encoded = {place: encode(turns, template, tokenizer) for place, turns in conversations.items()}
        report.sample = _check_sample(report, encoded, tokenizer, dataset.max_length)
        tokens = _check_lengths(report, encoded, dataset.max_length, folder)
        if report.ok:
            _check_steps(report, config, tokens)
    _check_saving(report, config)
    _check_evaluation(report, config, machine)
    _check_machine(report, config, machine)
    _check_memory(report, machine.gpu)
    return report


def _brief(error):
    return str(error.__cause__ or error).strip().split("\n")[0].rstrip(".。")


def _check_model(report, folder, tokenizer_config, example) -> PreTrainedTokenizerBase | None:
    """The tokenizer, if the model is there with its own."""
    setting, mend = "pretrained_model_name_or_path", f"修复：改成本机的模型文件夹，例如 {example}。"
    for place in dict.fromkeys([folder, tokenizer_config.pretrained_model_name_or_path]):
        if not Path(place).is_dir():
            why = "像 Hugging Face 上的名字，XTuner 会去联网下载" if HUB_NAME.fullmatch(place) else "在本机不存在"
            report.add("FAIL", f"模型：{place} {why}。{mend}", setting)
            return None
    if why := model_folder.problem(folder):
        report.add("FAIL", f"模型：{why}", setting)
        return None
    try:
        tokenizer = BUILDER.build(tokenizer_config)
    except Exception as error:  # a tokenizer may be the model's own program
        report.add("FAIL", f"模型：{folder} 的分词器读不出来：{_brief(error)}。{mend}", setting)
        return None
    report.add("OK", f"模型：{folder} 有 config.json、权重和分词器")
    return tokenizer


def _check_data(report, dataset) -> dict[str, list[dict]]:
    """The conversations that can be trained on, by the place where each stands; none if the file is unusable."""
    rows = _read_data(report, dataset)
    if not rows:
        return {}
    name = _data_file(dataset)
    if "第 1 条" in rows:
        report.add("WARN", f"数据：{name} 不是 JSON Lines，而是一整个 JSON 数组：XTuner 读得了，按行读的工具读不了。"
                           "修复：用第 01 课的转换重做，一行一条。")
    mistakes = {place: _mistake(row) for place, row in rows.items()}
    for mistake, mend in MISTAKES.items():
        places = [place for place in rows if mistakes[place] == mistake]
        if places:
            report.add("FAIL", f"数据：{name} {_places(places)}：{mistake}。修复：{mend}。")
    if not any(mistakes.values()):
        report.add("OK", f"数据：{name} 有 {len(rows)} 条，每条都有 conversation，没有空的回答")
    return {place: row["conversation"] for place, row in rows.items() if not mistakes[place]}


def _read_data(report, dataset) -> dict:
    """The rows of the data file by the place where each stands; none if the config or the file is unusable."""
    name = _data_file(dataset)
    if dataset.dataset.get("path") != "json" or not isinstance(name, str):
        report.add("FAIL", "数据：要从一个本机的 JSON 文件读。修复：dataset=dict(type=load_dataset, "
                           "path='json', data_files=dict(train=文件))。", "load_dataset")
        return {}
    if dataset.get("dataset_map_fn"):
        report.add("FAIL", "数据：转换过的数据不能再转换一次。修复：dataset_map_fn=None。", "dataset_map_fn")
    try:
        rows, broken = read_rows(name)
    except OSError:
        report.add("FAIL", f"数据：读不到 {name}。修复：改正路径，最好写绝对路径；没有数据就先做第 01、02 课。")
        return {}
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        report.add("FAIL", f"数据：{name} 第 {row} 行不是 UTF-8。修复：用第 01 课的转换重做，或者另存为 UTF-8。")
        return {}
    if broken or not rows:
        problem = f"不是一行一条完整的 JSON：{_places(broken)}" if broken else "是空的"
        report.add("FAIL", f"数据：{name} {problem}。修复：改正它，或者用第 01 课的转换重做。")
        return {}
    return rows


def _data_file(dataset):
    files = dataset.dataset.get("data_files")
    return files.get("train") if isinstance(files, dict) else files


def read_rows(path: str | Path) -> tuple[dict, list[str]]:
    """Each row of a JSON Lines file, or element of a JSON array, by its place; and the places that are not JSON."""
    text = Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff")
    if text.lstrip().startswith("["):
        try:
            return {f"第 {number} 条": row for number, row in enumerate(json.loads(text), 1)}, []
        except json.JSONDecodeError:
            pass
    rows, broken = {}, []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows[f"第 {number} 行"] = json.loads(line)
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


def _read_template(report, factory) -> dict | None:
    """The config's template, if conversations with a system prompt can be written in it."""
    function = BUILDER.build(factory) if factory else None
    template = function.keywords["template"] if function else {}
    new = template.keys() & tokens.NEW_KEYS.keys()
    if new and function.func is not tokens.template_map_fn:
        report.add("FAIL", f"模板：XTuner 的 template_map_fn_factory 不认得模板里的 {'、'.join(sorted(new))}。"
                           f"修复：{FOR_MODEL}。", "template_map_fn_factory")
        return None
    if "SYSTEM" in template:
        return template
    report.add("FAIL", "模板：没有 template_map_fn，或者它的模板写不了 system。修复：template_map_fn="
                       "dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.internlm2_chat)。")
    return None


def _check_family(report, config, folder):
    """Whether the course knows how this model computes, and the config has what its kind needs."""
    try:
        edits = families.architecture(folder).edits
    except CourseError as error:
        report.add("WARN", f"模型：{error}")
        return
    for name, value in edits.items():
        if _lacks(config.to_dict(), name, value):
            report.add("FAIL", f"模型：这种结构要 {name}={value}，否则算得不对。修复：{FOR_MODEL}。")


def _check_template(report, template, tokenizer) -> bool:
    """Whether XTuner can write conversations in the config's template; reports whether the model's own does so, too."""
    try:
        ids, _ = encode(DIALOGUE, template, tokenizer)
    except TypeError:  # XTuner adds the first token without looking whether there is one
        report.add("FAIL", f"模板：这个模型的分词器没有 bos_token，XTuner 一开始就退出。修复：{FOR_MODEL}。")
        return False
    try:
        tokens.written_by_model(DIALOGUE, tokenizer)
    except Exception as error:  # no template, or one that refuses a system prompt
        report.add("WARN", f"模板：模型的 chat_template 没法核对（{_brief(error)}）。修复：照模型的说明自己核对。",
                   "prompt_template")
        return True
    found = tokens.difference(DIALOGUE, template, tokenizer)
    if not found and not (found := tokens.difference(WITHOUT_SYSTEM, template, tokenizer)):
        report.add("OK", f"模板：和模型自己的 chat_template 一致，一段对话的 {len(ids)} 个词元逐个相同")
        return True
    position, ours, theirs = found
    level = "WARN" if tokens.same_words(template, tokenizer) else "FAIL"
    report.add(level, f"模板：和模型的 chat_template 从第 {position} 个词元起不同，"
               f"配置写 {_told(ours, tokenizer)}，模型要 {_told(theirs, tokenizer)}。{_mend(tokenizer)}",
               "prompt_template")
    return True


def _mend(tokenizer) -> str:
    """What to do about a wrong template."""
    try:
        right = tokens.right_template(tokenizer)
    except CourseError as error:
        for name, template in PROMPT_TEMPLATE.items():
            if "SYSTEM" in template and not tokens.difference(DIALOGUE, template, tokenizer):
                return f"修复：改成 PROMPT_TEMPLATE.{name}。"
        return str(error)
    return f"修复：{FOR_MODEL if right.changes else f'改成 PROMPT_TEMPLATE.{right.name}'}。"


def _told(token, tokenizer):
    return "什么也没有" if token is None else repr(tokenizer.decode([token]))


def _check_sample(report, encoded, tokenizer, limit) -> list[tuple[str, bool]]:
    """The first conversation as XTuner trains on it: each token's text, and whether it is learnt."""
    place, (ids, learnt) = next(iter(encoded.items()))
    kept = list(zip(ids[:limit], learnt))
    answer = tokenizer.decode([token for token, is_learnt in kept if is_learnt])
    report.add("OK", f"样本：{place}一共 {len(ids)} 个词元，模型只学 {answer!r}")
    return [(tokenizer.decode([token]), is_learnt) for token, is_learnt in kept]


def _check_lengths(report, encoded, limit, folder) -> int:
    """How many tokens XTuner keeps of the conversations."""
    learnt_of = {place: learnt for place, (_, learnt) in encoded.items()}
    longest = max(len(learnt) for learnt in learnt_of.values())
    dropped = [place for place, learnt in learnt_of.items() if not any(learnt[:limit])]
    cut = [place for place, learnt in learnt_of.items() if any(learnt[limit:]) and place not in dropped]
    mend = f"XTuner 不报错。修复：max_length 改成至少 {longest}，或者把它们改短。"
    if dropped:
        level = "WARN" if len(dropped) < len(encoded) else "FAIL"
        report.add(level, f"长度：问题就超过 max_length={limit}，整条被丢掉：{_places(dropped)}。{mend}", "max_length")
    if cut:
        report.add("WARN", f"长度：答案超过 max_length={limit}，被截断：{_places(cut)}。{mend}", "max_length")
    if not dropped and not cut:
        report.add("OK", f"长度：最长的一条 {longest} 个词元，max_length={limit} 放得下")
    shape = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    positions = shape.get("max_position_embeddings", limit)
    if limit > positions:
        report.add("WARN", f"长度：max_length={limit} 超过模型的上限。修复：改成不大于 {positions}。", "max_length")
    return sum(min(len(learnt), limit) for learnt in learnt_of.values() if any(learnt[:limit]))


@contextmanager
def _no_progress_bars():
    """Keeps the progress bars of datasets out of a lesson for a while."""
    shown_before = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown_before:
            datasets.enable_progress_bars()


def _check_steps(report, config, tokens):
    """Builds the very dataset that XTuner trains on and counts the iterations as mmengine does."""
    loader, loop, setting = config.train_dataloader, config.train_cfg, "warmup_ratio"
    try:
        with _no_progress_bars():
            lengths = BUILDER.build(loader.dataset)["length"]
    except Exception as error:  # of Arrow, of multiprocessing, of the disk
        report.add("FAIL", f"数据：XTuner 用它做不成训练集：{_brief(error)}。修复：让每一行同名的字段都是同一类型。")
        return
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
        report.add("FAIL", f"{text}，预热连一步也分不到，XTuner 一开始就退出（{error}）。{mend}", setting)
        return
    highest, wanted = max(report.learning_rates), config.optim_wrapper.optimizer.lr
    if highest < wanted / 2:
        report.add("WARN", f"{text}，预热只有一步，学习率停在 {highest:.0e}，到不了 {wanted:.0e}，"
                           f"几乎什么也学不到。{mend}", setting)
        return
    updates = math.ceil(report.steps / config.optim_wrapper.get("accumulative_counts", 1))
    report.add("OK", f"{text}，更新权重 {updates} 次，学习率最高 {highest:.0e}")


def learning_rates(config: Config, per_epoch: int, steps: int) -> list[float]:
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
    loses_gradients = every % accumulated != 0
    never_saves = bool(report.steps) and every > report.steps
    if loses_gradients:
        report.add("WARN", f"保存：save_steps={every} 不是 accumulative_counts={accumulated} 的倍数，恢复时会丢梯度。"
                           f"修复：改成 {math.ceil(every / accumulated) * accumulated}。", "save_steps")
    if never_saves:
        report.add("WARN", f"保存：save_steps={every}，一共却只有 {report.steps} 步，中断了没有检查点可以恢复。"
                           f"修复：改成 {math.ceil(report.steps / 4 / accumulated) * accumulated}。", "save_steps")
    if kept == 1:
        report.add("WARN", "保存：只留一个检查点，XTuner 先删旧的再写新的，这时中断就什么都不剩。"
                           "修复：save_total_limit=2。", "save_total_limit")
    if not (loses_gradients or never_saves or kept == 1):
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
    place = settings
    for part in path:
        place = place.get(part) or {}
    if not place:
        return False
    present = place.get(last)
    if value is None:
        return present is not None
    wanted = value.strip("'\"")
    if present is None:
        return True
    return str(present).split(".")[-1] != wanted.split(".")[-1]


def _check_memory(report, gpu):
    """Whether the training fits this machine's GPU."""
    if gpu is None:
        report.add("OK", "显存：这台机器没有 GPU，不用估算")
        return
    gigabytes = int(gpu.gigabytes)
    try:
        needed = memory.estimate(memory.read_settings(report.path))
    except (CourseError, FileNotFoundError) as error:
        report.add("WARN", f"显存：没法估算，{error}")
        return
    fits = needed.total <= gigabytes * memory.GB
    report.add("OK" if fits else "FAIL", f"显存：{gpu.name} {needed.verdict(gigabytes)}")


@commands.command
def main():
    """The command line."""
    parser = commands.parser(__spec__, "训练之前检查一份 XTuner 配置")
    parser.add_argument("config", help="XTuner 配置文件")
    report = check_config(parser.parse_args().config)
    print("\n".join(report.lines))
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
