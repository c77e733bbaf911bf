"""Fronts and decisions: who is beaten, what is broken, and that nothing unmeasured is chosen."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.evaluation.tradeoffs import Requirements, decide, obstacles, pareto_front

nan = math.nan
TABLE = pd.DataFrame({
    "quality": [0.70, 0.80, 0.795, 0.60, nan],
    "p95_ms": [2.0, 30.0, 15.0, 400.0, nan],
    "cost": [0.001, 0.01, 0.005, 0.1, 0.2],
    "mb": [3.0, 92.0, 25.0, 100.0, nan],
    "labels": [1000, 1000, 1000, 0, 0],
    "cites": [False, False, False, True, True],
    "leaves": [False, False, False, False, True],
}, index=["linear", "encoder", "small encoder", "quotes", "hosted"])
NUMBERS = st.one_of(st.just(nan), st.integers(0, 4).map(float))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=9))
def test_the_front_is_what_no_other_beats(pairs):
    def beats(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    expected = [not (math.isnan(a) or math.isnan(b)) and not any(beats(other, (a, b)) for other in pairs) for a, b in pairs]
    less, more = np.array(pairs, dtype=float).reshape(-1, 2).T
    assert pareto_front(less, more).tolist() == expected


def test_a_front_needs_two_numbers_a_candidate():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        pareto_front([1, 2], [1])


@pytest.mark.parametrize(("wanted", "margin", "choice"), [
    (Requirements(), 0.0, "encoder"),
    (Requirements(), 0.01, "small encoder"),
    (Requirements(), 0.2, "linear"),
    (Requirements(p95_ms=15), 0.0, "small encoder"),
    (Requirements(mb=10), 0.0, "linear"),
    (Requirements(labels=0), 0.0, "quotes"),
    (Requirements(cited=True), 0.0, "quotes"),
    (Requirements(cost=0.001), 0.0, "linear"),
    (Requirements(cited=True, p95_ms=100), 0.0, None),
    (Requirements(quality=0.81), 0.0, None),
])
def test_requirements_come_first_then_quality_then_cost(wanted, margin, choice):
    found, verdicts = decide(TABLE, wanted, margin)
    assert found == choice
    assert (verdicts["verdict"] == "chosen").sum() == (choice is not None)
    assert set(verdicts.index) == set(TABLE.index)


def test_every_reason_is_said():
    wanted = Requirements(p95_ms=1, cost=0.05, mb=10, labels=5, quality=0.9, cited=True, inside=True)
    assert obstacles(TABLE, wanted)["encoder"] == [
        "p95 30 ms, at most 1", "92 MB, at most 10", "needs 1,000 labels, 5 are there", "quality 0.800, at least 0.900",
        "cites nothing"]
    assert obstacles(TABLE, wanted)["hosted"] == [
        "p95_ms was not measured", "costs 0.2 for 1,000, at most 0.05", "mb was not measured", "quality was not measured",
        "text leaves the house"]


def test_limits_are_kept_when_they_are_met_exactly():
    exact = Requirements(p95_ms=2.0, cost=0.001, mb=3.0, labels=1000, quality=0.70)
    assert obstacles(TABLE, exact)["linear"] == []


def test_what_nobody_measured_is_never_chosen():
    only = TABLE.loc[["hosted"]]
    choice, verdicts = decide(only, Requirements())
    assert choice is None and verdicts.loc["hosted", "verdict"] == "out: quality was not measured"


def test_within_the_margin_the_cheaper_one_is_chosen_even_if_it_is_slower():
    slow = TABLE.assign(p95_ms=TABLE["p95_ms"].where(TABLE.index != "small encoder", 90.0))
    assert decide(slow, Requirements(), 0.01)[0] == "small encoder"


def test_verdicts_of_those_that_fit():
    verdicts = decide(TABLE, Requirements(), 0.01)[1]["verdict"]
    assert verdicts["encoder"] == "fits, as good within the margin, and dearer"
    assert verdicts["linear"] == "fits, 0.100 behind the best"


def test_bad_input_gets_a_clear_error():
    with pytest.raises(ValueError, match="lacks mb, leaves"):
        obstacles(TABLE.drop(columns=["mb", "leaves"]), Requirements())
    with pytest.raises(ValueError, match="margin must be 0 or more"):
        decide(TABLE, Requirements(), -0.1)
    with pytest.raises(ValueError, match="margin must be 0 or more"):
        decide(TABLE, Requirements(), nan)
