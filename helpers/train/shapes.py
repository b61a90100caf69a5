"""Public models by name: what their config.json says of their size, for planning before anything is downloaded."""
from pathlib import Path

from helpers.machine.commands import CourseError
from helpers.train.families import ATTENTION
from helpers.train.memory import Shape, read_shape


def _shape(family, hidden, feed_forward, layers, heads, key_heads, vocabulary, tied=False, biased=()) -> Shape:
    return Shape(family, hidden, feed_forward, layers, heads, key_heads, vocabulary, hidden // heads, tied, biased)


# Source: config.json in the repository beside each; a family's instructed models have the same. Qwen's counts both
# halves of its feed-forward layer, here stands one, as in the others.
SHAPES = {
    "Llama-2-7B": _shape("llama", 4096, 11008, 32, 32, 32, 32000),  # meta-llama/Llama-2-7b-hf
    "Llama-2-13B": _shape("llama", 5120, 13824, 40, 40, 40, 32000),  # meta-llama/Llama-2-13b-hf
    "Llama-2-70B": _shape("llama", 8192, 28672, 80, 64, 8, 32000),  # meta-llama/Llama-2-70b-hf
    "Llama-3.1-8B": _shape("llama", 4096, 14336, 32, 32, 8, 128256),  # meta-llama/Llama-3.1-8B, as Meta-Llama-3-8B
    "Llama-3.1-70B": _shape("llama", 8192, 28672, 80, 64, 8, 128256),  # meta-llama/Llama-3.1-70B
    "Yi-34B": _shape("llama", 7168, 20480, 60, 56, 8, 64000),  # 01-ai/Yi-34B
    "Qwen-7B": _shape("qwen", 4096, 11008, 32, 32, 32, 151936, biased=("c_attn",)),  # Qwen/Qwen-7B
    "Qwen-14B": _shape("qwen", 5120, 13696, 40, 40, 40, 152064, biased=("c_attn",)),  # Qwen/Qwen-14B
    "Qwen-72B": _shape("qwen", 8192, 24576, 80, 64, 64, 152064, biased=("c_attn",)),  # Qwen/Qwen-72B
    "InternLM-7B": _shape("llama", 4096, 11008, 32, 32, 32, 103168, biased=ATTENTION),  # internlm/internlm-7b
    "InternLM2.5-7B": _shape("internlm2", 4096, 14336, 32, 32, 8, 92544),  # internlm/internlm2_5-7b
    "InternLM2.5-20B": _shape("internlm2", 6144, 16384, 48, 48, 8, 92544),  # internlm/internlm2_5-20b
    "MPT-7B": _shape("mpt", 4096, 16384, 32, 32, 32, 50432, tied=True),  # mosaicml/mpt-7b
    "MPT-13B": _shape("mpt", 5120, 20480, 40, 40, 40, 50432, tied=True),  # llm-foundry: train/yamls/pretrain/mpt-13b
    "MPT-30B": _shape("mpt", 7168, 28672, 48, 64, 64, 50432, tied=True),  # mosaicml/mpt-30b
}


def shape_of(model: str | Path | Shape) -> Shape:
    """The shape of a model told by its name here, by its folder or by itself."""
    if isinstance(model, Shape):
        return model
    if str(model) in SHAPES:
        return SHAPES[str(model)]
    if Path(model).is_dir():
        return read_shape(model)
    raise CourseError(f"不认识模型 {model}：请写它的文件夹，或者下面的名字之一：{'、'.join(SHAPES)}。")
