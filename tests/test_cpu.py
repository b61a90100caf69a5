"""helpers/cpu.py must be both necessary and sufficient; when a library changes that, these tests say so."""
import subprocess
import sys

import pytest
import torch

from helpers.machine import profile

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

LOAD_IN_NF4 = """
{first}
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained({model!r}, quantization_config=nf4)
weight = model.model.layers[0].mlp.up_proj.weight
print(type(weight).__name__, weight.dtype, weight.quant_state.nested)
"""

ANSWER_AND_SAVE = """
import helpers.cpu
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained({model!r}, quantization_config=nf4, torch_dtype=torch.bfloat16)
before = model.state_dict()
with torch.no_grad():
    model.eval()(torch.arange(8)[None])
after = model.state_dict()
print(all(torch.equal(before[name], after[name]) for name in before))
"""


def load_in_nf4(first=""):
    code = LOAD_IN_NF4.format(first=first, model=str(profile.TINY_BASE))
    return subprocess.run([sys.executable, "-c", code], env=profile.environment(), capture_output=True, text=True,
                          check=False)


def test_with_our_correction_a_model_loads_in_double_quantized_nf4_on_a_cpu():
    assert load_in_nf4("import helpers.cpu").stdout.split() == ["Params4bit", "torch.uint8", "True"]


def test_transformers_still_needs_our_correction():
    done = load_in_nf4()
    assert done.returncode != 0, "transformers loads NF4 on a CPU by itself: remove is_ipex_available"
    assert "validate_bnb_backend_availability" in done.stderr


def test_xtuner_still_needs_our_correction():
    done = subprocess.run([sys.executable, "-c", "import torch; torch.cpu.is_bf16_supported"], capture_output=True,
                          env=profile.environment(), check=False)
    assert done.returncode != 0, "torch answers by itself: remove it from helpers/cpu.py"


def test_answering_and_saving_leave_the_frozen_weights_as_they_were():
    done = subprocess.run([sys.executable, "-c", ANSWER_AND_SAVE.format(model=str(profile.TINY_BASE))],
                          env=profile.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
