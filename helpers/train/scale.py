"""One training on many cards: the memory that each of them needs, and the seconds of a step."""
from dataclasses import dataclass, replace
from math import inf, log2

from helpers.train.cards import Fleet
from helpers.train.memory import OVERHEAD, QUANTIZED, Estimate, Settings, Sharing, block_activations, estimate

# What stays of OVERHEAD without the holes, as memory.py says it; the holes grow with the activations, see HOLES.
CONTEXT = 0.5 * 2**30
# Fitted on the memory rows of tests/published.py, least squares of the relative errors: what the allocator holds beyond
# the tensors of the peak, however few these are, and as a share of the activations. Row 17 counts tensors only and has
# none of it; of row 6 the longer one was left out, its card is full to the brim.
HELD, HOLES = 0.75 * 2**30, 0.08
# DeepSpeed's defaults, which XTuner's deepspeed_*.json leave as they are: gradients are collected in a buffer of so
# many numbers (two of them where communication overlaps, in stage 2), and stage 3 keeps so many gathered weights.
BUCKET, LIVE = 5e8, 1e9

# Bytes read and written for each byte that a block keeps for its backward pass: forward writes and reads it, backward
# reads it, writes a gradient as large and reads that; computing a block again is another forward.
FORWARD, BACKWARD = 2, 3
# Bytes read and written per token for each input and output of an adapted layer and pass, where numbers have two bytes,
# and what dropout adds. PEFT has a kernel each: A reads the input (2), B writes (2), scaled (4), added (6), dropout in
# between (5 per input); backward as much again and a half. The mean over inputs and outputs, and over passes.
ADAPTER_BYTES, DROPPED_BYTES = 6, 2
# Fitted on throughput rows 11 and 13, as above: quantized weights unpacked for each byte of the card's bandwidth.
UNPACKED = 0.065
# The share of a link's data sheet that NCCL's collectives get, as in NVIDIA's nccl-tests; of what could be hidden
# behind computing a part is not, because it takes multiprocessors away. Both assumed: no row is about them alone.
LINK, NOT_HIDDEN = 0.75, 0.1
# From scaling row 1: 8 to 1,024 cards cost 11.1 %. Communication that is not hidden is 3.4 % of it, by the above; the
# rest, over seven doublings of the machines, is waiting for the slowest.
DOUBLING = (0.889 / 0.966) ** (1 / 7)
# With offload: GB/s between a card and its host (PCIe 4.0, pinned), and GB/s of a host's memory. Assumed.
PCIE, HOST = 20, 100


@dataclass(frozen=True)
class Way:
    """A way to share a training among cards: what is divided, what the machines' own memory takes over."""

    name: str
    stage: int
    engine: str = "DeepSpeed"
    offloaded: frozenset[str] = frozenset()
    flag: str = ""


STATES, ALL = frozenset({"gradients", "states"}), frozenset({"weights", "gradients", "states"})
WAYS = {
    "single": Way("单卡", 0, "PyTorch"),
    "ddp": Way("DDP", 0, "PyTorch"),
    "zero1": Way("ZeRO-1", 1, flag="deepspeed_zero1"),
    "zero2": Way("ZeRO-2", 2, flag="deepspeed_zero2"),
    "zero3": Way("ZeRO-3", 3, flag="deepspeed_zero3"),
    "zero2_offload": Way("ZeRO-2 offload", 2, offloaded=STATES, flag="deepspeed_zero2_offload"),
    "zero3_offload": Way("ZeRO-3 offload", 3, offloaded=ALL, flag="deepspeed_zero3_offload"),
    "fsdp": Way("FSDP", 3, "PyTorch"),  # what others publish; XTuner 0.2.0 has none
    "fsdp_offload": Way("FSDP offload", 3, "PyTorch", offloaded=ALL),
}


@dataclass(frozen=True)
class Training:
    """All that memory and time depend on. `fused` has the kernels of a Megatron, without it those of transformers."""

    settings: Settings
    fleet: Fleet
    way: str = "single"
    accumulation: int = 1
    fused: bool = False
    fp8: bool = False
    bucket: float = BUCKET
    shards: int | None = None  # among how many cards it is divided; all, where nothing is said

    @property
    def divided(self) -> int:
        """Among how many cards weights, gradients or states are divided."""
        return self.shards or self.fleet.count

    @property
    def tokens(self) -> int:
        """Tokens of a card in one pass."""
        return self.settings.batch * self.settings.length

    @property
    def trained(self) -> int:
        """How many weights are trained."""
        s = self.settings
        return s.shape.adapter_weights(s.rank, s.targets) or s.shape.linear_weights + s.shape.other_weights

    @property
    def weight_bytes(self) -> float:
        """All weights as they lie in memory, with the adapter."""
        s = self.settings
        linear = s.shape.linear_weights * QUANTIZED.get(s.quantization, s.plain_bytes)
        return linear + (s.shape.other_weights + s.shape.adapter_weights(s.rank, s.targets)) * s.plain_bytes


