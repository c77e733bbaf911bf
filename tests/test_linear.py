"""Linear models of lesson 07: naive Bayes by hand against scikit-learn, pipelines, paths, resampling, macro F1."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import f1_score, precision_recall_fscore_support
from sklearn.naive_bayes import MultinomialNB

from nlp_portfolio.classic.linear import (
    f1_per_class,
    fit_bayes,
    intent_model,
    linear_svm,
    macro_f1,
    naive_bayes,
    oversample,
    penalty_path,
)
from nlp_portfolio.course.datasets import load
from nlp_portfolio.evaluation.errors import bootstrap_interval

TEXTS = ["I lost my card", "card lost again", "my card was stolen", "top up failed", "the top up is pending", "cannot top up"]
LABELS = ["lost", "lost", "lost", "top up", "top up", "top up"]
MODELS = {"naive_bayes": naive_bayes, "linear_svm": linear_svm, "intent_model": intent_model}
quick = settings(deadline=None, max_examples=60)


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def make(request):
    return request.param


@pytest.fixture
def queries():
    return load("banking77", "train", limit=200).to_pandas(), load("banking77", "test").to_pandas()


# ---- naive Bayes by hand


@st.composite
def counted(draw):
    "Counts of words, labels of at least one class, and a smoothing."
    rows, words = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    counts = draw(st.lists(st.lists(st.integers(0, 5), min_size=words, max_size=words), min_size=rows, max_size=rows))
    labels = draw(st.lists(st.sampled_from("abc"), min_size=rows, max_size=rows))
    return np.array(counts), np.array(labels), draw(st.floats(0.001, 10))


@quick
@given(counted())
def test_bayes_by_hand_equals_the_library(case):
    counts, labels, alpha = case
    ours, theirs = fit_bayes(counts, labels, alpha), MultinomialNB(alpha=alpha).fit(counts, labels)
    assert ours.classes.tolist() == theirs.classes_.tolist()
    np.testing.assert_allclose(ours.log_word, theirs.feature_log_prob_, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.log_prior, theirs.class_log_prior_, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.log_scores(counts), theirs.predict_joint_log_proba(counts), rtol=0, atol=1e-9)


@quick
@given(counted())
def test_word_shares_of_a_class_add_up_to_one(case):
    fitted = fit_bayes(*case)
    np.testing.assert_allclose(np.exp(fitted.log_word).sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.exp(fitted.log_prior).sum(), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("counts", "labels", "alpha", "message"), [
    ([[1, 0]], ["a"], 0, "alpha must be above 0"),
    ([[1, 0]], ["a"], -1, "alpha must be above 0"),
    ([[1, 0]], ["a"], float("nan"), "alpha must be above 0"),
    ([[1, 0], [0, 1]], ["a"], 1, "got 2 rows for 1 labels"),
    ([[1, -2]], ["a"], 1, "need counts of 0 or more"),
])
def test_bayes_refuses_nonsense(counts, labels, alpha, message):
    with pytest.raises(ValueError, match=message):
        fit_bayes(np.array(counts), labels, alpha)


# ---- pipelines


def test_pipelines_learn_and_are_deterministic(make, queries):
    train, test = queries
    first, second = (make().fit(train["text"], train["intent"]).predict(test["text"]) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert (first == test["intent"]).mean() > 0.4, "twenty intents: chance is one in twenty"


def test_pipelines_ignore_case(make):
    model = make().fit(TEXTS, LABELS)
    assert model.predict(["LOST CARD", "Top Up"]).tolist() == ["lost", "top up"]
    assert model.predict(["lost card", "top up"]).tolist() == ["lost", "top up"]


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (5, "int"), (float("nan"), "float"), (["lost"], "list")])
def test_pipelines_refuse_what_is_no_text(make, value, kind):
    with pytest.raises(TypeError, match=f"expected text, got {kind}"):
        make().fit([*TEXTS, value], [*LABELS, "lost"])
    with pytest.raises(TypeError, match=f"expected text, got {kind}"):
        make().fit(TEXTS, LABELS).predict([value])


@pytest.mark.parametrize("text", ["", "?", "a\0b", "half \ud800", "🙂 🙂", "ß" * 10_000])
def test_odd_texts_get_an_answer(make, text):
    assert make().fit(TEXTS, LABELS).predict([text])[0] in ("lost", "top up")


def test_letters_recognize_a_typo_that_words_do_not():
    texts = ["exchange", "exchange rates", "delivery", "delivery times"]
    labels = ["rate", "rate", "delivery", "delivery"]
    words, letters = (make().fit(texts, labels) for make in (linear_svm, intent_model))
    assert np.ptp([words.decision_function([typo])[0] for typo in ("exhcange", "delviery")]) == 0, "two unknown words"
    assert letters.predict(["exhcange", "delviery"]).tolist() == ["rate", "delivery"]


def test_options_reach_the_steps():
    assert naive_bayes(ngrams=(1, 3), alpha=0.5)["nb"].alpha == 0.5
    svm = linear_svm(C=3, class_weight="balanced", seed=7)["svm"]
    assert (svm.C, svm.class_weight, svm.random_state) == (3, "balanced", 7)
    assert intent_model(letters=(3, 4)).get_params()["features__letters__ngram_range"] == (3, 4)


def test_class_weight_makes_a_rare_class_heard():
    texts, labels = ["card"] * 20 + ["card lost"], ["other"] * 20 + ["lost"]
    scores = [linear_svm(C=0.01, class_weight=weight).fit(texts, labels).decision_function(["card lost"])[0]
              for weight in (None, "balanced")]
    assert abs(scores[0] - scores[1]) > 0.01  # classes are sorted: negative is lost
    assert scores[1] < scores[0]


# ---- penalty path


def test_penalty_path_equals_training_each_model(queries):
    train, test = queries
    path = penalty_path(linear_svm(), [0.01, 1.0], (train["text"], train["intent"]), (test["text"], test["intent"]))
    assert path.index.name == "C" and path.columns.tolist() == ["train", "development"]
    for C in path.index:
        model = linear_svm(C=C).fit(train["text"], train["intent"])
        assert path.loc[C].tolist() == [model.score(train["text"], train["intent"]), model.score(test["text"], test["intent"])]


def test_penalty_path_leaves_the_model_alone_and_needs_a_penalty():
    model = linear_svm(C=5)
    penalty_path(model, [1], (TEXTS, LABELS), (TEXTS, LABELS))
    assert model["svm"].C == 5 and not hasattr(model["tfidf"], "vocabulary_")
    with pytest.raises(ValueError, match="Invalid parameter 'C'"):
        penalty_path(naive_bayes(), [1], (TEXTS, LABELS), (TEXTS, LABELS))


# ---- scores


labels_and_answers = st.integers(1, 40).flatmap(lambda n: st.tuples(
    st.lists(st.integers(0, 6), min_size=n, max_size=n), st.lists(st.integers(0, 6), min_size=n, max_size=n)))


@quick
@given(labels_and_answers)
def test_macro_f1_equals_the_library(pair):
    assert macro_f1(*pair) == pytest.approx(f1_score(*pair, average="macro"), abs=1e-12)


@quick
@given(st.lists(labels_and_answers.filter(lambda pair: len(pair[0]) >= 5), min_size=1, max_size=4))
def test_macro_f1_of_many_draws_is_the_one_of_each(pairs):
    y, h = (np.array([pair[side][:5] for pair in pairs]) for side in (0, 1))
    found = macro_f1(y, h)
    assert found.shape == (len(pairs),)
    np.testing.assert_allclose(found, [macro_f1(*rows) for rows in zip(y, h, strict=True)], rtol=0, atol=1e-12)


def test_macro_f1_serves_the_bootstrap():
    y, h = np.arange(60) % 3, np.where(np.arange(60) % 7, np.arange(60) % 3, 0)
    interval = bootstrap_interval(y, h, metric=macro_f1, resamples=200)
    assert interval.low < interval.estimate < interval.high
    assert interval.estimate == pytest.approx(f1_score(y, h, average="macro"), abs=1e-12)


@pytest.mark.parametrize(("y", "h", "axis", "message"), [
    ([0, 1], [0], -1, "two equally shaped"), ([], [], -1, "non-empty"), ([0], [0], 0, "axis -1"),
    (["a"], ["a"], -1, "get_indexer"), ([0.5], [0.5], -1, "whole numbers"), ([-1], [0], -1, "from 0"),
])
def test_macro_f1_refuses_nonsense(y, h, axis, message):
    with pytest.raises(ValueError, match=message):
        macro_f1(y, h, axis)


@quick
@given(labels_and_answers)
def test_f1_per_class_equals_the_library(pair):
    table = f1_per_class(*pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        theirs = precision_recall_fscore_support(*pair, labels=table.index.tolist(), zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "n"), theirs, strict=True):
        np.testing.assert_allclose(table[name], column, rtol=0, atol=1e-12)
    assert table["f1"].is_monotonic_increasing
    assert table["predicted"].sum() == table["n"].sum() == len(pair[0])
    assert set(table.index) == {*pair[0], *pair[1]}


def test_f1_per_class_does_not_depend_on_the_order_of_rows():
    y, h = ["b", "a", "c", "a"], ["b", "c", "c", "b"]
    pd.testing.assert_frame_equal(f1_per_class(y, h), f1_per_class(y[::-1], h[::-1]))
    with pytest.raises(ValueError, match="2 references but 1 predictions"):
        f1_per_class(["a", "b"], ["a"])


# ---- oversampling


@quick
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(0, 5))
def test_oversampling_balances_and_invents_nothing(labels, seed):
    texts = [f"{label} {i}" for i, label in enumerate(labels)]
    more, y = oversample(texts, labels, seed)
    sizes = pd.Series(y).value_counts()
    assert set(sizes) == {pd.Series(labels).value_counts().max()}
    assert more[: len(texts)] == texts and y[: len(texts)].tolist() == labels
    assert set(more) == set(texts), "no new texts"
    assert all(text.startswith(label) for text, label in zip(more, y, strict=True)), "a copy keeps its label"
    again = oversample(texts, labels, seed)
    assert again[0] == more and again[1].tolist() == y.tolist()


def test_oversampling_takes_rows_by_position():
    frame = pd.DataFrame({"text": ["a1", "b1", "b2"], "label": ["a", "b", "b"]}, index=[9, 4, 7])
    texts, labels = oversample(frame["text"], frame["label"])
    assert texts == ["a1", "b1", "b2", "a1"] and labels.tolist() == ["a", "b", "b", "a"]


@pytest.mark.parametrize(("texts", "labels"), [([], []), (["a"], []), (["a"], ["x", "y"])])
def test_oversampling_refuses_unequal_lengths(texts, labels):
    with pytest.raises(ValueError, match="need one label per text and at least one row"):
        oversample(texts, labels)


# ---- the leak of the lesson


def test_oversampling_before_the_split_scores_on_meaningless_labels_and_after_it_does_not():
    rng = np.random.default_rng(0)
    texts = [f"w{rng.integers(50)} v{rng.integers(50)} u{i}" for i in range(120)]
    labels = np.array(["large"] * 100 + ["small"] * 20)[rng.permutation(120)]

    def held_out_f1(before: bool) -> float:
        t, y = oversample(texts, labels) if before else (texts, labels)
        order = rng.permutation(len(t))
        a, b = order[len(t) // 3:], order[: len(t) // 3]
        rows = [t[i] for i in a], y[a]
        model = linear_svm().fit(*(rows if before else oversample(*rows)))
        return f1_score(y[b], model.predict([t[i] for i in b]), pos_label="small")

    assert held_out_f1(before=True) > 0.8
    assert held_out_f1(before=False) < 0.4
