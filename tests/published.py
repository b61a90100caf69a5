"""Published trainings, and how far the planner is from them.

`python -m tests.published` prints predicted, measured and error for the rows that constants were fitted on. Rows that
nothing was fitted on: put them in a list of your own and give it to `report`.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from pandas import DataFrame

from helpers.train.cards import fleet
from helpers.train.memory import GB, GIB, Settings
from helpers.train.scale import Training, memory_of, speed_of
from helpers.train.shapes import shape_of


@dataclass(frozen=True)
class Run:
    """One published figure: what was trained, what was measured and where it stands.

    Units: "GB" or "GiB" per card, "tokens/s" per card. `counted` is what a memory figure counts: "device", all that
    nvidia-smi shows; "reserved", what torch holds; "allocated", tensors only.
    """

    name: str
    training: Training
    value: float
    unit: str
    source: str
    counted: str = "device"

    @property
    def predicted(self) -> float:
        """The planner's figure, in the same unit."""
        if self.unit == "tokens/s":
            return speed_of(self.training).tokens_per_second
        return memory_of(self.training, self.counted).total / {"GB": GB, "GiB": GIB}[self.unit]

    @property
    def error(self) -> float:
        """How far the prediction is above the measured figure, as a share of it."""
        return self.predicted / self.value - 1


# What transformers keeps of the logits, bytes per token and word. Now: 16-bit logits and three fp32 tensors. Before its
# version 4.45 the model answered in fp32: four of them. Under DeepSpeed nothing is cast and Qwen's own code computes
# the loss in 16 bits: logits, log-probabilities and two gradients of two bytes. In chunks: 16-bit logits only, the rest
# of an eighth. A fused loss of Megatron's kind: 16-bit logits, fp32 probabilities in which the gradient is written.
LOGITS = {"now": 14, "before 4.45": 16, "16 bit": 8, "chunks": 2 + 3 * 4 / 8, "fused": 6}


def training(model: str, method: str, card: str, count: int = 1, *, machines: int | None = None, way: str = "single",
             length: int = 2048, batch: int = 1, accumulation: int = 1, checkpointing: bool = True, rank: int = 8,
             targets: tuple[str, ...] = (), dropout: float = 0.0, quantization: str = "NF4 双重量化",
             plain_bytes: int = 2, state_bytes: float | None = None, logits: str = "before 4.45",
             attention: str = "flash_attention_2", **more) -> Training:
    """A published training. `state_bytes` is Adam's per trained weight, with its fp32 copy of 16-bit weights.

    FSDP in mixed precision keeps 4 + 4 + 8 bytes of each weight and computes in 16 bits throughout: 2 + 2 + 12, as
    these defaults count it. `plain_bytes=4` means autocast: fp32 between the layers, and weights cast for each pass.
    """
    if state_bytes is None:
        state_bytes = 8 if plain_bytes == 4 else 12
    settings = Settings(
        shape_of(model), quantization=quantization if method == "qlora" else None, plain_bytes=plain_bytes,
        compute_bytes=2, state_bytes=state_bytes, logit_bytes=LOGITS[logits], rank=0 if method == "full" else rank,
        targets=targets, dropout=dropout, batch=batch, length=length, checkpointing=checkpointing, attention=attention)
    network = more.pop("network", 25)
    return Training(settings, fleet(card, count, machines, network), way, accumulation, **more)


def qwen(length, method):
    """Rows 1 and 2: rank 64 on every layer. LoRA ran without DeepSpeed, QLoRA (GPTQ) with its stage 2."""
    own = {"lora": {"way": "single", "logits": "now", "state_bytes": 4},
           "qlora": {"way": "zero2", "logits": "16 bit", "quantization": "GPTQ", "bucket": 2e8}}[method]
    return training("Qwen-7B", method, "A100-80", length=length, rank=64, dropout=0.05, accumulation=8, **own)


def lit(batch):
    """Row 17: the adapter sits on queries and values, its states in 16 bits like all else; loss in chunks."""
    return training("Llama-2-7B", "lora", "A100-40", length=1304, batch=batch, targets=("q_proj", "v_proj"),
                    dropout=0.05, state_bytes=4, checkpointing=False, logits="chunks")


def factory(length):
    """Rows 21 and 13: LLaMA-Factory casts no layer to fp32 but the adapter's."""
    return training("Llama-2-7B", "qlora", "A100-40", length=length, accumulation=4)


def fsdp_qlora(batch):
    """Row 11."""
    return training("Llama-2-7B", "qlora", "RTX 3090", 2, way="fsdp", length=2048, batch=batch, rank=64, state_bytes=4)


def mosaic(model, length, batch, checkpointing):
    """Throughput rows 1 and 3; how many passes a step has is not in the table here."""
    return training(model, "full", "A100-80", 8, way="fsdp", length=length, batch=batch, accumulation=8,
                    checkpointing=checkpointing, logits="now", fused=True)


