import json
import random
import shutil
import subprocess
import sys
import urllib.request

import gguf as library
import numpy as np
import pytest
import sentencepiece
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from helpers.deploy import gguf, llama_server
from helpers.machine import profile
from helpers.machine.commands import CourseError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "initializer_range": 0.1}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TEXT = (profile.ROOT / "README_zh-CN.md").read_text(encoding="utf-8") * 2
ALPHABET = "的一是abcXYZ ,.!?，。！？0123456789\n\t🙂éß'’<|>[]"
FUSED = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
         "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
         "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "model.tok_embeddings", "lm_head": "output"}


def random_model(kind, config, folder, shards="50KB"):
    """A model of random numbers in bfloat16, saved in several files; gives it in float32."""
    torch.manual_seed(0)
    model = kind(config)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight, 0, 0.3)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shards)
    return model.float().eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama with everything optional: biases, heads of their own size, unused ids, harmless position scaling."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = AutoTokenizer.from_pretrained(profile.TINY_BASE)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**SIZES, vocab_size=len(tokenizer) + 6, head_dim=32, attention_bias=True, eos_token_id=3,
                         rope_theta=5e5, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    return folder, random_model(LlamaForCausalLM, config, folder, "500KB")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A Qwen2, whose attention has biases, with Qwen2's own way of cutting text into words."""
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(gguf.QWEN2_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=500, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=MARKS[0], additional_special_tokens=MARKS[1:],
                            chat_template=CHATML).save_pretrained(folder)
    config = Qwen2Config(**SIZES, vocab_size=512, eos_token_id=0, bos_token_id=None, tie_word_embeddings=True)
    return folder, random_model(Qwen2ForCausalLM, config, folder)


@pytest.fixture(scope="module")
def sentence_llama(tmp_path_factory):
    """A Llama whose tokenizer is a sentencepiece model, as InternLM2's is."""
    folder = tmp_path_factory.mktemp("sentence_llama")
    (folder / "text").write_text(TEXT, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=700, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        user_defined_symbols=["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"], minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    added = {str(pieces.piece_to_id(f"[UNUSED_TOKEN_{i}]")): added_token(mark) for i, mark in enumerate(MARKS[1:])}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "chat_template": CHATML}))
    config = LlamaConfig(**SIZES, vocab_size=len(pieces), eos_token_id=2)
    return folder, random_model(LlamaForCausalLM, config, folder)


def added_token(text):
    return {"content": text, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False,
            "special": True}


@pytest.fixture(scope="module")
def internlm2(sentence_llama, tmp_path_factory):
    """The same model as InternLM2 lays it out: other names, and queries, keys and values in one tensor."""
    source, _ = sentence_llama
    folder = tmp_path_factory.mktemp("internlm2")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: weight for file in source.glob("*.safetensors") for name, weight in load_file(file).items()}
    for layer in range(SIZES["num_hidden_layers"]):
        rows = [weights.pop(f"model.layers.{layer}.self_attn.{part}_proj.weight").reshape(2, -1, 16, 64)
                for part in "qkv"]
        weights[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat(rows, 1).reshape(-1, 64).contiguous()
    for old, new in FUSED.items():
        weights = {name.replace(old, new): weight for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def converted(folder, tmp_path):
    file = tmp_path / f"{folder.name}.gguf"
    gguf.convert(folder, file)
    return file


def tensors(file):
    return {tensor.name: tensor for tensor in library.GGUFReader(file).tensors}


def fields(file):
    return {name: field.contents() for name, field in library.GGUFReader(file).fields.items()}


def tokens(url, text):
    request = urllib.request.Request(url.removesuffix("/v1") + "/tokenize",
                                     json.dumps({"content": text, "parse_special": True}).encode())
    return json.load(urllib.request.urlopen(request))["tokens"]


def assert_thinks_alike(url, model):
    """The server finds every next token as likely as the model does, also after many tokens."""
    ids = torch.randint(0, model.config.vocab_size, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = torch.log_softmax(model(ids).logits[0, -1], -1)
    found = torch.tensor(llama_server.log_probabilities(url, ids[0].tolist()))
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 0.05


def some_texts():
    rng = random.Random(0)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(1, 30))) for _ in range(100)] + ["<|im_start|>你好<|im_end|>\n"]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_converted_model_thinks_and_reads_as_in_transformers(name, tmp_path, request):
    folder, model = request.getfixturevalue(name)
    assert len(list(folder.glob("*.safetensors"))) > 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = converted(folder, tmp_path)
    with llama_server.serve(file, parallel=1, ctx=256) as url:
        assert_thinks_alike(url, model)
        for text in some_texts():
            assert tokens(url, text) == tokenizer(text, add_special_tokens=False).input_ids
    assert fields(file)["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields(file)["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_model_with_a_sentencepiece_tokenizer_thinks_and_reads_as_the_original(sentence_llama, tmp_path):
    folder, model = sentence_llama
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    file = converted(folder, tmp_path)
    with llama_server.serve(file, parallel=1, ctx=256) as url:
        assert_thinks_alike(url, model)
        for text in some_texts()[:-1]:
            assert tokens(url, text) == pieces.encode(text)
        marks = tokens(url, "<|im_start|><|im_end|>")
    assert marks == [pieces.piece_to_id("[UNUSED_TOKEN_0]"), pieces.piece_to_id("[UNUSED_TOKEN_1]")]
    assert fields(file)["tokenizer.ggml.eos_token_id"] == marks[1]


def test_internlm2s_fused_weights_become_those_of_the_same_llama(sentence_llama, internlm2, tmp_path):
    folder, model = sentence_llama
    as_llama, as_internlm2 = converted(folder, tmp_path), converted(internlm2, tmp_path)
    expected, found = tensors(as_llama), tensors(as_internlm2)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert np.array_equal(tensor.data, found[name].data), name
    assert fields(as_internlm2)["general.architecture"] == "internlm2"
    with llama_server.serve(as_internlm2, parallel=1, ctx=256) as url:
        assert_thinks_alike(url, model)


def test_the_course_model_becomes_four_files_that_stay_until_it_changes(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(profile.TINY_BASE, model)
    files = gguf.make(model, tmp_path / "deploy")
    assert list(files) == ["f16", "q8_0", "q4_k_m", "q4_0"]
    sizes = [file.stat().st_size for file in files.values()]
    assert sizes == sorted(sizes, reverse=True)
    times = [file.stat().st_mtime_ns for file in files.values()]
    gguf.make(model, tmp_path / "deploy")
    assert times == [file.stat().st_mtime_ns for file in files.values()]
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"model.norm.weight": weights["model.norm.weight"] * 2}, model / "model.safetensors")
    gguf.make(model, tmp_path / "deploy")
    assert not set(times) & {file.stat().st_mtime_ns for file in files.values()}


