"""A model folder as GGUF files for llama.cpp: float16, and quantized.

python -m helpers.gguf MODEL FOLDER [--formats q8_0 q4_k_m q4_0]   those made from the same model already stay.
"""
import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
from cyllama.llama import llama_cpp
from gguf import MODEL_ARCH, LlamaFileType, TokenType
from safetensors import SafetensorError, safe_open
from sentencepiece import sentencepiece_model_pb2

from helpers.process import shown

F16 = "f16"
QUANTIZED = {
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
ARCHITECTURES = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "InternLM2ForCausalLM": MODEL_ARCH.INTERNLM2,
}
PAIRED = (MODEL_ARCH.LLAMA, MODEL_ARCH.INTERNLM2)  # whose positions llama.cpp turns in neighbours, not in halves
# Scalings that change nothing within max_position_embeddings, which is as far as the GGUF file promises to read.
HARMLESS_ROPE_SCALING = (None, "default", "dynamic")
BYTES = {"type": "ByteLevel", "add_prefix_space": False}
QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
# How a byte-level BPE cuts text into words before it looks for tokens, and llama.cpp's name for it.
WORDS = {
    "gpt-2": BYTES | {"use_regex": True},
    "qwen2": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
        BYTES | {"use_regex": False}]},
}
# llama.cpp normalizes nothing; NFC only joins letters that were typed in two pieces.
NORMALIZERS = (None, {"type": "NFC"})
END_OF_TURN = "<|im_end|>"
ADDED_SCORE = -1000.0  # a sentencepiece score so low that merging never makes an added token
NUL = "🐉"  # stands for the token of byte 0, which a C string cannot hold; llama.cpp's converter chose it
BEGINNING = 1024  # bytes


class Unsupported(RuntimeError):
    """A model that cannot be converted: what about it, and in which file."""


@dataclass(frozen=True)
class Source:
    """A model folder, as far as a conversion reads it."""

    folder: Path

    @cached_property
    def config(self):
        """config.json."""
        return self._json("config.json")

    @cached_property
    def tokenizer_config(self):
        """tokenizer_config.json."""
        return self._json("tokenizer_config.json")

    def _json(self, name):
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def file(self, name):
        """The path of a file that must be there."""
        if not (self.folder / name).is_file():
            raise FileNotFoundError(f"{shown(self.folder)} 里没有 {name}。"
                                    "请改成完整的模型文件夹，例如第 6 课的 workspace/merged。")
        return self.folder / name

    def refuse(self, name, what):
        """Raises what is not supported in a file."""
        raise Unsupported(f"{shown(self.folder / name)}：不支持{what}。"
                          f"这里只会转换 {'、'.join(ARCHITECTURES)}；"
                          "别的模型请用 llama.cpp 自己的 convert_hf_to_gguf.py。")

    def refuse_any(self, name, odd):
        """Raises the first that was found of what is not supported in a file."""
        for what, found in odd.items():
            if found:
                self.refuse(name, what)

    @cached_property
    def architecture(self):
        """The architecture in llama.cpp's terms, once everything that would change its computing is known."""
        config, [name, *_] = self.config, self.config.get("architectures") or ["没有写名字的结构"]
        scaling = config.get("rope_scaling") or {}
        odd = {
            f"结构 {name}": name not in ARCHITECTURES,
            f"激活函数 hidden_act={config.get('hidden_act')}": config.get("hidden_act") != "silu",
            f"位置缩放 rope_scaling={scaling}":
                scaling.get("rope_type", scaling.get("type")) not in HARMLESS_ROPE_SCALING,
            "位置参数 rope_parameters": "rope_parameters" in config,
            "滑动窗口 use_sliding_window": config.get("use_sliding_window"),
            "只转一部分的位置 partial_rotary_factor": config.get("partial_rotary_factor", 1) != 1,
            "注意力的偏置 bias": config.get("bias"),  # InternLM2's
            "已经量化过的权重 quantization_config": config.get("quantization_config"),
        }
        self.refuse_any("config.json", odd)
        return ARCHITECTURES[name]

    @property
    def heads(self):
        """The numbers of query heads and of key-value heads."""
        queries = self.config["num_attention_heads"]
        return queries, self.config.get("num_key_value_heads") or queries

    @property
    def head_dim(self):
        """The numbers in one head."""
        return self.config.get("head_dim") or self.config["hidden_size"] // self.heads[0]

    @cached_property
    def chat_template(self):
        """The model's chat template."""
        separate = self.folder / "chat_template.jinja"
        found = (separate.read_text(encoding="utf-8") if separate.is_file()
                 else self.tokenizer_config.get("chat_template"))
        if not isinstance(found, str):
            self.refuse("tokenizer_config.json", "没有对话模板 chat_template 的模型")
        return found

    @cached_property
    def weight_files(self):
        """The safetensors files, all of them."""
        index = self.folder / "model.safetensors.index.json"
        names = set(self._json(index.name)["weight_map"].values()) if index.is_file() else ["model.safetensors"]
        return [self.file(name) for name in sorted(names)]

    def sha256(self):
        """The SHA-256 of everything that a conversion reads."""
        digest = hashlib.sha256()
        for file in sorted(file for file in self.folder.iterdir()
                           if file.suffix in (".safetensors", ".json", ".model", ".jinja")):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """A tensor of the GGUF file: its name and shape there, and what reads it."""

    name: str
    shape: tuple
    read: Callable

    @property
    def dtype(self):
        """float16 for matrices, float32 for what is small and delicate."""
        return np.dtype(np.float16 if len(self.shape) > 1 else np.float32)

    def numbers(self):
        """The numbers as the file keeps them."""
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(self.read().reshape(self.shape).astype(self.dtype))
        if not np.isfinite(numbers).all():
            raise Unsupported(f"{self.name} 里有超出 float16 范围的数，不能转换。"
                              "请换一个训练得稳定的检查点，从第 6 课重新合并。")
        return numbers


