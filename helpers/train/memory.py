"""Will it fit? The GPU memory that an XTuner config needs, estimated before anything is loaded."""
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from unicodedata import east_asian_width

from mmengine.config import Config

from helpers.machine import commands, profile
from helpers.machine.commands import CourseError
from helpers.train.families import ARCHITECTURES, UNREADABLE, Architecture, architecture, read_config

GB, GIB = 10**9, 2**30
# A card sold as 24 GB holds about 24 GiB. The verdict counts 24 x 10^9 bytes: the 7 % between them are its margin.
SLICES = (8, 24, 40, 80)
# About 0.5 GiB for the CUDA context, kernels and the cuBLAS workspace, held before the first tensor; the rest for the
# holes of the caching allocator, which hands out memory in blocks and cannot refill each of them.
OVERHEAD = 0.75 * GIB
# Bytes per weight. NF4 packs two weights in a byte and scales 64 of them by one fp32 number; double quantization
# stores that number in one byte, and 256 of those are scaled by one fp32 number.
# GPTQ keeps a 16-bit scale and a 4-bit zero for 128 weights.
QUANTIZED = {"NF4": 1 / 2 + 4 / 64, "NF4 双重量化": 1 / 2 + 1 / 64 + 4 / 64 / 256, "int8": 1,
             "GPTQ": 1 / 2 + 2.5 / 128}
GROUP = 128  # weights that share a scale and a zero point in AWQ
DTYPE_BYTES = {"torch.float16": 2, "torch.bfloat16": 2, "torch.float32": 4}


@dataclass(frozen=True)
class Shape:
    """The entries of a model's config.json that decide how large it is."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int
    tie_word_embeddings: bool = False
    biased: tuple[str, ...] = ()  # layers

    @property
    def architecture(self) -> Architecture:
        """How models of this type compute."""
        return ARCHITECTURES[self.model_type]

    @property
    def linears(self) -> dict[str, tuple[int, int, bool]]:
        """Inputs, outputs and bias of each linear layer of a block, by name."""
        q, k = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        d, f = self.hidden_size, self.intermediate_size
        size = {"d": d, "f": f, "g": 2 * f, "q": q, "k": k, "p": q + 2 * k}
        return {name: (size[inputs], size[outputs], name in self.biased)
                for name, (inputs, outputs) in self.architecture.linears.items()}

    @property
    def linear_weights(self) -> int:
        """How many weights bitsandbytes quantizes: those of the blocks' linear layers."""
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs, _ in self.linears.values())

    @property
    def other_weights(self) -> int:
        """How many it leaves alone: embeddings, head, norms and biases."""
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        biases = sum(outputs * bias for _, outputs, bias in self.linears.values())
        norms = self.architecture.norms * self.hidden_size
        return tables + self.hidden_size + self.num_hidden_layers * (norms + biases)

    def adapter_weights(self, rank: int, targets: Sequence[str] = ()) -> int:
        """How many LoRA adds, to the named layers or to all that XTuner finds."""
        head, targets = self.architecture.head, targets or self.architecture.lora_targets
        block = 0
        for name in set(targets) - {head}:
            inputs, outputs, _ = self.linears[name]
            block += inputs + outputs
        whole_head = self.hidden_size + self.vocab_size if head in targets else 0
        return rank * (self.num_hidden_layers * block + whole_head)


def weight_bytes(shape: Shape, linear_bytes: float = 2) -> float:
    """The bytes of a model in 16 bits whose linear layers take so many per weight."""
    return shape.linear_weights * linear_bytes + shape.other_weights * 2


def awq_bytes(shape: Shape) -> float:
    """The bytes of a model that auto_awq has quantized: 4 bits, and a scale and a zero point for each group."""
    return weight_bytes(shape, 1 / 2 + (2 + 1 / 2) / GROUP)


def w8a8_bytes(shape: Shape) -> float:
    """The bytes of a model that smooth_quant has quantized."""
    return weight_bytes(shape, 1)


@dataclass(frozen=True)
class Settings:
    """What a config says about memory. Rank 0 trains the whole model; plain is all that is not quantized."""

    shape: Shape
    quantization: str | None
    plain_bytes: int
    compute_bytes: int
    state_bytes: int
    logit_bytes: float
    rank: int
    targets: tuple[str, ...]
    dropout: float
    batch: int
    length: int
    checkpointing: bool
    attention: str


