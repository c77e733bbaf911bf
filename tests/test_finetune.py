"What lesson 22 says of transformers and Optuna, held against transformers and Optuna."

import numpy as np
import pytest

pytest.importorskip("torch")
optuna = pytest.importorskip("optuna")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers import AutoTokenizer, DataCollatorWithPadding  # noqa: E402

from nlp_portfolio.course.models import minilm_path  # noqa: E402
from nlp_portfolio.exercises.lesson_22 import cheapest, collate, prune, scope  # noqa: E402
from nlp_portfolio.neural.scope import scope_report  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(minilm_path())


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 999), min_size=1, max_size=20), min_size=1, max_size=5), multiple=st.integers(1, 9))
def test_the_collator_of_the_exercise_is_transformers(tokenizer, rows: list[list[int]], multiple: int) -> None:
    theirs = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)([{"input_ids": row} for row in rows])
    ids, mask = collate(rows, tokenizer.pad_token_id, multiple)
    assert (ids, mask) == (theirs["input_ids"].tolist(), theirs["attention_mask"].tolist())


scores = st.integers(0, 9).map(lambda x: x / 10)


curves = st.lists(st.lists(scores, min_size=4, max_size=4), max_size=5)


@settings(max_examples=60, deadline=None)
@given(curves, st.lists(scores, min_size=1, max_size=4), st.integers(1, 4))
def test_the_pruner_of_the_exercise_is_optunas(finished: list[list[float]], running: list[float], startup: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=startup))
    for curve in finished:
        trial = study.ask()
        for epoch, score in enumerate(curve):
            trial.report(score, epoch)
        study.tell(trial, curve[-1])
    trial = study.ask()
    for epoch, score in enumerate(running):
        trial.report(score, epoch)
    assert prune(finished, running, startup) == trial.should_prune()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(-1, 1))
def test_the_scope_of_the_exercise_is_the_librarys(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    rows = list(zip(["a", "b", "oos"] * 9, rng.choice(["a", "b"], 27), rng.normal(size=27), strict=True))
    report = scope_report(*zip(*rows, strict=True), threshold, resamples=10)
    np.testing.assert_allclose(scope(rows, threshold), (report["in_scope_accuracy"], report["oos_recall"]), atol=1e-12)


def test_a_dear_blunder_rejects_more() -> None:
    rng = np.random.default_rng(0)
    rows = [("right", float(s)) for s in rng.normal(7, 1, 80)] + [("oos", float(s)) for s in rng.normal(5, 1, 20)]
    thresholds = [3 + 0.25 * i for i in range(20)]
    assert cheapest(rows, 1, 0.5, thresholds) < cheapest(rows, 1, 3, thresholds) < cheapest(rows, 1, 30, thresholds)
