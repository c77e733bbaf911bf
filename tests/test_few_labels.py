"Few labels: draws are nested, spreading equals its closed form and scikit-learn, and unlabelled rows help where they should."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading

from nlp_portfolio.neural import few_labels
from nlp_portfolio.neural.few_labels import FewLabels, Spreading, few, neighbour_graph, self_train, spread_labels

quick = settings(deadline=None, max_examples=40)


def blobs(rows: int = 60, seed: int = 0, classes: int = 3, spread: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    "Unit vectors around `classes` directions, and the direction of each."
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % classes
    X = np.eye(8)[truth] + spread * rng.normal(size=(rows, 8))
    return X / np.linalg.norm(X, axis=1, keepdims=True), truth


def hidden(truth: np.ndarray, rows: np.ndarray, nothing: object = -1) -> list:
    return [label if i in set(rows.tolist()) else nothing for i, label in enumerate(truth.tolist())]


# ---- drawing


@quick
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 9))
def test_draws_hold_so_many_of_each_class_and_are_nested(labels, per_class, seed):
    rows = few(labels, per_class, seed)
    drawn = [labels[row] for row in rows]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert {label: drawn.count(label) for label in labels} == {label: min(per_class, labels.count(label)) for label in labels}
    assert set(rows) <= set(few(labels, per_class + 1, seed))
    assert rows.tolist() == few(labels, per_class, seed).tolist()


def test_another_seed_is_another_draw():
    assert few(list("ab") * 50, 5, 0).tolist() != few(list("ab") * 50, 5, 1).tolist()


@pytest.mark.parametrize(("labels", "per_class", "classes", "message"), [
    ([], 1, None, "at least one label, got 1 and 0"), (["a"], 0, None, "at least one row a class"),
    (["a", "b"], 1, ["a", "b", "lost"], "no row of class 'lost'"),
])
def test_few_refuses_nonsense(labels, per_class, classes, message):
    with pytest.raises(ValueError, match=message):
        few(labels, per_class, classes=classes)


# ---- the graph


@quick
@given(st.integers(2, 40), st.integers(1, 12), st.floats(0.05, 2), st.integers(0, 5))
def test_graph_is_symmetric_normalized_and_has_no_ties_to_itself(rows, neighbours, temperature, seed):
    X, _ = blobs(rows, seed)
    S = neighbour_graph(X, neighbours, temperature)
    dense = S.toarray()
    np.testing.assert_allclose(dense, dense.T, rtol=0, atol=1e-12)
    assert np.abs(np.diag(dense)).max() == 0 and dense.min() >= 0
    assert ((dense > 0).sum(axis=1) >= min(neighbours, rows - 1)).all()
    assert np.abs(np.linalg.eigvalsh(dense)).max() <= 1 + 1e-9


def test_graph_weights_are_those_of_the_formula():
    X = blobs(12)[0]
    W = np.exp((X @ X.T - 1) / 0.3) * (1 - np.eye(12))
    degree = W.sum(axis=1)
    np.testing.assert_allclose(neighbour_graph(X, 11, 0.3).toarray(), W / np.sqrt(np.outer(degree, degree)), rtol=0, atol=1e-9)


def test_graph_does_not_care_for_the_length_of_vectors():
    X = blobs(20)[0]
    stretched = X * np.linspace(0.1, 9, 20)[:, None]
    np.testing.assert_allclose(neighbour_graph(stretched).toarray(), neighbour_graph(X).toarray(), rtol=0, atol=1e-9)


def test_copies_of_a_row_are_its_neighbours_and_it_is_not_its_own():
    X = np.repeat(np.eye(3), 4, axis=0)
    S = neighbour_graph(X, 3).toarray()
    expected = np.kron(np.eye(3), np.ones((4, 4)) - np.eye(4)) / 3
    np.testing.assert_allclose(S, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("vectors", "options", "message"), [
    (np.full((5, 2), np.nan), {}, "NaN"), (np.ones(5), {}, r"shape \(rows, dimensions\)"),
    (np.ones((1, 5)), {}, "at least two rows"),
    (np.array([["a"], ["b"]]), {}, "finite numbers"), (np.eye(4), {"neighbours": 0}, "at least one neighbour"),
    (np.eye(4), {"temperature": 0}, "temperature above 0"), (np.eye(4), {"temperature": float("nan")}, "temperature above 0"),
])
def test_graph_refuses_nonsense(vectors, options, message):
    with pytest.raises(ValueError, match=message):
        neighbour_graph(vectors, **options)


