"""Scores of grounded answers count what they say, name failures in their order, and refuse bad input."""

import csv
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from test_samples import distinct, shared_runs

from nlp_portfolio.course.datasets import load
from nlp_portfolio.llm.generators import REFUSAL, Citation
from nlp_portfolio.llm.grounding import (
    BUCKETS,
    bucket,
    citation_scores,
    disclaimer,
    evaluate,
    exact,
    fact_check,
    failure_log,
    found_at,
    groundedness,
    helpfulness,
    rated_answers,
    summary,
)
from nlp_portfolio.llm.ledger import Ledger
from nlp_portfolio.llm.rag import Grounded
from nlp_portfolio.retrieval.corpus import Question, questions
from nlp_portfolio.retrieval.documents import Hit, Passage

SPOONS = "Wooden spoons last for years. Iron pans must be seasoned with oil. Copper pots need a lining of tin."
KNIVES = "Carbon steel rusts when it stays wet. A honing rod straightens the edge of a knife."
SEEN = (Passage("p1", SPOONS), Passage("p2", KNIVES))


def quoted(*parts: tuple[int, str], text: str | None = None, **more) -> Grounded:
    "An answer made of quotes: (number, quote)."
    cited = tuple(Citation(n, SEEN[n - 1].id, at := SEEN[n - 1].text.index(part), at + len(part), part) for n, part in parts)
    said = " ".join(f"{part} [{n}]" for n, part in parts) if text is None else text
    return Grounded("?", said, cited, SEEN, **more)


def refused(*near: Passage) -> Grounded:
    return Grounded("?", REFUSAL, passages=near, refused=True, nearest=tuple(Hit(one, 1.0) for one in near))


def asking(*quotes: str, kind: str | None = None) -> Question:
    kind = kind or ("answerable", "multi-passage")[len(quotes) > 1] if quotes else "unanswerable"
    return Question("q", "how?", kind, quotes, "so", "dev", "library")


PANS, POTS = "Iron pans must be seasoned with oil.", "Copper pots need a lining of tin."
ROD = "A honing rod straightens the edge of a knife."


class Fixed:
    "A judge that says what it is told."

    threshold = 0.5

    def __init__(self, **scores: float):
        self.scores, self.seen = scores, []

    def score(self, pairs):
        self.seen += pairs
        return np.array([next((value for word, value in self.scores.items() if word in claim), 0.0) for claim, _ in pairs])


@given(st.integers(-3, 4), st.integers(-5, 120), st.integers(-5, 120), st.text(max_size=8))
def test_exact_is_equality_with_the_piece_of_the_passage(number, start, end, quote):
    there = 1 <= number <= 2 and bool(quote) and SEEN[number - 1].text[start:end] == quote
    name = SEEN[number - 1].id if 1 <= number <= 2 else "p1"
    assert exact(Citation(number, name, start, end, quote), SEEN) is there


def test_exact_sees_one_character_another_number_and_another_passage():
    one = quoted((1, PANS)).citations[0]
    assert exact(one, SEEN) is True
    assert [exact(bad, SEEN) for bad in (replace(one, end=one.end - 1), replace(one, number=2), replace(one, passage="p2"),
                                         replace(one, quote=one.quote.upper()), replace(one, number=0))] == [False] * 5


def test_citation_scores_by_hand():
    scores = citation_scores(quoted((1, PANS), (1, POTS), (2, ROD)), [PANS, ROD, "Nobody has written this sentence anywhere."])
    assert (scores.precision, scores.recall, scores.exact, scores.attributed) == pytest.approx((2 / 3, 2 / 3, 1.0, 1.0))
    half = quoted((1, PANS), text=f"{PANS} [1] Knives are sharp.")
    assert citation_scores(half, [PANS]).attributed == 0.5
    broken = replace(half, citations=(replace(half.citations[0], start=0),))
    assert (citation_scores(broken, [PANS]).exact, citation_scores(broken, [PANS]).attributed) == (0.0, 0.0)


def test_nothing_to_count_is_nan_and_a_refusal_recalls_nothing():
    scores = citation_scores(refused(*SEEN), [PANS])
    assert scores.recall == 0.0 and [math.isnan(x) for x in (scores.precision, scores.exact, scores.attributed)] == [True] * 3
    assert math.isnan(citation_scores(refused(*SEEN), []).recall) and citation_scores(quoted((1, PANS)), []).precision == 0.0


def test_one_string_of_gold_is_refused():
    with pytest.raises(TypeError, match=r"write \[quote\]"):
        citation_scores(quoted((1, PANS)), PANS)