def sharing(t: Training) -> Sharing:
    """What each card holds of a training, and the buffers that this takes."""
    way, s, n = WAYS[t.way], t.settings, t.divided
    if way.engine == "DeepSpeed":
        # Gradients become fp32 for the update: all of a card's in stages 1 and 2, a group of weights in stage 3.
        buffers, updating, at_once = 2 * t.bucket * 2 if way.stage < 3 else 2 * t.bucket, 4, LIVE
        at_once = at_once if way.stage == 3 else inf
    else:
        # torch's AdamW takes all weights at once and needs one temporary of each; DDP copies gradients into buckets.
        buffers, updating, at_once = (t.trained * s.plain_bytes if t.way == "ddp" else 0), s.plain_bytes, inf
    if way.stage == 3:
        buffers += _gathered(t)
    if "states" in way.offloaded:
        updating = 0
    return Sharing(
        weights=n if way.stage == 3 else 1, gradients=n if way.stage >= 2 else 1, states=n if way.stage else 1,
        buffers=buffers, while_updating=updating, updated_at_once=at_once, offloaded=way.offloaded)


def _gathered(t):
    """Bytes of weights gathered from the other cards at one time: this block, the next one, embeddings and head."""
    s, shape = t.settings, t.settings.shape
    weights = shape.linear_weights + shape.other_weights
    blocks = min(2 / shape.num_hidden_layers * shape.linear_weights, shape.linear_weights)
    live = min(max(LIVE, blocks + shape.other_weights), weights) if WAYS[t.way].engine == "DeepSpeed" else (
        blocks + shape.other_weights)
    linear_bytes = QUANTIZED.get(s.quantization, s.compute_bytes)
    return shape.other_weights * s.compute_bytes + (live - shape.other_weights) * linear_bytes


def memory_of(t: Training, counted: str = "device") -> Estimate:
    """The memory of each card. `counted`: all that the card shows, what torch has "reserved", or "allocated"."""
    parts = estimate(t.settings, sharing(t)).parts
    assert parts.pop("CUDA 上下文与碎片") == OVERHEAD
    active = sum(size for name, size in parts.items() if name.startswith(("激活", "峰值")))
    if counted != "allocated":
        parts["分配器的空洞"] = HELD + HOLES * active
    if counted == "device":
        parts["CUDA 上下文"] = CONTEXT
    return Estimate(t.settings, parts)


def host_memory(t: Training) -> float:
    """Bytes that each machine's own memory takes over."""
    way, s = WAYS[t.way], t.settings
    share = t.fleet.in_machine / t.divided
    states = t.trained * (4 + s.state_bytes) if "states" in way.offloaded else 0  # gradients arrive in fp32
    return share * (states + (t.weight_bytes if "weights" in way.offloaded else 0))


@dataclass(frozen=True)
class Speed:
    """The seconds of a step, part by part, and what comes of them."""

    training: Training
    parts: dict[str, float]
    useful: float

    @property
    def seconds(self) -> float:
        """Seconds from one update of the weights to the next."""
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second and card."""
        return self.training.tokens * self.training.accumulation / self.seconds

    @property
    def mfu(self) -> float:
        """The share of the card's TFLOPS that goes into what the training is for: recomputing does not count."""
        return self.useful * self.tokens_per_second / (1e12 * self.training.fleet.card.tflops)


def flops(s: Settings, recomputed: bool = True) -> tuple[float, float]:
    """Operations per token: in the blocks' linear layers, and in attention and head. A product is 2 per weight.

    Backward is two products as large, for the layer's input and for its weights; a frozen layer needs the first only.
    """
    shape = s.shape
    again = s.checkpointing and recomputed
    looked_at = s.length if s.attention == "eager" else s.length / 2  # half of the scores are masked, and skipped
    attention = 4 * looked_at * shape.num_attention_heads * shape.head_dim * shape.num_hidden_layers
    adapter = 2 * shape.adapter_weights(s.rank, s.targets)
    frozen = bool(s.rank)
    linear = 2 * shape.linear_weights * (3 - frozen + again) + adapter * (3 + again)
    head = 2 * shape.vocab_size * shape.hidden_size * (3 - frozen)
    return linear, attention * (3 + again) + head


