"""The judge of groundedness: signals that count, evidence cut to what matters, pairs that stay pairs, and a file that loads."""

import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_portfolio.llm.judge import MOST_WORDS, SIGNALS, Judge, altered, altered_rows, best_evidence, content, signals
from nlp_portfolio.neural.lora import adapter_folder, read_card

FACT = "The Danube is 2850 km long and flows through Vienna before it reaches Budapest."


def named(claim: str, evidence: str) -> dict[str, float]:
    return dict(zip(SIGNALS, signals(claim, evidence), strict=True))


@given(st.text(max_size=200), st.text(max_size=200))
def test_signals_are_finite_for_any_text(claim, evidence):
    row = signals(claim, evidence)
    assert row.shape == (len(SIGNALS),) and np.isfinite(row).all() and row[0] >= 0


@given(st.lists(st.sampled_from("river bridge stone seven old crosses quickly Vienna".split()), min_size=1, max_size=12))
def test_a_copy_covers_everything(words):
    row = named(text := " ".join(words), text)
    same = {"words found": 1, "words missing": 0, "longest run": 1, "in order": 1, "numbers missing": 0, "negation differs": 0}
    assert {name: row[name] for name in same} == same


@pytest.mark.parametrize(("claim", "signal"), [
    ("The Danube is 2950 km long.", "numbers missing"), ("It flows through Linz before Vienna.", "names missing"),
    ("The Danube isn't 2850 km long.", "negation differs"), ("I like the Danube.", "first person"),
    ("Is the Danube long?", "asks"),
    ("The Danube is polluted.", "words missing")])
def test_each_signal_sees_its_change(claim, signal):
    assert named(claim, FACT)[signal] >= 1 and named("The Danube is 2850 km long.", FACT)[signal] == 0


def test_tokenized_negations_count_as_negations():
    claims = "It isn't open.", "It is n't open.", "It is not open .", "It is open."
    assert [named(claim, "It is open.")["negation differs"] for claim in claims] == [1, 1, 1, 0]
    assert content("They couldn't find any keys.") == ["find", "key"]


def test_long_evidence_is_cut_to_what_the_claim_is_about():
    long = " ".join(f"Sentence number {i} says nothing of interest." for i in range(60)) + f" {FACT} " + "Bread needs salt. " * 30
    cut = best_evidence("The Danube reaches Budapest after Vienna.", long)
    assert FACT in cut and len(content(cut)) < MOST_WORDS and best_evidence("The Danube", FACT) == FACT


@settings(max_examples=40)
@given(st.text(max_size=60), st.text(min_size=1, max_size=600))
def test_best_evidence_takes_whole_pieces_in_order(claim, evidence):
    cut, at = best_evidence(claim, evidence, most=5), 0
    for word in cut.split():
        at = evidence.index(word, at)
        at += 1


def test_altered_copies_say_something_else():
    made = altered("The bridge was built before 1912 by Erika Muster.", random.Random(1), ["Berlin"])
    assert made["negated"] == "The bridge was not built before 1912 by Erika Muster."
    assert made["opposite"] == "The bridge was built after 1912 by Erika Muster."
    assert "1912" not in made["number"] and "Berlin" in made["name"]
    assert altered("It is not open.", random.Random(0))["negated"] == "It is open."
    assert altered("Blue whales sing songs.", random.Random(0)).keys() <= {"opposite"}


def test_altered_rows_are_pairs_of_copy_and_change():
    data = [{"knowledge": f"{name} was built in {1900 + i}.", "response": "x", "label": "Generic"}
            for i, name in enumerate(["Abbey", "Barn", "Castle"] * 4)]
    rows = altered_rows(data, every=1)
    assert rows == altered_rows(data, every=1) and len(rows) == 24
    for copy, change in zip(rows[::2], rows[1::2], strict=True):
        assert copy[0] == copy[1] == change[1] != change[0] and (copy[2], change[2]) == (True, False)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_the_shipped_judge_tells_support_from_denial(judge):
    claims = [FACT, "The Danube flows through Vienna and then reaches Budapest.", FACT.replace(" is ", " is not "),
              FACT.replace("Vienna", "Linz"), "Bread is best with butter."]
    assert [judge.supports(claim, FACT) for claim in claims] == [True, True, False, False, False]


def test_scores_do_not_depend_on_the_company_they_are_in(judge):
    pairs = [(FACT, FACT), ("Bread is best with butter.", FACT), ("The Danube is long.", FACT * 20), ("", FACT), ("!?", FACT),
             (FACT, "")]
    together, alone = judge.score(pairs), np.array([judge.score([pair])[0] for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert together.dtype == np.float64 and ((together >= 0) & (together <= 1)).all() and list(together[3:]) == [0, 0, 0]
    assert judge.score([]).shape == (0,)


@pytest.mark.parametrize("text", ["", "a" * 5000, "\ud800 half", "nul\0byte", "record\x1eseparator " * 3, "🙂🙂"])
def test_odd_texts_get_a_score(judge, text):
    assert 0 <= judge.score([(text, FACT)])[0] <= 1 and 0 <= judge.score([(FACT, text)])[0] <= 1


@pytest.mark.parametrize("bad", [["one string"], [(FACT, None)], [(float("nan"), FACT)], [(FACT, FACT, FACT)]])
def test_what_is_no_pair_of_texts_is_refused(judge, bad):
    with pytest.raises(TypeError, match="expected"):
        judge.score(bad)


def test_a_folder_without_a_judge_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no judge"):
        Judge.load("banking77")
    shutil.copytree(adapter_folder("groundedness"), tmp_path / "copy")
    card = read_card(tmp_path / "copy")
    del card["judge"]
    (tmp_path / "copy/card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ValueError, match="train_judge writes one"):
        Judge.load(tmp_path / "copy")


def test_the_card_says_what_it_should(judge):
    card = read_card("groundedness")
    assert card["licence"] == "CC BY 4.0" and card["data"]["name"] == "begin" and card["data"]["split"] == "train"
    assert card["file_bytes"] <= 2_000_000 and card["metrics"]["split"] == "test" and card["metrics"]["agreement"] >= 0.85
    assert set(card["judge"]) == {"signals", "encoder", "both"} and judge.threshold == card["judge"]["both"]["threshold"]


@pytest.mark.parametrize("text", ["word " * 10**5, "Word. " * 20_000, "x" * 500_000])
def test_huge_texts_take_no_longer_than_their_first_words(text):
    light = Judge.load(witness="signals")
    assert (light.score([(text, FACT), (FACT, text), (text, text)]) >= 0).all()


def test_another_witness_is_refused():
    with pytest.raises(ValueError, match="choose one of both, encoder, signals"):
        Judge.load(witness="cosine")
