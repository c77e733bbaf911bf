"""Nearest neighbours: by hand, in faiss, and that the two agree."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_portfolio.retrieval.ann import (
    IVF,
    exact_search,
    faiss_index,
    faiss_search,
    graph_search,
    index_mb,
    kmeans,
    measure_search,
    navigable_graph,
    recall_at,
)

faiss = pytest.importorskip("faiss")


def unit(rows: int, width: int = 16, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


# ---- exact


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 40), width=st.integers(1, 8), k=st.integers(1, 50), seed=st.integers(0, 999))
def test_exact_search_is_a_full_sort(rows, width, k, seed):
    rng = np.random.default_rng(seed)
    vectors, queries = (rng.integers(-2, 3, (n, width)).astype(np.float32) for n in (rows, 3))
    scores, found = exact_search(vectors, queries, k)
    assert scores.shape == found.shape == (3, k)
    products = queries @ vectors.T
    want = -np.sort(-products, axis=1)[:, :k]
    there = min(k, rows)
    np.testing.assert_array_equal(scores[:, :there], want)
    assert (found[:, there:] == -1).all() and (scores[:, there:] == -np.inf).all()
    for query, line in enumerate(found[:, :there]):
        assert len(set(line.tolist())) == there
        np.testing.assert_array_equal(products[query, line], scores[query, :there])


@settings(max_examples=40, deadline=None)
@given(keep=st.lists(st.booleans(), min_size=30, max_size=30), k=st.integers(1, 12))
def test_a_mask_is_a_search_in_the_rows_it_keeps(keep, k):
    vectors, queries, mask = unit(30), unit(4, seed=1), np.array(keep)
    scores, found = exact_search(vectors, queries, k, mask)
    alone, rows = exact_search(vectors[mask], queries, k)
    np.testing.assert_allclose(scores, alone, atol=1e-6)
    ids = np.append(np.flatnonzero(mask), -1)
    np.testing.assert_array_equal(found, ids[rows])


def test_equal_scores_come_in_the_order_of_their_rows():
    assert exact_search(np.ones((5, 2)), np.ones((1, 2)), 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_three_measures_rank_unit_vectors_alike():
    vectors, queries = unit(300), unit(20, seed=2)
    by_product = exact_search(vectors, queries, 300)[1]
    distances = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(np.take_along_axis(distances, by_product, 1), np.sort(distances, axis=1), atol=1e-5)


@pytest.mark.parametrize(("vectors", "queries", "more", "message"), [
    (unit(5), unit(5)[0], {}, r"queries\[None\]"),
    (unit(5), unit(1, 3), {}, "same encoder"),
    (np.full((2, 16), np.nan), unit(1), {}, "NaN or infinity"),
    (unit(5), np.full((1, 16), np.inf), {}, "NaN or infinity"),
    (unit(5), unit(1), {"k": 0}, "k must be a whole number of at least 1"),
    (unit(5), unit(1), {"k": True}, "k must be a whole number"),
    (unit(5), unit(1), {"allowed": [0, 1]}, "boolean mask of 5 rows"),
    (unit(5), unit(1), {"allowed": [True] * 4}, "boolean mask of 5 rows"),
])
def test_exact_search_refuses(vectors, queries, more, message):
    with pytest.raises(ValueError, match=message):
        exact_search(vectors, queries, **more)


# ---- recall


def test_recall_counts_rows_in_any_order_and_never_padding():
    assert recall_at([[3, 1, 2], [9, 8, -1]], [[1, 2, 3], [7, 8, 9]]).tolist() == pytest.approx([1.0, 2 / 3], abs=1e-9)
    assert recall_at([[-1, -1]], [[4, -1]]).tolist() == [0.0]
    assert recall_at([[4, -1]], [[4, -1]]).tolist() == [1.0]
    assert recall_at([[4, 4]], [[4, 5]]).tolist() == [0.5]


def test_recall_refuses_tables_that_do_not_fit():
    with pytest.raises(ValueError, match="a row for each query"):
        recall_at([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="a row for each query"):
        recall_at([1, 2], [1, 2])


# ---- IVF


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(12, 80), lists=st.integers(1, 12), k=st.integers(1, 15), seed=st.integers(0, 99))
def test_all_lists_are_exact_search(rows, lists, k, seed):
    vectors, queries = unit(rows, 6, seed), unit(5, 6, seed + 1)
    ivf = IVF(lists=lists, rounds=3, seed=seed).fit(vectors)
    assert sorted(np.concatenate(ivf.rows).tolist()) == list(range(rows))
    np.testing.assert_allclose(ivf.search(queries, k, lists)[0], exact_search(vectors, queries, k)[0], atol=1e-6)


def test_more_lists_opened_never_lose_recall():
    vectors, queries = unit(800), unit(50, seed=3)
    ivf, true = IVF(lists=20, seed=1).fit(vectors), exact_search(vectors, queries)[1]
    recalls = [recall_at(ivf.search(queries, 10, n)[1], true).mean() for n in range(1, 21)]
    assert recalls == sorted(recalls) and recalls[-1] == 1.0
    assert 0.1 < recalls[0] < 0.7


@pytest.mark.parametrize("nprobe", [1, 3, 16])
def test_ivf_by_hand_is_faiss_with_the_same_centres(nprobe):
    vectors, queries = unit(600), unit(40, seed=4)
    ivf = IVF(lists=16, seed=7).fit(vectors[:400]).add(vectors[400:])
    same = faiss.IndexIVFFlat(faiss.IndexFlatIP(16), 16, 16, faiss.METRIC_INNER_PRODUCT)
    same.quantizer.add(ivf.centres)
    same.is_trained = True
    same.add(vectors)
    same.nprobe = nprobe
    scores, rows = ivf.search(queries, 10, nprobe)
    theirs = same.search(queries, 10)
    np.testing.assert_allclose(scores, theirs[0], atol=1e-5)
    assert (rows == theirs[1]).mean() > 0.99


def test_lists_with_too_few_rows_are_padded():
    ivf = IVF(lists=2, seed=0).fit(np.array([[1, 0], [0.9, 0.1], [-1, 0], [-0.9, 0.1]], np.float32))
    scores, rows = ivf.search([[1.0, 0.0]], 3, 1)
    assert set(rows[0, :2].tolist()) == {0, 1} and rows[0, 2] == -1 and scores[0, 2] == -np.inf


def test_centres_are_unit_vectors_and_repeat():
    vectors = unit(200)
    centres = kmeans(vectors, 9, seed=5)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(centres, kmeans(vectors, 9, seed=5))
    closer = [(vectors @ kmeans(vectors, 9, rounds, seed=5).T).max(axis=1).mean() for rounds in (1, 10)]
    assert closer[1] > closer[0]


def test_ivf_says_what_to_do():
    with pytest.raises(ValueError, match="take fewer lists"):
        IVF(lists=9).fit(unit(5))
    with pytest.raises(ValueError, match="call fit"):
        IVF().add(unit(5))
    with pytest.raises(ValueError, match="call fit first"):
        IVF().search(unit(5))
    with pytest.raises(ValueError, match="nprobe must be"):
        IVF(lists=2).fit(unit(5)).search(unit(1), 3, 0)
    with pytest.raises(ValueError, match="lists must be"):
        IVF(lists=0).fit(unit(5))
    with pytest.raises(ValueError, match="same encoder"):
        IVF(lists=2).fit(unit(5)).search(unit(1, 3))


# ---- graph


def test_a_patient_walk_over_a_connected_graph_is_exact():
    vectors, queries = unit(120), unit(10, seed=6)
    links = navigable_graph(vectors, m=4)
    for query, true in zip(queries, exact_search(vectors, queries, 10)[1], strict=True):
        rows, compared = graph_search(links, vectors, query, ef=120)
        assert compared == 120 and rows[:10] == true.tolist()


def test_patience_buys_recall_and_costs_comparisons():
    vectors, queries = unit(600), unit(40, seed=7)
    links, true = navigable_graph(vectors), exact_search(vectors, queries)[1]
    walks = {ef: [graph_search(links, vectors, query, ef) for query in queries] for ef in (10, 80)}
    recall = {ef: recall_at([rows[:10] for rows, _ in some], true).mean() for ef, some in walks.items()}
    compared = {ef: np.mean([count for _, count in some]) for ef, some in walks.items()}
    assert recall[80] > max(0.9, recall[10] + 0.05)
    assert compared[10] < compared[80] < 600


def test_links_go_both_ways_and_an_island_is_never_left():
    vectors = unit(60)
    links = navigable_graph(vectors, m=3)
    assert all(row in links[other] for row, near in enumerate(links) for other in near)
    assert graph_search([[1], [0], [3], [2]], vectors, vectors[3], ef=4)[0] in ([0, 1], [1, 0])
    with pytest.raises(ValueError, match="ef must be"):
        graph_search(links, vectors, vectors[0], ef=0)


# ---- faiss


@pytest.mark.parametrize(("name", "settings_", "least"), [
    ("Flat", {}, 1.0), ("SQ8", {}, 0.95), ("IVF10,Flat", {"nprobe": 10}, 1.0), ("HNSW8", {"efSearch": 200}, 0.97),
    ("PQ8x4np", {}, 0.2)])
def test_indexes_by_name_agree_with_exact_search(name, settings_, least):
    vectors, queries = unit(500), unit(30, seed=8)
    true = exact_search(vectors, queries)[1]
    first, again = (faiss_search(faiss_index(vectors, name), **settings_)(queries, 10)[1] for _ in range(2))
    assert recall_at(first, true).mean() >= least
    np.testing.assert_array_equal(first, again)


def test_settings_belong_to_a_search_not_to_the_index():
    vectors, queries = unit(500), unit(30, seed=9)
    index, true = faiss_index(vectors, "IVF20,Flat"), exact_search(vectors, queries)[1]
    one, all_ = faiss_search(index, nprobe=1), faiss_search(index, nprobe=20)
    recalls = [recall_at(search(queries, 10)[1], true).mean() for search in (one, all_, one)]
    assert recalls[0] == recalls[2] < 0.8 < recalls[1] == 1.0


@pytest.mark.parametrize(("name", "setting"), [("Flat", {}), ("IVF10,Flat", {"nprobe": 10}), ("HNSW8", {"efSearch": 500})])
def test_a_mask_is_respected_and_outlives_its_maker(name, setting):
    vectors, queries = unit(500), unit(30, seed=10)
    allowed = np.arange(500) % 5 == 2
    search = faiss_search(faiss_index(vectors, name), allowed.copy(), **setting)
    gc.collect()
    found, true = search(queries, 10)[1], exact_search(vectors, queries, 10, allowed)[1]
    assert allowed[found[found >= 0]].all()
    assert recall_at(found, true).mean() > 0.97


def test_a_narrow_filter_starves_a_graph():
    vectors, queries = unit(2000), unit(30, seed=11)
    allowed = np.arange(2000) % 20 == 0
    index = faiss_index(vectors, "HNSW8")
    free = faiss_search(index, efSearch=48)(queries, 10)[1]
    kept = faiss_search(index, allowed, efSearch=48)(queries, 10)[1]
    recalls = [recall_at(found, exact_search(vectors, queries, 10, mask)[1]).mean()
               for found, mask in ((free, None), (kept, allowed))]
    assert recalls[0] > 0.95 and recalls[1] < recalls[0] - 0.1


def test_faiss_helpers_say_what_to_do():
    with pytest.raises(ValueError, match="faiss knows no index 'Flatt'"):
        faiss_index(unit(5), "Flatt")
    with pytest.raises(ValueError, match="IndexIVFFlat cannot be trained on 5 vectors"):
        faiss_index(unit(5), "IVF50,Flat")
    with pytest.raises(ValueError, match="has no setting nprobe"):
        faiss_search(faiss_index(unit(5)), nprobe=3)
    with pytest.raises(ValueError, match="boolean mask of 5 rows"):
        faiss_search(faiss_index(unit(5)), allowed=[True])
    with pytest.raises(ValueError, match="same encoder"):
        faiss_search(faiss_index(unit(5)))(unit(1, 3), 2)


def test_megabytes_are_those_of_the_file(tmp_path):
    for name in ("Flat", "HNSW8", "IVF5,SQ8"):
        index = faiss_index(unit(300), name)
        faiss.write_index(index, str(tmp_path / "index"))
        assert round(index_mb(index) * 1e6) == (tmp_path / "index").stat().st_size


# ---- the clock


def test_measure_search_asks_one_query_a_call_and_scores_the_first_round():
    calls = []

    def search(queries, k):
        calls.append(len(queries))
        return np.zeros((len(queries), k)), np.tile(np.arange(k), (len(queries), 1))

    row = measure_search(search, unit(7), np.tile([0, 1, 8, 9], (7, 1)), rounds=2)
    assert row["recall_4"] == 0.5 and set(row) == {"recall_4", "median_ms", "p95_ms"}
    assert calls[1:] == [1] * 14
    assert 0 < row["median_ms"] <= row["p95_ms"] < 50
    with pytest.raises(ValueError, match="no queries"):
        measure_search(search, unit(0), np.zeros((0, 4)))