def moved(t: Training) -> float:
    """Bytes per token that a card reads and writes beside its matrix products."""
    s, shape = t.settings, t.settings.shape
    passes = FORWARD * (1 + s.checkpointing) + BACKWARD
    kept = _fused_activations(s) if t.fused else block_activations(s)[0]
    adapted = 0
    if s.rank and not t.fused:
        names = s.targets or shape.linears
        adapted = sum(sum(shape.linears[name][:2]) for name in names if name in shape.linears)
    adapter = (ADAPTER_BYTES + DROPPED_BYTES * bool(s.dropout)) * s.plain_bytes / 2 * adapted * (3 + s.checkpointing)
    return shape.num_hidden_layers * (kept * passes + adapter) + 2 * s.logit_bytes * shape.vocab_size


def _fused_activations(s):
    """Bytes per token and block that fused kernels keep: Megatron's 18 h + 4 f, and 2 f more for a gate."""
    gated = 6 if s.shape.architecture.gated else 4
    return 18 * s.shape.hidden_size + gated * s.shape.intermediate_size


def speed_of(t: Training) -> Speed:
    """The seconds of a step."""
    card, s, passes = t.fleet.card, t.settings, t.accumulation
    bandwidth = 1e9 * card.bandwidth
    rate = 1e12 * card.tflops * card.kernels
    linear, other = flops(s)
    useful = sum(flops(s, recomputed=False))
    computing = passes * t.tokens * (linear / (2 * rate if t.fp8 else rate) + other / rate)
    moving = passes * t.tokens * moved(t) / bandwidth
    unpacking = 0.0
    if s.quantization:
        unpacking = passes * (2 + s.checkpointing) * s.shape.linear_weights / (UNPACKED * bandwidth)
    busy = computing + moving + unpacking
    talking = communication(t)
    waiting = max(talking - busy, 0) + NOT_HIDDEN * min(talking, busy)
    updated = t.trained / t.divided if WAYS[t.way].stage else t.trained
    if "states" in WAYS[t.way].offloaded:
        # A card's gradients go down, its weights come back; its machine reads and writes weights, gradients and states.
        updating = updated * 4 / (1e9 * PCIE) + updated * t.fleet.in_machine * (2 * s.state_bytes + 8) / (1e9 * HOST)
    else:
        updating = updated * 2 * (s.plain_bytes + s.state_bytes + 4) / bandwidth
    parts = {"矩阵乘": computing, "其余运算（显存带宽）": moving, "解开量化的权重": unpacking,
             "等通信": waiting, "更新参数": updating}
    parts["等最慢的机器"] = sum(parts.values()) * (DOUBLING ** -log2(t.fleet.machines) - 1)
    return Speed(t, parts, useful)


def communication(t: Training) -> float:
    """Seconds of a step in which cards exchange weights and gradients, hidden or not."""
    way, s, passes = WAYS[t.way], t.settings, t.accumulation
    gradients, trained = t.trained * (2 if way.engine == "DeepSpeed" else s.plain_bytes), 2 * t.trained
    if way.stage == 3:
        volume = passes * (2 * t.weight_bytes * s.compute_bytes / s.plain_bytes + gradients)
    elif way.stage == 2:
        volume = passes * gradients + trained
    else:
        volume = 2 * gradients
    seconds = _exchange(t.fleet, volume)
    if "weights" in way.offloaded:
        seconds += passes * 2 * t.weight_bytes / t.divided / (1e9 * PCIE)
    return seconds


def _exchange(fleet, volume):
    """Seconds until every card has met that many bytes of all others, within its machine and between the machines."""
    within, machines = fleet.in_machine, fleet.machines
    inside = volume * (within - 1) / within / (1e9 * LINK * fleet.card.link)
    between = volume * (machines - 1) / machines / (1e9 * LINK * fleet.network)
    return max(inside, between)


def with_batch(t: Training, batch: int, accumulation: int) -> Training:
    """The same training with another number of samples in a pass, and of passes in a step."""
    return replace(t, settings=replace(t.settings, batch=batch), accumulation=accumulation)
