"""What the lessons write to the disk, from the size of the base: told before it is written, offered for deletion after.

python -m helpers.train.disk   prints the table, and what of it lies there now without being needed any more.
"""
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pandas import DataFrame

from helpers.machine import commands, profile
from helpers.machine.commands import CourseError
from helpers.train.memory import GB, Shape, awq_bytes, read_shape, w8a8_bytes, weight_bytes

WORKSPACE = profile.ROOT / "workspace"
RANK = 64  # of XTuner's templates
HOMEWORK = "作业"
# Bits of a weight in llama.cpp's formats, their scales counted in; in those of 4 bits some layers have more.
GGUF_BITS = {"f16": 16, "q8_0": 8.5, "q4_k_m": 4.9, "q4_0": 4.6}


@dataclass(frozen=True)
class Written:
    """Something large: which lesson writes it, its bytes, the last lesson that needs it, where in the workspace."""

    lesson: str
    what: str
    size: float
    last: str
    place: str

    @property
    def paths(self) -> list[Path]:
        """What of it lies there now."""
        return sorted(WORKSPACE.glob(self.place))

    @property
    def there(self) -> int:
        """How many bytes of it lie there now."""
        return sum(map(_size, self.paths))


def written(shape: Shape, laboratory_rank: int) -> list[Written]:
    """Everything large that the lessons write for a base of that shape, in the order in which they do."""
    def checkpoints(count, rank):
        return count * 12 * shape.adapter_weights(rank)  # the adapter in fp32, and two numbers of Adam's for each

    whole, adapter = weight_bytes(shape), 2 * shape.adapter_weights(RANK)
    trials = (checkpoints(21, laboratory_rank)  # eight of each of two trainings, the last of five mixtures
              + checkpoints(4, 4) + checkpoints(4, RANK)  # of the grid
              + checkpoints(6, RANK))  # of the exams
    return [
        Written("04", "最近的两个检查点", checkpoints(2, RANK), "09", "training"),
        Written("05", "适配器", adapter, HOMEWORK, "adapter"),
        Written("06", "合并后的模型", whole, "11", "merged"),
        Written("06", "比较用的另一份合并", whole, "06", "tmp*"),
        Written("09", "实验室的检查点", trials, "09", "overfit"),
        Written("10", "四种 GGUF", whole * sum(GGUF_BITS.values()) / 16, "11", "deploy/*.gguf"),
        Written("10", "LMDeploy 量化的两种", awq_bytes(shape) + w8a8_bytes(shape), "10", "lmdeploy/*"),
        Written("10", "基座的 GGUF", whole, "10", "deploy/base"),
        Written(HOMEWORK, "检查点", checkpoints(2, RANK), HOMEWORK, "homework/*/training"),
        Written(HOMEWORK, "适配器和压缩包", 2 * adapter, HOMEWORK, "homework/*/adapter"),
    ]


def here() -> list[Written]:
    """The same for this machine's base."""
    machine = profile.current()
    return written(read_shape(machine.base_model), int(machine.laboratory["model.lora.r"]))


def needed(items: list[Written]) -> float:
    """The most bytes that lie there at a time, if everything is deleted after the last lesson that needs it."""
    return max(sum(item.size for item in items if item.lesson <= lesson <= item.last)
               for lesson in {item.lesson for item in items})


def table() -> DataFrame:
    """What is written for this machine's base, a row each."""
    rows = [[item.lesson, item.what, told(item.size), item.last] for item in here()]
    return DataFrame(rows, columns=["课", "写什么", "多大", "用到第几课"]).set_index("课")


def check(lesson: str) -> None:
    """Says what a lesson writes before it does; raises a CourseError where the disk has no room for it."""
    items = [item for item in here() if item.lesson == lesson]
    to_come = sum(max(0, item.size - item.there) for item in items)
    free = shutil.disk_usage(profile.ROOT).free
    parts = "，".join(f"{item.what} {told(item.size)}" for item in items)
    print(f"这一课要写 {told(sum(item.size for item in items))}（{parts}），空闲 {told(free)}")
    if free < to_come:
        raise CourseError(f"磁盘不够：还要写 {told(to_come)}，只剩 {told(free)}。"
                          "修复：运行 python -m helpers.train.disk，看哪些可以删；或者把课程移到更大的磁盘。")


def no_longer_needed(lesson: str) -> list[Written]:
    """What lies there though no lesson after this one needs it."""
    return [item for item in here() if item.last <= lesson and item.paths]


def offer(lesson: str) -> None:
    """Says what may be deleted after a lesson, and how."""
    for item in no_longer_needed(lesson):
        print(f"{item.what}：以后的课用不到了，占 {told(item.there)}（{'、'.join(_shown(item))}）")
    print(f"要删掉它们，运行 disk.delete(\"{lesson}\")；想留着就不用管")


def delete(lesson: str) -> None:
    """Deletes what no lesson after this one needs."""
    for item in no_longer_needed(lesson):
        print(f"删掉 {'、'.join(_shown(item))}，腾出 {told(item.there)}")
        for path in item.paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _shown(item) -> Iterator[str]:
    return (str(path.relative_to(profile.ROOT)) for path in item.paths)


def _size(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def told(size: float) -> str:
    """A size in words."""
    return f"{size / GB:.1f} GB" if size >= GB / 2 else f"{size / 10**6:.0f} MB"


@commands.command
def main() -> None:
    """The command line."""
    commands.parser(__spec__, "课程要写多少磁盘，现在有哪些可以删").parse_args()
    print(table().to_string(), f"最多的时候一共 {told(needed(here()))}", sep="\n")
    for item in here():
        if item.paths:
            print(f"{item.what}：现在 {told(item.there)}，做完第 {item.last} 课可以删：{'、'.join(_shown(item))}")


if __name__ == "__main__":
    main()
