import json
import os
import re
import shutil
import subprocess
import sys

import numpy
import pytest
from safetensors.numpy import save_file

from helpers.machine import model_folder, profile

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4902257696\n"


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def make(folder):
    """A whole model of two shards that brings its own program."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(profile.TINY_BASE / name, folder)
    write_json(folder / "config.json", {"auto_map": {"AutoConfig": "configuration_small.SmallConfig",
                                                     "AutoModelForCausalLM": "modeling_small.SmallModel"}})
    (folder / "configuration_small.py").write_text("raise SystemExit('this was run')\n")
    (folder / "modeling_small.py").write_text("from .configuration_small import A\nfrom .layers import B\n")
    (folder / "layers.py").write_text("")
    for number, shard in enumerate((FIRST, SECOND)):
        save_file({f"layer.{number}": numpy.zeros((8, 8), numpy.float32)}, folder / shard)
    write_json(folder / model_folder.INDEX,
               {"weight_map": {f"layer.{number}": shard for number, shard in enumerate((FIRST, SECOND))}})
    return folder


@pytest.fixture
def model(tmp_path):
    return make(tmp_path / "small")


def change_json(path, **changes):
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def only(name, content=b"GGUF"):
    """Leaves one file in the folder."""
    def happen(folder):
        emptied(folder)
        (folder / name).write_bytes(content)
    return happen


def deeper(*inner):
    """Moves the model into a folder in its folder."""
    def happen(folder):
        model = folder.rename(folder.with_name("moved"))
        target = folder.joinpath(*inner)
        target.parent.mkdir(parents=True)
        model.rename(target)
    return happen


def put(name, content):
    def happen(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return happen


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


def gone(name):
    return lambda folder: (folder / name).unlink()


def longer(folder):
    with (folder / FIRST).open("ab") as file:
        file.write(b"more")


def pickled(folder):
    for shard in (FIRST, SECOND):
        (folder / shard).rename(folder / shard.replace(".safetensors", ".bin"))
    (folder / model_folder.INDEX).unlink()


def code_elsewhere(folder):
    change_json(folder / "config.json", auto_map={"AutoModel": "someone/small--modeling_small.SmallModel"})


def code_of_a_tokenizer(folder):
    change_json(folder / "tokenizer_config.json", auto_map=["tokenization_small.Small", None])


HASH = "0123456789abcdef0123456789abcdef01234567"
ACCIDENTS = {
    "no such folder": (shutil.rmtree, "small 不存在"),
    "an empty folder": (emptied, "small 是空的"),
    "an adapter": (only("adapter_config.json", b"{}"), "是适配器，不是模型.*基座模型"),
    "a gguf file in a folder": (only("small-q4_k_m.gguf"), "GGUF.*不能拿来微调.*safetensors"),
    "something else": (only("notes.txt"), "里没有模型（找不到 config.json）"),
    "hugging face's cache": (deeper("snapshots", HASH), f"更里面的 .*small/snapshots/{HASH}。修复：把路径改成它"),
    "the whole cache": (deeper("models--a--small", "snapshots", HASH), f"更里面的 .*models--a--small/snapshots/{HASH}"),
    "modelscope's folder twice": (deeper("small"), "更里面的 .*small/small。修复：把路径改成它"),
    "modelscope's cache": (deeper("author", "small"), "更里面的 .*small/author/small。"),
    "a pointer for a shard": (put(FIRST, POINTER), rf"1 个文件只是 Git LFS.*{FIRST}"),
    "a pointer for a tokenizer": (put("tokenizer.json", POINTER), "1 个文件只是 Git LFS.*git lfs pull"),
    "what hf left": (put(".cache/huggingface/download/x.y.incomplete", b"half"), "没有下载完.*x.y.incomplete"),
    "what modelscope left": (put(f"._____temp/{SECOND}", b"half"), f"没有下载完.*_____temp/{SECOND}"),
    "what aria2 left": (put(f"{SECOND}.aria2", b"half"), "没有下载完.*aria2.*接着下"),
    "what a browser left": (put("x.part", b"half"), "没有下载完.*x.part"),
    "half a shard": (cut(SECOND, 200), f"{SECOND} 没有下载完：应该有 [0-9,]+ 字节，只有 200 字节.*删掉它"),
    "half a header": (cut(SECOND, 20), f"{SECOND} 从开头就读不懂"),
    "a shard of nothing": (cut(SECOND, 0), f"{SECOND} 从开头就读不懂"),
    "room reserved for a shard": (put(SECOND, bytes(336)), f"{SECOND} 从开头就读不懂"),
    "a shard with more": (longer, f"{FIRST} 坏了"),
    "a page for a shard": (put(FIRST, "<!DOCTYPE html>" * 99), f"{FIRST} 从开头.*不是 safetensors"),
    "a shard that is missing": (gone(FIRST), f"有 2 个文件，还缺 1 个，例如 {FIRST}"),
    "no index": (gone(model_folder.INDEX), f"缺 {model_folder.INDEX}"),
    "only pickles": (pickled, "只有 .bin。这是 pickle.*safetensors"),
    "no weights": (only("config.json", b"{}"), "里没有权重（找不到 model.safetensors）"),
    "a page for the config": (put("config.json", "<!DOCTYPE html>"), "config.json 读不懂"),
    "a list for an index": (put(model_folder.INDEX, "[]"), "index.json 读不懂"),
    "an index of nothing": (put(model_folder.INDEX, '{"weight_map": 1}'), "index.json 读不懂"),
    "no vocabulary": (gone("tokenizer.json"), "找不到 tokenizer.json 或者 tokenizer.model"),
    "no tokenizer's config": (gone("tokenizer_config.json"), "找不到 tokenizer_config.json"),
    "no program": (gone("modeling_small.py"), "缺模型自己的程序 modeling_small.py"),
    "a program that another needs": (gone("layers.py"), "缺模型自己的程序 layers.py"),
    "a tokenizer's program": (code_of_a_tokenizer, "缺模型自己的程序 tokenization_small.py"),
    "a program elsewhere": (code_elsewhere, "在 someone/small 那个仓库"),
}


def test_a_whole_model_passes_and_nothing_of_it_is_run(model):
    assert model_folder.problem(model) is None


def test_the_tiny_base_is_whole():
    assert model_folder.problem(profile.TINY_BASE) is None


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_is_told_in_one_sentence_with_where_and_what_to_do(model, accident):
    happen, said = ACCIDENTS[accident]
    happen(model)
    why = model_folder.problem(model)
    assert re.search(said, why)
    assert str(model) in why
    assert "修复：" in why
    assert "\n" not in why


def test_a_gguf_file_in_place_of_a_folder_is_told(tmp_path):
    file = tmp_path / "small-q4_k_m.gguf"
    file.write_bytes(b"GGUF")
    assert "是 GGUF 文件" in model_folder.problem(file)


def test_of_several_models_that_lie_deeper_one_is_to_be_chosen(model):
    make(model.parent / "other")
    assert "里面有 2 个模型，选一个" in model_folder.problem(model.parent)


def test_files_that_a_finished_download_leaves_are_no_accident(model):
    put(".cache/huggingface/download/config.json.metadata", HASH)(model)
    put(".msc", b"")(model)
    (model / "._____temp").mkdir()
    assert model_folder.problem(model) is None


def test_links_into_a_cache_are_files_and_broken_links_are_missing(model, tmp_path):
    blob = (model / FIRST).rename(tmp_path / "blob")
    (model / FIRST).symlink_to(blob)
    assert model_folder.problem(model) is None
    blob.unlink()
    assert "还缺 1 个" in model_folder.problem(model)


@pytest.mark.parametrize(("folder", "code", "said"), [
    (profile.TINY_BASE, 0, f"[OK]   {profile.TINY_BASE} 是完整的"),
    ("/none", 1, "[FAIL] /none 不存在"),
])
def test_the_command_says_it_in_a_line(folder, code, said):
    done = subprocess.run([sys.executable, "-m", "helpers.machine.model_folder", folder], cwd=profile.ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == code
    line, = done.stdout.splitlines()
    assert line.startswith(said)
