"""LMDeploy's promises: it understands every command of the course, and what it quantizes here still answers."""
import re
import shlex
import sys
from dataclasses import replace
from functools import cache

import httpx
import nbformat
import pytest
import torch
from lmdeploy.cli.cli import CLI
from lmdeploy.cli.lite import SubCliLite
from lmdeploy.cli.serve import SubCliServe
from lmdeploy.model import best_match_model
from lmdeploy.pytorch.config import ModelConfig
from lmdeploy.pytorch.engine.cache_engine import CacheEngine
from safetensors.torch import load_file, save_file

from helpers.ask import models
from helpers.deploy import lmdeploy
from helpers.machine import process, profile
from helpers.machine.commands import CourseError
from helpers.machine.ports import find_port
from helpers.train import families, memory
from tests import finetune

COMMAND = re.compile(r"^[ $!%]*(lmdeploy [^`\n]+)$|`(lmdeploy [^`\n]+)`", re.M)
CPU = profile.Profile("cpu", profile.TINY_BASE, None, **profile.CPU)
GPU = profile.Profile("gpu", profile.TINY_BASE, profile.Gpu("a card", 24, "535", True), **profile.GPU)
INTERNLM2_5_7B = memory.Shape("internlm2", 4096, 14336, 32, 32, 8, vocab_size=92544, head_dim=128)
TINY = memory.read_shape(profile.TINY_BASE)
SAID = "用 `lmdeploy chat` 聊：\n```bash\n$ lmdeploy serve api_server 模型 \\\n  --server-port 1\n```\n! lmdeploy list"


@cache
def lmdeploys_parser():
    """LMDeploy's own, with every command."""
    CLI.add_parsers()
    SubCliServe.add_parsers()
    SubCliLite.add_parsers()
    return CLI.parser


def understood(command):
    """What LMDeploy makes of a command; of one that is only named, such as `lmdeploy lite auto_awq`, its help."""
    words = shlex.split(command)[1:]
    named_only = all(re.fullmatch("[a-z_]+", word) for word in words)
    try:
        return lmdeploys_parser().parse_args([*words, *["--help"] * named_only])
    except SystemExit as ended:
        if ended.code:
            raise ValueError(command) from ended
        return None


def commands_in(text):
    return [found for pair in COMMAND.findall(text.replace("\\\n", "")) for found in pair if found]


def everything_written():
    """The text of READMEs and notebooks, with what their cells printed."""
    for path in profile.ROOT.glob("*.md"):
        yield path.read_text(encoding="utf-8")
    for path in (profile.ROOT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            yield cell.source
            for output in cell.get("outputs", []):
                yield output.get("text", "")
                yield output.get("data", {}).get("text/markdown", "")


def written_commands():
    return [command for text in everything_written() for command in commands_in(text)]


def built_commands():
    return [command for machine in (CPU, GPU) for command in lmdeploy.commands(profile.TINY_BASE, machine).values()]


def test_lmdeploy_understands_every_command_that_the_helper_builds():
    for command in built_commands():
        assert understood(str(command)).run


def test_lmdeploy_understands_every_command_in_notebooks_and_readmes():
    commands = written_commands()
    assert len(commands) > len(lmdeploy.commands(profile.TINY_BASE, CPU))
    for command in commands:
        understood(command)


def test_commands_are_found_wherever_text_has_them():
    assert commands_in(SAID) == ["lmdeploy chat", "lmdeploy serve api_server 模型   --server-port 1", "lmdeploy list"]


@pytest.mark.parametrize("wrong", [
    "lmdeploy chat model --template yi", "lmdeploy serve api-server model", "lmdeploy serve gradio --share",
    "lmdeploy lite auto_awq model --bits 4", "lmdeploy lite calibrate model --device cpu", "lmdeploy lite awq",
    "lmdeploy convert model --dst-path turbomind", "lmdeploy chat model --cache-max-entry-count half",
])
def test_a_command_that_lmdeploy_does_not_know_is_found(wrong):
    with pytest.raises(ValueError, match=wrong):
        understood(wrong)


def test_no_command_lets_lmdeploy_empty_the_students_workspace():
    """`lmdeploy convert` deletes its target first, which is a folder called workspace unless another is named."""
    for command in [*map(str, built_commands()), *written_commands()]:
        if parsed := understood(command):
            assert getattr(parsed, "dst_path", "") != "workspace", command


def test_lmdeploy_would_not_guess_the_template_from_our_folders_name():
    assert best_match_model("../merged") == "base"


def test_what_cannot_run_here_says_why():
    here = {name: command.obstacle(CPU, INTERNLM2_5_7B)
            for name, command in lmdeploy.commands(profile.TINY_BASE, CPU).items()}
    assert {name for name, obstacle in here.items() if not obstacle} == {"lite auto_awq", "lite smooth_quant"}
    assert set(filter(None, here.values())) == {"要 NVIDIA 显卡，这台机器没有"}


def test_a_card_runs_what_it_has_memory_for():
    commands = lmdeploy.commands(profile.TINY_BASE, GPU)
    small = replace(GPU, gpu=replace(GPU.gpu, gigabytes=8))
    assert not any(command.obstacle(GPU, INTERNLM2_5_7B) for command in commands.values())
    assert commands["chat"].obstacle(small, INTERNLM2_5_7B) == "要约 16.5 GB 显存，a card 只有 8 GB"
    assert not commands["lite auto_awq"].obstacle(small, INTERNLM2_5_7B)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The tiny base as LMDeploy itself quantizes it here, calibrated on our own data: folders and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmdeploy, "LMDEPLOY", tmp_path_factory.mktemp("lmdeploy"))
        patch.setattr(lmdeploy, "SAMPLES", 16)
        _, tokenizer = models.load(profile.TINY_BASE)
        calibration = lmdeploy.write_calibration(finetune.training_rows()[-200:], tokenizer)
        commands = lmdeploy.commands(profile.TINY_BASE, CPU)
        printed = {name: list(lmdeploy.run(commands[name], TINY)) for name in ("lite auto_awq", "lite smooth_quant")}
        return lmdeploy.LMDEPLOY, calibration, printed


