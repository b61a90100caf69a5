"""One model at a time, and its memory given back, whoever still holds it."""
import shutil

import pytest
import torch

from helpers import cpu
from helpers.ask import chat, models
from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.machine.model_folder import bytes_of_weights
from helpers.machine.profile import Gpu

TINY = profile.TINY_BASE
SIZE = bytes_of_weights(TINY) / 1e9


def held(model):
    """The bytes of memory that a model's weights hold."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type != "meta")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that changes nothing yet."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("models") / "adapter"
    model, _ = models.load(TINY)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def test_what_was_loaded_before_is_released_even_where_a_variable_still_holds_it(adapter):
    first, _ = models.load(TINY, adapter)
    assert held(first) > 0
    second, tokenizer = models.load(TINY)
    assert held(first) == 0
    assert held(second) > 0
    assert models.ask(second, tokenizer, ["你好"])[0]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_released_model_says_which_cell_to_run_however_it_is_asked(with_adapter, adapter):
    model, tokenizer = models.load(TINY, adapter if with_adapter else None)
    models.release()
    inputs = tokenizer("你好", return_tensors="pt").to(model.device)
    ways = (lambda: models.ask(model, tokenizer, ["你好"]), lambda: model(**inputs), lambda: model.generate(**inputs),
            lambda: list(chat.stream(model, tokenizer, [{"role": "user", "content": "你好"}])))
    for ask in ways:
        with pytest.raises(CourseError, match="已经释放.*重新运行装入它的那一格"):
            ask()


def test_after_its_block_a_model_is_released_also_when_something_fails():
    with models.load(TINY) as (whole, _):
        assert held(whole) > 0
    with pytest.raises(ZeroDivisionError), models.load(TINY) as (failed, _):
        1 / (held(whole))
    assert held(failed) == 0


def test_releasing_twice_or_nothing_does_no_harm():
    models.load(TINY)
    models.release()
    models.release()


def test_a_wrong_folder_leaves_the_loaded_model_alone(tmp_path):
    model, tokenizer = models.load(TINY)
    for wrong in ((tmp_path,), (TINY, tmp_path)):
        with pytest.raises(FileNotFoundError):
            models.load(*wrong)
    assert models.ask(model, tokenizer, ["你好"])[0]


def test_a_model_in_4_bits_gives_back_its_scales_too():
    assert cpu  # lets transformers quantize without a GPU
    model, tokenizer = models.load(TINY, quantization_config=models.NF4)
    assert model.is_loaded_in_4bit
    assert models.ask(model, tokenizer, ["你是谁？"])[0]
    layers = [module for module in model.modules() if getattr(module, "quant_state", None)]
    assert layers
    models.release()
    assert held(model) == 0
    assert not [layer for layer in layers if layer.quant_state]


def test_models_are_loaded_in_nf4_where_16_bits_would_fill_the_gpu():
    assert models.options_to_fit([TINY], None) == {}
    assert models.options_to_fit([TINY], Gpu("", 1.3 * SIZE, "", True)) == {}
    assert models.options_to_fit([TINY], Gpu("", SIZE, "", True)) == {"quantization_config": models.NF4}
    assert models.options_to_fit([TINY] * 2, Gpu("", 2 * SIZE, "", True)) == {"quantization_config": models.NF4}


def test_for_a_conversation_several_are_loaded_together_and_released_together(tmp_path):
    other = shutil.copytree(TINY, tmp_path / "other")
    alone, _ = models.load(TINY)
    both = models.load_together([TINY, other])
    assert held(alone) == 0
    assert models.ask(*both[0], ["你好"]) == models.ask(*both[1], ["你好"])
    models.release()
    assert [held(model) for model, _ in both] == [0, 0]


def test_a_model_is_on_this_machines_device_and_in_its_type():
    model, _ = models.load(TINY)
    assert (model.device.type, str(model.dtype)) == (profile.current().device, f"torch.{profile.current().dtype}")
    assert models.precision(TINY) == profile.current().dtype
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