def read_shape(folder: str | Path) -> Shape:
    """The shape of the model in a folder, from its config.json."""
    model, known = read_config(folder), architecture(folder)
    try:
        heads = model["num_attention_heads"]
        values = {"num_key_value_heads": heads, "head_dim": model["hidden_size"] // heads,
                  "tie_word_embeddings": known.tied}
        values |= {key: value for key, value in model.items() if value is not None}
        values |= {name: values[own] for name, own in known.entries.items()}
        values["biased"] = tuple(layer for entry, default, layers in known.biases if values.get(entry, default)
                                 for layer in layers)
        return Shape(**{field.name: values[field.name] for field in fields(Shape)})
    except (KeyError, TypeError) as error:
        raise CourseError(UNREADABLE.format(Path(folder, "config.json"), repr(error))) from error


def longest(dataset: dict | list) -> int:
    """The largest max_length in a dataset's config, however many datasets it joins."""
    if isinstance(dataset, dict):
        own, parts = dataset.get("max_length", 0), dataset.values()
    elif isinstance(dataset, list):
        own, parts = 0, dataset
    else:
        return 0
    return max([own, *map(longest, parts)])


def read_settings(config_path: str | Path, model_folder: str | Path | None = None) -> Settings:
    """The settings of an XTuner config, read without building or downloading anything."""
    if not Path(config_path).is_file():
        raise FileNotFoundError(f"找不到配置文件 {config_path}。")
    try:
        config = Config.fromfile(config_path).to_dict()
        model, loader, wrapper = config["model"], config["train_dataloader"], config["optim_wrapper"]
        llm, optimizer = model["llm"], wrapper["optimizer"]["type"]
        folder, batch, dataset = llm["pretrained_model_name_or_path"], loader["batch_size"], loader["dataset"]
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise CourseError(f"读不懂 {config_path}，它不像 XTuner 的训练配置：{error!r}。") from error
    length = longest(dataset)
    if not length:
        raise CourseError(f"{config_path} 的训练数据没有写 max_length，没法估算。")
    shape = read_shape(model_folder or folder)
    lora, attention = model.get("lora") or {}, _attention(llm, shape.architecture)
    # XTuner loads a model for flash attention in 16 bits; PEFT casts to fp32 what is not quantized.
    loaded_bytes = 2 if attention == "flash_attention_2" else DTYPE_BYTES.get(llm.get("torch_dtype"), 4)
    plain_bytes = 4 if lora else loaded_bytes
    return Settings(
        shape,
        quantization=_quantization(llm),
        plain_bytes=plain_bytes,
        compute_bytes=2 if "AmpOptimWrapper" in wrapper["type"] else plain_bytes,
        state_bytes=2 if "8bit" in optimizer else 2 * plain_bytes,
        logit_bytes=shape.architecture.logit_bytes,
        rank=lora.get("r", 8) if lora else 0,
        targets=tuple(lora.get("target_modules") or ()),
        dropout=lora.get("lora_dropout", 0.0),
        batch=batch,
        length=length,
        checkpointing=model.get("use_activation_checkpointing", True),
        attention=attention,
    )


def _quantization(llm) -> str | None:
    """How a config loads the base's weights, one of QUANTIZED; the setting stands there in one of two places."""
    settings = llm | (llm.get("quantization_config") or {})
    if settings.get("load_in_4bit"):
        return "NF4 双重量化" if settings.get("bnb_4bit_use_double_quant") else "NF4"
    return "int8" if settings.get("load_in_8bit") else None


def _attention(llm, known) -> str:
    """What computes the attention; XTuner takes flash attention, wherever it is installed, for models that it lists."""
    if chosen := llm.get("attn_implementation"):
        return chosen
    return "flash_attention_2" if known.takes_flash and find_spec("flash_attn") else known.attention


@dataclass(frozen=True)
class Sharing:
    """How many cards share each part of a training, what a card gives up to the machine, and what sharing costs it.

    `buffers` are bytes. `while_updating` is what an update of the weights needs on top, per trained weight, of at most
    `updated_at_once` weights at a time; the activations are gone by then.
    """

    weights: int = 1
    gradients: int = 1
    states: int = 1
    buffers: float = 0
    while_updating: float = 0
    updated_at_once: float = float("inf")
    offloaded: frozenset[str] = frozenset()


ALONE = Sharing()


