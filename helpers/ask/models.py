"""Load a model, one at a time; give its memory back; ask it many questions at once."""
import gc
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from helpers.machine import gpu_memory, profile
from helpers.machine.commands import CourseError
from helpers.machine.model_folder import bytes_of_weights
from helpers.train import families

INVISIBLE = "\u200b"  # the zero-width space
WEIGHTS_SHARE = 0.8  # of the GPU's memory; the rest is for the conversations
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                         bnb_4bit_compute_dtype=torch.bfloat16)
ADAPTER_SETTINGS = "adapter_config.json"
NF4_SHARE = 0.4  # of the 16-bit weights, at most: what is not in linear layers stays as it is
_living = WeakSet()


class Loaded(NamedTuple):
    """A model and its tokenizer. After a `with` block the model is released."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase

    def __enter__(self):
        return self

    def __exit__(self, *_):
        release()


def load(folder: str | Path, adapter: str | Path | None = None, **options) -> Loaded:
    """A model folder on this machine's device, ready to be asked, with a PEFT adapter on it if one is given.

    One model at a time: what was loaded before is released. In 16 bits, or in NF4 where those would fill the GPU. The
    options are those of from_pretrained.
    """
    _check_folder(folder, "config.json", "模型")
    if adapter:
        _check_folder(adapter, ADAPTER_SETTINGS, "适配器")
    release()
    return _loaded(folder, adapter, **(options_to_fit([folder], profile.current().gpu) | options))


def load_together(folders: Iterable[str | Path]) -> list[Loaded]:
    """Several model folders at the same time, for a talk with all of them; in NF4 where they would fill the GPU."""
    folders = list(folders)
    for folder in folders:
        _check_folder(folder, "config.json", "模型")
    release()
    options = options_to_fit(folders, profile.current().gpu)
    return [_loaded(folder, **options) for folder in folders]


def release() -> None:
    """Gives back the memory of every model that was loaded here, whoever still holds it."""
    for model in list(_living):
        model.forward = model.generate = _refuse
        for module in model.modules():
            if hasattr(module, "quant_state"):
                module.quant_state = None  # bitsandbytes keeps the scales of its weights beside them
        model.to_empty(device="meta")
    _living.clear()
    gc.collect()
    torch.cuda.empty_cache()


def _refuse(*_, **__):
    raise CourseError("这个模型已经释放了：同一时间只留一个模型。修复：重新运行装入它的那一格，再问它。")


def options_to_fit(folders: list[str | Path], gpu: profile.Gpu | None) -> dict:
    """How to load models so that they fit the GPU together: in NF4 if they would fill it otherwise."""
    if gpu is None or sum(map(bytes_of_weights, folders)) < WEIGHTS_SHARE * gpu.gigabytes * 1e9:
        return {}
    return {"quantization_config": NF4}


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and not a model."""
    return Path(folder, ADAPTER_SETTINGS).is_file()


def precision(folder: str | Path) -> str:
    """How the weights of a model folder are kept when this machine loads them: float32, bfloat16 or NF4."""
    machine = profile.current()
    return "NF4" if options_to_fit([folder], machine.gpu) else machine.dtype


def _loaded(folder, adapter=None, **options):
    machine = profile.current()
    if machine.gpu:
        gpu_memory.wait_for(bytes_of_weights(folder) * (NF4_SHARE if "quantization_config" in options else 1))
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=machine.dtype, trust_remote_code=True,
                                                 device_map=machine.device, **options)
    _living.add(model)
    model.generation_config.eos_token_id = _stops(model, tokenizer)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter, torch_device=machine.device)
    return Loaded(model.eval(), tokenizer)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, ready for questions of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=True)
    if tokenizer.pad_token is None:  # Llama and Mistral name none; any will do, for nobody reads it
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _stops(model, tokenizer):
    """The tokens after which an answer ends: those that the folder names, and those of the model's family."""
    named = model.generation_config.eos_token_id
    known = families.find_dialogue(tokenizer.chat_template or "")
    own = [tokenizer.get_vocab().get(stop) for stop in known.stops] if known else []
    ids = {*own, *(named if isinstance(named, list) else [named])} - {None}
    return sorted(ids) or None


def _check_folder(folder, file, what):
    if not Path(folder, file).is_file():
        raise FileNotFoundError(f"{folder} 里没有{what}（找不到 {file}）。"
                                "请检查路径，改成第 5 课的适配器或者第 6 课的模型文件夹。")


def prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> str:
    """The text that the model continues with its answer; no message can end itself or begin another turn."""
    harmless = [message | {"content": plain(tokenizer, message["content"])} for message in messages]
    return families.write(tokenizer, harmless, tokenize=False, add_generation_prompt=True)


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with an invisible space in every special token that is spelt in it, so that it is only spelt."""
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for name in special.values():
        text = text.replace(name, name[0] + INVISIBLE + name[1:])
    if special.keys() & set(tokenizer(text, add_special_tokens=False).input_ids):  # by another spelling
        return INVISIBLE.join(text)
    return text


def ask(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, questions: list[str],
        system: str | None = None, max_new_tokens: int = 96, batch_size: int = 64) -> list[str]:
    """The greedy answer to each question."""
    opening = [{"role": "system", "content": system}] if system else []
    conversations = [[*opening, {"role": "user", "content": question}] for question in questions]
    return answer(model, tokenizer, conversations, max_new_tokens, batch_size)


@torch.inference_mode()
def answer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict]],
           max_new_tokens: int = 96, batch_size: int = 64) -> list[str]:
    """The greedy answer to each conversation, asked in batches of similar length."""
    prompts = [prompt(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True,
                           add_special_tokens=False).to(model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1]:], skip_special_tokens=True)
        for i, text in zip(chosen, texts):
            answers[i] = text.strip()
    return answers