# ---- spreading


@pytest.mark.parametrize("alpha", [0.2, 0.9, 0.99])
@pytest.mark.parametrize("nothing", [None, -1, float("nan")], ids=repr)
def test_spreading_equals_its_closed_form(alpha, nothing):
    X, truth = blobs(spread=0.5)
    labels = hidden(truth, few(truth, 2, 3), nothing)
    Y = np.array([[label == c for c in range(3)] for label in labels], dtype=float)
    F = np.linalg.solve(np.eye(60) - alpha * neighbour_graph(X, 8, 0.15).toarray(), (1 - alpha) * Y)
    found = spread_labels(X, labels, Spreading(alpha=alpha, balance=False), tolerance=1e-12)
    assert found.classes.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.probabilities, F / F.sum(axis=1, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 0.1), (0.9, 0.3)])
def test_spreading_over_all_pairs_equals_the_library(alpha, temperature):
    X, truth = blobs(spread=0.5)
    labels = hidden(truth, few(truth, 2, 1))
    how = Spreading(neighbours=59, temperature=temperature, alpha=alpha, balance=False)
    theirs = LabelSpreading(kernel="rbf", gamma=1 / (2 * temperature), alpha=alpha, max_iter=5000, tol=1e-12).fit(X, labels)
    ours = spread_labels(X, labels, how, tolerance=1e-13)
    np.testing.assert_allclose(ours.probabilities, theirs.label_distributions_, rtol=0, atol=1e-8)


def test_balance_gives_each_class_its_share_of_the_labelled_rows():
    X, truth = blobs(90, spread=0.6)
    labels = hidden(truth, np.array([0, 3, 6, 1, 4, 2]))  # three, two and one
    F = np.linalg.solve(np.eye(90) - 0.9 * neighbour_graph(X).toarray(),
                        np.array([[label == c for c in range(3)] for label in labels], dtype=float))
    F = F / F.sum(axis=0) * np.array([3, 2, 1])
    found = spread_labels(X, labels, tolerance=1e-12).probabilities
    np.testing.assert_allclose(found, F / F.sum(axis=1, keepdims=True), rtol=0, atol=1e-6)
    assert np.abs(found - spread_labels(X, labels, Spreading(balance=False)).probabilities).max() > 0.01


def test_rows_out_of_reach_get_equal_probabilities_and_first_guesses_reach_them():
    X = np.repeat(np.eye(3), 4, axis=0)
    labels = ["a", *[None] * 3, "b", *[None] * 7]
    apart = spread_labels(X, labels, Spreading(neighbours=3)).probabilities
    assert apart[8:].tolist() == [[0.5, 0.5]] * 4 and apart[1:4].argmax(axis=1).tolist() == [0] * 3
    guesses = np.tile([0.1, 0.9], (12, 1))
    guessed = spread_labels(X, labels, Spreading(neighbours=3, balance=False), start=guesses).probabilities
    np.testing.assert_allclose(guessed[8:], np.tile([0.1, 0.9], (4, 1)), rtol=0, atol=1e-9)


def test_guesses_for_labelled_rows_do_not_count():
    X, truth = blobs()
    labels = hidden(truth, few(truth, 3, 0))
    guesses = np.full((60, 3), 1 / 3)
    lies = guesses.copy()
    lies[few(truth, 3, 0)] = [0, 0, 1]
    told, honest = (spread_labels(X, labels, start=start).probabilities for start in (lies, guesses))
    assert told.tolist() == honest.tolist()