@dataclass(frozen=True)
class Estimate:
    """The memory of a training, in bytes, part by part."""

    settings: Settings
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def table(self) -> str:
        """The parts, a line each, in GiB (2^30 bytes) and GB (10^9 bytes)."""
        sizes = self.parts | {"合计": self.total}
        lines = [f"{_pad(name, 36)}{size / GIB:>8.2f}{size / GB:>8.2f}" for name, size in sizes.items()]
        return "\n".join([f"{_pad('', 36)}{'GiB':>8}{'GB':>8}", *lines])

    def verdict(self, gigabytes: int) -> str:
        """Whether it fits a card of that size, and if not, which setting to change first."""
        need = self.total / GB
        if need <= gigabytes:
            return f"{gigabytes} GB：放得下，估计用 {need:.1f} GB，还余 {gigabytes - need:.1f} GB。"
        return (f"{gigabytes} GB：放不下，估计用 {need:.1f} GB，差 {need - gigabytes:.1f} GB；"
                f"{self._advice(gigabytes)}。")

    def _advice(self, gigabytes):
        """The first change that is enough, or else the one that saves most; a smaller model if all are too little."""
        with_all_changes = self.settings
        for change in CHANGES.values():
            with_all_changes = change(with_all_changes)
        least = estimate(replace(with_all_changes, length=min(with_all_changes.length, 512))).total / GB
        if least > gigabytes:
            return f"能改的都改了，max_length 也降到 512，还要 {least:.1f} GB，请换更小的模型或更大的卡"
        needs = {advice: estimate(change(self.settings)).total / GB for advice, change in CHANGES.items()}
        for advice, need in needs.items():
            if need <= gigabytes:
                return f"先{advice}，降到 {need:.1f} GB"
        most_saved = min(needs, key=needs.get)
        return f"先{most_saved}，降到 {needs[most_saved]:.1f} GB，再改别的"


def block_activations(s: Settings) -> tuple[float, float]:
    """Bytes per token that one block keeps for its backward pass, and that this pass needs on top."""
    d, f, queries = s.shape.hidden_size, s.shape.intermediate_size, s.shape.num_attention_heads * s.shape.head_dim
    wide, narrow = s.plain_bytes, s.compute_bytes
    produced = wide if s.quantization else narrow  # bitsandbytes answers in the type it was asked in
    own_copies = s.rank and (wide != narrow or s.dropout)  # each adapter's own of its input
    linears = s.shape.architecture.linears
    kept_for = {name: not (s.rank and s.targets) or name in s.targets for name in linears}  # a frozen one needs none
    places = [size[1] in "fg" for name, size in linears.items() if size[0] == "d" and kept_for[name]]
    inputs = len(places) if own_copies else len(set(places))
    down = f * any(kept_for[name] for name, size in linears.items() if size[0] == "f")
    out = queries * any(kept_for[name] for name, size in linears.items() if size[0] == "q")
    scores = s.shape.num_attention_heads * s.length if s.attention == "eager" else 0
    residual = 2 * d * (wide if wide == 4 else wide + 4 + wide)  # a norm computes in fp32
    attention = 4 * queries * narrow + scores * (4 + narrow)
    dropout = inputs * d + down + out * (1 + narrow) if s.dropout else 0
    mlp = (3 if s.shape.architecture.gated else 1) * f * produced
    kept = residual + narrow * (inputs * d + down) + attention + mlp + dropout
    backward = d * wide + max(3 * f * wide, scores * (8 - narrow) - mlp)  # the MLP's are gone by attention's turn
    return kept, backward


def estimate(s: Settings, sharing: Sharing = ALONE) -> Estimate:
    """The memory of a card at the peak of a training with these settings, if every sample is as long as max_length."""
    shape, tokens = s.shape, s.batch * s.length
    adapter = shape.adapter_weights(s.rank, s.targets)
    trained = adapter or shape.linear_weights + shape.other_weights
    kept, backward = block_activations(s)
    # Weights are unpacked, or cast, for computing: of a quantized block one layer at a time, of another all at once.
    cast_bytes = s.compute_bytes if s.compute_bytes != s.plain_bytes else 0
    unpacked = s.compute_bytes * shape.hidden_size * shape.intermediate_size if s.quantization else 0
    block_cast = 0 if s.quantization else cast_bytes * shape.linear_weights / shape.num_hidden_layers
    loss = tokens * s.logit_bytes * shape.vocab_size + cast_bytes * shape.vocab_size * shape.hidden_size
    if s.checkpointing:
        stored = shape.num_hidden_layers * tokens * shape.hidden_size * s.plain_bytes
        block = tokens * (kept + backward) + unpacked + block_cast
    else:
        stored = shape.num_hidden_layers * (tokens * kept + block_cast)
        block = tokens * backward + unpacked
    peak = "激活：峰值（算损失时的 logits）" if loss > block else "激活：峰值（一层的反向传播）"
    most = max(loss, block)
    update = sharing.while_updating * min(trained / sharing.states, sharing.updated_at_once)
    if "states" not in sharing.offloaded and update > stored + most:
        peak, most, stored = "峰值（更新参数）", update, 0
    on_card = {part: 0 if part in sharing.offloaded else 1 / getattr(sharing, part)
               for part in ("weights", "gradients", "states")}
    weight_bytes = QUANTIZED.get(s.quantization, s.plain_bytes)
    parts = {
        f"线性层的权重（{s.quantization or '不量化'}）": shape.linear_weights * weight_bytes * on_card["weights"],
        "嵌入、输出层、归一化的权重": shape.other_weights * s.plain_bytes * on_card["weights"],
        "LoRA 适配器": adapter * s.plain_bytes * on_card["weights"],
        "梯度": trained * s.plain_bytes * on_card["gradients"],
        "优化器状态": trained * s.state_bytes * on_card["states"],
        "激活：各层留给反向传播的": stored,
        peak: most,
        "CUDA 上下文与碎片": OVERHEAD,
    }
    return Estimate(s, parts | {"多卡的缓冲区": sharing.buffers} if sharing.buffers else parts)


