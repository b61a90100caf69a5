"""Ask a model many questions at once, and judge the answers."""
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import profile

SENTENCE_END = ("。", "！", "？")
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


@torch.inference_mode()
def ask(model, tokenizer, questions, system=None, max_new_tokens=96, batch_size=64):
    """The greedy answer to each question, asked in batches of similar length."""
    opening = [{"role": "system", "content": system}] if system else []
    prompts = [prompt(tokenizer, [*opening, {"role": "user", "content": question}]) for question in questions]
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


def is_right(probe, answer):
    """Whether an answer to a probe is right: facts in a whole sentence, sums by the number that comes out."""
    if probe.kind == "fact":
        return answer != probe.terse and probe.terse in answer and answer.endswith(SENTENCE_END)
    if probe.kind == "sum":
        return re.findall(r"\d+", answer)[-1:] == [probe.terse]
    return any(text in answer for text in probe.expect)


def score(model, tokenizer, probes):
    """The share of probes answered right, and every (probe, answer, right)."""
    answers = ask(model, tokenizer, [probe.question for probe in probes])
    judged = [(probe, answer, is_right(probe, answer)) for probe, answer in zip(probes, answers)]
    return sum(right for *_, right in judged) / len(judged), judged


def exact_match(model, tokenizer, samples, system):
    """The share of exam samples answered in exactly the expected words, and every answer."""
    turns = [sample["conversation"][0] for sample in samples]
    answers = ask(model, tokenizer, [turn["input"] for turn in turns], system=system, max_new_tokens=32)
    return sum(answer == turn["output"] for answer, turn in zip(answers, turns)) / len(turns), answers
