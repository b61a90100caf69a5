"""The cards that a training is planned for, and how they are wired."""
from dataclasses import dataclass

from helpers.machine.commands import CourseError

FITTED, ASSUMED = "由公布的训练记录拟合", "没有公布的记录可对照，按同类架构假定"


@dataclass(frozen=True)
class Card:
    """A card by its data sheet: GB of memory, dense 16-bit TFLOPS, GB/s of its memory and, one way, to its neighbours.

    `kernels` is the share of the TFLOPS that large matrix products get in a training, `known_from` where that share
    comes from.
    """

    name: str
    gigabytes: float
    tflops: float
    bandwidth: float
    link: float
    kernels: float
    known_from: str
    fp8: bool = False


# Fitted on the throughput rows of tests/published.py about A100 (fifteen) and H100 (two), one number each, between the
# least sum of errors and of their squares. What is not a matrix product is counted apart, from the card's bandwidth.
AMPERE, HOPPER = 0.65, 0.48
# What machines that are let have for each card, in GB; a DGX has 128 or 256.
RAM_PER_CARD = 128
# GB/s: 200 Gbit/s for a machine, as one InfiniBand card gives it. Machines made for training have up to 16 times that.
NETWORK = 25
# Source: NVIDIA's data sheets, without sparsity; 16 bits in, fp32 accumulated. PCIe 4.0 x16 is 32 GB/s one way, but
# cards for players may not write into each other's memory and go through the host: half.
CARDS = {card.name: card for card in (
    Card("A100-40", 40, 312, 1555, 300, AMPERE, FITTED),
    Card("A100-80", 80, 312, 2039, 300, AMPERE, FITTED),
    Card("A800-80", 80, 312, 2039, 200, AMPERE, FITTED),
    Card("H100-80", 80, 989, 3350, 450, HOPPER, FITTED, fp8=True),
    Card("H800-80", 80, 989, 3350, 200, HOPPER, FITTED, fp8=True),
    Card("H200", 141, 989, 4800, 450, HOPPER, FITTED, fp8=True),
    Card("H20", 96, 148, 4000, 450, AMPERE, ASSUMED, fp8=True),
    Card("L40S", 48, 362, 864, 32, HOPPER, ASSUMED, fp8=True),
    Card("L20", 48, 119.5, 864, 32, AMPERE, ASSUMED, fp8=True),
    Card("A6000", 48, 155, 768, 32, AMPERE, ASSUMED),
    Card("A10", 24, 125, 600, 32, HOPPER, ASSUMED),
    Card("RTX 4090", 24, 165, 1008, 16, AMPERE, ASSUMED),
    Card("RTX 3090", 24, 71, 936, 16, AMPERE, ASSUMED),
    Card("V100-32", 32, 125, 900, 150, AMPERE, ASSUMED),
    Card("T4", 16, 65, 320, 16, HOPPER, ASSUMED),
)}


@dataclass(frozen=True)
class Fleet:
    """Cards of one kind in equal machines; `network` is a machine's GB/s to the others, `ram` its GB for each card."""

    card: Card
    count: int
    machines: int
    network: float
    ram: float

    @property
    def in_machine(self) -> int:
        """How many cards a machine has."""
        return -(-self.count // self.machines)


def fleet(card: str | Card, count: int = 1, machines: int | None = None, network: float = NETWORK,
          ram: float = RAM_PER_CARD) -> Fleet:
    """So many cards, eight to a machine where nothing else is said."""
    if isinstance(card, str):
        if card not in CARDS:
            raise CourseError(f"不认识显卡 {card}：请写下面的名字之一，或者自己写一个 Card(...)：{'、'.join(CARDS)}。")
        card = CARDS[card]
    if count < 1:
        raise CourseError(f"卡数是 {count}：至少要 1 张。")
    machines = machines or -(-count // 8)
    if machines > count:
        raise CourseError(f"{machines} 台机器只有 {count} 张卡：每台至少要 1 张。")
    return Fleet(card, count, machines, network, ram)