def make(model, folder, formats=tuple(QUANTIZED)):
    """The GGUF files of a model in float16 and in some formats, by format; those made from the same model stay."""
    files = {format_: Path(folder, f"{format_}.gguf") for format_ in (F16, *formats)}
    origin = Source(Path(model)).sha256()
    if not _says(files[F16], origin):
        convert(model, files[F16])
    for format_ in formats:
        if not _says(files[format_], origin):
            quantize(files[F16], files[format_], format_)
    return files


def _says(file, origin):
    """Whether a GGUF file tells at its beginning that it was made from that."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return origin.encode() in content.read(BEGINNING)


def convert(model, out):
    """Writes a model folder as a GGUF file in float16, a tensor at a time."""
    source = Source(Path(model))
    with _whole(out) as beside:
        writer = gguf.GGUFWriter(beside, gguf.MODEL_ARCH_NAMES[source.architecture])
        try:
            writer.add_string("course.made_from", source.sha256())  # stays at the beginning, also when quantized
            _describe(writer, source)
            _add_tokenizer(writer, source)
            parts = list(_parts(source))
            for part in parts:
                size = math.prod(part.shape) * part.dtype.itemsize
                writer.add_tensor_info(part.name, part.shape, part.dtype, size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for part in parts:
                writer.write_tensor_data(part.numbers())
        finally:
            writer.close()


def quantize(source, out, format_):
    """Writes a GGUF file in fewer bits, with llama.cpp's own quantizer."""
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = int(QUANTIZED[format_])
    llama_cpp.disable_logging()
    with _whole(out) as beside:
        try:
            llama_cpp.model_quantize(str(source), str(beside), parameters)
        except RuntimeError as error:
            raise OSError(f"{shown(source)} 没有量化成 {format_}。"
                          "请检查它是不是完整的 GGUF 文件，磁盘还有没有空间。") from error


