import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.train import merge as merge_module
from helpers.train.merge import INDEX, merge, merge_with_xtuner

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 120}


def make_base(folder, dtype=torch.bfloat16, shard="1GB", **changes):
    """A small Llama of random weights, with a file of remote code and one that speaks of the base."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "modeling_own.py").write_text("# remote code")
    (folder / "README.md").write_text("about the base")
    return folder


def make_adapter(folder, base, dtype=torch.float16, **changes):
    """A random adapter of PEFT's for a base."""
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    torch.manual_seed(2)
    lora = LoraConfig(**{"r": 6, "lora_alpha": 10, "target_modules": "all-linear", "init_lora_weights": False,
                         "task_type": "CAUSAL_LM"} | changes)
    get_peft_model(model, lora).to(dtype).save_pretrained(folder)
    return folder


def merged_by_peft(base, adapter, dtype):
    """The weights of PEFT's merge_and_unload."""
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=getattr(torch, dtype))
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def weights_of(folder):
    """All weights of a model folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    return make_adapter(tmp_path / "adapter", base)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_weights_are_bit_for_bit_those_of_peft(tmp_path, base_dtype, dtype):
    base = make_base(tmp_path / "base", base_dtype)
    adapter = make_adapter(tmp_path / "adapter", base)
    before = weights_of(base)
    merge(base, adapter, tmp_path / "out", dtype)
    found = weights_of(tmp_path / "out")
    assert_same(found, merged_by_peft(base, adapter, dtype))
    assert_same(weights_of(base), before)
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(found[name].float(), before[name].float())


@pytest.mark.parametrize("changes", [
    {"use_rslora": True}, {"r": 1, "lora_alpha": 3}, {"target_modules": ["q_proj"]},
], ids=str)
def test_other_plain_adapters_are_merged_as_peft_does(tmp_path, base, changes):
    adapter = make_adapter(tmp_path / "adapter", base, torch.float32, **changes)
    merge(base, adapter, tmp_path / "out")
    assert_same(weights_of(tmp_path / "out"), merged_by_peft(base, adapter, "float16"))


def test_an_adapter_on_the_head_is_merged_into_the_copy_of_the_head_that_it_brings(tmp_path, base):
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["lm_head", "q_proj"])
    rewrite(adapter / "adapter_model.safetensors",
            lambda weights: weights["base_model.model.lm_head.base_layer.weight"].mul_(2))
    merge(base, adapter, tmp_path / "out")
    assert_same(weights_of(tmp_path / "out"), merged_by_peft(base, adapter, "float16"))


def test_a_base_in_several_files_stays_in_several_files(tmp_path):
    base = make_base(tmp_path / "base", shard="80KB")
    adapter = make_adapter(tmp_path / "adapter", base)
    merge(base, adapter, tmp_path / "out", "float32")
    wanted = merged_by_peft(base, adapter, "float32")
    assert_same(weights_of(tmp_path / "out"), wanted)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "out", torch_dtype="auto").state_dict(), wanted)
    index, old_index = (json.loads((folder / INDEX).read_text()) for folder in (tmp_path / "out", base))
    assert len(set(index["weight_map"].values())) > 1
    assert index["weight_map"] == old_index["weight_map"]
    assert index["metadata"]["total_size"] == 2 * old_index["metadata"]["total_size"]


def test_tied_embeddings_stay_tied(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "adapter", base)
    merge(base, adapter, tmp_path / "out")
    found = weights_of(tmp_path / "out")
    assert "lm_head.weight" not in found
    wanted = merged_by_peft(base, adapter, "float16")
    assert_same(found, {name: wanted[name] for name in found})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_adapter_on_a_tied_head_is_an_error(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    with pytest.raises(CourseError, match="tie_word_embeddings"):
        merge(base, adapter, tmp_path / "out")


def test_a_merged_folder_is_a_whole_model_folder(tmp_path, base, adapter):
    merge(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "merged_from.json", "model.safetensors", "modeling_own.py"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((base / "config.json").read_text()) | {"torch_dtype": "float16"}


def test_the_real_adapter_merges_to_the_very_weights_of_xtuner(tuned, tmp_path):
    _, adapter, merged = tuned
    merge(profile.current().base_model, adapter, tmp_path / "ours")
    assert_same(weights_of(tmp_path / "ours"), weights_of(merged))


def test_xtuners_merge_is_made_whole_and_once(base, adapter, tmp_path):
    for file in profile.TINY_BASE.glob("*token*"):
        shutil.copy(file, base)
    merge_with_xtuner(base, adapter, tmp_path / "out")
    assert_same(weights_of(tmp_path / "out"), merged_by_peft(base, adapter, "float16"))
    made = (tmp_path / "out" / "model.safetensors").stat()
    merge_with_xtuner(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat() == made


def test_another_adapter_replaces_the_merged_model_and_the_same_one_does_not(tmp_path, base, adapter):
    merge(base, adapter, tmp_path / "out")
    made = (tmp_path / "out" / "model.safetensors").stat()
    merge(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat() == made
    other = make_adapter(tmp_path / "other", base, lora_alpha=3)
    merge(base, other, tmp_path / "out")
    assert_same(weights_of(tmp_path / "out"), merged_by_peft(base, other, "float16"))


@pytest.mark.parametrize("again", [merge, merge_with_xtuner])
def test_a_base_trained_anew_at_the_same_place_replaces_the_merged_model(tmp_path, base, adapter, again):
    for file in profile.TINY_BASE.glob("*token*"):
        shutil.copy(file, base)
    merge(base, adapter, tmp_path / "out")
    rewrite(base / "model.safetensors", lambda weights: weights[NAME].mul_(2))
    again(base, adapter, tmp_path / "out")
    assert_same(weights_of(tmp_path / "out"), merged_by_peft(base, adapter, "float16"))


def test_a_changed_config_of_the_base_reaches_the_merged_model(tmp_path, base, adapter):
    merge(base, adapter, tmp_path / "out")
    rewrite_json(base / "config.json", {"rope_theta": 500.0})
    merge(base, adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 500


def test_an_interrupted_merge_leaves_nothing(tmp_path, base, adapter, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_module, "_copy_the_rest", interrupted)  # after all weights are written
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_a_killed_merge_leaves_no_folder_of_that_name_and_can_be_repeated(tmp_path, base, adapter):
    (tmp_path / "out.partial").mkdir()  # what a kill leaves
    (tmp_path / "out.partial" / "model.safetensors").write_bytes(b"half")
    merge(base, adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "out"}


def rewrite(path, change):
    """Rewrites a safetensors file."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def rewrite_json(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NAME = "model.layers.0.self_attn.q_proj.weight"
