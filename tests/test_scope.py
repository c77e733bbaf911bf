"Scores equal the libraries', thresholds do what they say, and an adapter that says none of these is measured as it is shipped."

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402
from sklearn.covariance import ShrunkCovariance  # noqa: E402
from sklearn.metrics import precision_score, recall_score, roc_auc_score  # noqa: E402

from nlp_portfolio.neural import lora, scope  # noqa: E402

REAL = os.environ.get("NLP_PORTFOLIO_DATA", "")
LABELS = ["card lost", "oos", "pin", "transfer"]
CARD = {"task": "toy", "data": "a test", "licence": "Apache-2.0", "seed": 0, "recipe": {}, "command": "pytest"}
logit_tables = arrays(float, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-30, 30))


def plain_softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(logit_tables, st.floats(0.2, 5))
def test_scores_equal_numpy_and_torch(z: np.ndarray, temperature: float) -> None:
    expected = plain_softmax(z / temperature).max(1)
    np.testing.assert_allclose(scope.max_probability(z, temperature=temperature), expected, rtol=1e-9)
    theirs = temperature * torch.logsumexp(torch.from_numpy(z) / temperature, dim=1).numpy()
    np.testing.assert_allclose(scope.energy(z, temperature=temperature), theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(logit_tables, st.floats(-50, 50))
def test_softmax_forgets_a_shift_and_energy_moves_with_it(z: np.ndarray, shift: float) -> None:
    np.testing.assert_allclose(scope.max_probability(z + shift), scope.max_probability(z), rtol=1e-9)
    np.testing.assert_allclose(scope.energy(z + shift), scope.energy(z) + shift, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(logit_tables, st.floats(0.05, 5))
def test_energy_lies_between_the_largest_logit_and_log_k_above(z: np.ndarray, temperature: float) -> None:
    found, top = scope.energy(z, temperature=temperature), z.max(1)
    assert (found >= top - 1e-9).all()
    assert (found <= top + temperature * math.log(z.shape[1]) + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.tuples(st.integers(1, 5), st.integers(3, 6)), elements=st.floats(-20, 20)), st.integers(0, 2))
def test_the_out_of_scope_class_takes_its_share_and_is_no_answer(z: np.ndarray, out: int) -> None:
    others = [i for i in range(z.shape[1]) if i != out]
    np.testing.assert_allclose(scope.max_probability(z, out), plain_softmax(z)[:, others].max(1), rtol=1e-9)
    np.testing.assert_allclose(scope.energy(z, out), scope.energy(z[:, others]), rtol=1e-9, atol=1e-9)
    louder = z.copy()
    louder[:, out] += 3
    assert (scope.max_probability(louder, out) < scope.max_probability(z, out)).all()
    np.testing.assert_array_equal(scope.energy(louder, out), scope.energy(z, out))


def test_huge_logits_do_not_overflow() -> None:
    z = np.array([[1e4, -1e4, 0.0]])
    assert scope.max_probability(z)[0] == 1.0 and scope.energy(z)[0] == 1e4
    assert scope.energy(z, out=0)[0] == 0.0


@pytest.mark.parametrize("z", [[1.0, 2.0], [[1.0]], [], [[[1.0, 2.0]]]])
def test_logits_of_another_shape_are_refused(z: list) -> None:
    for score in scope.SCORES.values():
        with pytest.raises(ValueError, match="logits must have the shape"):
            score(z)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_logits_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="logits must be finite"):
        scope.energy([[1.0, value]])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_of_nothing_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        scope.max_probability([[1.0, 2.0]], temperature=temperature)


@pytest.mark.parametrize("out", [-1, 2, 99])
def test_a_column_that_is_not_there_is_refused(out: int) -> None:
    with pytest.raises(ValueError, match="out must be the column"):
        scope.energy([[1.0, 2.0]], out=out)


# ---- distances


