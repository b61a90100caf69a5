"""Texts as vectors of length 1, whose product tells how alike two texts are: of their characters, or of a model."""
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.knowledge import reading
from helpers.machine import profile
from helpers.machine.commands import CourseError

DIMENSIONS = 4096
LAYER = 1  # of the tiny base; lesson 12 tries them all
BATCH_SIZE = 64
SLOT = re.compile(r"\{\w+\}")  # where the course's own passages take a name or a value
POOLING, PROMPTS = "1_Pooling/config.json", "config_sentence_transformers.json"


class Embedding(NamedTuple):
    """Turns texts into the rows of a matrix: passages, and the questions that are looked up among them."""

    passages: Callable[[Sequence[str]], np.ndarray]
    questions: Callable[[Sequence[str]], np.ndarray]


def current() -> Embedding:
    """This machine's: of the folder that COURSE_EMBEDDING_MODEL names, or else of characters."""
    folder = profile.current().embedding_model
    return of_folder(folder) if folder else characters()


def characters() -> Embedding:
    """An embedding without a model: the characters of a text and their pairs, the rare ones weighing more.

    How rare one is, the course's own passages and questions tell, and its place in the vector is its hash: nothing that
    would change with every new document.
    """
    counted = HashingVectorizer(analyzer="char", ngram_range=(1, 2), n_features=DIMENSIONS, norm=None,
                                alternate_sign=False)
    weighed = make_pipeline(counted, TfidfTransformer(sublinear_tf=True)).fit(sum(usual(), []))

    def embed(texts):
        return weighed.transform(texts).toarray().astype(np.float32)
    return Embedding(embed, embed)


def of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int = LAYER) -> Embedding:
    """An embedding of a language model that was never trained to be one: the mean over the tokens, in one layer.

    Every question resembles every other more than any passage, whatever it is about. So what questions have in common
    is taken from them, and from passages what they have in common.
    """
    def means(texts):
        return _unit(token_means(model, tokenizer, texts)[layer])

    usual_passage, usual_question = (means(texts).mean(axis=0) for texts in usual())
    return Embedding(lambda texts: _unit(means(texts) - usual_passage),
                     lambda texts: _unit(means(texts) - usual_question))


def token_means(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """What a model makes of texts, as (layers, texts, size): after every layer the mean over a text's tokens."""
    batches = []
    for layers, mask in _read_by(model, tokenizer, texts):
        mask = mask[None, :, :, None]
        batches.append(((layers * mask).sum(dim=2) / mask.sum(dim=2)).float().cpu().numpy())
    return np.concatenate(batches, axis=1)


def of_folder(folder: str | Path) -> Embedding:
    """The embedding in a sentence-transformers folder, pooled as the folder says, with its prompt for questions."""
    folder = Path(folder)
    if not (folder / POOLING).is_file():
        raise CourseError(f"{folder} 不是 sentence-transformers 的模型文件夹（找不到 {POOLING}）。"
                          "修复：改正 COURSE_EMBEDDING_MODEL 的路径，或者取消这个变量。")
    of_first_token = _read_json(folder / POOLING)["pooling_mode_cls_token"]
    prompts = _read_json(folder / PROMPTS).get("prompts", {}) if (folder / PROMPTS).is_file() else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModel.from_pretrained(folder).to(profile.current().device).eval()

    def embed(texts, prompt=""):
        texts = [prompt + text for text in texts]
        if not of_first_token:
            return _unit(token_means(model, tokenizer, texts)[-1])
        batches = [layers[-1, :, 0].float().cpu().numpy() for layers, _ in _read_by(model, tokenizer, texts)]
        return _unit(np.concatenate(batches))
    return Embedding(embed, lambda texts: embed(texts, prompts.get("query", "")))


@torch.inference_mode()
def _read_by(model, tokenizer, texts):
    """For every batch of texts what the model makes of each token after each layer, and which tokens are no padding."""
    for start in range(0, len(texts), BATCH_SIZE):
        inputs = tokenizer(list(texts[start:start + BATCH_SIZE]), return_tensors="pt", padding=True, truncation=True,
                           max_length=model.config.max_position_embeddings).to(model.device)
        yield torch.stack(model.base_model(**inputs, output_hidden_states=True).hidden_states), inputs.attention_mask


def usual() -> list[list[str]]:
    """The course's own passages, and a question about each."""
    written = reading.written()
    questions = [next(iter(text["ask"].values()))[0] for text in written]
    return [[SLOT.sub("", text) for text in texts] for texts in ([text["text"] for text in written], questions)]


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
