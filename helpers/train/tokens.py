"""The tokens that a conversation becomes in training, and which of them are learnt.

Configs of models for which XTuner's templates cannot say what the model's own chat_template says name
`template_map_fn_factory` and `tokenizer_from` of this module in place of XTuner's and transformers' own.
"""
import copy
import math
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from html import escape
from itertools import zip_longest

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from xtuner.dataset.utils import encode_fn
from xtuner.utils import PROMPT_TEMPLATE

from helpers.machine.commands import CourseError
from helpers.train import families

# The parts of a turn in XTuner's files, and the roles that chat templates give them.
ROLES = {"system": "system", "input": "user", "output": "assistant"}
LEARNT_STYLE, READ_STYLE = "background:#ffd54f;font-weight:bold", "background:#f5f5f5"
DIALOGUE = [{"system": "你是助手。", "input": "你好", "output": "你好！"}, {"input": "再见", "output": "再见！"}]
WITHOUT_SYSTEM = [{"input": "你好", "output": "你好！"}, {"input": "再见", "output": "再见！"}]
# What a template of ours may say beyond XTuner's keys.
NEW_KEYS = {
    "START": "what stands before everything, in place of the tokenizer's first token",
    "DEFAULT_SYSTEM": "the system prompt of a conversation without one",
    "SYSTEM_IN_INPUT": "the system prompt is the beginning of the first question",
    "PREFIX": "what an answer begins with, and is learnt with it",
}


def template_map_fn(example: dict, template: dict) -> dict:
    """What XTuner's function of this name does, for templates that may have NEW_KEYS.

    A SUFFIX with which the next question begins is written once.
    """
    suffix, written = template.get("SUFFIX") or "", []
    for number, turn in enumerate(example["conversation"], 1):
        question, opening = turn.get("input") or "", _opening(number, turn, template)
        if template.get("SYSTEM_IN_INPUT"):
            question, opening = opening + question, ""
        asked = template["INSTRUCTION"].format(input=question, round=number)
        written.append(turn | {
            "input": opening + (asked if number == 1 else asked.removeprefix(suffix)),
            "output": template.get("PREFIX", "") + (turn.get("output") or "") + suffix,
            "need_eos_token": not template.get("SUFFIX_AS_EOS", False),
            "sep": template.get("SEP", ""),
        })
    return {"conversation": written}


def _opening(number, turn, template):
    """The system prompt of a turn as the template writes it."""
    if turn.get("system"):
        return template["SYSTEM"].format(system=turn["system"])
    if number == 1 and "DEFAULT_SYSTEM" in template:
        return template["SYSTEM"].format(system=template["DEFAULT_SYSTEM"])
    return ""


def template_map_fn_factory(template: dict) -> partial:
    """XTuner's factory of this name, for the function above."""
    return partial(template_map_fn, template=template)


def tokenizer_from(start: str, **options) -> PreTrainedTokenizerBase:
    """AutoTokenizer.from_pretrained's tokenizer, with which XTuner begins every conversation as told."""
    return starting(AutoTokenizer.from_pretrained(**options), start)


def starting(tokenizer: PreTrainedTokenizerBase, start: str) -> PreTrainedTokenizerBase:
    """The tokenizer, in a copy that XTuner asks in vain for one first token: it gets these, or none."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.__dict__["bos_token_id"] = tokenizer.encode(start, add_special_tokens=False)
    return tokenizer


def encode(turns: list[dict], template: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """A conversation's token ids, and for each whether it is learnt, as XTuner makes them before it cuts."""
    written = template_map_fn({"conversation": turns}, template)
    encoded = encode_fn(written, tokenizer, max_length=math.inf)
    return encoded["input_ids"], [label >= 0 for label in encoded["labels"]]


def to_messages(turns: list[dict]) -> list[dict]:
    """A conversation of XTuner's as chat templates take it."""
    messages = []
    for turn in turns:
        for part, text in turn.items():
            messages.append({"role": ROLES[part], "content": text})
    return messages