@pytest.mark.parametrize("shrink", [0.0, 0.1, 0.5, 1.0])
def test_distances_equal_scikit_learn_and_scipy(shrink: float) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(90, 5)) * [1, 2, 3, 4, 5], np.repeat(["a", "b", "c"], 30)
    ours, new = scope.class_means(x, labels, shrink), rng.normal(size=(7, 5)) * 3
    means = np.stack([x[labels == c].mean(0) for c in "abc"])
    rest = x - means[np.repeat([0, 1, 2], 30)]
    precision = ShrunkCovariance(shrinkage=shrink, assume_centered=True).fit(rest).precision_
    expected = -cdist(new, means, "mahalanobis", VI=precision).min(1) ** 2
    np.testing.assert_allclose(ours.score(new), expected, rtol=1e-8)
    np.testing.assert_allclose(ours.means, means)


def test_a_class_mean_is_nearest_to_itself() -> None:
    rng = np.random.default_rng(1)
    found = scope.class_means(rng.normal(size=(40, 4)), rng.integers(0, 5, 40))
    np.testing.assert_allclose(found.score(found.means), 0, atol=1e-9)
    assert (found.score(rng.normal(size=(9, 4))) < 0).all()


def test_too_few_rows_are_refused_unless_shrunk() -> None:
    x, labels = np.random.default_rng(2).normal(size=(6, 10)), ["a", "b"] * 3
    with pytest.raises(ValueError, match="cannot fill a covariance of 10 columns"):
        scope.class_means(x, labels, shrink=0)
    assert scope.class_means(x, labels, shrink=0.2).score(x).shape == (6,)


@pytest.mark.parametrize("x, labels, shrink", [
    (np.ones((3, 2)), ["a"], 0.1), (np.ones((0, 2)), [], 0.1), (np.ones(3), ["a"] * 3, 0.1), (np.ones((2, 2)), ["a", "b"], 1.5)])
def test_vectors_that_do_not_fit_are_refused(x: np.ndarray, labels: list, shrink: float) -> None:
    with pytest.raises(ValueError, match="need one label a vector"):
        scope.class_means(x, labels, shrink)


# ---- AUROC, curve, threshold, report


columns = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40).filter(
    lambda rows: len({inside for inside, _ in rows}) == 2)


@settings(max_examples=100, deadline=None)
@given(columns)
def test_auroc_equals_scikit_learn_with_ties(rows: list[tuple[bool, int]]) -> None:
    inside, scores = map(np.array, zip(*rows, strict=True))
    ours = scope.auroc(inside, scores)
    assert abs(ours - roc_auc_score(inside, scores)) < 1e-12
    assert abs(scope.auroc(inside, -scores) - (1 - ours)) < 1e-12
    many = scope.auroc(np.stack([inside, inside]), np.stack([scores, np.zeros(len(rows))]))
    np.testing.assert_allclose(many, [ours, 0.5], atol=1e-12)


@pytest.mark.parametrize("inside, scores, message", [
    ([True, True], [1, 2], "with one kind there is nothing to tell apart"), ([False], [1], "with one kind"),
    ([True, False], [1, math.nan], "without NaN"), ([True], [1, 2], "equally shaped"), ([], [], "equally shaped")])