def test_a_wrong_label_among_many_changes_its_mind():
    X, truth = blobs(spread=0.05)
    labels = truth.tolist()
    labels[0] = 1
    assert spread_labels(X, labels, Spreading(balance=False)).probabilities[0].argmax() == truth[0] == 0


@quick
@given(st.integers(0, 100))
def test_order_of_rows_and_names_of_classes_do_not_matter(seed):
    X, truth = blobs(45, seed=1, spread=0.5)
    labels = hidden(truth, few(truth, 2, 0))
    order = np.random.default_rng(seed).permutation(45)
    found = spread_labels(X, labels, tolerance=1e-10).probabilities
    named = [None if labels[i] == -1 else "cba"[labels[i]] for i in order]
    moved = spread_labels(X[order], named, tolerance=1e-10)
    assert moved.classes.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(moved.probabilities[:, ::-1], found[order], rtol=0, atol=1e-6)


def test_a_graph_built_before_gives_the_same():
    X, truth = blobs()
    labels = hidden(truth, few(truth, 2, 0))
    before, now = spread_labels(X, labels, graph=neighbour_graph(X)), spread_labels(X, labels)
    assert before.probabilities.tolist() == now.probabilities.tolist()


LABELS = ["a", "b", None, None, None]


@pytest.mark.parametrize(("labels", "options", "message"), [
    ([None] * 5, {}, "no labelled row"), ([-1] * 5, {}, "no labelled row"), (["a", *[None] * 4], {}, "only 'a'"),
    ([0, 0, -1, -1, -1], {}, "two classes, got only 0"), (LABELS[:4], {}, "4 rows, one a label"),
    (["a", 1, None, None, None], {}, "all text or all numbers"),
    (LABELS, {"graph": csr_matrix((4, 4))}, "graph has 4 rows, the vectors 5"),
    (LABELS, {"start": np.ones((5, 3))}, r"shape \(5, 2\)"), (LABELS, {"start": -np.ones((5, 2))}, "0 or more"),
    (LABELS, {"start": np.full((5, 2), np.nan)}, "0 or more"),
])
def test_spreading_refuses_nonsense(labels, options, message):
    with pytest.raises(ValueError, match=message):
        spread_labels(np.eye(5), labels, **options)


@pytest.mark.parametrize("alpha", [0, 1, -0.5, 2, float("nan")])
def test_alpha_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        Spreading(alpha=alpha)


# ---- models


