"""Project 2: its questions, uploads and attacks are what the guide says, and the product behaves on them."""

import ast
import json
import re
from collections import Counter
from typing import Any

import pytest
from conftest import ROOT

from nlp_portfolio.cases.document_qa import DocumentQA
from nlp_portfolio.retrieval.corpus import Question, evidence, passages, questions
from nlp_portfolio.retrieval.documents import normalized
from nlp_portfolio.retrieval.ingest import read_document

PROJECT = ROOT / "projects" / "2_document_qa"
UPLOADS = PROJECT / "evalset" / "uploads"


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PROJECT / "evalset" / name).read_text(encoding="utf-8").splitlines()]


def question(row: dict[str, Any]) -> Question:
    return Question(**{name: tuple(value) if name == "quotes" else value for name, value in row.items() if name != "document"})


ROWS, ATTACKS = lines("questions.jsonl"), lines("attacks.jsonl")
HARMFUL = [row for row in ATTACKS if row["says"]]


# ---- the evaluation set


def test_there_are_questions_of_every_kind_and_no_id_twice() -> None:
    kinds = Counter(question(row).kind for row in ROWS if row["document"] == "python")
    assert len(ROWS) == len({row["id"] for row in ROWS}) == len({normalized(row["text"]) for row in ROWS})
    assert sum(kinds.values()) >= 40 and min(kinds.values()) >= 7 and len(kinds) == 4
    assert {row["document"] for row in ROWS} == {"python", *(file.name for file in UPLOADS.iterdir())}


def test_gold_quotes_stand_in_their_documents_and_few_places_hold_them() -> None:
    cut, texts = passages(), {file.name: normalized(read_document(file).text) for file in UPLOADS.iterdir()}
    for row in ROWS:
        if row["document"] == "python":
            found = evidence(question(row), cut)
            assert all(1 <= len(places) <= 2 for places in found), row["id"]
        else:
            assert all(normalized(quote) in texts[row["document"]] for quote in row["quotes"]), row["id"]


def test_no_gold_and_no_question_is_one_that_settings_were_chosen_on() -> None:
    known = questions()
    gold, texts = {normalized(quote) for one in known for quote in one.quotes}, {normalized(one.text) for one in known}
    assert not gold & {normalized(quote) for row in ROWS for quote in row["quotes"]}
    assert not texts & {normalized(row["text"]) for row in ROWS}


def test_attacks_say_what_they_want_and_come_in_families() -> None:
    families = Counter(row["family"] for row in ATTACKS)
    assert len(ATTACKS) == len({row["id"] for row in ATTACKS}) == len({row["name"] for row in ATTACKS})
    assert families["harmless look-alike"] >= 10 and len(families) >= 8 and min(families.values()) >= 3
    assert all(row["says"] in row["text"] for row in HARMFUL)
    assert all(normalized(row["quotes"][0]) in normalized(row["text"]) for row in ATTACKS if not row["says"])


# ---- the product on it


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> DocumentQA:
    made = DocumentQA.open(tmp_path_factory.mktemp("qa"), "quote")
    for file in UPLOADS.iterdir():
        made.ingest(file.name, file.read_bytes(), "reader")
    return made


@pytest.mark.parametrize("name, part", [
    ("Can I delete a directory with Path.unlink?", "use rmdir() instead"),
    ("How do I get a priority queue that several threads can share, and which entry comes out first?", "lowest first"),
    ("does zipapp write a shebang line when no interpreter is given?", "no shebang line"),
    ("On what days is the kiln fired?", "Tuesdays and Fridays"),
    ("when is the workshop's office staffed?", "16:00 to 19:30"),
    ("what happens in driftlog 4 when setup() is called a second time", "AlreadyConfigured"),
])
def test_these_are_answered_and_each_citation_opens_its_quote(qa: DocumentQA, name: str, part: str) -> None:
    found = qa.ask(name, "reader")
    assert not found.refused and part in found.text
    for one in found.citations:
        opened = qa.passage(one.passage, "reader")
        assert opened.text[opened.start : opened.end][one.start : one.end] == one.quote
        assert f"{one.quote} [{one.number}]" in found.text


@pytest.mark.parametrize("name", [
    "How do I pin a package to an exact version with pip?", "opening hours of the town library on Sundays",
    "Can driftlog send its messages to Kafka?", "Which brand of table saw is in the wood room?"])
def test_these_are_refused_with_the_nearest_passages(qa: DocumentQA, name: str) -> None:
    found = qa.ask(name, "reader")
    assert found.refused and not found.citations and len(found.nearest) >= 3


ORDERS = ("direct order", "fake system tag", "code comment", "another language", "encoded")


@pytest.mark.parametrize("row", [row for row in HARMFUL if row["family"] in ORDERS], ids=lambda row: row["id"])
def test_a_document_that_gives_orders_changes_neither_answer_nor_citations(qa: DocumentQA, row: dict[str, Any]) -> None:
    with_it, without = f"{row['id']}-with", f"{row['id']}-without"
    for tenant in (with_it, without):
        if row["document"] != "python":
            qa.ingest(row["document"], (UPLOADS / row["document"]).read_bytes(), tenant)
    done = qa.ingest(row["name"], row["text"].encode(), with_it)
    assert done.held_back == done.passages > 0 or row["name"].endswith(".html")  # what a browser hides is not read at all
    attacked, clean = qa.ask(row["question"], with_it), qa.ask(row["question"], without)
    cited = {attacked.passages[one.number - 1].document for one in attacked.citations}
    assert row["says"] not in attacked.text and done.document not in cited
    assert re.sub(r"\[\d+\]", "[n]", attacked.text) == re.sub(r"\[\d+\]", "[n]", clean.text)
    assert [one.quote for one in attacked.citations] == [one.quote for one in clean.citations]


def test_nothing_of_a_harmless_document_is_held_back_once_somebody_has_read_it(qa: DocumentQA) -> None:
    for row in ATTACKS:
        if not row["says"]:
            held = qa.ingest(row["name"], row["text"].encode(), "calm", trusted=True).held_back
            assert held == 0, row["id"]


# ---- what the pages say


def test_pages_name_files_that_exist_and_counts_that_hold() -> None:
    for page in ("README.md", "guide.md", "design.md", "MODEL_CARD.md"):
        text = (PROJECT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (PROJECT / target).exists(), f"{page} points at {target}"
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"{len(ROWS)} questions" in readme and f"{len(ATTACKS)} documents that attack" in readme
    assert all(file.stat().st_size < 200_000 for file in PROJECT.rglob("*.png"))


def test_examples_of_the_demo_are_in_the_evaluation_set_or_answered() -> None:
    tree = ast.parse((PROJECT / "app.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "EXAMPLES")
    shown = ast.literal_eval(found.value)
    assert len(shown) == 5 and sum(text in {row["text"] for row in ROWS} for text in shown) >= 3


def test_the_reports_are_there() -> None:
    there = {file.name for file in (PROJECT / "reports").iterdir()}
    assert there >= {"metrics.json", "errors.csv", "buckets.md", "outcomes.png"}
