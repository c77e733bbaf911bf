"""Ranking scores: known lists by hand, scikit-learn on random ones, and what must hold of every list."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from nlp_portfolio.evaluation.ranking import hit_at_k, mrr, ndcg_at_k, precision_at_k, recall_at_k, reciprocal_rank

SCORES = (recall_at_k, precision_at_k, hit_at_k, reciprocal_rank, ndcg_at_k)
IDS = st.integers(0, 30)
RANKING = st.lists(IDS, unique=True, max_size=15)
GRADES = st.dictionaries(IDS, st.integers(1, 4), min_size=1, max_size=8)
K = st.integers(1, 20)


def one(score, ranking, gold, k):
    return float(score([ranking], [gold], k)[0])


def test_a_list_scored_by_hand():
    ranking, gold = ["x", "a", "y", "b", "z"], {"a": 2, "b": 1, "c": 3}
    assert one(recall_at_k, ranking, gold, 3) == 1 / 3
    assert one(precision_at_k, ranking, gold, 4) == 2 / 4
    assert one(reciprocal_rank, ranking, gold, 5) == 1 / 2
    assert one(reciprocal_rank, ranking, gold, 1) == 0
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert one(ndcg_at_k, ranking, gold, 5) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / best, abs=1e-12)


@given(st.permutations(range(12)), st.lists(st.integers(0, 4), min_size=12, max_size=12).filter(any), st.integers(1, 12))
def test_ndcg_is_scikit_learns(ranking, grades, k):
    scores = [0.0] * 12
    for rank, name in enumerate(ranking):
        scores[name] = 12.0 - rank
    assert one(ndcg_at_k, ranking, dict(enumerate(grades)), k) == pytest.approx(ndcg_score([grades], [scores], k=k), abs=1e-12)


@given(st.lists(st.tuples(RANKING, GRADES), max_size=6), K)
def test_one_value_a_query_between_0_and_1_and_no_query_moves_another(queries, k):
    for score in SCORES:
        values = score([ranking for ranking, _ in queries], [gold for _, gold in queries], k)
        assert values.shape == (len(queries),) and values.dtype == np.float64
        assert all(0 <= value <= 1 + 1e-12 for value in values)
        assert values.tolist() == [one(score, ranking, gold, k) for ranking, gold in queries]


@given(RANKING, GRADES, K)
def test_what_stands_below_k_does_not_count_and_more_ranks_never_lose(ranking, gold, k):
    for score in SCORES:
        assert one(score, ranking, gold, k) == one(score, ranking[:k], gold, k)
    for score in (recall_at_k, hit_at_k, reciprocal_rank):
        assert one(score, ranking, gold, k + 1) >= one(score, ranking, gold, k)


@given(RANKING, GRADES, K)
def test_a_gold_moved_one_rank_up_never_loses(ranking, gold, k):
    for at in range(1, len(ranking)):
        if gold.get(ranking[at], 0) > gold.get(ranking[at - 1], 0):
            better = [*ranking[: at - 1], ranking[at], ranking[at - 1], *ranking[at + 1 :]]
            for score in SCORES:
                assert one(score, better, gold, k) >= one(score, ranking, gold, k) - 1e-12


@given(GRADES, K)
def test_the_best_ranking_has_ndcg_1_and_a_ranking_without_gold_has_0(gold, k):
    best = sorted(gold, key=lambda name: -gold[name])
    assert one(ndcg_at_k, best, gold, k) == pytest.approx(1, abs=1e-12)
    assert one(recall_at_k, best, gold, len(gold)) == 1
    assert [one(score, [99, 98], gold, k) for score in SCORES] == [0] * len(SCORES)


@given(RANKING, GRADES, K)
def test_counts_agree_with_one_another(ranking, gold, k):
    hits = one(recall_at_k, ranking, gold, k) * len(gold)
    assert hits == pytest.approx(one(precision_at_k, ranking, gold, k) * k, abs=1e-9)
    assert one(hit_at_k, ranking, gold, k) == (hits > 0) == (one(reciprocal_rank, ranking, gold, k) > 0)
    assert one(recall_at_k, ranking, set(gold), k) == one(recall_at_k, ranking, gold, k)


def test_mrr_is_the_mean_and_needs_a_query():
    assert mrr([["x", "a"], ["a"], []], [{"a"}] * 3) == 0.5
    with pytest.raises(ValueError, match="at least one ranking"):
        mrr([], [])


@pytest.mark.parametrize(("rankings", "golds", "k", "kind", "message"), [
    ([["a"]], [], 1, ValueError, "1 rankings and 0 golds"),
    ([["a"]], [set()], 1, ValueError, "query 0 has no gold"),
    ([["a"]], [{"a": 0}], 1, ValueError, "query 0 has no gold"),
    ([["a"], ["b", "b"]], [{"a"}, {"b"}], 1, ValueError, "query 1: the ranking names an id twice"),
    ([["a"]], [{"a": -1.0}], 1, ValueError, "grades must be finite"),
    ([["a"]], [{"a": float("nan")}], 1, ValueError, "grades must be finite"),
    ([["a"]], ["a"], 1, TypeError, "gold is a set"),
    (["abc"], [{"a"}], 1, TypeError, "a ranking is a list"),
    ([["a"]], [{"a"}], 0, ValueError, "k must be a whole number"),
    ([["a"]], [{"a"}], 1.5, ValueError, "k must be a whole number"),
])
def test_bad_input_is_said(rankings, golds, k, kind, message):
    for score in SCORES:
        with pytest.raises(kind, match=message):
            score(rankings, golds, k)