@pytest.mark.parametrize(("answer", "question", "mark"), [
    (refused(*SEEN), asking(), 3), (quoted((1, PANS)), asking(), 0),
    (refused(*SEEN), asking(ROD), 1), (refused(SEEN[0]), asking(ROD), 0),
    (quoted((1, PANS)), asking(PANS), 3), (quoted((1, PANS), (1, POTS)), asking(PANS), 3),
    (quoted((1, PANS), (1, POTS), (2, ROD)), asking(PANS), 2), (quoted((1, PANS)), asking(PANS, ROD), 2),
    (quoted((1, POTS)), asking(PANS), 1), (quoted((2, ROD)), asking(PANS), 0)])
def test_helpfulness_is_the_rubric(answer, question, mark):
    assert helpfulness(answer, question) == mark


def test_a_judge_takes_the_marks_of_an_unsupported_sentence():
    false = quoted((1, PANS), text="Iron pans must never see oil. [1]")
    assert helpfulness(false, asking(PANS)) == 3
    assert [helpfulness(false, asking(PANS), Fixed(Iron=score)) for score in (0.49, 0.5)] == [0, 3]


def test_groundedness_is_the_weakest_sentence_and_a_quote_supports_itself():
    mixed = quoted((1, PANS), (2, ROD), text=f"{PANS} [1] Rods sharpen. [2] Irons do not. [1]")
    judge = Fixed(Rods=0.8, Irons=0.3)
    assert groundedness(mixed, judge) == 0.3
    assert judge.seen == [("Rods sharpen.", ROD), ("Irons do not.", PANS)]
    assert groundedness(quoted((1, PANS)), Fixed()) == 1.0 and math.isnan(groundedness(refused(*SEEN), Fixed()))


def test_quotes_that_end_without_a_full_stop_are_read_as_one_sentence_and_still_support_themselves():
    first, second = "Iron pans must be seasoned", "Copper pots need a lining of tin."
    both = quoted((1, first), (1, second), text=f"{first} [1] {second} [1]")
    judge = Fixed(Iron=0.2)
    assert groundedness(both, judge) == 1.0 and judge.seen == []


def test_found_at_gives_the_first_rank_of_each_quote():
    assert found_at(refused(*SEEN), asking(ROD, PANS, "Not there at all.")) == (2, 1, None)
    assert found_at(refused(*SEEN), asking()) == ()


@pytest.mark.parametrize(("answer", "question", "name"), [
    (quoted((1, PANS)), asking(PANS), "right"), (refused(*SEEN), asking(), "right"),
    (quoted((1, PANS)), asking(), "answered though unanswerable"), (refused(*SEEN), asking(PANS), "refused though answerable"),
    (refused(SEEN[0]), asking(ROD), "retrieval missed"), (quoted((1, PANS)), asking(ROD), "wrong sentence"),
    (quoted((1, PANS)), asking("It stands in no passage at all."), "retrieval missed"),
    (quoted((1, PANS)), asking(PANS, ROD), "incomplete"),
    (replace(quoted((1, PANS)), passages=(SEEN[1], SEEN[0])), asking(), "broken citation")])
def test_buckets(answer, question, name):
    assert bucket(answer, question, found_at(answer, question)) == name and name in BUCKETS


def test_bucket_wants_one_rank_a_quote():
    with pytest.raises(ValueError, match="use found_at"):
        bucket(quoted((1, PANS)), asking(PANS, ROD), [1])


class Scripted:
    "A system that answers by a script."

    def __init__(self, *answers: Grounded):
        self.answers = list(answers)

    def ask(self, question: str) -> Grounded:
        return replace(self.answers.pop(0), question=question, seconds={"total": 0.25}, cost=0.002)


def evaluated() -> pd.DataFrame:
    asked = [replace(one, id=f"q{i}") for i, one in enumerate((asking(PANS), asking(ROD), asking(), asking(), asking(PANS, ROD)))]
    ledger = Ledger()
    answers = quoted((1, PANS)), refused(*SEEN), refused(*SEEN), quoted((1, POTS)), quoted((1, PANS))
    frame = evaluate(Scripted(*answers), asked, ledger=ledger)
    assert len(ledger) == 5
    return frame


def test_evaluate_has_one_row_a_question():
    frame = evaluated()
    assert list(frame.index) == ["q0", "q1", "q2", "q3", "q4"]
    assert list(frame["bucket"]) == ["right", "refused though answerable", "right", "answered though unanswerable", "incomplete"]
    assert list(frame["helpfulness"]) == [3, 1, 3, 0, 2]
    assert frame["seconds"].eq(0.25).all() and frame["groundedness"].isna().all()


