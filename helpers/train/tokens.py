"""The tokens that a conversation becomes in training, and which of them are learnt."""
import math
from collections.abc import Iterable
from html import escape

from transformers import PreTrainedTokenizerBase
from xtuner.dataset.map_fns import template_map_fn
from xtuner.dataset.utils import encode_fn

# The parts of a turn in XTuner's files, and the roles that chat templates give them.
ROLES = {"system": "system", "input": "user", "output": "assistant"}
LEARNT_STYLE, READ_STYLE = "background:#ffd54f;font-weight:bold", "background:#f5f5f5"


def encode(turns: list[dict], template: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """A conversation's token ids, and for each whether it is learnt, as XTuner makes them before it cuts."""
    conversation = {"conversation": [dict(turn) for turn in turns]}  # XTuner changes what it is given
    written = template_map_fn(conversation, template)
    encoded = encode_fn(written, tokenizer, max_length=math.inf)
    return encoded["input_ids"], [label >= 0 for label in encoded["labels"]]


def to_messages(turns: list[dict]) -> list[dict]:
    """A conversation of XTuner's as chat templates take it."""
    messages = []
    for turn in turns:
        for part, text in turn.items():
            messages.append({"role": ROLES[part], "content": text})
    return messages


def coloured(tokens: Iterable[tuple[str, bool]]) -> str:
    """Tokens as HTML, each in a box, given their text and whether they are learnt: those are bold on yellow."""
    boxes = []
    for text, learnt in tokens:
        style = LEARNT_STYLE if learnt else READ_STYLE
        shown = escape(text).replace("\n", "↵\n")
        boxes.append(f'<span style="color:#1b1b1b;border:1px solid #ccc;{style}">{shown}</span>')
    return f'<div style="white-space:pre-wrap;line-height:2">{"".join(boxes)}</div>'