BROKEN = {
    "a base with other shapes": (
        lambda base, _: make_base(base, intermediate_size=80), r"mlp\.\w+\.weight 的形状对不上"),
    "a base with other names": (
        lambda base, _: rewrite(base / "model.safetensors", lambda weights: weights.pop(NAME)),
        f"没有适配器要改的 {NAME}"),
    "a quantized base": (
        lambda base, _: rewrite(base / "model.safetensors",
                                lambda weights: weights.update({NAME: weights[NAME].to(torch.int8)})), "量化"),
    "a base in pickles": (
        lambda base, _: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "pickle"),
    "a base without weights": (lambda base, _: (base / "model.safetensors").unlink(), "缺少权重文件 model.safetensors"),
    "a cut base": (lambda base, _: os.truncate(base / "model.safetensors", 5000), "坏了"),
    "no base": (lambda base, _: (base / "config.json").unlink(), "没有 config.json"),
    "a number that float16 cannot hold": (
        lambda base, _: rewrite(base / "model.safetensors", lambda weights: weights[NAME].mul_(1e8)), f"{NAME}.*范围"),
    "no adapter": (lambda _, adapter: shutil.rmtree(adapter), "没有 adapter_config.json"),
    "an adapter in pickles": (
        lambda _, adapter: (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin"),
        "--safe-serialization"),
    "a cut adapter": (lambda _, adapter: os.truncate(adapter / "adapter_model.safetensors", 5000), "坏了"),
    "half a pair": (
        lambda _, adapter: rewrite(adapter / "adapter_model.safetensors", lambda weights: weights.popitem()),
        "只有一半"),
    "an embedding in the adapter": (
        lambda _, adapter: rewrite(adapter / "adapter_model.safetensors", lambda weights: weights.update(
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 2)})), "xtuner convert merge"),
}


@pytest.mark.parametrize(("break_it", "says"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_merged_is_named_and_leaves_nothing(tmp_path, base, adapter, break_it, says):
    break_it(base, adapter)
    with pytest.raises(CourseError, match=says):
        merge(base, adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"base", "adapter"}


@pytest.mark.parametrize("changes", [
    {"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 4}},
    {"alpha_pattern": {"q_proj": 4}}, {"peft_type": "LOHA"}, {"lora_bias": True}, {"fan_in_fan_out": True},
    {"init_lora_weights": "pissa"},
], ids=str)
def test_features_beyond_plain_lora_are_left_to_xtuner(tmp_path, base, adapter, changes):
    rewrite_json(adapter / "adapter_config.json", changes)
    with pytest.raises(CourseError, match=rf"{next(iter(changes))}.*xtuner convert merge"):
        merge(base, adapter, tmp_path / "out")


def test_nothing_of_the_users_is_replaced(tmp_path, base, adapter):
    precious = make_base(tmp_path / "precious")
    for out in (precious, base, adapter, base / "README.md"):
        with pytest.raises(CourseError, match=out.name):
            merge(base, adapter, out)
    merge(base, adapter, tmp_path / "out")
    with pytest.raises(CourseError, match="基座自己"):
        merge(tmp_path / "out", adapter, tmp_path / "out")
    assert weights_of(precious)


def test_a_disk_too_small_is_noticed_before_anything_is_written(tmp_path, base, adapter, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CourseError, match="磁盘不够"):
        merge(base, adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_the_command_line_merges_and_its_exit_code_is_true(tmp_path, base, adapter):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "helpers.train.merge", *map(str, arguments)], cwd=profile.ROOT,
                              env=profile.environment(), capture_output=True, text=True, check=False)

    done = run(base, adapter, tmp_path / "out")
    assert done.returncode == 0
    assert_same(weights_of(tmp_path / "out"), merged_by_peft(base, adapter, "float16"))
    failed = run(base, tmp_path / "missing", tmp_path / "other")
    assert failed.returncode == 1
    assert failed.stderr.startswith("[FAIL]")
