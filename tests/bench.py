"""python -m tests.bench   prints the course's figures beside what they must reach."""
import tempfile
import time
from pathlib import Path

from helpers.ask import models
from helpers.judge import compare, strangers
from helpers.machine import profile
from helpers.train import memory
from tests import figures, finetune

PROBES_OF_EACH_KIND = 1000


def line(name, share, must=""):
    """One figure."""
    print(f"{name:40} {share}   {must}", flush=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        samples = finetune.training_rows()
        _, merged = finetune.finetune(Path(folder), samples)
        print(f"QLoRA through XTuner ({len(samples)} rows; train, convert, merge: {time.time() - started:.0f} s)")
        rows = figures.measure(merged, PROBES_OF_EACH_KIND)
        print("tiny base model, on ways of asking never trained on")
        for kinds, least in figures.AT_LEAST.items():
            line(f"  {' and '.join(kinds)}", compare.pair(rows, *kinds).before, f">= {least:.0%}")
        line("  exam style", compare.task(rows).before, f"<= {figures.EXAM_AT_MOST:.0%}")
        print("tiny base model, asked by strangers (second half)")
        asked = strangers.shares(strangers.measure(*models.load(profile.TINY_BASE), "second"))
        for kind, share in asked.items():
            line(f"  {strangers.TOLD[kind]}", share, f">= {strangers.AT_LEAST.get(kind, 0):.0%}")
        print("after fine-tuning")
        line("  task: exact match, held-out questions", compare.task(rows).after, f">= {figures.TASK_AT_LEAST:.0%}")
        line("  retention: probes still answered right", compare.retention(rows).after,
             f">= {figures.RETENTION_AT_LEAST:.0%}")
        for kind in (compare.IDENTITY, *compare.GENERAL):
            line(f"    {kind}", compare.pair(rows, kind).after)
    print("GPU memory: published figures beside helpers/train/memory.py")
    print(memory.published_table())


if __name__ == "__main__":
    main()
