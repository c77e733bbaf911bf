"""Toxicity: masking, thresholds by cost, calibration, shares, HateCheck's table."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_portfolio.evaluation.errors import expected_calibration_error
from nlp_portfolio.safety import toxicity as tox
from nlp_portfolio.safety.toxicity import (
    Cost,
    agreement,
    at_share,
    by_functionality,
    calibrate,
    choose_threshold,
    cost_curve,
    flag_rates,
    mask,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 400)
SCORES = np.clip(0.5 + 0.25 * (LABELS - 0.5) + RNG.normal(0, 0.2, 400), 0, 1)


# ---- mask: the words themselves stand nowhere in this repository, so a harmless list stands in for them


@pytest.fixture
def listed(monkeypatch):
    "The words zebra and gnu are on the list."
    monkeypatch.setattr(tox, "_is_listed", lambda word: word in ("zebra", "gnu"))


@pytest.mark.parametrize(("text", "shown"), [
    ("A zebra!", "A z****!"), ("ZEBRAS, zebraz", "Z*****, z*****"),
    ("z3br4 and 2ebra", "z**** and 2ebra"), ("two gnus", "two g***"),
    ("subzebrafoo", "subz****foo"), ("ignus", "ignus"), ("zebra_gnu", "z****_gnu"), ("", ""), ("z e b r a", "z e b r a"),
    ("zebra" * 3, "z****" * 3), ("İzebra", "İz****"), ("nul\0zebra\ud83d", "nul\0z****\ud83d"),
])
def test_mask(listed, text, shown):
    assert mask(text) == shown


def test_mask_knows_the_shipped_list():
    assert mask("b1tch, please").startswith("b****,") and mask("sh1t") == "s***"
    assert len(tox._listed()) >= 80 and all(len(one) == 16 for one in tox._listed())


EVERYDAY = "Scunthorpe Pakistan raccoons scripts class Dickens cockpit assassin spicy Niger shitake Essex therapist"


@pytest.mark.parametrize("word", EVERYDAY.split())
def test_mask_leaves_everyday_words(word):
    assert mask(word) == word


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_mask_keeps_the_length_and_is_stable(text):
    once = mask(text)
    assert len(once) == len(text) and mask(once) == once


def test_mask_refuses_what_is_no_text():
    with pytest.raises(TypeError, match="expected text, got int"):
        mask(3)


# ---- costs


@pytest.mark.parametrize("values", [(0, 1), (1, -1), (float("nan"), 1), (float("inf"), 1)])
def test_costs_are_above_zero(values):
    with pytest.raises(ValueError, match="costs must be numbers above 0"):
        Cost(*values)


def counted(threshold, cost, share):
    "The cost of 1,000 texts by counting, straight from its meaning."
    stop = SCORES >= threshold
    missed, silenced = (~stop[LABELS == 1]).mean(), stop[LABELS == 0].mean()
    return 1000 * (share * missed * cost.missed + (1 - share) * silenced * cost.silenced)


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("missed", [0.2, 1, 3, 50])
def test_the_chosen_threshold_is_the_cheapest_of_a_fine_grid(missed, share):
    cost = Cost(missed)
    best = choose_threshold(SCORES, LABELS, cost, share)
    assert best.cost == pytest.approx(counted(best.threshold, cost, share))
    assert best.cost <= min(counted(at, cost, share) for at in np.linspace(0, 1.01, 1000)) + 1e-9


def test_the_curve_begins_with_stopping_nothing_and_ends_with_stopping_everything():
    curve = cost_curve(SCORES, LABELS, Cost(3), 0.25)
    assert curve.iloc[0].tolist() == [np.inf, 1.0, 0.0, 750.0]
    assert curve["threshold"].is_monotonic_decreasing
    assert curve.iloc[-1][["missed", "silenced", "cost"]].tolist() == [0.0, 1.0, 750.0]


def test_a_dearer_miss_never_raises_the_threshold():
    cuts = [choose_threshold(SCORES, LABELS, Cost(missed), 0.25).threshold for missed in (0.1, 0.5, 1, 3, 10, 100)]
    assert cuts == sorted(cuts, reverse=True) and cuts[0] > cuts[-1]


def test_without_a_share_the_rows_are_the_traffic():
    assert choose_threshold(SCORES, LABELS, Cost(2)) == choose_threshold(SCORES, LABELS, Cost(2), LABELS.mean())


def test_of_equally_cheap_thresholds_the_one_that_silences_least():
    assert choose_threshold([0.9, 0.8], [0, 1], Cost(1), 0.5) == (np.inf, 1.0, 0.0, 500.0)


@pytest.mark.parametrize(("p", "y", "share"), [
    ([], [], None), ([0.1], [0], None), ([0.1, 0.2], [0, 1], 0), ([0.1, 0.2], [0, 1], 1), ([0.1, 2.0], [0, 1], None),
    ([0.1, np.nan], [0, 1], None), ([0.1, 0.2], [0, 2], None), ([0.1, 0.2, 0.3], [0, 1], None),
])
def test_bad_columns_have_no_curve(p, y, share):
    with pytest.raises(ValueError, match="need a probability for each label, both classes, and a share"):
        cost_curve(p, y, Cost(1), share)


def test_honest_probabilities_need_no_search():
    p = np.random.default_rng(1).random(60_000)
    y = (np.random.default_rng(2).random(60_000) < p).astype(int)
    for cost in (Cost(1), Cost(3), Cost(9)):
        assert abs(choose_threshold(p, y, cost).threshold - cost.threshold) < 0.03


# ---- calibration and shares


def test_calibration_repairs_boasting_and_keeps_the_order():
    p = np.random.default_rng(3).random(4000)
    y = (np.random.default_rng(4).random(4000) < p).astype(int)
    boast = 1 / (1 + (1 / np.clip(p, 1e-9, 1 - 1e-9) - 1) ** 4)
    repaired = calibrate(boast, y)(boast)
    assert expected_calibration_error(repaired, y) < 0.03 < 0.1 < expected_calibration_error(boast, y)
    assert (np.diff(repaired[np.argsort(boast)]) >= 0).all()


def test_at_share_is_bayes_and_comes_back():
    p = np.linspace(0.01, 0.99, 50)

    def odds(q):
        return q / (1 - q)

    assert np.allclose(odds(at_share(p, 0.5, 0.02)), odds(p) * odds(0.02))
    assert np.allclose(at_share(at_share(p, 0.5, 0.02), 0.02, 0.5), p)
    assert at_share(0.5, 0.5, 0.02) == pytest.approx(0.02) and at_share([0, 1], 0.3, 0.1).tolist() == [0, 1]


def test_at_share_matches_counting():
    p = np.random.default_rng(5).random(200_000)
    y = np.random.default_rng(6).random(200_000) < p
    keep = ~y | (np.random.default_rng(7).random(200_000) < 0.1)
    moved = at_share(p[keep], y.mean(), y[keep].mean())
    assert expected_calibration_error(moved, y[keep]) < 0.01 < 0.1 < expected_calibration_error(p[keep], y[keep])


@pytest.mark.parametrize("shares", [(0, 0.5), (0.5, 1), (1.2, 0.5)])
def test_shares_lie_between_zero_and_one(shares):
    with pytest.raises(ValueError, match="shares must lie between 0 and 1"):
        at_share([0.5], *shares)


# ---- tables


def test_flag_rates_counts_and_sorts():
    table = flag_rates(["a", "b", "b", "a", "b"], [True, False, False, False, True])
    assert table.index.tolist() == ["a", "b"] and table["n"].tolist() == [2, 3]
    assert table["flagged"].tolist() == [0.5, pytest.approx(1 / 3)]
    assert ((table["low"] < table["flagged"]) & (table["flagged"] < table["high"])).all()
    with pytest.raises(ValueError, match="no rows"):
        flag_rates([], [])
    with pytest.raises(ValueError, match="same length"):
        flag_rates(["a"], [True, False])


CASES = pd.DataFrame({"functionality": ["threat_dir_h"] * 6 + ["counter_quote_nh"] * 4, "label": [1] * 6 + [0] * 4,
                      "template": ["1", "1", "1", "2", "2", "2", "3", "3", "4", "4"]})


def test_functionalities_are_counted_by_template():
    table = by_functionality(CASES, [0.9, 0.8, 0.7, 0.2, 0.3, 0.1, 0.6, 0.9, 0.1, 0.2])
    assert table["accuracy"].tolist() == [0.5] * 5 and sorted(table["n"]) == [4, 4, 6, 6, 10]
    assert table.index[-3:].tolist() == ["hateful", "non-hateful", "all"] and table["what"]["threat_dir_h"] == "a threat"
    assert table.loc["threat_dir_h", ["low", "high"]].tolist() == [0.0, 1.0]  # two templates, one right: nothing is known


def test_all_right_is_not_certain():
    table = by_functionality(CASES, [1.0] * 6 + [0.0] * 4)
    assert table["accuracy"].tolist() == [1.0] * 5 and table["high"].tolist() == [1.0] * 5
    assert table.loc["threat_dir_h", "low"] < 0.5
    wrong = by_functionality(CASES, [0.0] * 6 + [1.0] * 4)
    assert wrong["accuracy"].tolist() == [0.0] * 5 and wrong["low"].tolist() == [0.0] * 5
    assert wrong.loc["all", "high"] > 0.2


def test_the_threshold_counts_as_hateful():
    assert by_functionality(CASES, [0.5] * 10, 0.5).loc["hateful", "accuracy"] == 1.0
    assert by_functionality(CASES, [0.5] * 10, 0.500001).loc["hateful", "accuracy"] == 0.0


def test_the_worst_comes_first():
    table = by_functionality(CASES, [0.9] * 6 + [0.9] * 4)
    assert table.index.tolist() == ["counter_quote_nh", "threat_dir_h", "hateful", "non-hateful", "all"]


def test_a_missing_probability_is_an_error():
    with pytest.raises(ValueError, match="need one probability a case, got 3 for 10"):
        by_functionality(CASES, [0.1, 0.2, 0.3])


def test_every_functionality_has_words():
    from nlp_portfolio.course.datasets import load

    assert set(load("hatecheck", "cases", source="sample")["functionality"]) == set(tox.FUNCTIONALITIES)


def test_agreement_counts_pairs():
    assert agreement([0, 1, 2, 3], [3, 3, 3, 3]).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1])
    for yes in range(6):
        votes = [1] * yes + [0] * (5 - yes)
        pairs = [votes[i] == votes[j] for i in range(5) for j in range(i)]
        assert agreement([yes], [5])[0] == pytest.approx(np.mean(pairs))
    for bad in (([0], [1]), ([4], [3]), ([-1], [3])):
        with pytest.raises(ValueError, match="two readers or more"):
            agreement(*bad)
