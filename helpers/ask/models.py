"""Load a model, and ask it many questions at once."""
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.machine import profile
from helpers.train import families

INVISIBLE = "\u200b"  # the zero-width space


def load(folder: str | Path, adapter: str | Path | None = None,
         **options) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A model folder on this machine's device, ready to be asked, with a PEFT adapter on it if one is given.

    The options are those of from_pretrained.
    """
    _check_folder(folder, "config.json", "模型")
    if adapter:
        _check_folder(adapter, "adapter_config.json", "适配器")
    machine = profile.current()
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=machine.dtype, trust_remote_code=True, **options)
    model.generation_config.eos_token_id = _stops(model, tokenizer)
    model = model.to(machine.device)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), tokenizer


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
