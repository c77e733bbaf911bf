"""Error analysis (lesson 17): parity with SciPy and scikit-learn, properties, bad input, the report's files."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score

from nlp_portfolio.evaluation import errors as E

bits = st.lists(st.booleans(), min_size=1, max_size=60)
shares = st.floats(0, 1, allow_nan=False)
scores = st.lists(st.floats(-100, 100, allow_nan=False), min_size=1, max_size=40)
promises = st.lists(st.tuples(shares, st.booleans()), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    "Two hundred made-up reviews with predictions that are right about four times in five."
    rng = np.random.default_rng(0)
    words = np.array("the cast but not good however story dull great bad plot song light voice camera | <b>".split())
    texts = [" ".join(rng.choice(words, rng.integers(5, 40))) for _ in range(200)]
    label = rng.integers(0, 2, 200)
    p = np.clip(np.where(label == 1, 0.7, 0.3) + rng.normal(0, 0.25, 200), 0, 1)
    rows = pd.DataFrame({"text": texts, "label": label, "rating": rng.choice([1, 4, 7, 10], 200)})
    return E.prediction_frame(rows, p)


# Intervals


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy(pair: tuple[int, int], level: float) -> None:
    k, n = pair
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    ours = E.wilson_interval(k, n, level)
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1 and ours.low < ours.high


def test_wilson_covers_as_often_as_it_says() -> None:
    k = np.random.default_rng(1).binomial(40, 0.9, 3000)
    covered = [low <= 0.9 <= high for _, low, high in (E.wilson_interval(int(v), 40) for v in k)]
    assert 0.93 <= np.mean(covered) <= 0.97


@given(scores, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_interval_of_the_mean_lies_around_it_and_inside_the_data(values: list[float], seed: int) -> None:
    found = E.bootstrap_interval(values, resamples=200, seed=seed)
    slack = 1e-9 + 0.6 * np.ptp(values) / math.sqrt(len(values))  # a skewed draw may leave the mean just outside
    assert found.low - slack <= found.estimate <= found.high + slack
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


@given(bits.filter(lambda b: len(b) >= 20 and 0.2 <= np.mean(b) <= 0.8))
@settings(max_examples=30, deadline=None)
def test_interval_of_a_share_contains_the_share(right: list[bool]) -> None:
    found = E.bootstrap_interval(right, resamples=500)
    assert found.low < found.estimate < found.high


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_equals_scipy_draw_for_draw(level: float) -> None:
    values = np.random.default_rng(3).exponential(size=77)
    for metric in (np.mean, np.median, np.std):
        theirs = stats.bootstrap((values,), metric, n_resamples=500, confidence_level=level, method="percentile",
                                 random_state=np.random.default_rng(9)).confidence_interval
        ours = E.bootstrap_interval(values, metric=metric, resamples=500, level=level, seed=9)
        assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert ours.estimate == pytest.approx(metric(values))


def test_columns_are_drawn_together_as_scipy_draws_pairs() -> None:
    rng = np.random.default_rng(4)
    y, h = rng.integers(0, 2, 90), rng.integers(0, 2, 90)

    def f1(y: np.ndarray, h: np.ndarray, axis: int = -1) -> np.ndarray:
        return 2 * (y & h).sum(axis) / (y.sum(axis) + h.sum(axis))

    theirs = stats.bootstrap((y, h), f1, paired=True, n_resamples=400, method="percentile",
                             random_state=np.random.default_rng(9)).confidence_interval
    ours = E.bootstrap_interval(y, h, metric=f1, resamples=400, seed=9)
    assert ours == pytest.approx((f1_score(y, h), theirs.low, theirs.high), abs=1e-12)


def test_blocks_do_not_change_the_draws() -> None:
    values = np.random.default_rng(5).normal(size=30_011)  # odd, and so large that 400 resamples take several blocks
    rng = np.random.default_rng(6)
    whole = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(400)])
    assert len(list(E._draws(len(values), 400, 6))) > 1
    assert E.bootstrap_values(values, resamples=400, seed=6) == pytest.approx(whole, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_swapping_the_models_only_flips_the_sign(pairs: list[tuple[bool, bool]], seed: int) -> None:
    new, old = zip(*pairs, strict=True)
    ab, ba = (E.paired_bootstrap(*pair, resamples=200, seed=seed) for pair in ((new, old), (old, new)))
    assert ba == pytest.approx((-ab.difference, -ab.high, -ab.low, ab.p_value), abs=1e-12)
    assert ab.difference == pytest.approx(np.mean(new) - np.mean(old)) and 0 < ab.p_value <= 1
    one, two = E.mcnemar(new, old), E.mcnemar(old, new)
    assert (one.only_new, one.only_old, one.p_value) == (two.only_old, two.only_new, two.p_value)


@given(st.integers(0, 400), st.integers(0, 400))
@example(0, 0)
@example(2500, 2600)
def test_sign_test_equals_scipy(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert E.sign_test(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_paired_tests_agree_and_hold_their_level() -> None:
    "Two equally good models: both tests cry wolf at most about one time in twenty."
    rng, p_values = np.random.default_rng(7), []
    for _ in range(300):
        hard = rng.random(200) < 0.3
        new, old = (np.where(hard, rng.random(200) < 0.5, True) for _ in "ab")
        p_values.append((E.mcnemar(new, old).p_value, E.paired_bootstrap(new, old, resamples=200).p_value))
    false_alarms = (np.array(p_values) < 0.05).mean(axis=0)
    assert false_alarms[0] <= 0.06 and false_alarms[1] <= 0.09
    assert np.corrcoef(np.transpose(p_values))[0, 1] > 0.95


@pytest.mark.parametrize("gain, disagreement, power", [(0.02, 0.1, 0.8), (0.05, 0.3, 0.9), (-0.01, 0.1, 0.5)])
def test_rows_needed_gives_the_power_asked_for(gain: float, disagreement: float, power: float) -> None:
    n = E.rows_needed(gain, disagreement, power)
    shares = [(disagreement + gain) / 2, (disagreement - gain) / 2, 1 - disagreement]
    draws = np.random.default_rng(8).multinomial(n, shares, 1500)
    seen = np.mean([E.sign_test(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert seen == pytest.approx(power, abs=0.05)
    assert E.rows_needed(gain, disagreement, min(0.99, power + 0.05)) > n


# Calibration


@given(promises, st.integers(1, 25))
def test_reliability_table_equals_scikit_learn(pairs: list[tuple[float, bool]], bins: int) -> None:
    p, y = zip(*pairs, strict=True)
    table = E.reliability_table(p, y, bins)
    observed, predicted = calibration_curve(y, p, n_bins=bins) if len(set(y)) == 2 else (None, None)
    assert len(table) == bins and table["n"].sum() == len(p)
    filled = table[table["n"] > 0]
    assert ((filled["predicted"] >= filled["low"] - 1e-9) & (filled["predicted"] <= filled["high"] + 1e-9)).all()
    if observed is not None:
        assert filled["observed"].to_numpy() == pytest.approx(observed)
        assert filled["predicted"].to_numpy() == pytest.approx(predicted)


@given(promises, st.integers(1, 25))
def test_ece_lies_in_0_to_1_and_equals_a_plain_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    p, y = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    ece, edges = E.expected_calibration_error(p, y, bins), np.linspace(0, 1, bins + 1)
    loop = 0.0
    for i in range(bins):
        inside = (p > edges[i]) & (p <= edges[i + 1]) if i else p <= edges[1]
        if inside.any():
            loop += inside.mean() * abs(p[inside].mean() - y[inside].mean())
    assert 0 <= ece <= 1 and ece == pytest.approx(loop, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=8), st.integers(1, 20))
def test_ece_is_zero_exactly_when_every_promise_is_kept(groups: list[tuple[int, int]], bins: int) -> None:
    kept = [(min(k, n) / n, [True] * min(k, n) + [False] * (n - min(k, n))) for n, k in groups]
    p = [share for share, outcomes in kept for _ in outcomes]
    y = [outcome for _, outcomes in kept for outcome in outcomes]
    assert E.expected_calibration_error(p, y, bins) == pytest.approx(0, abs=1e-12)
    assert E.expected_calibration_error([1.0] * 4, [False] * 4, bins) == 1


def test_floor_is_what_an_honest_model_shows() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 150)
    honest = [E.expected_calibration_error(p, rng.random(150) < p) for _ in range(200)]
    assert E.calibration_floor(p) == pytest.approx(np.mean(honest), abs=0.01)
    assert E.calibration_floor(rng.uniform(0.5, 1, 15_000)) < 0.2 * E.calibration_floor(p)


def _logits(temperature: float = 1.0, shift: float = 0.0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    "Log-odds and labels of a model that is off by a known temperature and shift."
    rng = np.random.default_rng(2)
    honest = rng.normal(0, 2, n)
    labels = rng.random(n) < 1 / (1 + np.exp(-honest))
    return honest * temperature + shift, labels.astype(int)


@pytest.mark.parametrize("wrong_by", [0.1, 1.0, 12.0])
def test_temperature_is_found_and_repairs(wrong_by: float) -> None:
    z, y = _logits(wrong_by)
    scaling = E.fit_temperature(z, y)
    assert scaling.temperature == pytest.approx(wrong_by, rel=0.05) and scaling.intercept == 0
    p = scaling(z)
    assert E.expected_calibration_error(p, y) < 0.01
    assert ((p > 0.5) == (z > 0)).all()


@given(st.floats(0.05, 20), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_temperature_is_the_minimum_of_the_log_loss(stretch: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 120)
    assume(0 < y.sum() < 120)
    z = stretch * (2 * y - 1 + rng.normal(0, 2, 120))
    slope = E.fit_temperature(z, y).slope

    def loss(a: float) -> float:
        return float(np.mean(np.logaddexp(0, a * z) - y * a * z))

    assert loss(slope) <= min(loss(slope * 1.02), loss(slope * 0.98)) + 1e-9


def test_platt_equals_scikit_learn() -> None:
    frozen = pytest.importorskip("sklearn.frozen")  # scikit-learn 1.6
    X, y = make_classification(900, 12, flip_y=0.2, random_state=0)
    model = LogisticRegression(C=100).fit(X[:300], y[:300])
    theirs = CalibratedClassifierCV(frozen.FrozenEstimator(model), method="sigmoid", ensemble=False)
    theirs.fit(X[300:600], y[300:600])
    ours = E.fit_platt(model.decision_function(X[300:600]), y[300:600])
    assert ours(model.decision_function(X[600:])) == pytest.approx(theirs.predict_proba(X[600:])[:, 1], abs=1e-3)


def test_platt_stays_finite_on_separable_rows_and_finds_a_shift() -> None:
    scaling = E.fit_platt([-3.0, -2, 2, 3], [0, 0, 1, 1])
    assert 0 < scaling.slope < 50
    z, y = _logits(shift=1.5)
    assert E.fit_platt(z, y) == pytest.approx((1, -1.5), abs=0.1)


def test_log_odds_invert_the_sigmoid_and_stay_finite() -> None:
    z = np.linspace(-20, 20, 41)
    assert E.log_odds(E.Scaling(1.0)(z)) == pytest.approx(z, abs=1e-3)
    assert np.isfinite(E.log_odds([0, 1])).all()


# Confusion, slices, buckets


@pytest.mark.filterwarnings("ignore:A single label")
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=50))
@settings(deadline=None, max_examples=50)
def test_confusion_equals_scikit_learn_and_confusions_are_its_errors(pairs: list[tuple[str, str]]) -> None:
    y, h = zip(*pairs, strict=True)
    table = E.confusion_table(y, h)
    assert (table.to_numpy() == confusion_matrix(y, h, labels=list(table.index))).all()
    top = E.top_confusions(y, h, top=99)
    assert top["n"].sum() == sum(a != b for a, b in pairs) and (top["label"] != top["prediction"]).all()
    assert top["n"].is_monotonic_decreasing
    assert all(row.share == pytest.approx(row.n / y.count(row.label)) for row in top.itertuples())


def test_confusion_figure_shows_counts_and_leaves_them_out_of_many_classes() -> None:
    ax = E.confusion_figure(E.confusion_table([0, 0, 1], [0, 1, 1])).axes[0]
    assert [text.get_text() for text in ax.texts] == ["1\n50%", "1\n50%", "0\n0%", "1\n100%"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("prediction", "label")
    assert len(E.confusion_figure(E.confusion_table(range(20), range(20))).axes[0].texts) == 0


def test_prediction_frame_takes_both_shapes_and_any_classes() -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "z"}]
    frame = E.prediction_frame(rows, [[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], classes=["x", "y", "z"])
    assert list(frame["prediction"]) == ["y", "z"] and list(frame["correct"]) == [False, True]
    assert list(frame["confidence"]) == [0.5, 0.7]
    two = E.prediction_frame([{"text": "a", "label": 1}] * 2, [0.9, 0.2])
    assert list(two["prediction"]) == [1, 0] and list(two["confidence"]) == pytest.approx([0.9, 0.8])


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_slices_that_partition_the_rows_partition_counts_and_score(rows: list[tuple[int, bool]], cut: int) -> None:
    frame = pd.DataFrame(rows, columns=["length", "correct"])
    parts = {"low": lambda r: r["length"] < cut, "high": lambda r: r["length"] >= cut, "none": lambda r: False}
    table = E.slice_table(frame, parts)
    everything, low, high, none = table.to_dict("records")
    assert low["n"] + high["n"] == everything["n"] == len(rows) and low["share"] + high["share"] == pytest.approx(1)
    total = sum(part["n"] * part["score"] for part in (low, high) if part["n"])
    assert total == pytest.approx(everything["n"] * everything["score"])
    assert none["n"] == 0 and math.isnan(none["score"]) and math.isnan(none["low"]) and bool(none["few"])
    if low["n"] and high["n"]:
        assert low["gap"] == pytest.approx(-high["gap"]) == pytest.approx(low["score"] - high["score"])


def test_slice_interval_is_wilson_for_right_and_wrong_and_bootstrap_elsewhere(frame: pd.DataFrame) -> None:
    is_odd = {"odd": lambda row: row["label"] == 1}
    row = E.slice_table(frame, is_odd).iloc[1]
    inside = frame[frame["label"] == 1]
    assert (row["score"], row["low"], row["high"]) == pytest.approx(E.wilson_interval(int(inside["correct"].sum()), len(inside)))
    row = E.slice_table(frame, is_odd, metric="confidence").iloc[1]
    assert (row["score"], row["low"], row["high"]) == pytest.approx(E.bootstrap_interval(inside["confidence"]))


def test_few_marks_small_slices(frame: pd.DataFrame) -> None:
    picks = {str(k): (lambda row, k=k: row["text"] in set(frame["text"].head(k))) for k in (29, 30)}
    assert list(E.slice_table(frame, picks, min_rows=30)["few"]) == [False, True, False]


@pytest.mark.parametrize("name, yes, no", [
    ("negated opinion", ["It is not good.", "wasn't a very funny film", "I can't recommend it", "NEVER boring"],
     ["not at all what it was", "a knot good", "good, not"]),
    ("contrast", ["Nice, but long.", "However, fine", "on the other hand"], ["a butler", "button"]),
    ("comparison", ["better than the book", "compared to it", "more fun than that"], ["better", "other than that"]),
    ("hedging", ["perhaps a bit slow"], ["perhaps", "rather"]),
    ("irony marker", ["so bad it is good", "I was being sarcastic", "a campy thing"], ["iron man", "campus", "camping"]),
    ("plot of blood and war", ["killers, murder and blood"], ["murder, murder"]),
    ("question mark", ["Why?"], ["Why!"]),
    ("shouting", ["SUCH a film"], ["A TV SET", "such a film"]),
    ("late turn", ["word " * 50 + "but fine"], ["but fine " + "word " * 50]),
    ("short (under 100 words)", ["a", ""], ["a " * 100]),
    ("long (300 words or more)", ["a " * 300], ["a " * 299]),
])
def test_review_slices_accept_and_refuse(name: str, yes: list[str], no: list[str]) -> None:
    ask = E.REVIEW_SLICES[name]
    assert [ask({"text": text}) for text in yes] == [True] * len(yes)
    assert [ask({"text": text}) for text in no] == [False] * len(no)


def test_lukewarm_needs_a_rating() -> None:
    ratings = [4, 7, 7.0, 3, 8, None, float("nan")]
    assert [E.lukewarm({"text": "", "rating": r}) for r in ratings] == [True, True, True, False, False, False, False]
    assert E.lukewarm({"text": ""}) is False


def test_buckets_take_each_error_once_in_order(frame: pd.DataFrame) -> None:
    table = E.bucket_errors(frame, E.REVIEW_BUCKETS)
    wrong = frame[~frame["correct"]]
    assert table["n"].sum() == len(wrong) and table["share"].sum() == pytest.approx(1)
    assert table["n"].iloc[0] == wrong["rating"].isin([4, 7]).sum()
    assert list(table["bucket"]) == [bucket.name for bucket in E.REVIEW_BUCKETS] + ["unsorted"]
    assert (table["example"].str.split().str.len() <= 13).all()


def test_lift_compares_errors_with_right_rows_whatever_the_order() -> None:
    correct = [False, False, True, False, True, True]
    frame = pd.DataFrame({"text": ["x but y"] * 3 + ["x"] * 3, "confidence": 0.9, "correct": correct})
    everything, but = E.Bucket("everything", lambda row: True), E.Bucket("but", E.CONTRAST)
    table = E.bucket_errors(frame, [everything, but]).set_index("bucket")
    assert list(table["n"]) == [3, 0, 0]
    assert table.loc["but", "lift"] == pytest.approx((2 / 3) / (1 / 3)) and table.loc["everything", "lift"] == 1
    assert math.isnan(table.loc["unsorted", "lift"])


def test_buckets_without_errors_are_all_zero() -> None:
    frame = E.prediction_frame([{"text": "fine", "label": 1}], [0.9])
    table = E.bucket_errors(frame, E.REVIEW_BUCKETS)
    assert table["n"].sum() == 0 and (table["share"] == 0).all() and (table["example"] == "").all()


# The report


def test_report_writes_its_files_and_agrees_with_the_tables(frame: pd.DataFrame, tmp_path) -> None:
    page = E.error_report(frame, tmp_path / "deep" / "report", title="Trial")
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "buckets.csv", "confusion.png", "errors.csv", "reliability.png", "report.md", "slices.csv"]
    for picture in page.parent.glob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Trial\n") and f"accuracy {frame['correct'].mean():.3f} [" in text
    assert "(confusion.png)" in text and "(reliability.png)" in text
    assert pd.read_csv(page.parent / "slices.csv")["n"].tolist() == E.slice_table(frame, E.REVIEW_SLICES)["n"].tolist()
    assert len(pd.read_csv(page.parent / "errors.csv")) == (~frame["correct"]).sum()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * 2 + (1 + len(E.REVIEW_SLICES)) + (1 + len(E.REVIEW_BUCKETS))
    assert {line.replace("\\|", "").count("|") for line in rows} == {len(E.slice_table(frame, {}).columns) + 1, 7}


def test_report_never_holds_more_than_twelve_words_of_a_text(tmp_path) -> None:
    long = " ".join(f"word{i}" for i in range(60))
    frame = E.prediction_frame([{"text": long, "label": 1}, {"text": long, "label": 0}], [0.1, 0.8])
    folder = E.error_report(frame, tmp_path).parent
    for file in folder.glob("*.[mc]*"):
        assert "word12" not in file.read_text(encoding="utf-8"), file.name
    assert "word11" in (folder / "errors.csv").read_text(encoding="utf-8")


def test_report_of_many_classes_goes_to_the_runs_by_default(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    rows = [{"text": f"ticket {i}", "label": f"intent {i % 15:02d}"} for i in range(60)]
    frame = E.prediction_frame(rows, rng.dirichlet(np.ones(15), 60), classes=[f"intent {i:02d}" for i in range(15)])
    page = E.error_report(frame, slices={}, buckets=())
    assert page == tmp_path / "error_report" / "report.md" and "unsorted" in page.read_text(encoding="utf-8")


def test_report_is_the_same_twice(frame: pd.DataFrame, tmp_path) -> None:
    one, two = (E.error_report(frame, tmp_path / name) for name in "ab")
    for file in one.parent.iterdir():
        assert file.read_bytes() == (two.parent / file.name).read_bytes(), file.name


# Bad input


ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
FRAME = pd.DataFrame({"text": ["a", "b"], "label": [0, 1], "correct": [True, False], "confidence": [0.9, 0.8]})
BAD = {
    "wilson: none": (lambda: E.wilson_interval(0, 0), "n >= 1"),
    "wilson: more than all": (lambda: E.wilson_interval(3, 2), "3 of 2"),
    "wilson: level in percent": (lambda: E.wilson_interval(1, 2, 95), "between 0 and 1"),
    "bootstrap: empty": (lambda: E.bootstrap_interval([]), "non-empty"),
    "bootstrap: nothing": (lambda: E.bootstrap_interval(5), "one value per row"),
    "bootstrap: lengths": (lambda: E.bootstrap_interval([1, 2], [1], metric=np.mean), r"shapes \[\(2,\), \(1,\)\]"),
    "bootstrap: NaN": (lambda: E.bootstrap_interval([1.0, math.nan]), "holds NaN"),
    "bootstrap: no resamples": (lambda: E.bootstrap_interval([1.0], resamples=0), "at least 1"),
    "bootstrap: NaN metric": (lambda: E.bootstrap_interval([1.0, 2], metric=lambda v, axis: v.sum(axis) * np.nan),
                              "metric is NaN in 1000 of 1000"),
    "paired: lengths": (lambda: E.paired_bootstrap([1, 0], [1]), "equally long"),
    "mcnemar: scores": (lambda: E.mcnemar([0.3, 1], [0, 1]), "use paired_bootstrap"),
    "sign test: negative": (lambda: E.sign_test(-1, 2), "not be negative"),
    "rows: no gain": (lambda: E.rows_needed(0, 0.1), "0 < "),
    "rows: gain above disagreement": (lambda: E.rows_needed(0.2, 0.1), "got 0.2 and 0.1"),
    "rows: power": (lambda: E.rows_needed(0.01, 0.1, power=80), "between 0 and 1"),
    "ece: empty": (lambda: E.expected_calibration_error([], []), "non-empty"),
    "ece: lengths": (lambda: E.expected_calibration_error([0.5], [1, 0]), "equally long"),
    "ece: log-odds": (lambda: E.expected_calibration_error([-2.0], [1]), r"0\.\.1"),
    "ece: NaN": (lambda: E.expected_calibration_error([math.nan], [1]), r"0\.\.1"),
    "ece: labels as words": (lambda: E.expected_calibration_error([0.5], [2]), "0 or 1"),
    "ece: bins": (lambda: E.expected_calibration_error([0.5], [1], bins=0), "bins must be at least 1"),
    "temperature: one class": (lambda: E.fit_temperature([1.0, 2.0], [1, 1]), "both classes"),
    "temperature: infinite": (lambda: E.fit_temperature([math.inf, 2.0], [1, 0]), r"log_odds\(\) clips"),
    "temperature: backwards": (lambda: E.fit_temperature([2.0, -1.0, 3.0, -2], [0, 1, 0, 1]), "backwards"),
    "log odds": (lambda: E.log_odds([1.5]), r"0\.\.1"),
    "confusion: empty": (lambda: E.confusion_table([], []), "non-empty"),
    "confusion: lengths": (lambda: E.confusion_table([1], [1, 0]), "equally long"),
    "confusion: missing label": (lambda: E.confusion_table([1, math.nan], [1, 0]), "is missing"),
    "frame: no rows": (lambda: E.prediction_frame([], []), "at least one row"),
    "frame: no label": (lambda: E.prediction_frame([{"text": "a"}], [0.5]), "columns text and label"),
    "frame: too few": (lambda: E.prediction_frame(ROWS, [0.5]), "there are 2 rows"),
    "frame: classes": (lambda: E.prediction_frame(ROWS, [[0.2, 0.3, 0.5]] * 2), "2 classes"),
    "frame: scores": (lambda: E.prediction_frame(ROWS, [0.2, 3.0]), "call predict_proba"),
    "frame: NaN": (lambda: E.prediction_frame(ROWS, [0.2, math.nan]), r"0\.\.1"),
    "slices: empty frame": (lambda: E.slice_table(FRAME.head(0), {}), "got 0 rows"),
    "slices: no metric": (lambda: E.slice_table(FRAME, {}, metric="f1"), "column 'f1'"),
    "slices: NaN": (lambda: E.slice_table(FRAME.assign(correct=[1, math.nan]), {}), "holds NaN"),
    "slices: failing question": (lambda: E.slice_table(FRAME, {"stars": lambda row: row["stars"] > 3}),
                                 "slice 'stars' fails on row 0.*KeyError"),
    "buckets: same name": (lambda: E.bucket_errors(FRAME, [E.Bucket("a", E.CONTRAST)] * 2), "names must differ"),
    "buckets: unsorted": (lambda: E.bucket_errors(FRAME, [E.Bucket("unsorted", E.CONTRAST)]), "names must differ"),
    "buckets: no correct": (lambda: E.bucket_errors(FRAME.drop(columns="correct"), ()), "prediction_frame"),
    "report: no prediction": (lambda: E.error_report(FRAME), "prediction_frame"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_to_do(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
