"""The whole way through the real XTuner commands, on the lessons' own data: what tests and benchmarks measure."""
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import xtuner

from helpers.data.convert import convert
from helpers.data.readers import Layout
from helpers.data.split import read_samples, split_by_group, write_samples
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine import profile
from helpers.train import config

SEED = 42
RAW = profile.ROOT / "data" / "raw"
TEMPLATE = Path(xtuner.__file__).parent / "configs/internlm/internlm2_5_chat_7b/internlm2_5_chat_7b_qlora_alpaca_e3.py"


@cache
def split_exam():
    """The exam as lessons 01 and 02 make it: 70 % of the samples to train on, 30 % held out."""
    with tempfile.TemporaryDirectory() as folder:
        exam = Path(folder) / "exam.jsonl"
        convert(RAW / "exam.xlsx", exam, EXAM_SYSTEM, Layout("题目", "答案"))
        return split_by_group(read_samples(exam), seed=SEED)


def training_rows():
    """What the course's fine-tune learns from: the exam's training part and some everyday dialogue."""
    return split_exam()[0] + read_samples(RAW / "everyday.jsonl")


def write_config(path, data, changes=None):
    """XTuner's template with this machine's edits, for a JSON Lines file of conversations."""
    machine = profile.current()
    source = TEMPLATE.read_text(encoding="utf-8")
    for name, module in machine.imports.items():
        source = config.import_from(source, name, module)
    source = config.edit(source, {
        "pretrained_model_name_or_path": repr(str(machine.base_model)),
        "alpaca_en_path": repr(str(data)),
        "alpaca_en.dataset": 'dict(type=load_dataset, path="json", data_files=dict(train=alpaca_en_path))',
        "alpaca_en.dataset_map_fn": "None",
        "alpaca_en.map_num_proc": "1",  # every process more throws away a pack that it cannot fill
        "save_steps": "50",
        "randomness.seed": str(SEED),
        "SYSTEM": repr(EXAM_SYSTEM),
        "evaluation_inputs": repr([sample["conversation"][0]["input"] for sample in split_exam()[1][:2]]),
        "custom_hooks.1.max_new_tokens": "32",  # the default, 600, costs minutes on a CPU
    } | machine.config_edits | machine.recipe | (changes or {}))
    path.write_text(source, encoding="utf-8")


def xtuner_command(*arguments, cwd, stdin=None):
    """Runs an xtuner command and gives what it printed; XTuner's own exit code is always 0, so look at the result."""
    done = subprocess.run(["xtuner", *map(str, arguments)], cwd=cwd, env=profile.environment(), input=stdin,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout


def finetune(folder, rows, changes=None):
    """Trains, converts and merges as a student would; gives the folders of adapter and merged model."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter, merged = folder / "adapter", folder / "merged"
    write_samples(rows, folder / "train.jsonl")
    write_config(folder / "config.py", folder / "train.jsonl", changes)
    printed = xtuner_command("train", "config.py", "--work-dir", "work", cwd=folder)
    checkpoint = folder / "work" / "last_checkpoint"
    if not checkpoint.exists():
        raise RuntimeError("\n".join(printed.splitlines()[-15:]))
    base = profile.current().base_model
    xtuner_command("convert", "pth_to_hf", "config.py", checkpoint.read_text().strip(), adapter, "--safe-serialization",
                   cwd=folder)
    xtuner_command("convert", "merge", base, adapter, merged, "--safe-serialization",
                   "--device", profile.current().device, cwd=folder)
    return adapter, merged
