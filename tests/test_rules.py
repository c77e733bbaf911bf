"""Rules and keyword lists: which rule decides, what is learnt, what bad input gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from nlp_portfolio.classic.rules import Keywords, Rules, rule_report

RULES = [("refund|money back", "refund"), ("cancel", "cancel"), (r"\bcode\b", "login")]
TEXTS = ["Money back!", "please CANCEL it, no refund", "cancel it", "my encoder", "the code", ""]
TRUTH = ["refund", "cancel", "cancel", "other", "login", "other"]


def fitted() -> Rules:
    return Rules(RULES, default="other").fit(TEXTS, TRUTH)


def test_the_first_rule_that_is_found_decides():
    assert fitted().fired(TEXTS).tolist() == [0, 0, 1, -1, 2, -1]
    assert fitted().predict(TEXTS).tolist() == ["refund", "refund", "cancel", "other", "login", "other"]


@given(st.lists(st.text(alphabet="abc ", max_size=8), max_size=12))
def test_rules_agree_with_the_plain_loop(texts):
    rules = [("ab", "x"), ("b", "y"), ("^c", "z")]
    expected = ["x" if "ab" in text else "y" if "b" in text else "z" if text.startswith("c") else "none" for text in texts]
    assert Rules(rules, default="none").fit(["a"], ["x"]).predict(texts).tolist() == expected


def test_without_a_default_the_commonest_label_answers():
    assert Rules(RULES).fit(["a", "b", "c"], ["late", "late", "soon"]).predict(["nothing"]).tolist() == ["late"]


def test_a_report_counts_what_each_rule_did():
    report = rule_report(fitted(), TEXTS, TRUTH)
    assert report["fired"].tolist() == [2, 1, 1, 2]
    assert report["right"].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert report["label"].tolist() == ["refund", "cancel", "login", "other"]
    silent = rule_report(fitted(), ["refund"], ["refund"])
    assert np.isnan(silent.loc["default", "right"]) and silent.loc["default", "fired"] == 0


@pytest.mark.parametrize(("rules", "message"), [
    ([], "at least one rule"),
    ([("ok", "a"), ("refund(", "b")], r"'refund\(' is no regular expression"),
])
def test_broken_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        Rules(rules).fit(["a"], ["x"])


@pytest.mark.parametrize("make", [lambda: Rules(RULES), Keywords])
def test_bad_input_gets_a_clear_error(make):
    with pytest.raises(TypeError, match="got one string"):
        make().fit("one text", ["x"])
    with pytest.raises(TypeError):
        make().fit(["a", None], ["x", "y"])
    with pytest.raises(ValueError, match="one label per text"):
        make().fit(["a", "b"], ["x"])
    with pytest.raises(ValueError, match="at least one text"):
        make().fit([], [])
    with pytest.raises(NotFittedError):
        make().predict(["a"])
    with pytest.raises(TypeError, match="got one string"):
        make().fit(["a"], ["x"]).predict("one text")
    assert make().fit(["a"], ["x"]).predict([]).tolist() == []


def test_unequal_lengths_of_a_report():
    with pytest.raises(ValueError, match="one label per text, got 2 texts and 1 labels"):
        rule_report(fitted(), ["a", "b"], ["x"])


CORPUS = ["the parcel is late", "where is the parcel", "the parcel", "a parcel for you", "refund the money", "money back",
          "the money", "give the money"]
LABELS = ["delivery"] * 4 + ["refund"] * 4


def test_typical_words_are_learnt_and_common_ones_are_not():
    model = Keywords(per_class=1).fit(CORPUS, LABELS)
    assert model.words_ == {"delivery": ["parcel"], "refund": ["money"]}
    assert "the" not in Keywords(per_class=1).fit(CORPUS, LABELS).words_["refund"]
    assert model.predict(["PARCEL?", "my money", "hello"]).tolist() == ["delivery", "refund", "delivery"]


def test_strength_is_observed_against_expected():
    learnt = Keywords(per_class=9).fit(CORPUS, LABELS).words_
    assert learnt == {"delivery": ["parcel"], "refund": ["money"]}  # "the" is as often as expected


def test_a_frequent_word_may_be_more_typical_than_a_rare_one():
    texts = ["late rare"] * 3 + ["late"] * 7 + ["-"] * 2 + ["late"] * 2 + ["-"] * 10  # late: 10 for 6 expected; rare: 3 for 1.5
    assert Keywords(per_class=1).fit(texts, ["x"] * 12 + ["y"] * 12).words_["x"] == ["late"]


def test_own_lists_vote_with_different_words_once():
    model = Keywords({"b": ["Late", "parcel"], "a": ["refund"]}, default="none").fit(["x"], ["none"])
    assert model.votes(["late late parcel refund", ""]).tolist() == [[1, 2], [0, 0]]
    assert model.predict(["late refund refund", "late parcel refund", "x"]).tolist() == ["a", "b", "none"]


def test_lists_have_at_least_one_word():
    with pytest.raises(ValueError, match="per_class of at least 1"):
        Keywords(per_class=0).fit(CORPUS, LABELS)
    with pytest.raises(ValueError, match="at least one list"):
        Keywords({}).fit(CORPUS, LABELS)


@pytest.mark.parametrize("texts", [["", ""], ["a b", "c d"], ["?", "!"]])
def test_texts_without_typical_words_get_the_default(texts):
    assert Keywords(default="none").fit(texts, ["x", "y"]).predict(["zebra", ""]).tolist() == ["none", "none"]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=10), st.integers(1, 5))
def test_any_text_gets_a_known_label(texts, per_class):
    model = Keywords(per_class=per_class).fit(CORPUS, LABELS)
    assert set(model.predict(texts)) <= set(model.classes_)
    assert set(clone(model).fit(CORPUS, LABELS).predict(texts)) <= {"delivery", "refund"}