def nemo(method):
    """Throughput row 6: 32 samples on 8 cards, one in a pass."""
    return training("Llama-2-7B", method, "H100-80", 8, way="zero1", length=4096, accumulation=4, checkpointing=False,
                    logits="fused", fused=True, fp8=True)


def interns(machines):
    """Scaling row 1: the optimizer's states are divided within a machine."""
    return training("InternLM-7B", "full", "A100-80", 8 * machines, machines=machines, way="zero1", accumulation=4,
                    checkpointing=False, logits="now", fused=True, network=50, shards=8)


FITTED_MEMORY = [
    *(Run(f"1 Qwen-7B LoRA {length}", qwen(length, "lora"), value, "GB", "Qw")
      for length, value in {256: 20.1, 1024: 21.5, 2048: 23.8, 4096: 29.7, 8192: 36.6}.items()),
    *(Run(f"2 Qwen-7B QLoRA {length}", qwen(length, "qlora"), value, "GB", "Qw")
      for length, value in {256: 11.5, 1024: 12.3, 2048: 13.9, 4096: 16.9, 8192: 23.5}.items()),
    *(Run(f"6 Qwen-7B full ZeRO-3 {length}", training("Qwen-7B", "full", "A100-80", 2, way="zero3", length=length,
                                                     logits="16 bit"), value, "GB", "Qw")
      for length, value in {256: 69.6, 1024: 81.0}.items()),
    Run("8 Llama-2-70B LoRA ZeRO-3", training("Llama-2-70B", "lora", "H100-80", 8, way="zero3", batch=8), 64, "GB",
        "PE"),
    *(Run(f"11 Llama-2-7B QLoRA FSDP mb{batch}", fsdp_qlora(batch), value, "GiB", "AA", "reserved")
      for batch, value in {1: 5.21, 4: 11.22, 10: 20.97}.items()),
    *(Run(f"17 Llama-2-7B LoRA mb{batch}", lit(batch), value, "GB", "LG", "allocated")
      for batch, value in {1: 21.30, 2: 29.07}.items()),
    *(Run(f"21 Llama-2-7B QLoRA {length}", factory(length), value, "GB", "LF")
      for length, value in {1024: 6, 4096: 9, 8192: 12, 16384: 19, 32768: 32}.items()),
]
FITTED_SPEED = [
    Run("1 MPT-7B 2048", mosaic("MPT-7B", 2048, 6, False), 4641, "tokens/s", "MO"),
    Run("1 MPT-7B 4096", mosaic("MPT-7B", 4096, 16, True), 3684, "tokens/s", "MO"),
    Run("1 MPT-7B 8192", mosaic("MPT-7B", 8192, 8, True), 3206, "tokens/s", "MO"),
    Run("3 MPT-13B 4096", mosaic("MPT-13B", 4096, 10, True), 2060, "tokens/s", "MO"),
    Run("6 Llama-2-7B full FP8", nemo("full"), 17120, "tokens/s", "NE"),
    Run("6 Llama-2-7B LoRA FP8", nemo("lora"), 25206, "tokens/s", "NE"),
    *(Run(f"9 Llama-3-8B full ZeRO-3, {count} cards", training(
        "Llama-3.1-8B", "full", "A100-80", count, way="zero3", length=8192, accumulation=4), value, "tokens/s", "XT")
      for count, value in {4: 2331, 8: 2771}.items()),
    *(Run(f"11 Qwen-7B {method} 2048", qwen(2048, method), value, "tokens/s", "Qw")
      for method, value in {"lora": 3151, "qlora": 2341}.items()),
    *(Run(f"13 Llama-2-7B QLoRA {length}", factory(length), value, "tokens/s", "LF")
      for length, value in {1024: 2295, 4096: 2926, 8192: 3128, 16384: 3542, 32768: 2216}.items()),
    *(Run(f"s1 InternLM-7B, {8 * machines} cards", interns(machines), value, "tokens/s", "IE")
      for machines, value in {1: 4078, 128: 3625}.items()),
]


def compare(runs: Iterable[Run]) -> DataFrame:
    """Predicted, measured and error of each run."""
    rows = [(run.name, run.predicted, run.value, run.unit, run.error, run.source) for run in runs]
    return DataFrame(rows, columns=["run", "predicted", "measured", "unit", "error", "source"])


def report(runs: Iterable[Run], say: Callable = print) -> DataFrame:
    """Prints the comparison with its median error and the worst one by name, and gives it."""
    table = compare(runs)
    shown = {"predicted": "{:.1f}".format, "error": "{:+.1%}".format}
    say(table.to_string(index=False, formatters=shown))
    worst = table.loc[table.error.abs().idxmax()]
    say(f"median error {median(table.error.abs()):.1%}, worst {worst.error:+.1%} ({worst.run})\n")
    return table


if __name__ == "__main__":
    report(FITTED_MEMORY)
    report(FITTED_SPEED)
