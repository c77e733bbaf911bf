"""The documentation corpus: nothing of it is run, the cut loses nothing, and questions find the passages that answer them."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.retrieval import corpus
from nlp_portfolio.retrieval.corpus import (
    LIMIT,
    Question,
    cut,
    documentation,
    evidence,
    gold,
    holding,
    passages,
    questions,
    topics,
)
from nlp_portfolio.retrieval.documents import Document, Section, quotes

SIZE = re.compile(r"\w+|[^\w\s]")


@pytest.fixture(scope="module")
def found():
    return passages()


def row(**changes):
    whole = {"id": "lib-001", "text": "How do I read JSON from a string?", "kind": "answerable", "quotes": ["Deserialize ``s``"],
             "answer": "With json.loads.", "split": "dev"}
    return {**whole, **changes}


SAMPLE = [
    row(),
    row(id="lib-002", text="Which two calls write JSON?", kind="multi-passage", split="test",
        quotes=["Serialize ``obj`` to a JSON formatted ``str``.", "Serialize ``obj`` as a JSON formatted stream to ``fp``"]),
    row(id="lib-003", text="Who invented JSON?", kind="unanswerable", quotes=[], answer="The documentation does not say."),
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    "Question files of the test's own; returns a function that writes one."
    monkeypatch.setattr(corpus, "question_file", lambda source: tmp_path / f"questions_{source}.jsonl")

    def write(source, rows):
        (tmp_path / f"questions_{source}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")

    write("reference", [])
    write("library", SAMPLE)
    return write


# --- documents

def test_topics_are_read_and_never_run():
    assert topics("topics = {'a': 'b ' 'c'}") == {"a": "b c"}
    with pytest.raises(ValueError, match="malformed"):
        topics("topics = {'a': __import__('os').getcwd()}")
    with pytest.raises(ValueError, match="no assignment"):
        topics("topic = {}")


def test_nothing_of_the_library_is_imported_to_read_it():
    never = {"tkinter", "turtle", "antigravity", "smtplib", "pydoc_data.topics", "torch", "nbdev"}
    code = ("import sys; from nlp_portfolio.retrieval.corpus import passages; passages(); "
            f"print(sorted({never} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_what_is_in_the_documentation_and_what_is_not():
    names = {document.id for document in documentation()}
    assert {"reference/compound", "reference/yield", "library/json", "library/decimal", "library/concurrent.futures"} <= names
    assert not [name for name in names if re.search(r"\btests?\b|idlelib|site-packages|[/.]_", name)]
    titles = {passage.title for passage in passages()}
    assert {"json.loads", "decimal.Decimal.quantize", "threading.Thread.__init__"} <= titles
    assert "Compound statements > The with statement" in titles
    assert not [passage.title for passage in passages() if "module" in passage.metadata and re.search(r"\._(?!_)", passage.title)]


def test_sections_begin_at_their_headings():
    for document in documentation():
        assert document.sections[0].start == 0
        for section in document.sections:
            line = document.text[section.start :].split("\n")[0]
            assert line.replace('"', "") == section.title
            assert section.start == 0 or document.text[section.start - 1] == "\n"


def test_a_topic_inside_another_is_left_out_and_its_text_is_still_there(found):
    names = {document.id for document in documentation()}
    assert "reference/with" not in names
    assert any("manager = (EXPRESSION)" in passage.text for passage in found)


def test_definitions_under_if_and_try_are_found_and_local_ones_are_not():
    doc = '"One two three four five."'
    source = f"if 1:\n  try:\n    def f():\n      {doc}\n      def g(): {doc}\n  finally: pass\n"
    assert [name for name, _ in corpus._docstrings(corpus.ast.parse(source), "m")] == ["m.f"]


# --- the cut

WORDS = st.lists(st.sampled_from(["one", "two.", "Three", "(four)", "five:", "- six", "!!"]), min_size=1, max_size=12)
LINES = st.lists(WORDS.map(" ".join), min_size=1, max_size=4)
TEXT = st.lists(LINES.map("\n".join), max_size=6).map("\n\n".join)


def size(text):
    return len(SIZE.findall(text))


@given(TEXT, st.integers(3, 40))
def test_a_cut_loses_nothing_keeps_order_and_holds_the_limit(text, limit):
    spans = cut(text, limit=limit)
    assert " ".join(text[a:b] for a, b in spans).split() == text.split()
    assert all(a < b for a, b in spans) and all(b <= c for (_, b), (c, _) in zip(spans, spans[1:], strict=False))
    assert all(size(text[a:b]) <= limit for a, b in spans)


@given(TEXT, st.integers(3, 40))
def test_a_paragraph_is_divided_only_when_it_is_too_long_by_itself(text, limit):
    pieces = [text[a:b] for a, b in cut(text, limit=limit)]
    for paragraph in filter(str.strip, text.split("\n\n")):
        if size(paragraph) <= limit:
            assert any(paragraph in piece for piece in pieces)


def test_what_announces_stays_with_what_it_announces():
    text = "A b c d.\n\nFor example:\n\n   x = 1\n\nMore of it here."
    assert [text[a:b] for a, b in cut(text, limit=7)] == ["A b c d.", "For example:\n\n   x = 1", "More of it here."]


def test_long_paragraphs_are_cut_at_sentences_else_lines_else_words():
    assert [(0, 8), (9, 17)] == cut("One two. Six ten.", limit=3)
    assert [(0, 7), (8, 15)] == cut("one two\nsix ten", limit=2)
    assert [(0, 7), (8, 15)] == cut("one two six ten", limit=2)
    assert cut("   \n\n ", limit=2) == [] == cut("", limit=2)
    with pytest.raises(ValueError, match="at least 1"):
        cut("one", limit=0)


def test_passages_are_pieces_of_their_documents(found):
    by_id = {document.id: document for document in documentation()}
    assert all(by_id[p.document].text[p.start : p.end] == p.text for p in found)
    assert len({p.id for p in found}) == len(found) and 6000 <= len(found) <= 14000
    assert max(size(p.text) for p in found) <= LIMIT and all(p.text.strip() and p.title for p in found)
    assert [p.id for p in passages(documentation())] == [p.id for p in found]


def test_every_word_of_the_documentation_is_in_a_passage_or_a_heading(found):
    texts = {}
    for passage in found:
        texts.setdefault(passage.document, []).append(passage.text)
    for document in documentation():
        headings = [document.text[section.start :].split("\n")[0] for section in document.sections]
        assert Counter(" ".join([*texts[document.id], *headings]).split()) == Counter(document.text.split())


def test_text_before_the_first_heading_and_without_any_is_kept():
    text = "Before it.\n\nHead\n\nBelow it."
    assert [p.text for p in passages([Document("a", text, "A", sections=(Section(12, "Head"),))])] == ["Before it.", "Below it."]
    assert [(p.title, p.text) for p in passages([Document("a", "All of it.", "A")])] == [("A", "All of it.")]
    assert passages([Document("a", "Head", "A", sections=(Section(0, "Head"),))]) == []


# --- questions

def test_questions_are_read_by_split(files):
    assert [q.id for q in questions()] == ["lib-001", "lib-002", "lib-003"]
    assert [q.id for q in questions("test")] == ["lib-002"]
    assert questions("dev")[0] == Question(**{**SAMPLE[0], "quotes": ("Deserialize ``s``",)}, source="library")
    with pytest.raises(ValueError, match="unknown split 'train'"):
        questions("train")


@pytest.mark.parametrize(("bad", "message"), [
    ({"kind": "hard"}, "not one of"), ({"split": "train"}, "not one of"), ({"text": " "}, "must say something"),
    ({"quotes": []}, "has 1 quotes or more, not 0"), ({"quotes": "one"}, "quotes is a list"),
    ({"quotes": [""]}, "must say something"), ({"quotes": [5]}, "is text"),
    ({"answer": None}, "is text"), ({"kind": "unanswerable"}, "has no quotes"),
    ({"kind": "multi-passage"}, "2 quotes or more"),
])
def test_a_broken_question_is_an_error_that_names_file_and_line(files, bad, message):
    files("library", [row(), row(id="lib-002", **bad)])
    with pytest.raises(ValueError, match=rf"questions_library.jsonl, line 2: .*{message}"):
        questions()


def test_an_absent_file_and_a_repeated_id_are_said(files, tmp_path):
    files("reference", [row()])
    with pytest.raises(ValueError, match="two questions have the id 'lib-001'"):
        questions()
    (tmp_path / "questions_reference.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="questions_reference.jsonl is not in"):
        questions()


def test_gold_is_every_passage_that_quotes(files, found):
    some = [p for p in found if p.metadata.get("module", "").startswith(("json", "marshal"))]
    for question in questions():
        assert gold(question, some) == {p.id for p in some if any(quotes(p.text, quote) for quote in question.quotes)}
    one, two, none = questions()
    assert "json.loads" in {p.title for p in found if p.id in gold(one, found)}
    assert [{p.title for p in found if p.id in ids} for ids in evidence(two, found)] == [
        {"json.dumps"}, {"json.dump"}]
    assert gold(none, found) == set() and gold(one, []) == set()


def test_gold_is_found_anew_in_other_passages_and_never_across_two(found):
    spread = passages([Document("a", "one two\n\nthree", "A")])
    question = Question("1", "?", "answerable", ("TWO  three",), "", "dev", "library")
    assert gold(question, spread) == {spread[0].id}
    apart = [corpus.passage_of(Document("a", "one two three"), 0, 7), corpus.passage_of(Document("a", "one two three"), 8, 13)]
    assert gold(question, apart) == set()
    assert gold(question, spread) == {spread[0].id}


def test_what_holds_is_said_in_one_line(files, found, capsys):
    lost = Question("gone", "?", "answerable", ("no such words anywhere, surely",), "", "dev", "library")
    assert holding([*questions(), lost], found) == questions()
    line = capsys.readouterr().out
    assert line.startswith("3 of 4 questions hold on Python 3.") and line.endswith("(a quote is missing for gone)\n")


SHIPPED = [corpus.question_file(source) for source in corpus.SOURCES]


def test_the_shipped_questions_hold_on_the_python_they_were_written_for(found, capsys):
    every = questions()
    held = holding(every, found)
    capsys.readouterr()
    assert len(held) >= (len(every) if sys.version_info[:2] == (3, 11) else 0.9 * len(every))


# ---- the parsed documentation is kept


@pytest.fixture
def unparsed(monkeypatch, tmp_path):
    "A home without a cache; parsing counts."
    calls, whole = [], corpus._documentation()
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path))
    monkeypatch.setattr(corpus, "_parsed", lambda folder: calls.append(folder) or whole)
    return calls


def test_the_documentation_is_parsed_once_and_read_back_as_it_was(unparsed, tmp_path):
    first, second = corpus._documentation.__wrapped__(), corpus._documentation.__wrapped__()
    assert first == second == corpus._documentation()
    assert len(unparsed) == 1
    kept = list((tmp_path / "cache/documentation").iterdir())
    assert [file.suffix for file in kept] == [".json"]


@pytest.mark.parametrize("broken", [b"", b"[{", b"[1]", b'[{"id": "x"}]', b"{}", b"[]"])
def test_a_broken_copy_is_parsed_anew(unparsed, tmp_path, broken):
    first = corpus._documentation.__wrapped__()
    (file,) = (tmp_path / "cache/documentation").iterdir()
    file.write_bytes(broken)
    assert corpus._documentation.__wrapped__() == first
    assert len(unparsed) == 2


def test_another_library_is_another_copy(monkeypatch):
    before = corpus._key(corpus.stdlib())
    real = Path.stat

    def touched(self: Path, **more: bool) -> SimpleNamespace:
        facts = real(self, **more)
        size = facts.st_size + (self.name == "topics.py")
        return SimpleNamespace(st_size=size, st_mtime_ns=facts.st_mtime_ns, st_mode=facts.st_mode)

    monkeypatch.setattr(Path, "stat", touched)
    assert corpus._key(corpus.stdlib()) != before


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file where a folder should be")
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path / "home"))
    assert corpus._documentation.__wrapped__() == corpus._documentation()