def written_by_model(turns: list[dict], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of a conversation as the model's own chat template writes it."""
    return families.write(tokenizer, to_messages(turns))


def to_compare(turns: list[dict], template: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What XTuner and the model's own template write up to the token that ends the last answer.

    Where the model's own ends without that token, it counts as written.
    """
    ids, learnt = encode(turns, template, tokenizer)
    wanted = written_by_model(turns, tokenizer)
    end = max(place for place, is_learnt in enumerate(learnt) if is_learnt)
    if len(wanted) == end:
        wanted.append(ids[end])
    return ids[:end + 1], wanted[:end + 1]


def difference(turns: list[dict], template: dict,
               tokenizer: PreTrainedTokenizerBase) -> tuple[int, int | None, int | None] | None:
    """The first place, from 1, where XTuner and the model's own template differ, and both tokens; None if nowhere."""
    pairs = zip_longest(*to_compare(turns, template, tokenizer))
    return next(((place, ours, own) for place, (ours, own) in enumerate(pairs, 1) if ours != own), None)


def same_tokens(template: dict, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether XTuner and the model's own template write the same tokens."""
    return not any(difference(turns, template, tokenizer) for turns in (DIALOGUE, WITHOUT_SYSTEM))


def same_words(template: dict, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether they differ at most in spaces: some tokenizers put them where XTuner joins its pieces."""
    for turns in (DIALOGUE, WITHOUT_SYSTEM):
        ours, own = (tokenizer.decode(ids).replace(" ", "") for ids in to_compare(turns, template, tokenizer))
        if ours != own:
            return False
    return True


def written_out(template: families.Template) -> dict:
    """XTuner's template of that name with the changes."""
    return {**PROMPT_TEMPLATE[template.name], **template.changes}


def right_template(tokenizer: PreTrainedTokenizerBase) -> families.Template:
    """The template of the families' table whose tokens, or at least whose words, are those of the model's own."""
    known, first = families.dialogue(tokenizer.chat_template), tokenizer.encode("")
    fitting = [template for template in known.xtuner if not (first and template.changes.get("START") == "")]
    try:
        for alike in (same_tokens, same_words):
            for template in fitting:
                with suppress(TypeError):  # XTuner adds the first token without looking whether there is one
                    if alike(written_out(template), begun(tokenizer, template.changes)):
                        return template
    except TemplateError as error:
        raise CourseError(f"模型的 chat_template 写不了有 system 的对话（{error}）。"
                          f"修复：{families.BY_HAND}。") from error
    raise CourseError(f"模型的 chat_template 像 {known.name}，写出来的词元却和课程知道的都不同。"
                      f"修复：{families.BY_HAND}。")


def begun(tokenizer: PreTrainedTokenizerBase, template: dict) -> PreTrainedTokenizerBase:
    """The tokenizer with which XTuner begins a conversation as the template says."""
    return starting(tokenizer, template["START"]) if "START" in template else tokenizer


def trained_with(tokenizer: PreTrainedTokenizerBase) -> tuple[dict, PreTrainedTokenizerBase]:
    """The right template and tokenizer for XTuner, the two that `encode` wants after a conversation."""
    right = right_template(tokenizer)
    return written_out(right), begun(tokenizer, right.changes)


def coloured(tokens: Iterable[tuple[str, bool]]) -> str:
    """Tokens as HTML, each in a box, given their text and whether they are learnt: those are bold on yellow."""
    boxes = []
    for text, learnt in tokens:
        style = LEARNT_STYLE if learnt else READ_STYLE
        shown = escape(text).replace("\n", "↵\n")
        boxes.append(f'<span style="color:#1b1b1b;border:1px solid #ccc;{style}">{shown}</span>')
    return f'<div style="white-space:pre-wrap;line-height:2">{"".join(boxes)}</div>'
