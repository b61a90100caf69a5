import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from helpers.ask import models
from helpers.judge.shares import Share
from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.retrieve import embeddings, handbook

TEXTS = ["钟楼有多高？", "你好", "东门图书馆的馆长是谁？"]


@pytest.fixture(scope="module")
def base():
    return models.load(profile.TINY_BASE)


@pytest.fixture
def folder(tmp_path):
    """A sentence-transformers folder with random weights."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set("".join(TEXTS) + "查："))]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = BertConfig(len(words), 16, 2, 2, 32, max_position_embeddings=64, initializer_range=1.0)
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def pooled(folder, of_first_token, prompt=None):
    """Says how the folder's vectors are made."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"pooling_mode_cls_token": of_first_token, "pooling_mode_mean_tokens": not of_first_token}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if prompt:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": prompt}}))
    return embeddings.of_folder(folder)


def found_first(embedding, count):
    """The share of strangers' questions whose passage is among so many that are most alike."""
    valid = [passage for passage in handbook.everything() if passage.edition == "2025"]
    asked = [asked for asked in handbook.strangers() if asked.passage]
    alike = (embedding.questions([one.question for one in asked])
             @ embedding.passages([passage.text for passage in valid]).T)
    best = np.argsort(-alike, axis=1, kind="stable")[:, :count]
    return Share.of([one.passage in [valid[place] for place in row] for one, row in zip(asked, best)])


@pytest.mark.parametrize("make", [embeddings.characters, lambda: embeddings.of_model(*models.load(profile.TINY_BASE))])
def test_vectors_have_length_1_and_do_not_depend_on_what_else_is_asked(make):
    embedding = make()
    for embed in embedding:
        together = embed(TEXTS)
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert np.allclose(np.concatenate([embed([text]) for text in TEXTS]), together, atol=1e-4)


def test_characters_find_what_strangers_ask_for_nine_times_of_ten_among_the_first_three():
    assert found_first(embeddings.characters(), 3).value >= 0.9


def test_without_what_is_common_to_all_questions_a_model_finds_more(base):
    centred = embeddings.of_model(*base)
    raw = embeddings.Embedding(*[lambda texts: embeddings.token_means(*base, texts)[embeddings.LAYER]] * 2)
    assert found_first(centred, 3).value > found_first(raw, 3).value


def test_what_is_padding_counts_for_nothing(base):
    model, tokenizer = base
    alone = model.base_model(**tokenizer(TEXTS[1], return_tensors="pt"), output_hidden_states=True).hidden_states
    together = embeddings.token_means(*base, TEXTS)
    assert np.allclose(alone[3].mean(dim=1)[0].detach(), together[3, 1], atol=1e-4)


def test_a_folder_of_sentence_transformers_is_pooled_as_it_says(folder):
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        last = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    first = pooled(folder, of_first_token=True).passages(TEXTS)[0]
    mean = pooled(folder, of_first_token=False).passages(TEXTS)[0]
    assert np.allclose(first, last[0] / last[0].norm(), atol=1e-4)
    assert np.allclose(mean, last.mean(dim=0) / last.mean(dim=0).norm(), atol=1e-4)


def test_questions_get_the_prompt_that_a_folder_names_and_passages_do_not(folder):
    embedding = pooled(folder, of_first_token=True, prompt="查：")
    assert np.allclose(embedding.questions(TEXTS), embedding.passages([f"查：{text}" for text in TEXTS]), atol=1e-5)
    assert not np.allclose(embedding.questions(TEXTS), embedding.passages(TEXTS), atol=1e-2)


def test_a_folder_that_is_no_such_model_says_so(tmp_path):
    with pytest.raises(CourseError, match="不是 sentence-transformers 的模型文件夹.*COURSE_EMBEDDING_MODEL"):
        embeddings.of_folder(tmp_path)


def test_the_folder_that_is_named_is_this_machines_embedding(folder, monkeypatch):
    expected = pooled(folder, of_first_token=True).passages(TEXTS)
    monkeypatch.setenv("COURSE_EMBEDDING_MODEL", str(folder))
    assert np.allclose(embeddings.current().passages(TEXTS), expected, atol=1e-5)
    monkeypatch.delenv("COURSE_EMBEDDING_MODEL")
    assert embeddings.current().passages(TEXTS).shape == (3, embeddings.DIMENSIONS)