@pytest.mark.parametrize("format_", ["q8_0", "q4_0"])
def test_quantized_weights_are_the_references(format_, tmp_path):
    files = gguf.make(profile.TINY_BASE, tmp_path, [format_])
    kind, original, compared = GGMLQuantizationType[format_.upper()], tensors(files["f16"]), 0
    for name, tensor in tensors(files[format_]).items():
        if tensor.tensor_type == kind:
            compared += 1
            assert np.array_equal(tensor.data, quants.quantize(original[name].data.astype(np.float32), kind)), name
    assert compared >= 8 * 7  # all matrices of all layers


def changed(folder, tmp_path, name, **changes):
    """A copy of a model folder with something else in one of its JSON files."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    content = json.loads((copy / name).read_text(encoding="utf-8"))
    (copy / name).write_text(json.dumps(content | changes), encoding="utf-8")
    return copy


@pytest.mark.parametrize(("name", "changes", "what"), [
    ("config.json", {"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
    ("config.json", {"architectures": None}, "没有写名字的结构"),
    ("config.json", {"hidden_act": "gelu"}, "hidden_act=gelu"),
    ("config.json", {"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling=.*yarn"),
    ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("config.json", {"use_sliding_window": True}, "use_sliding_window"),
    ("config.json", {"bias": True}, "bias"),
    ("tokenizer.json", {"normalizer": {"type": "NFKC"}}, "normalizer=.*NFKC"),
    ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer=.*Whitespace"),
    ("tokenizer.json", {"model": {"type": "WordPiece"}}, "WordPiece"),
    ("tokenizer_config.json", {"chat_template": None}, "没有对话模板"),
])
def test_what_is_not_supported_is_named_with_its_file(name, changes, what, tmp_path):
    folder = changed(profile.TINY_BASE, tmp_path, name, **changes)
    with pytest.raises(CourseError, match=f"changed/{name}：不支持.*{what}"):
        gguf.convert(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))


def test_a_vocabulary_that_is_larger_than_the_model_is_refused(tmp_path):
    folder = changed(profile.TINY_BASE, tmp_path, "config.json", vocab_size=100)
    with pytest.raises(CourseError, match="tokenizer.json：不支持比模型的 vocab_size 还大的词表"):
        gguf.convert(folder, tmp_path / "out.gguf")


def test_a_sentencepiece_model_that_llama_cpp_would_read_otherwise_is_refused(sentence_llama, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(sentence_llama[0], folder)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=700, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2)
    with pytest.raises(CourseError, match="tokenizer.model：不支持BPE 以外的"):
        gguf.convert(folder, tmp_path / "out.gguf")


@pytest.mark.parametrize(("weight", "error"), [
    (torch.full((256,), float("inf")), "超出 float16"),
    (torch.ones(256, dtype=torch.int8), "int8 的张量 model.norm.weight"),
])
def test_weights_that_do_not_fit_leave_the_former_file_alone(weight, error, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out.gguf"
    shutil.copytree(profile.TINY_BASE, folder)
    out.write_text("former")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.norm.weight": weight}, folder / "model.safetensors")
    with pytest.raises(CourseError, match=error):
        gguf.convert(folder, out)
    assert out.read_text() == "former"
    assert not list(tmp_path.glob("*.partial"))


def test_a_tensor_that_nobody_knows_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(profile.TINY_BASE, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.extra.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(CourseError, match="model.safetensors：不支持张量 model.extra.weight"):
        gguf.convert(folder, tmp_path / "out.gguf")


def test_a_missing_or_broken_weight_file_is_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(profile.TINY_BASE, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(OSError, match="model.safetensors 坏了"):
        gguf.convert(folder, tmp_path / "out.gguf")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="没有 model.safetensors"):
        gguf.convert(folder, tmp_path / "out.gguf")


def test_the_command_line_converts_and_says_what_fails(tmp_path):
    done = run(profile.TINY_BASE, tmp_path / "deploy", "--formats", "q4_0")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["[OK]", str(tmp_path / "deploy" / f"{name}.gguf")] for name in ("f16", "q4_0")]
    assert "[FAIL]" in run(tmp_path / "none", tmp_path / "deploy").stderr


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "helpers.deploy.gguf", *map(str, arguments)],
                          env=profile.environment(), text=True, capture_output=True, check=False)
