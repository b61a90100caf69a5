"""Makes what stands in for the homework's secret exam where no instructor has drawn one.

python -m tools.make_homework_exam [FOLDER]   questions.jsonl and checks.jsonl in data/homework/
"""
import sys
from pathlib import Path

from helpers.data.split import write_samples
from helpers.grading import inputs, secret
from helpers.grading.rules import DEFAULT

PUBLIC = "public"  # the seed of what everybody can read


def main(folder):
    secret.write(secret.draw(PUBLIC), folder / secret.QUESTIONS)
    write_samples(inputs.draw(PUBLIC), folder / secret.CHECKS)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else DEFAULT.parent)