def halves(seed: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    "Two arcs on a sphere that a plane through few points does not part, and which arc."
    rng = np.random.default_rng(seed)
    which, t = rng.integers(0, 2, rows), rng.uniform(0, np.pi, rows)
    x, y = np.cos(t) + which, np.where(which == 1, 0.5 - np.sin(t), np.sin(t))
    return np.column_stack([x, y, np.full(rows, 1.5)]) + 0.04 * rng.normal(size=(rows, 3)), which


def test_unlabelled_rows_help_new_rows_where_clusters_are_the_classes():
    X, truth = halves(0)
    new, wanted = halves(1)
    gains = []
    for seed in range(5):
        rows = few(truth, 3, seed)
        how = Spreading(temperature=0.001, alpha=0.99)
        alone = self_train(X[rows], truth[rows].tolist()).score(new, wanted)
        gains.append(self_train(X, hidden(truth, rows), how).score(new, wanted) - alone)
    assert np.mean(gains) > 0.01 and min(gains) > -0.05


def test_without_unlabelled_rows_it_is_logistic_regression():
    X, truth = blobs()
    model = self_train(X, truth.tolist())
    assert model.coef_.tolist() == LogisticRegression(C=20, max_iter=2000).fit(X, truth).coef_.tolist()


def test_self_training_is_a_model_its_spread_guesses_and_a_model_again():
    X, truth = blobs(90, spread=0.6)
    rows = few(truth, 2, 0)
    first = LogisticRegression(C=7, max_iter=2000).fit(X[rows], truth[rows])
    found = spread_labels(X, hidden(truth, rows), start=first.predict_proba(X)).probabilities
    target, weight = found.argmax(axis=1), found.max(axis=1)
    target[rows], weight[rows] = truth[rows], 1
    second = LogisticRegression(C=7, max_iter=2000).fit(X, target, sample_weight=weight)
    np.testing.assert_allclose(self_train(X, hidden(truth, rows), C=7).coef_, second.coef_, rtol=0, atol=1e-9)


def test_strangers_count_less_than_rows_near_a_label(monkeypatch):
    X, truth = blobs(spread=0.1)
    X = np.concatenate([X, np.eye(8)[[7] * 6]])
    labels = [*hidden(truth, few(truth, 3, 0)), *[-1] * 6]
    seen = {}

    class Watched(few_labels.LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            seen.update(weight=sample_weight)
            return super().fit(X, y, sample_weight)

    monkeypatch.setattr(few_labels, "LogisticRegression", Watched)
    self_train(X, labels)
    weight = seen["weight"]
    assert weight[few(truth, 3, 0)].tolist() == [1.0] * 9
    assert weight[-6:].max() < np.median(weight[:60])


def letters(texts: list[str]) -> np.ndarray:
    "Vectors without a network: how often each letter occurs."
    return np.array([[text.lower().count(letter) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


TEXTS = ["card", "card card", "pin", "pin pin"]
NAMES = ["card", "card", "pin", "pin"]


def test_estimator_learns_and_is_one_of_scikit_learn():
    model = FewLabels(letters, Spreading(neighbours=2)).fit(TEXTS, NAMES, ["my card", "a pin", "the card", "this pin"])
    assert model.classes_.tolist() == ["card", "pin"]
    assert model.predict(["cards", "pins"]).tolist() == ["card", "pin"]
    assert model.predict_proba(["cards", "pins", ""]).shape == (3, 2)
    np.testing.assert_allclose(model.predict_proba(["cards", "pins", ""]).sum(axis=1), 1, rtol=0, atol=1e-6)
    assert model.predict([]).tolist() == [] and model.predict_proba([]).shape == (0, 2)
    assert clone(model).get_params() == model.get_params()
    assert model.score(TEXTS, NAMES) == 1.0


def test_estimator_is_self_training_on_its_vectors():
    more = ["my card", "a pin", "zzz"]
    model = FewLabels(letters, C=3).fit(TEXTS, NAMES, more)
    same = self_train(letters([*TEXTS, *more]), [*NAMES, *[None] * 3], C=3)
    np.testing.assert_allclose(model.predict_proba(more), same.predict_proba(letters(more)), rtol=0, atol=1e-12)


def test_default_encoder_is_the_course_s():
    model = FewLabels().fit(["I lost my card", "change my PIN"], ["card", "pin"], ["my card is gone", "a new PIN please"])
    assert model.predict(["somebody took my card", "which PIN"]).tolist() == ["card", "pin"]


@pytest.mark.parametrize(("texts", "labels", "unlabelled", "kind", "message"), [
    (TEXTS, NAMES[:3], [], ValueError, "got 4 texts, 3 labels"),
    (TEXTS, NAMES, "one string", ValueError, "list of unlabelled texts"),
    (TEXTS, ["card"] * 4, [], ValueError, "only 'card'"), ([], [], [], ValueError, "no labelled row"),
    ([*TEXTS[:3], 5], NAMES, [], TypeError, "expected text, got int"),
    (TEXTS, NAMES, [float("nan")], TypeError, "expected text, got float"),
])
def test_estimator_refuses_nonsense(texts, labels, unlabelled, kind, message):
    with pytest.raises(kind, match=message):
        FewLabels(letters).fit(texts, labels, unlabelled)


def test_estimator_refuses_one_string():
    model = FewLabels(letters).fit(TEXTS, NAMES)
    with pytest.raises(TypeError, match=r"got one string: write \[text\]"):
        model.predict("card")


@pytest.mark.parametrize("text", ["", "?", "a\0b", "half \ud800", "🙂", "ß" * 5000])
def test_odd_texts_get_an_answer(text):
    assert FewLabels(letters).fit(TEXTS, NAMES, [text]).predict([text])[0] in ("card", "pin")