def test_auroc_refuses_what_it_cannot_rank(inside: list, scores: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scope.auroc(inside, scores)


toy = st.lists(st.tuples(st.sampled_from(["a", "b", "oos"]), st.sampled_from(["a", "b"]), st.integers(-3, 3)),
               min_size=2, max_size=40).filter(lambda rows: len({label == "oos" for label, _, _ in rows}) == 2)


@settings(max_examples=100, deadline=None)
@given(toy)
def test_the_curve_is_what_each_threshold_does(rows: list[tuple[str, str, int]]) -> None:
    labels, guesses, scores = map(np.array, zip(*rows, strict=True))
    curve = scope.scope_curve(labels, guesses, scores)
    inside = labels != "oos"
    for row in curve.itertuples():
        rejected = scores < row.threshold
        assert math.isclose(row.in_scope_accuracy, ((guesses == labels) & ~rejected)[inside].mean(), abs_tol=1e-12)
        assert math.isclose(row.oos_recall, rejected[~inside].mean(), abs_tol=1e-12)
        assert math.isclose(row.rejected, rejected.mean(), abs_tol=1e-12)
    assert curve["threshold"].is_monotonic_increasing and curve["in_scope_accuracy"].is_monotonic_decreasing
    assert curve["oos_recall"].is_monotonic_increasing and np.isfinite(curve["threshold"]).all()
    assert curve["rejected"].iloc[0] == 0 and curve["rejected"].iloc[-1] == 1


@settings(max_examples=100, deadline=None)
@given(toy, st.floats(0, 0.9))
def test_the_chosen_threshold_is_the_largest_that_keeps_the_promise(rows: list[tuple[str, str, int]], give_up: float) -> None:
    labels, guesses, scores = map(np.array, zip(*rows, strict=True))
    curve = scope.scope_curve(labels, guesses, scores)
    chosen, least = scope.choose_threshold(curve, give_up), curve["in_scope_accuracy"].iloc[0] - give_up
    assert chosen["in_scope_accuracy"] >= least - 1e-9
    assert (curve.loc[curve["threshold"] > chosen["threshold"], "in_scope_accuracy"] < least + 1e-9).all()


def test_thresholds_by_hand() -> None:
    labels, guesses, scores = ["a", "a", "b", "b", "oos", "oos"], ["a", "a", "b", "a", "a", "b"], [4, 2, 3, 1, 0, 2.5]
    curve = scope.scope_curve(labels, guesses, scores)
    free = scope.choose_threshold(curve, 0)  # the wrong in-scope answer costs nothing
    assert free.to_dict() == {"threshold": 1.5, "in_scope_accuracy": 0.75, "oos_recall": 0.5, "rejected": 2 / 6}
    dear = scope.choose_threshold(curve, 0.25)
    assert dear.to_dict() == {"threshold": 2.75, "in_scope_accuracy": 0.5, "oos_recall": 1.0, "rejected": 4 / 6}


def test_a_score_on_the_threshold_is_kept() -> None:
    rows = (["a", "oos"] * 20, ["a", "a"] * 20, [1.0, 0.0] * 20)
    report = scope.scope_report(*rows, 1.0)
    assert (report["in_scope_accuracy"], report["oos_recall"], report["rejected"]) == (1.0, 1.0, 0.5)
    report = scope.scope_report(*rows, np.nextafter(1.0, 2))
    assert (report["in_scope_accuracy"], report["oos_recall"], report["rejected"]) == (0.0, 1.0, 1.0)


def test_too_few_rows_for_an_interval_are_said() -> None:
    with pytest.raises(ValueError, match="too few rows of some class"):
        scope.scope_report(["a", "oos"], ["a", "a"], [1.0, 0.0], 0.5)


@pytest.mark.parametrize("give_up", [-0.1, 1.0, math.nan])
def test_a_price_that_is_no_share_is_refused(give_up: float) -> None:
    curve = scope.scope_curve(["a", "oos"], ["a", "a"], [1.0, 0.0])
    with pytest.raises(ValueError, match="give_up is a share"):
        scope.choose_threshold(curve, give_up)


def test_the_report_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(["a", "b", "oos"], 300, p=[0.4, 0.4, 0.2])
    guesses, scores = rng.choice(["a", "b"], 300), rng.normal(size=300) + (labels != "oos")
    report, rejected, out = scope.scope_report(labels, guesses, scores, 0.3, resamples=200), scores < 0.3, labels == "oos"
    assert math.isclose(report["oos_recall"], recall_score(out, rejected), abs_tol=1e-12)
    assert math.isclose(report["oos_precision"], precision_score(out, rejected), abs_tol=1e-12)
    assert math.isclose(report["auroc"], roc_auc_score(~out, scores), abs_tol=1e-12)
    assert math.isclose(report["in_scope_accuracy"], ((guesses == labels) & ~rejected)[~out].mean(), abs_tol=1e-12)
    for name in ("in_scope_accuracy", "oos_recall", "oos_precision", "auroc", "rejected"):
        assert report[f"{name}_low"] < report[name] < report[f"{name}_high"]
    assert report == scope.scope_report(labels, guesses, scores, 0.3, resamples=200)


def test_nothing_rejected_has_a_precision_of_zero() -> None:
    report = scope.scope_report(["a", "oos"] * 9, ["a", "a"] * 9, [1.0, 1.0] * 9, 0.0)
    assert (report["oos_precision"], report["oos_recall"], report["rejected"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("labels, guesses, scores, message", [
    (["a", "oos"], ["a"], [1.0, 2.0], "one guess and one finite score"),
    (["a", "oos"], ["a", "a"], [1.0, math.nan], "finite score"),
    (["a", "b"], ["a", "a"], [1.0, 2.0], "requests labelled 'oos'"),
    (["oos"], ["a"], [1.0], "in scope"), ([], [], [], "in scope")])
def test_bad_columns_are_refused(labels: list, guesses: list, scores: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scope.scope_curve(labels, guesses, scores)
    with pytest.raises(ValueError, match=message):
        scope.scope_report(labels, guesses, scores, 0.0)


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_that_is_no_number_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        scope.scope_report(["a", "oos"], ["a", "a"], [1.0, 0.0], threshold)


# ---- adapters


@pytest.fixture(scope="module")
def trained() -> lora.EncoderClassifier:
    model = lora.lora_classifier(LABELS, rank=2, seed=0)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


@pytest.fixture
def folder(trained: lora.EncoderClassifier, tmp_path: Path) -> Path:
    return lora.save_adapter(trained, tmp_path / "toy", CARD | {"scope": {"label": "oos", "score": "energy", "threshold": 0.0}})


TEXTS = ["I lost my card", "what is my PIN", "send money to Ann", "who was Cleopatra", ""]


def change(folder: Path, **fields: object) -> None:
    file = folder / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_the_vectors_are_what_the_head_reads(trained: lora.EncoderClassifier) -> None:
    vectors = scope.text_vectors(trained, TEXTS)
    assert vectors.shape == (5, 384)
    by_hand = vectors @ trained.head.weight.detach().cpu().numpy().T + trained.head.bias.detach().cpu().numpy()
    np.testing.assert_allclose(by_hand, lora.predict_logits(trained, TEXTS), atol=1e-4)


def test_answers_follow_the_threshold(trained: lora.EncoderClassifier, folder: Path) -> None:
    classifier = scope.ScopedClassifier(folder)
    labels, p, scores = classifier.judge(TEXTS)
    middle = float(np.median(scores))
    change(folder, scope={"label": "oos", "score": "energy", "threshold": middle})
    answers = scope.ScopedClassifier(folder).predict(TEXTS)
    expected = [label if s >= middle else "oos" for label, s in zip(labels, scores, strict=True)]
    assert [answer.label for answer in answers] == expected
    assert {answer.label == "oos" for answer in answers} == {True, False} and "oos" not in labels
    for answer, probability in zip(answers, p, strict=True):
        assert math.isclose(answer.probability, 1 - probability if answer.label == "oos" else probability, abs_tol=1e-6)


def test_no_texts_get_no_answers(folder: Path) -> None:
    assert scope.ScopedClassifier(folder).predict([]) == []


@pytest.mark.parametrize("texts", ["one string", [None], [3.5], [float("nan")]])
def test_what_is_no_list_of_texts_is_refused(folder: Path, texts: object) -> None:
    with pytest.raises(TypeError, match="expected"):
        scope.ScopedClassifier(folder).predict(texts)


def test_odd_texts_get_an_answer(folder: Path) -> None:
    assert len(scope.ScopedClassifier(folder).predict(["\ud800 half a pair", "nul \0 byte", " ", "🙂" * 500])) == 4


def test_a_model_without_a_class_for_the_rest_is_judged_too() -> None:
    z = np.array([[3.0, 1.0], [0.0, 0.1]])
    labels, p, scores = scope.judged(["a", "b"], z)
    assert labels == ["a", "b"]
    np.testing.assert_allclose(p, scope.max_probability(z))
    np.testing.assert_allclose(scores, scope.energy(z))


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown score 'magic': choose one of max_probability, energy"):
        scope.judged(["a", "b"], [[1.0, 2.0]], score="magic")


@pytest.mark.parametrize("value, message", [
    (None, "card has no scope"), ({"label": "oos"}, "card has no scope"), ("energy", "card has no scope"),
    ({"label": "oos", "score": "magic", "threshold": 0.0}, "the card scores by 'magic'"),
    ({"label": "oos", "score": "energy", "threshold": "high"}, "no finite number"),
    ({"label": "oos", "score": "energy", "threshold": math.nan}, "no finite number")])
def test_a_card_without_a_usable_scope_is_refused(folder: Path, value: object, message: str) -> None:
    change(folder, scope=value)
    with pytest.raises(ValueError, match=message):
        scope.ScopedClassifier(folder)


def test_an_adapter_without_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a threshold on validation rows with add_scope"):
        scope.ScopedClassifier("banking77")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_threshold_is_not_chosen_where_it_is_judged(folder: Path, split: str) -> None:
    with pytest.raises(ValueError, match=f"chosen on the {split} rows is too kind to itself"):
        scope.add_scope(folder, split=split)


def test_a_card_can_be_given_a_scope(trained: lora.EncoderClassifier, tmp_path: Path) -> None:
    folder = lora.save_adapter(lora.load_adapter("clinc150"), tmp_path / "again", CARD | {"task": "clinc150"})
    chosen, card = scope.add_scope(folder, give_up=0.01), lora.read_card(folder)
    assert card["scope"] == chosen and card["measured_by"] == "nlp_portfolio.neural.scope:measure_scope"
    assert chosen["chosen_on"] == "validation" and chosen["chosen_rows"] == 120
    on_validation = scope.measure_scope(folder, "validation")
    assert math.isclose(on_validation["in_scope_accuracy"], chosen["in_scope_accuracy"], abs_tol=1e-9)
    assert math.isclose(on_validation["oos_recall"], chosen["oos_recall"], abs_tol=1e-9)


# ---- the shipped one


@pytest.fixture(scope="module")
def shipped() -> scope.ScopedClassifier:
    return scope.ScopedClassifier("clinc150")


SENTENCES = {
    "what's my checking account balance": "balance",
    "set an alarm for six in the morning": "alarm",
    "how do you say good night in french": "translate",
    "book me a flight from berlin to lisbon": "book_flight",
    "will it rain tomorrow": "weather",
    "my luggage never arrived": "lost_luggage",
    "what is the plot of moby dick": "oos",
    "who won the world cup in 1998": "oos",
    "do penguins have knees": "oos",
}


@pytest.mark.required
def test_the_shipped_adapter_answers_and_declines(shipped: scope.ScopedClassifier) -> None:
    assert {text: answer.label for text, answer in zip(SENTENCES, shipped.predict(list(SENTENCES)), strict=True)} == SENTENCES


@pytest.mark.required
def test_the_shipped_card_is_complete() -> None:
    card = lora.read_card("clinc150")
    file = lora.adapter_folder("clinc150") / lora.WEIGHTS
    assert file.stat().st_size == card["file_bytes"] <= 2_000_000
    assert len(card["labels"]) == 151 and card["licence"] == "CC BY 3.0 Unported" and card["data"]["source"] == "local"
    assert card["scope"]["chosen_on"] == "validation" and card["scope"]["chosen_rows"] == 3084
    assert card["measured_by"] == scope.MEASURED_BY and card["metrics"]["split"] == "test"
    assert card["metrics"]["rows"] == 2737 and card["metrics"]["source"] == "local"
    assert card["metrics"]["in_scope_accuracy"] > 0.95 and card["metrics"]["oos_recall"] > 0.6


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="NLP_PORTFOLIO_DATA is not set")
def test_the_cards_numbers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", REAL)
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "local")
    measured, claimed = scope.measure_scope("clinc150"), lora.read_card("clinc150")["metrics"]
    assert {name for name, value in claimed.items()
            if isinstance(value, float) and not math.isclose(value, measured[name], abs_tol=0.002)} == set()
