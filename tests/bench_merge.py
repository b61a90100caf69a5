"""A model of 1.1 billion weights in several files: XTuner's merge beside ours, each in a process of its own.

python -m tests.bench_merge
"""
import json
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARDS = 5
LEAST_SAVING = 3


def make(folder):
    """Writes a base of random weights, a file at a time, and a random adapter on all its linear layers."""
    import shutil

    import torch
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from helpers.machine import profile
    from tests import bases

    base, adapter = Path(folder, "base"), Path(folder, "adapter")
    shutil.copytree(profile.TINY_BASE, base, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                         num_key_value_heads=4, vocab_size=32000, torch_dtype="bfloat16")
    config.save_pretrained(base)
    with init_empty_weights():
        model = LlamaForCausalLM(config)
    bases.write_random_weights(base, model, SHARDS)
    lora = LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with init_empty_weights():
        tuned = get_peft_model(model, lora)
    weights = {name.replace(".default", ""): torch.randn(tensor.shape, dtype=torch.float16) * 0.02
               for name, tensor in tuned.state_dict().items() if ".lora_" in name}
    tuned.peft_config["default"].save_pretrained(adapter)
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})


def xtuner(base, adapter, out):
    """What `xtuner convert merge` runs."""
    sys.argv = ["merge", base, adapter, out, "--safe-serialization", "--device", "cpu"]
    runpy.run_module("xtuner.tools.model_converters.merge", run_name="__main__")


def ours(base, adapter, out):
    """What `python -m helpers.train.merge` runs."""
    from helpers.train.merge import merge

    merge(base, adapter, out)


def measured(name, *paths):
    """Seconds and peak MiB of one of the functions above, its Python started anew."""
    started = time.perf_counter()
    child = subprocess.run([sys.executable, "-m", __spec__.name, name, *map(str, paths)], check=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return time.perf_counter() - started, int(child.stdout.split()[-1]) / 1024


def tensors(folder):
    """Every tensor of a model folder by its name, one at a time in the names' order."""
    from safetensors import safe_open

    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name in sorted(where):
        with safe_open(folder / where[name], "pt") as file:
            yield name, file.get_tensor(name)


def same(one, other):
    """Whether two model folders hold the same weights, bit for bit."""
    import torch

    return all(name == twin and tensor.dtype == copy.dtype and torch.equal(tensor, copy)
               for (name, tensor), (twin, copy) in zip(tensors(one), tensors(other), strict=True))


def bench():
    """Prints time and peak memory of both, and says whether the promise holds."""
    with tempfile.TemporaryDirectory() as folder:
        base, adapter, old, new = (Path(folder) / name for name in ("base", "adapter", "old", "new"))
        measured("make", folder)  # elsewhere, for a child's peak begins with its parent's
        size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        old_seconds, old_peak = measured("xtuner", base, adapter, old)
        new_seconds, new_peak = measured("ours", base, adapter, new)
        assert same(old, new)
    print(f"合并 {size / 1e9:.1f} GB 的模型      xtuner convert merge {old_seconds:5.1f} s {old_peak:5.0f} MiB      "
          f"helpers.train.merge {new_seconds:5.1f} s {new_peak:4.0f} MiB      "
          f"快 {old_seconds / new_seconds:.1f} 倍，内存是 1/{old_peak / new_peak:.1f}")
    return new_seconds <= old_seconds and old_peak / new_peak >= LEAST_SAVING


if __name__ == "__main__":
    if sys.argv[1:]:
        globals()[sys.argv[1]](*sys.argv[2:])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    else:
        sys.exit(not bench())
