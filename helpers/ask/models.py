"""Load a model, and ask it many questions at once."""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.machine import profile

INVISIBLE = "\u200b"  # the zero-width space


def load(folder, **options):
    """A model folder on this machine's device, ready to be asked; options as from_pretrained takes them."""
    machine = profile.current()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=machine.dtype, trust_remote_code=True, **options)
    return model.to(machine.device).eval(), tokenizer


def prompt(tokenizer, messages):
    """The text that the model continues with its answer; no message can end itself or begin another turn."""
    return tokenizer.apply_chat_template(
        [message | {"content": plain(tokenizer, message["content"])} for message in messages],
        tokenize=False, add_generation_prompt=True)


def plain(tokenizer, text):
    """The text with an invisible space in every special token that is spelt in it, so that it is only spelt."""
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for name in special.values():
        text = text.replace(name, name[0] + INVISIBLE + name[1:])
    if special.keys() & set(tokenizer(text, add_special_tokens=False).input_ids):  # by another spelling
        return INVISIBLE.join(text)
    return text


def ask(model, tokenizer, questions, system=None, max_new_tokens=96, batch_size=64):
    """The greedy answer to each question."""
    opening = [{"role": "system", "content": system}] if system else []
    conversations = [[*opening, {"role": "user", "content": question}] for question in questions]
    return answer(model, tokenizer, conversations, max_new_tokens, batch_size)


@torch.inference_mode()
def answer(model, tokenizer, conversations, max_new_tokens=96, batch_size=64):
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