def gpu_bytes(config_path: str | Path) -> float:
    """What a training with this config takes of this machine's GPU; nothing where there is none, or where it cannot be
    known."""
    if profile.current().gpu is None:
        return 0
    try:
        return estimate(read_settings(config_path)).total
    except CourseError:  # lesson 03's check has said so
        return 0


# In the order to try: first what leaves the training's result alone.
CHANGES = {
    "打开 use_activation_checkpointing": lambda s: replace(s, checkpointing=True),
    "安装 flash-attn": lambda s: replace(s, attention="flash_attention_2"),
    "把 batch_size 改成 1（accumulative_counts 相应加大）": lambda s: replace(s, batch=1),
    "改用 4-bit 的 QLoRA": lambda s: replace(
        s, quantization="NF4 双重量化", plain_bytes=4, state_bytes=8, compute_bytes=2, rank=s.rank or 64),
    "把 LoRA 的 r 改成 8": lambda s: replace(s, rank=min(s.rank, 8)),
    "把 max_length 减半": lambda s: replace(s, length=s.length // 2),
}

LLAMA2_7B = Settings(
    Shape("llama", 4096, 11008, 32, 32, 32, vocab_size=32000, head_dim=128), "NF4 双重量化", plain_bytes=4,
    compute_bytes=2, state_bytes=8, logit_bytes=ARCHITECTURES["llama"].logit_bytes, rank=8, targets=(), dropout=0.0,
    batch=1, length=1024, checkpointing=True, attention="flash_attention_2")
# torchtune keeps in bf16 what is not quantized, and computes its loss in eight chunks: the bf16 logits of all tokens,
# the three fp32 tensors of an eighth of them.
LLAMA3_8B = replace(
    LLAMA2_7B, shape=Shape("llama", 4096, 14336, 32, 32, 8, vocab_size=128256, head_dim=128), plain_bytes=2,
    state_bytes=4, logit_bytes=2 + 3 * 4 / 8, batch=2, length=2048)
# What was trained, how, what the figure leaves out (torchtune counts tensors only), the figure.
PUBLISHED = (
    ("7B QLoRA，1k（按 Llama-2-7B 估）", LLAMA2_7B, 0, 6 * GB),
    ("7B QLoRA，2k（按 Llama-2-7B 估）", replace(LLAMA2_7B, length=2048), 0, 7 * GB),
    ("7B QLoRA，4k（按 Llama-2-7B 估）", replace(LLAMA2_7B, length=4096), 0, 9 * GB),
    ("Llama-3.1-8B QLoRA，2 x 2k，torchtune", LLAMA3_8B, OVERHEAD, 7.4 * GIB),
)


def published_table() -> str:
    """Each published figure beside the estimate for the same training, in GB (10^9 bytes)."""
    lines = [f"{_pad('GB（10^9 字节）', 40)}{_pad('公布', 8)}{_pad('估算', 8)}相差"]
    for name, settings, left_out, figure in PUBLISHED:
        ours = estimate(settings).total - left_out
        lines.append(f"{_pad(name, 40)}{figure / GB:<8.1f}{ours / GB:<8.1f}{ours / figure - 1:+.0%}")
    return "\n".join(lines)


def _pad(text, width):
    """The text filled up to a width in which a Chinese character counts two."""
    return text + " " * (width - sum(1 + (east_asian_width(char) in "WF") for char in text))


@commands.command
def main():
    """The command line: the table and verdicts of a config, or the published figures."""
    parser = commands.parser("估算一份 XTuner 配置要用多少显存")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", help="XTuner 配置文件")
    what.add_argument("--published", action="store_true", help="把公布的数字和估算并排打印")
    parser.add_argument("--model", help="模型文件夹；不写就用配置里的路径")
    arguments = parser.parse_args()
    if arguments.published:
        print(published_table())
        return
    needed = estimate(read_settings(arguments.config, arguments.model))
    print(needed.table(), *map(needed.verdict, SLICES), sep="\n")


if __name__ == "__main__":
    main()
