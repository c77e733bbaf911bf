"""Hybrid search: BM25 against the formula, fusion's properties, retrievers' answers to odd input, late interaction."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_portfolio.course.models import encoder
from nlp_portfolio.retrieval.documents import Hit, Passage
from nlp_portfolio.retrieval.hybrid import (
    Bm25,
    Dense,
    Fused,
    MaxSim,
    Reranked,
    evidence_recall,
    rrf,
    token_vectors,
    weight_curve,
    weighted,
    words,
)

TEXTS = ["cats chase mice", "dogs chase cats and cats", "a stock market fell", "the market of cats", "mice"]
CORPUS = [Passage(f"p{i}", text, title="pets" if i != 2 else "money", metadata={"row": i, "odd": i % 2 == 1})
          for i, text in enumerate(TEXTS)]
VECTORS = np.eye(5, 3, dtype=np.float32) + 0.1
VOCABULARY = st.sampled_from(["red", "green", "blue", "grey", "pink", "gold"])
PLAIN = str.split


def axis(text: str) -> np.ndarray:
    "A query's vector for VECTORS: the axis that its first letter names."
    return np.eye(3, dtype=np.float32)["abc".index(text[0])]


def names(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


class Fixed:
    "A retriever that always answers the same."

    def __init__(self, **scores: float):
        self.hits = [Hit(Passage(name, name), score) for name, score in scores.items()]

    def search(self, query, k=10, where=None):
        return self.hits[:k]


def by_formula(query: list[str], texts: list[list[str]], k1: float, b: float) -> list[float]:
    "BM25 with Lucene's idf, written down once more."
    average, n = sum(map(len, texts)) / len(texts), len(texts)
    scores = []
    for text in texts:
        count, norm = Counter(text), k1 * (1 - b + b * len(text) / average)
        idf = {word: math.log(1 + (n - (held := sum(word in other for other in texts)) + 0.5) / (held + 0.5)) for word in query}
        scores.append(sum(idf[word] * count[word] / (count[word] + norm) for word in query))
    return scores


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(VOCABULARY, min_size=1, max_size=12), min_size=1, max_size=9),
       st.lists(VOCABULARY, min_size=1, max_size=5), st.floats(0.2, 3), st.floats(0, 1))
def test_bm25_equals_its_formula(texts, query, k1, b):
    index = Bm25([Passage(str(i), " ".join(text)) for i, text in enumerate(texts)], k1, b, tokens=PLAIN)
    wanted = by_formula(query, texts, k1, b)
    np.testing.assert_allclose(index.scores(" ".join(query)), wanted, atol=1e-5)
    found = index.search(" ".join(query), k=len(texts))
    assert {hit.passage.id for hit in found} == {str(i) for i, score in enumerate(wanted) if score > 0}
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_words_are_stemmed_and_names_come_apart():
    assert words("Closing CLOSED get_item naïve") == ["close", "close", "get_item", "get", "item", "naïv"]
    assert words("__init__ _") == ["__init__", "init", "_"]
    assert words("") == words("!?  ") == []
    assert words("half \ud800 pair") == ["half", "pair"]
    with pytest.raises(TypeError):
        words(None)


def test_bm25_finds_nothing_without_a_common_word():
    index = Bm25(CORPUS)
    assert names(index.search("mice", 5)) == ["p4", "p0"]
    assert index.search("zeppelin") == [] and index.search(" \n") == []
    assert index.search("!!!") == []


@pytest.mark.parametrize("k", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("scores", [[1, 3, 3, 2, 3], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]])
def test_the_best_k_are_those_of_a_full_sort_with_ties_in_order(k, scores):
    index = Dense([Passage(f"q{i}", "x") for i in range(40)], np.ones((40, 1)), lambda text: np.ones(1))
    index.vectors = np.array(scores * 8, dtype=np.float32)[:, None]
    wanted = sorted(range(40), key=lambda row: -index.vectors[row, 0])[:k]
    assert names(index.search("any", k)) == [f"q{row}" for row in wanted]


def test_where_filters_before_the_best_are_taken():
    index, dense = Bm25(CORPUS), Dense(CORPUS, VECTORS, axis)
    assert names(index.search("cats", 5, {"odd": True})) == ["p1", "p3"]
    assert set(names(dense.search("a", 5, {"row": [0, 4]}))) == {"p0", "p4"}
    assert Fused([index, dense]).search("a", 5, {"row": 99}) == []
    reranked = Reranked(Fused([index, dense]), lambda query, found: np.ones(len(found)))
    assert set(names(reranked.search("a", 5, {"odd": True}))) == {"p1", "p3"}


def test_scores_of_some_passages_and_of_an_unknown_one():
    index = Bm25(CORPUS)
    assert index.score("cats", ["p3", "p2"]).tolist() == [index.scores("cats")[3], 0.0]
    with pytest.raises(ValueError, match="no passage has the id 'p77'"):
        index.score("cats", ["p1", "p77"])


def test_dense_is_cosine_whatever_the_lengths():
    a, b = Dense(CORPUS, VECTORS, axis), Dense(CORPUS, VECTORS * np.array([[1], [7], [3], [2], [9]]), axis)
    np.testing.assert_allclose(a.scores("b"), b.scores("b"), atol=1e-6)
    assert a.search("b", 1)[0].passage.id == "p1" and a.search("b", 1)[0].score <= 1 + 1e-6


@pytest.mark.parametrize("make", [lambda found: Bm25(found), lambda found: Dense(found, np.ones((len(found), 2)))])
def test_an_empty_corpus_and_a_doubled_id_are_refused(make):
    with pytest.raises(ValueError, match="at least one passage"):
        make([])
    with pytest.raises(ValueError, match="two passages have the id 'p1'"):
        make([*CORPUS, CORPUS[1]])


RETRIEVERS = {"bm25": Bm25(CORPUS), "dense": Dense(CORPUS, VECTORS, axis),
              "fused": Fused([Bm25(CORPUS), Dense(CORPUS, VECTORS, axis)]),
              "reranked": Reranked(Bm25(CORPUS), lambda query, found: np.arange(len(found)))}


@pytest.mark.parametrize("name", RETRIEVERS)
def test_odd_queries_and_k(name):
    retriever = RETRIEVERS[name]
    assert retriever.search("") == retriever.search(" \t\n") == []
    for k in (0, -3, 2.5, True, None):
        with pytest.raises(ValueError, match="at least 1"):
            retriever.search("a cat", k)
    with pytest.raises(TypeError):
        retriever.search(None)
    found = names(retriever.search("a cats", 50))
    assert retriever.search("a cats", 2) == retriever.search("a cats", 50)[:2] and 2 < len(found) == len(set(found))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Bm25(CORPUS, k1=0), "k1 must be above 0"), (lambda: Bm25(CORPUS, b=1.1), "b within 0..1"),
    (lambda: Bm25([Passage("a", "!!!")]), "no passage has a word"),
    (lambda: Dense(CORPUS, np.ones((4, 3))), "one finite vector a passage"),
    (lambda: Dense(CORPUS, VECTORS * np.nan), "one finite vector a passage"), (lambda: Fused([]), "at least one retriever"),
    (lambda: Fused([Bm25(CORPUS)], weights=(1, 1)), "a weight of at least 0 for each of 1 lists"),
    (lambda: Fused([Bm25(CORPUS)], depth=0), "depth of at least 1"),
    (lambda: Reranked(Bm25(CORPUS), len, depth=0), "depth must be at least 1"),
    (lambda: Reranked(Bm25(CORPUS), len, weight=2), "weight within 0..1"), (lambda: rrf([["a", "a"]]), "an id twice"),
    (lambda: rrf([["a"]], k=0), "k must be at least 1"),
    (lambda: weighted([{}], [-1]), "at least 0"), (lambda: weighted([{}], [0]), "above 0"),
    (lambda: evidence_recall([["a"]], [()]), "needs no evidence"),
    (lambda: evidence_recall([["a"]], [({"a"},)], 0), "k of at least 1"),
    (lambda: weight_curve([[]], [], len), "both lists for each query")])
def test_bad_options_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


RANKING = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(st.lists(RANKING, min_size=1, max_size=4), st.integers(1, 90))
def test_rrf_is_its_sum_and_knows_no_order_of_lists(rankings, k):
    found = rrf(rankings, k)
    for name, score in found.items():
        assert math.isclose(score, sum(1 / (k + ranking.index(name) + 1) for ranking in rankings if name in ranking))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    backwards = rrf(rankings[::-1], k)
    assert backwards.keys() == found.keys() and all(math.isclose(backwards[name], score) for name, score in found.items())


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-50, 50), min_size=2), st.integers(1, 9), st.integers(-9, 9))
def test_weighted_fusion_does_not_see_scale_or_shift(scores, scale, shift):
    other = {name: ord(name) for name in "abcd"}
    moved = {name: value * scale + shift for name, value in scores.items()}
    before, after = weighted([scores, other], (0.3, 0.7)), weighted([moved, other], (0.3, 0.7))
    assert all(math.isclose(before[name], after[name], abs_tol=1e-9) for name in before)


def test_weights_at_the_ends_are_the_retrievers_alone():
    first, second = Fixed(a=9.0, b=5.0, c=1.0), Fixed(c=0.9, a=0.5, b=0.1)
    assert names(Fused([first, second], (1, 0)).search("q")) == ["a", "b", "c"]
    assert names(Fused([first, second], (0, 1)).search("q")) == ["c", "a", "b"]
    assert names(Fused([first, second]).search("q", 1)) == ["a"]
    curve = weight_curve([first.hits], [second.hits], lambda rankings: float(rankings[0][0] == "c"), steps=2)
    assert curve == {0.0: 1.0, 0.5: 0.0, 1.0: 0.0}


def test_agreement_outvotes_conviction_up_to_rank_61():
    for rank in (61, 62, 63):
        one, other = ["lonely", *(f"x{i}" for i in range(rank - 2)), "agreed"], [*(f"y{i}" for i in range(rank - 1)), "agreed"]
        assert next(iter(rrf([one, other]))) == ("agreed" if rank < 62 else "lonely")


def test_a_reranker_sees_depth_hits_and_the_rest_stays_behind():
    seen = []

    def backwards(query, found):
        seen.append(len(found))
        return np.arange(len(found))

    base = Fixed(a=5.0, b=4.0, c=3.0, d=2.0, e=1.0)
    hits = Reranked(base, backwards, depth=3).search("q", 5)
    assert names(hits) == ["c", "b", "a", "d", "e"] and seen == [3]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert names(Reranked(base, backwards, depth=3, weight=0).search("q", 5)) == ["a", "b", "c", "d", "e"]
    assert names(Reranked(base, backwards, depth=5).search("q", 2)) == ["e", "d"]
    assert Reranked(Fixed(), backwards).search("q") == []


def test_evidence_recall_counts_pieces_not_passages():
    needed = [({"a", "b"}, {"c"}), ({"z"},)]
    assert evidence_recall([["a", "b", "x"], ["y", "z"]], needed, 3).tolist() == [0.5, 1.0]
    assert evidence_recall([["a", "b", "x"], ["y", "z"]], needed, 1).tolist() == [0.5, 0.0]


def test_maxsim_prefers_what_answers_every_token_and_forgets_the_oldest():
    scorer = MaxSim(keep=2)
    found = [Passage("1", "The cat sleeps on the sofa."), Passage("2", "Interest rates rose again."), Passage("3", "")]
    scores = scorer("a sleeping cat", found)
    assert scores[0] > scores[1] + 0.1 and scores[2] == 0 and len(scorer._kept) == 2
    np.testing.assert_allclose(scorer("a sleeping cat", found[::-1]), scores[::-1], atol=2e-3)
    assert math.isclose(scorer("cat", [Passage("4", "cat")])[0], 1.0, abs_tol=2e-3)


def test_maxsim_leaves_special_tokens_out():
    rows = token_vectors(encoder("minilm"), ["two words", "", "one"])
    assert [row.shape for row in rows] == [(2, 384), (0, 384), (1, 384)]
    np.testing.assert_allclose(np.linalg.norm(rows[0].astype(float), axis=1), 1, atol=1e-3)
