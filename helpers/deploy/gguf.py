"""A model folder as GGUF files for llama.cpp: float16, and quantized.

python -m helpers.deploy.gguf MODEL FOLDER [--formats q8_0 q4_k_m q4_0]   those made from the same model already stay.
"""
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import gguf
import numpy as np
from cyllama.llama import llama_cpp
from gguf import MODEL_ARCH, LlamaFileType, TokenType
from safetensors import SafetensorError, safe_open
from sentencepiece import sentencepiece_model_pb2

from helpers.machine import commands
from helpers.machine.commands import CourseError
from helpers.machine.files import sha256
from helpers.machine.process import shown
from helpers.train import families

F16 = "f16"
QUANTIZED = {
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
ARCHITECTURES = {known.model_class: MODEL_ARCH[known.gguf] for known in families.ARCHITECTURES.values() if known.gguf}
PAIRED = (MODEL_ARCH.LLAMA, MODEL_ARCH.INTERNLM2)  # llama.cpp rotates neighbouring rows of a head, not its halves
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
ADDED_SCORE = -1000.0  # a sentencepiece score so low that merging never makes an added token
NUL = "🐉"  # stands for the token of byte 0, which a C string cannot hold; llama.cpp's converter chose it
BEGINNING = 1024  # bytes


@dataclass(frozen=True)
class Source:
    """A model folder, as far as a conversion reads it."""

    folder: Path

    @cached_property
    def config(self) -> dict:
        """config.json."""
        return self._json("config.json")

    @cached_property
    def tokenizer_config(self) -> dict:
        """tokenizer_config.json."""
        return self._json("tokenizer_config.json")

    def _json(self, name):
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def file(self, name: str) -> Path:
        """The path of a file that must be there."""
        if not (self.folder / name).is_file():
            raise FileNotFoundError(f"{shown(self.folder)} 里没有 {name}。"
                                    "请改成完整的模型文件夹，例如第 6 课的 workspace/merged。")
        return self.folder / name

    def refuse(self, name: str, what: str) -> None:
        """Raises the error that tells what is not supported in a file."""
        raise CourseError(f"{shown(self.folder / name)}：不支持{what}。"
                          f"这里只会转换 {'、'.join(ARCHITECTURES)}；"
                          "别的模型请用 llama.cpp 自己的 convert_hf_to_gguf.py。")

    def refuse_any(self, name: str, unsupported: dict[str, object]) -> None:
        """Refuses the file if it has anything of {what is not supported: whether it has that}."""
        for what, has_it in unsupported.items():
            if has_it:
                self.refuse(name, what)

    @cached_property
    def architecture(self) -> MODEL_ARCH:
        """The architecture in llama.cpp's terms; a config that asks for anything else to be computed is refused."""
        config = self.config
        name = (config.get("architectures") or ["没有写名字的结构"])[0]
        scaling = config.get("rope_scaling") or {}
        self.refuse_any("config.json", {
            f"结构 {name}": name not in ARCHITECTURES,
            f"激活函数 hidden_act={config.get('hidden_act')}": config.get("hidden_act") != "silu",
            f"位置缩放 rope_scaling={scaling}":
                scaling.get("rope_type", scaling.get("type")) not in HARMLESS_ROPE_SCALING,
            "位置参数 rope_parameters": "rope_parameters" in config,
            "滑动窗口 use_sliding_window": config.get("use_sliding_window"),
            "只转一部分的位置 partial_rotary_factor": config.get("partial_rotary_factor", 1) != 1,
            "注意力的偏置 bias": config.get("bias"),  # InternLM2's
            "已经量化过的权重 quantization_config": config.get("quantization_config"),
        })
        return ARCHITECTURES[name]

    @property
    def heads(self) -> tuple[int, int]:
        """The numbers of query heads and of key-value heads."""
        queries = self.config["num_attention_heads"]
        return queries, self.config.get("num_key_value_heads") or queries

    @property
    def head_dim(self) -> int:
        """The numbers in one head."""
        return self.config.get("head_dim") or self.config["hidden_size"] // self.heads[0]

    @cached_property
    def chat_template(self) -> str:
        """The model's chat template."""
        separate = self.folder / "chat_template.jinja"
        if separate.is_file():
            return separate.read_text(encoding="utf-8")
        template = self.tokenizer_config.get("chat_template")
        if not isinstance(template, str):
            self.refuse("tokenizer_config.json", "没有对话模板 chat_template 的模型")
        return template

    @cached_property
    def weight_files(self) -> list[Path]:
        """The safetensors files, all of them."""
        index = self.folder / "model.safetensors.index.json"
        names = set(self._json(index.name)["weight_map"].values()) if index.is_file() else ["model.safetensors"]
        return [self.file(name) for name in sorted(names)]

    def fingerprint(self) -> str:
        """Changes with everything that a conversion reads."""
        digest = hashlib.sha256()
        for file in sorted(self.folder.iterdir()):
            if file.suffix in (".safetensors", ".json", ".model", ".jinja"):
                digest.update(bytes.fromhex(sha256(file)))
        return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """A tensor of the GGUF file: its name and shape there, and what reads it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """float16 for matrices, float32 for what is small and delicate."""
        return np.dtype(np.float16 if len(self.shape) > 1 else np.float32)

    def numbers(self) -> np.ndarray:
        """The numbers as the file keeps them."""
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(self.read().reshape(self.shape).astype(self.dtype))
        if not np.isfinite(numbers).all():
            raise CourseError(f"{self.name} 里有超出 float16 范围的数，不能转换。"
                              "请换一个训练得稳定的检查点，从第 6 课重新合并。")
        return numbers


def make(model: str | Path, folder: str | Path, formats: Collection[str] = tuple(QUANTIZED)) -> dict[str, Path]:
    """The GGUF files of a model in float16 and in some formats, by format; those made from the same model stay."""
    files = {format_: Path(folder, f"{format_}.gguf") for format_ in (F16, *formats)}
    origin = Source(Path(model)).fingerprint()
    if not _made_from(files[F16], origin):
        convert(model, files[F16])
    for format_ in formats:
        if not _made_from(files[format_], origin):
            quantize(files[F16], files[format_], format_)
    return files


def _made_from(file, origin):
    """Whether a GGUF file says at its beginning that it was made from the model with this fingerprint."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return origin.encode() in content.read(BEGINNING)


def convert(model: str | Path, out: str | Path) -> None:
    """Writes a model folder as a GGUF file in float16, a tensor at a time."""
    source = Source(Path(model))
    with _whole(out) as beside:
        writer = gguf.GGUFWriter(beside, gguf.MODEL_ARCH_NAMES[source.architecture])
        try:
            writer.add_string("course.made_from", source.fingerprint())  # stays at the beginning, also when quantized
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


def quantize(source: str | Path, out: str | Path, format_: str) -> None:
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
    """A path beside `out`, which takes its place when it is written to the end.

    It is always the same one, so that what a killed conversion leaves, many gigabytes perhaps, is written over.
    """
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
    if source.config.get("bos_token_id") is not None:
        writer.add_bos_token_id(source.config["bos_token_id"])
    if source.config.get("pad_token_id") is not None:
        writer.add_pad_token_id(source.config["pad_token_id"])
    writer.add_eos_token_id(_last_token(source, texts))


def _last_token(source, texts):
    """The id of the token after which an answer ends: that of a turn, if the model's family is known."""
    known = families.find_dialogue(source.chat_template)
    if known and known.stops[0] in texts:
        return texts.index(known.stops[0])
    ends = source.config["eos_token_id"]
    return ends[0] if isinstance(ends, list) else ends


def _add_byte_level_bpe(writer, source):
    """Writes the vocabulary and merges of a tokenizer.json; gives the text of each token."""
    name = "tokenizer.json"
    tokenizer = json.loads(source.file(name).read_text(encoding="utf-8"))
    model = tokenizer["model"]
    words = _without_offsets(tokenizer["pre_tokenizer"])
    source.refuse_any(name, {
        f"分词器 {model['type']}": model["type"] != "BPE",
        "按字节补齐的 byte_fallback": model.get("byte_fallback"),
        "跳过合并的 ignore_merges": model.get("ignore_merges"),
        "随机的合并 dropout": model.get("dropout"),
        f"文本规范化 normalizer={tokenizer['normalizer']}": tokenizer["normalizer"] not in NORMALIZERS,
        f"切词方式 pre_tokenizer={words}": words not in WORDS.values(),
        "比模型的 vocab_size 还大的词表": len(model.get("vocab", ())) > source.config["vocab_size"],
    })
    texts, types = _padding(source)
    for text, number in model["vocab"].items():
        texts[number], types[number] = text, TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        _put_added(source, name, token["id"], token, texts, types)
    writer.add_tokenizer_model("gpt2")
    [llama_cpps_name] = [known for known, described in WORDS.items() if described == words]
    writer.add_tokenizer_pre(llama_cpps_name)
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
    source.refuse_any(name, {
        "BPE 以外的 sentencepiece": trained.model_type != trained.BPE,
        "不按字节补齐的 sentencepiece": not trained.byte_fallback,
        f"文本规范化 {normalizer.name}": normalizer.name != "identity",
        "去掉多余空格的 remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "不转写空格的 escape_whitespaces": not normalizer.escape_whitespaces,
        "比模型的 vocab_size 还大的词表": len(model.pieces) > source.config["vocab_size"],
    })
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


def _parts(source) -> Iterator[Part]:
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
    queries, keys = source.heads
    size, columns = source.head_dim, shape[-1]

    def cut(weight, rows):
        groups = weight.reshape(keys, queries // keys + 2, size, columns)
        return groups[:, rows].reshape(-1, columns)

    return [
        (name.replace("wqkv", "wq"), partial(cut, rows=slice(-2)), (queries * size, columns)),
        (name.replace("wqkv", "wk"), partial(cut, rows=-2), (keys * size, columns)),
        (name.replace("wqkv", "wv"), partial(cut, rows=-1), (keys * size, columns)),
    ]


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


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser(__spec__, "把模型文件夹转成 GGUF，再量化")
    parser.add_argument("model", help="模型文件夹，例如 workspace/merged")
    parser.add_argument("folder", help="GGUF 文件写到这个文件夹")
    parser.add_argument("--formats", nargs="*", choices=QUANTIZED, default=tuple(QUANTIZED), help="默认全部")
    options = parser.parse_args()
    files = make(options.model, options.folder, options.formats)
    for file in files.values():
        print(f"[OK] {file}  {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
