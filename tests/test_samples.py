"""The bundled samples are varied, hard enough to teach with, and what the manifest says."""

import json
import re
from collections import Counter

import pytest
from conftest import ROOT
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score

from nlp_portfolio.classic.baseline import tfidf_logreg
from nlp_portfolio.course.datasets import manifest

SAMPLES = ROOT / "nlp_portfolio/data/samples"


def rows_of(name: str) -> list[dict]:
    files = sorted((SAMPLES / name).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def tokens(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def shared_runs(texts: list[str], length: int = 8) -> list[str]:
    "Runs of `length` words that stand in two rows."
    rows = Counter()
    for text in texts:
        words = tokens(text)
        rows.update({tuple(words[i : i + length]) for i in range(len(words) - length + 1)})
    return [" ".join(run) for run, count in rows.items() if count > 1]


def distinct(texts: list[str], length: int = 4) -> float:
    "Distinct n-grams by all n-grams."
    grams = [tuple(words[i : i + length]) for words in map(tokens, texts) for i in range(len(words) - length + 1)]
    return len(set(grams)) / len(grams)


BUNDLED = [name for name, spec in manifest().items() if spec["sample"]["rows"]]


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in BUNDLED for column in ("text", "passage", "question")
                                              if any(column in row for row in rows_of(name))])
def test_sample_is_varied(name: str, column: str) -> None:
    texts = [row[column] for row in rows_of(name) if column in row]
    assert shared_runs(texts) == []
    assert distinct(texts) >= 0.9


def test_xquad_sample_answers_stand_where_the_rows_say() -> None:
    rows = rows_of("xquad")
    texts = {row["id"]: row["text"] for row in rows if "text" in row}
    questions = [row for row in rows if "question" in row]
    assert len(questions) == 192 and {row["paragraph_id"] for row in questions} == set(texts)
    for row in questions:
        text, start = texts[row["paragraph_id"]], row["answer_start"]
        assert text[start:start + len(row["answer"])] == row["answer"], row["id"]
    assert all(80 <= len(text.split()) <= 130 for text in texts.values())


def test_clapnq_sample_has_answers_exactly_where_it_says() -> None:
    rows = rows_of("clapnq")
    assert sum(row["answerable"] for row in rows) * 2 == len(rows)
    for row in rows:
        assert row["passage"] == " ".join(row["sentences"]) and bool(row["answers"]) == row["answerable"]
        assert len(row["answers"]) == len(row["selected_sentences"])
        assert {one for chosen in row["selected_sentences"] for one in chosen} <= set(row["sentences"])


def test_a_template_would_be_seen() -> None:
    filled = [f"I really liked the film {title} because the actors were so very good in it" for title in ("A", "B", "C")]
    assert shared_runs(filled) and distinct(filled) < 0.9


def test_imdb_sample_is_balanced_and_sized() -> None:
    rows = rows_of("imdb")
    assert len(rows) >= 400 and sum(row["label"] for row in rows) * 2 == len(rows)
    assert all(30 <= len(row["text"].split()) <= 200 for row in rows)
    assert all(row["label"] == int(row["rating"] > 5) and row["rating"] in (1, 2, 3, 4, 7, 8, 9, 10) for row in rows)


def test_imdb_sample_has_no_film_in_both_parts() -> None:
    films = {part: {row["movie_id"] for row in rows_of("imdb") if f"-{part}-" in row["id"]} for part in ("train", "test")}
    assert films["train"] and films["test"] and not films["train"] & films["test"]


def test_imdb_sample_is_hard_enough_to_teach_with() -> None:
    rows = rows_of("imdb")
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    accuracy = cross_val_score(tfidf_logreg(), [row["text"] for row in rows], [row["label"] for row in rows],
                               groups=[row["movie_id"] for row in rows], cv=folds).mean()
    assert 0.70 <= accuracy <= 0.92


@pytest.mark.parametrize(("name", "label"), [("banking77", "intent"), ("clinc150", "intent"), ("ag_news", "topic"),
                                             ("tickets", "intent"), ("faq", "topic")])
def test_classes_are_neither_given_away_nor_hopeless(name: str, label: str) -> None:
    rows = [row for row in rows_of(name) if row[label] != "oos"]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    texts, labels = [row["text"] for row in rows], [row[label] for row in rows]
    accuracy = cross_val_score(tfidf_logreg(min_df=1), texts, labels, cv=folds).mean()
    assert 0.70 <= accuracy <= 0.92


def test_tickets_are_what_the_guide_says() -> None:
    rows = rows_of("tickets")
    assert len(rows) == 1995 and all(row["intent"] == row["intents"][0] for row in rows)
    assert all(len(row["intents"]) == 1 for row in rows if row["intent"] == "out_of_scope")
    assert {row["first_label"] for row in rows} == {row["intent"] for row in rows}
    assert sum(row["first_label"] not in row["intents"] for row in rows) == 42


@pytest.mark.parametrize("name", ["toxicity", "davidson_hate"])
def test_toxic_is_neither_given_away_nor_hopeless(name: str) -> None:
    rows = rows_of(name)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    assert 0.70 <= cross_val_score(tfidf_logreg(min_df=1), texts, labels, cv=folds).mean() <= 0.92


def test_no_slur_is_readable_in_the_samples_about_toxicity() -> None:
    from nlp_portfolio.safety.toxicity import mask

    names = ("toxicity", "davidson_hate", "toxic_spans", "hatecheck", "surge_toxicity", "moderation_eval")
    seen = [row["text"] for name in names for row in rows_of(name) if mask(row["text"]) != row["text"]]
    assert seen == []


def test_hatecheck_sample_has_every_functionality() -> None:
    counts = Counter(row["functionality"] for row in rows_of("hatecheck"))
    assert len(counts) == 29 and set(counts.values()) == {4}
    assert all(row["label"] == int(not row["functionality"].endswith("_nh")) for row in rows_of("hatecheck"))
    assert all(len(row["votes"]) == 5 for row in rows_of("hatecheck"))


def test_toxic_spans_stand_where_the_rows_say() -> None:
    for row in rows_of("toxic_spans"):
        marks = [one for one in row["annotations"] if one["spans"]]
        assert len(row["annotations"]) == row["n_annotators"] and len(marks) == row["n_marking"]
        assert bool(row["majority_spans"]) == (2 * row["n_marking"] > row["n_annotators"])
        assert all(0 <= start < end <= len(row["text"]) for start, end in row["majority_spans"])


def test_toxicity_sample_has_enough_of_each_kind() -> None:
    rows = rows_of("toxicity")
    counts = Counter(row["kind"] for row in rows)
    assert len(rows) >= 400 and min(counts.values()) >= 8
    assert abs(sum(row["label"] for row in rows) * 2 - len(rows)) <= 10


@pytest.mark.parametrize("name", BUNDLED)
def test_sample_ids_are_unique(name: str) -> None:
    ids = [row["id"] for row in rows_of(name)]
    assert len(set(ids)) == len(ids)