@pytest.mark.parametrize(("bits", "policy"), [(16, 0), (8, 8), (4, 4)])
@pytest.mark.parametrize("shape", [INTERNLM2_5_7B, TINY], ids=["7b", "tiny"])
def test_a_token_takes_the_cache_that_lmdeploys_engine_reserves_for_it(shape, bits, policy):
    config = ModelConfig(shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads,
                         shape.num_key_value_heads, bos_token_id=1, eos_token_id=[2], head_dim=shape.head_dim)
    assert memory.cache_bytes(shape, bits) == CacheEngine.get_cache_block_size(1, config, quant_policy=policy)


def test_calibration_reads_our_own_conversations_as_they_were_trained_on(quantized):
    _, calibration, printed = quantized
    _, tokenizer = models.load(profile.TINY_BASE)
    texts = [row["text"] for row in finetune.read_samples(calibration)]
    assert texts[-1].startswith("<|im_start|>user\n")
    assert texts[-1].endswith("<|im_end|>\n")
    tokens = [len(tokenizer(text.strip()).input_ids) for text in texts]
    blocks = sum(tokens) / len(tokens) * 16 / lmdeploy.LENGTH
    for lines in printed.values():
        split = next(line for line in lines if "Split into" in line)
        assert int(re.search(r"\d+", split)[0]) == pytest.approx(blocks, abs=1.5)


@pytest.mark.parametrize(("folder", "estimate"), [("awq", memory.awq_bytes), ("w8a8", memory.w8a8_bytes)])
def test_a_quantized_model_takes_as_much_as_estimated(quantized, folder, estimate):
    size = (quantized[0] / folder / "model.safetensors").stat().st_size
    assert size == pytest.approx(estimate(TINY), rel=0.02)


@pytest.mark.parametrize(("folder", "kept"), [("awq", 0.9), ("w8a8", 0.97)])
@torch.inference_mode()
def test_a_quantized_model_still_says_what_it_said(quantized, folder, kept):
    model, tokenizer = models.load(profile.TINY_BASE)
    texts = [row["text"] for row in finetune.read_samples(quantized[1])[:20]]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    before = model(**inputs).logits.argmax(-1)
    lmdeploy.put_into(model, quantized[0] / folder)
    same = (model(**inputs).logits.argmax(-1) == before)[inputs.attention_mask.bool()]
    assert same.float().mean() > kept


def test_a_quantized_model_fits_the_model_that_it_was_made_of_and_no_other(quantized, tmp_path):
    model, _ = models.load(profile.TINY_BASE)
    norm = load_file(quantized[0] / "w8a8" / "model.safetensors")["model.norm.weight"]
    for wrong, told in (({"model.layers.9.mlp.up_proj.weight": norm.clone()}, "没有位置"), ({}, "里没有")):
        save_file({"model.norm.weight": norm} | wrong, tmp_path / "model.safetensors")
        with torch.inference_mode(), pytest.raises(CourseError, match=told):
            lmdeploy.put_into(model, tmp_path)


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdeploy, "LMDEPLOY", tmp_path)
    monkeypatch.setattr(lmdeploy, "PATIENCE", 1)
    (tmp_path / "lmdeploy").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "lmdeploy").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # programs are looked for beside it first
    silent = lmdeploy.Command("serve api_server", (), "", CPU.device, memory.weight_bytes, "Uvicorn running on")
    with pytest.raises(process.Failed, match="1 秒里什么也没有说"), lmdeploy.serve(silent, TINY):
        pass


def test_a_command_runs_in_a_folder_of_its_own_and_its_end_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdeploy, "LMDEPLOY", tmp_path)
    templates = list(lmdeploy.run(lmdeploy.Command("list", (), "", CPU.device, memory.weight_bytes), TINY))
    assert {known.lmdeploy.name for known in families.DIALOGUES} <= set(templates)
    assert "internlm2" in (tmp_path / "lmdeploy.log").read_text()
    command = lmdeploy.commands(profile.TINY_BASE, CPU)["lite auto_awq"]
    with pytest.raises(process.Failed, match="模型文件夹不对"):
        list(lmdeploy.run(replace(command, options=(tmp_path / "nothing", *command.options[1:])), TINY))


def test_a_server_can_be_asked_while_the_block_lasts_and_no_longer(tmp_path, monkeypatch):
    """LMDeploy's proxy is the one of its servers that needs no GPU."""
    monkeypatch.setattr(lmdeploy, "LMDEPLOY", tmp_path)
    port = find_port("127.0.0.1", 0)
    options = ("--server-name", "127.0.0.1", "--server-port", port)
    proxy = lmdeploy.Command("serve proxy", options, "", CPU.device, memory.weight_bytes, "Uvicorn running on")
    with lmdeploy.serve(proxy, TINY) as line:
        assert str(port) in line
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"] == []
    assert find_port("127.0.0.1", port) == port