def test_summary_counts_each_measure_over_its_own_rows():
    table = summary(evaluated(), resamples=50)
    expected = {"refused of unanswerable": (1 / 2, 2), "answered of answerable": (2 / 3, 3), "exact quotes": (1, 3),
                "citation precision": (1, 2), "citation recall": (3 / 4, 2), "gold cited of all gold": (1 / 2, 3),
                "helpfulness": (9 / 5, 5), "right": (2 / 5, 5)}
    found = table.loc[list(expected)]
    np.testing.assert_allclose(found["value"], [value for value, _ in expected.values()], atol=1e-12)
    assert list(found["rows"]) == [rows for _, rows in expected.values()]
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert "groundedness" not in table.index


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no question"):
        evaluate(Scripted(), [])
    with pytest.raises(ValueError, match="no rows"):
        summary(evaluated().head(0))


def test_failure_log_is_a_csv_for_people(tmp_path):
    frame = evaluated()
    frame.loc["q3", "question"] = "=HYPERLINK(1)\nnext"
    rows = failure_log(frame, tmp_path / "failures.csv")
    with open(tmp_path / "failures.csv", encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["id"] for row in read] == list(rows.index) == ["q3", "q1", "q4"]
    assert read[0]["question"] == "'=HYPERLINK(1) next" and read[0]["cause"] == read[0]["owner"] == ""


class Finds:
    def __init__(self, *passages: Passage):
        self.passages = passages

    def search(self, query, k=10, where=None):
        return [Hit(one, 1.0) for one in self.passages[:k]]


def test_fact_check_takes_the_best_passage_of_each_sentence():
    found = fact_check("Iron pans need oil. Spoons fly.", Finds(*SEEN), Fixed(Iron=0.9))
    assert [(one.sentence, one.verdict, one.score) for one in found] == [("Iron pans need oil.", "supported", 0.9),
                                                                         ("Spoons fly.", "not found", 0.0)]
    assert found[0].passage == SEEN[0] and found[0].evidence == SPOONS
    nothing = fact_check("Iron pans need oil.", Finds(), Fixed(Iron=0.9))[0]
    assert (nothing.verdict, nothing.passage, nothing.evidence) == ("not found", None, "")
    assert fact_check("", Finds(*SEEN), Fixed()) == []


def test_fact_check_refuses_what_is_no_text_and_no_number_of_passages():
    with pytest.raises(TypeError, match="expected text"):
        fact_check(float("nan"), Finds(*SEEN), Fixed())
    with pytest.raises(ValueError, match="k must be at least 1"):
        fact_check("Iron.", Finds(*SEEN), Fixed(), k=0)


def test_disclaimers_say_what_was_done():
    assert "No answer was found in the 2 passages" in disclaimer(refused(*SEEN))
    assert "word for word" in disclaimer(quoted((1, PANS), model="quote"))
    written = disclaimer(quoted((1, PANS), model="a-model", dropped=("x", "y")))
    assert "language model (a-model)" in written and "2 sentences without support were left out" in written
    assert "left out" not in disclaimer(quoted((1, PANS), model="a-model"))


def test_the_rated_answers_fit_the_questions_and_the_rubric():
    rows, known = rated_answers(), {one.id: one for one in questions("dev")}
    assert len(rows) == 60 and sum(row["by"] == "hand" for row in rows) == 8
    for row in rows:
        assert row["question"] == known[row["id"]].text and {row["first"], row["second"]} <= {0, 1, 2, 3}
        assert row["refused"] == (not row["citations"]) == (row["text"] == REFUSAL)
        assert all(row["passages"][n - 1][a:b].strip() for n, a, b in row["citations"])
    first, second = ([row[name] for row in rows] for name in ("first", "second"))
    assert cohen_kappa_score(first, second, weights="quadratic") == pytest.approx(0.918, abs=0.001)


def test_the_sample_of_begin_has_a_supported_and_another_reply_for_each_snippet():
    rows = load("begin", "train", source="sample").to_list() + load("begin", "test", source="sample").to_list()
    labels = {}
    for row in rows:
        labels.setdefault(row["knowledge"], []).append(row["label"] == "Fully attributable")
    assert len(rows) == 120 and len(labels) == 60 and all(sorted(pair) == [False, True] for pair in labels.values())
    assert {row["label"] for row in rows} == {"Fully attributable", "Not fully attributable", "Generic"}
    assert len({row["response"] for row in rows}) == 120 and distinct([row["response"] for row in rows]) >= 0.9
    assert shared_runs(sorted(labels)) == [] and distinct(sorted(labels)) >= 0.9