@contextmanager
def _whole(out):
    """A path beside `out`, which takes its place when it is written to the end."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.name}.partial")
    try:
        yield beside
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _describe(writer, source):
    """Writes the numbers of the architecture."""
    config, (queries, keys) = source.config, source.heads
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(queries)
    writer.add_head_count_kv(keys)
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_rope_dimension_count(source.head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer, source):
    """Writes the vocabulary, how text becomes tokens, which tokens have a meaning of their own, the chat template."""
    kind = _add_sentencepiece if (source.folder / "tokenizer.model").is_file() else _add_byte_level_bpe
    texts = kind(writer, source)
    writer.add_chat_template(source.chat_template)
    writer.add_add_bos_token(False)  # the chat template writes it
    for add, name in ((writer.add_bos_token_id, "bos_token_id"), (writer.add_pad_token_id, "pad_token_id")):
        if source.config.get(name) is not None:
            add(source.config[name])
    ends = source.config["eos_token_id"]
    ends_turn = END_OF_TURN in source.chat_template and END_OF_TURN in texts
    writer.add_eos_token_id(texts.index(END_OF_TURN) if ends_turn else ends[0] if isinstance(ends, list) else ends)


def _add_byte_level_bpe(writer, source):
    """Writes the vocabulary and merges of a tokenizer.json; gives the text of each token."""
    name = "tokenizer.json"
    tokenizer = json.loads(source.file(name).read_text(encoding="utf-8"))
    model, words = tokenizer["model"], _without_offsets(tokenizer["pre_tokenizer"])
    odd = {
        f"分词器 {model['type']}": model["type"] != "BPE",
        "按字节补齐的 byte_fallback": model.get("byte_fallback"),
        "跳过合并的 ignore_merges": model.get("ignore_merges"),
        "随机的合并 dropout": model.get("dropout"),
        f"文本规范化 normalizer={tokenizer['normalizer']}": tokenizer["normalizer"] not in NORMALIZERS,
        f"切词方式 pre_tokenizer={words}": words not in WORDS.values(),
        "比模型的 vocab_size 还大的词表": len(model.get("vocab", ())) > source.config["vocab_size"],
    }
    source.refuse_any(name, odd)
    texts, types = _padding(source)
    for text, number in model["vocab"].items():
        texts[number], types[number] = text, TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        _put_added(source, name, token["id"], token, texts, types)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(next(pre for pre, described in WORDS.items() if described == words))
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_add_space_prefix(False)
    return texts


def _without_offsets(part):
    """A part of a tokenizer.json without what concerns places in the text only."""
    if isinstance(part, list):
        return [_without_offsets(inner) for inner in part]
    if isinstance(part, dict):
        return {name: _without_offsets(inner) for name, inner in part.items() if name != "trim_offsets"}
    return part


def _add_sentencepiece(writer, source):
    """Writes the pieces and scores of a tokenizer.model; gives the text of each token."""
    name, model = "tokenizer.model", sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(source.file(name).read_bytes())
    trained, normalizer = model.trainer_spec, model.normalizer_spec
    odd = {
        "BPE 以外的 sentencepiece": trained.model_type != trained.BPE,
        "不按字节补齐的 sentencepiece": not trained.byte_fallback,
        f"文本规范化 {normalizer.name}": normalizer.name != "identity",
        "去掉多余空格的 remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "不转写空格的 escape_whitespaces": not normalizer.escape_whitespaces,
        "比模型的 vocab_size 还大的词表": len(model.pieces) > source.config["vocab_size"],
    }
    source.refuse_any(name, odd)
    texts, types = _padding(source)
    scores = [ADDED_SCORE] * len(texts)
    for number, piece in enumerate(model.pieces):
        texts[number], scores[number] = piece.piece.replace("\0", NUL), piece.score
        unused = piece.piece.startswith("[UNUSED")
        types[number] = TokenType.UNUSED if unused else piece.type  # both formats number their types alike
    for number, token in source.tokenizer_config.get("added_tokens_decoder", {}).items():
        _put_added(source, "tokenizer_config.json", int(number), token, texts, types)
        scores[int(number)] = ADDED_SCORE
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(normalizer.add_dummy_prefix)
    return texts


def _padding(source):
    """Texts and types of a vocabulary of which nothing is known yet: the model may know more than its tokenizer."""
    size = source.config["vocab_size"]
    return [f"[PAD{number}]" for number in range(size)], [TokenType.UNUSED] * size


def _put_added(source, name, number, token, texts, types):
    """Puts a token that is found in text before anything else is."""
    for side in ("lstrip", "rstrip", "single_word"):
        if token[side]:
            source.refuse(name, f"词元 {token['content']} 的 {side}")
    texts[number] = token["content"]
    types[number] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED


def _parts(source):
    """Every tensor of the GGUF file."""
    names = gguf.get_tensor_name_map(source.architecture, source.config["num_hidden_layers"])
    for file in source.weight_files:
        for name, shape in _shapes(file).items():
            if name.endswith("rotary_emb.inv_freq"):  # old folders keep what can be computed
                continue
            if name == "lm_head.weight" and source.config.get("tie_word_embeddings"):
                continue
            for own_name, cut, own_shape in _cuts(source, name, shape):
                known = names.get_name(own_name, try_suffixes=(".weight", ".bias"))
                if not known:
                    source.refuse(file.name, f"张量 {name}")
                yield Part(known, own_shape, _reader(source, file, name, cut, known))


def _shapes(file):
    """The shape of each tensor in a safetensors file."""
    try:
        with safe_open(file, "pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"{shown(file)} 坏了（{error}）。请重新下载或者重新合并这个模型。") from error


def _cuts(source, name, shape):
    """The tensors that one tensor of the folder holds: their names, how to cut them out, their shapes.

    InternLM2 keeps queries, keys and values together: for each key-value head its query heads, its key, its value.
    """
    if not name.endswith("attention.wqkv.weight"):
        return [(name, None, shape)]
    (queries, keys), size, columns = source.heads, source.head_dim, shape[-1]
    grouped = (keys, queries // keys + 2, size, columns)
    return [(name.replace("wqkv", part), lambda weight, own=own: weight.reshape(grouped)[:, own].reshape(-1, columns),
             (heads * size, columns))
            for part, own, heads in (("wq", slice(-2), queries), ("wk", -2, keys), ("wv", -1, keys))]


def _reader(source, file, name, cut, known):
    """What reads a tensor, as llama.cpp wants it, in float32."""
    def read():
        with safe_open(file, "pt") as weights:
            weight = weights.get_tensor(name)
        if not weight.is_floating_point() or weight.element_size() == 1:
            source.refuse(file.name, f"{weight.dtype} 的张量 {name}")
        weight = weight.float().numpy()
        weight = cut(weight) if cut else weight
        for part, heads in zip(("attn_q", "attn_k"), source.heads):
            if f".{part}." in known and source.architecture in PAIRED:
                weight = _paired(weight, heads)
        return weight
    return read


def _paired(weight, heads):
    """Rows of each head so that two that turn together are neighbours; Hugging Face has them half a head apart."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.gguf", description="把模型文件夹转成 GGUF，再量化")
    parser.add_argument("model", help="模型文件夹，例如 workspace/merged")
    parser.add_argument("folder", help="GGUF 文件写到这个文件夹")
    parser.add_argument("--formats", nargs="*", choices=QUANTIZED, default=tuple(QUANTIZED), help="默认全部")
    options = parser.parse_args()
    try:
        files = make(options.model, options.folder, options.formats)
    except (Unsupported, OSError) as error:
        sys.exit(f"[FAIL] {error}")
    for file in files.values():
        print(f"[OK] {file}  {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
