"""QLoRA on this machine: XTuner with its template's defaults, with the course's edits, and PEFT without XTuner.

python -m tests.bench_train
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.ask.models import NF4
from helpers.machine import process, profile
from helpers.train import families, memory
from tests import finetune

LEAST_SPEEDUP, LEAST_THROUGHPUT = 4, 1.4
NOISE = 0.05  # of a speed or a loss, between two runs
SHORT, LONG = 3, 60  # steps; 32 processes pack the rows in another way, so losses compare only after many
WARM = 1 / 3  # of the steps: before them the clock does not count
# What the course changes for speed, as the template has it.
DEFAULTS = {"alpaca_en.map_num_proc": "32", "model.use_activation_checkpointing": "True"}


def write_config(folder, name, steps, changes):
    """A config of so many steps; a large learning rate from the first step on, so that its loss says something."""
    path = folder / f"{name}.py"
    finetune.write_config(path, folder / "train.jsonl", {
        "train_cfg": f"dict(type=TrainLoop, max_iters={steps})", "param_scheduler": "[]",
        "default_hooks.logger.interval": str(min(steps, 10)), "default_hooks.checkpoint.interval": str(steps),
        "custom_hooks.1.every_n_iters": str(steps), **changes})
    return path


def as_published(path, work):
    """`xtuner train` in the environment as it is."""
    here = str(Path(sys.executable).parent)
    plain = {name: value for name, value in os.environ.items() if name not in profile.ENVIRONMENT}
    subprocess.run(["xtuner", "train", path, "--work-dir", work], check=False, capture_output=True,
                   env=plain | {"PATH": os.pathsep.join([here, os.environ["PATH"]]), "HF_HUB_OFFLINE": "1"})


def ours(path, work):
    """The course's way."""
    process.run_xtuner("train", path, "--work-dir", work, log=work / "log", gpu_bytes=memory.gpu_bytes(path))


def run(way, path):
    """Seconds of a whole command, its last logged loss, and the tokens per second of its steps once it runs."""
    work = path.with_suffix("")
    started = time.perf_counter()
    way(path, work)
    seconds = time.perf_counter() - started
    [log] = work.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["time"] for row in rows if row["step"] > WARM * rows[-1]["step"]]
    return seconds, rows[-1]["loss"], tokens_per_step() * len(steps) / sum(steps)


def tokens_per_step():
    recipe = profile.current().recipe
    return int(recipe["batch_size"]) * int(recipe["max_length"])


def plain_peft(path):
    """Tokens per second of a training loop in a few lines, on the same model and the same packed rows."""
    import torch
    from mmengine.config import Config
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from xtuner.registry import BUILDER

    import helpers.cpu  # noqa: F401 (NF4 without a GPU)

    settings, machine = Config.fromfile(path), profile.current()
    rows = BUILDER.build(settings.train_dataloader.dataset)
    model = AutoModelForCausalLM.from_pretrained(machine.base_model, quantization_config=NF4, trust_remote_code=True,
                                                 torch_dtype=torch.bfloat16, device_map=machine.device)
    if settings.model.get("use_activation_checkpointing", True):  # XTuner's default
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    targets = families.architecture(machine.base_model).lora_targets
    model = get_peft_model(model, LoraConfig(
        r=64, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.lr)
    size, clock = settings.batch_size, []
    for step in range(settings.train_cfg.max_iters):
        batch = [rows[(step * size + i) % len(rows)] for i in range(size)]
        clock.append(time.perf_counter())
        ids, labels = (torch.tensor([row[key] for row in batch], device=machine.device)
                       for key in ("input_ids", "labels"))
        model(input_ids=ids, labels=labels).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        norm.item()  # the step is done, on a GPU too
    warm = clock[int(WARM * len(clock)):]
    return tokens_per_step() * (len(warm) - 1) / (warm[-1] - warm[0])


def bench():
    """Prints the three side by side and says whether the promises hold."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        finetune.write_samples(finetune.training_rows(), folder / "train.jsonl")
        old_seconds, old_loss, _ = run(as_published, write_config(folder, "default_short", SHORT, DEFAULTS))
        new_seconds, new_loss, _ = run(ours, write_config(folder, "ours_short", SHORT, {}))
        _, old_end, old_speed = run(as_published, write_config(folder, "default_long", LONG, DEFAULTS))
        _, new_end, new_speed = run(ours, write_config(folder, "ours_long", LONG, {}))
        child = subprocess.run([sys.executable, "-m", __spec__.name, folder / "ours_long.py"], check=True,
                               env=profile.environment(), stdout=subprocess.PIPE, text=True)
        peft_speed = float(child.stdout.split()[-1])
    print(f"{SHORT} 步，整条命令   模板默认 {old_seconds:5.1f} s（损失 {old_loss:.3f}）      "
          f"课程 {new_seconds:5.1f} s（损失 {new_loss:.3f}）      快 {old_seconds / new_seconds:.1f} 倍")
    print(f"每秒词元           模板默认 {old_speed:5.0f}（损失 {old_end:.3f}）      课程 {new_speed:5.0f}"
          f"（损失 {new_end:.3f}），{new_speed / old_speed:.2f} 倍      "
          f"PEFT 循环 {peft_speed:5.0f}，{new_speed / peft_speed:.2f} 倍")
    return (old_seconds / new_seconds >= LEAST_SPEEDUP and new_speed / old_speed >= LEAST_THROUGHPUT
            and new_speed >= (1 - NOISE) * peft_speed and new_end <= (1 + NOISE) * old_end)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(plain_peft(*sys.argv[1:]))
    else:
        sys.exit(not bench())
