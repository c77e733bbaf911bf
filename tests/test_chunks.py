"""Chunks: exact places, nothing lost, budgets kept; sentences with their hard cases; citations that refuse a changed document."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlp_portfolio.retrieval import corpus
from nlp_portfolio.retrieval.chunks import (
    citation,
    count_words,
    fixed_chunks,
    heading_chunks,
    heading_path,
    semantic_chunks,
    sentence_chunks,
    sentences,
    with_paths,
    within_budget,
)
from nlp_portfolio.retrieval.documents import Document, Section


def letters(texts: list[str]) -> np.ndarray:
    "A stand-in for an encoder: how often each of some letters stands in a text."
    return np.array([[text.count(letter) for letter in "abcdef. "] for text in texts], dtype=float)


PARTS = ["Rice", "e.g.", "Dr. Who", "3.14", "f(x)[0]", "end.", "Stop! ", "\n", "\n\n", "  ", "```", ">>> x. Y", "* item",
         "1. One", "# Head\n", "。", "a" * 30, "...", "?!\"", "\u2028", "\x0b", "🙂", "é", "\ud800", "\0", "== =",
         "~~~", "(i.e. it) "]
PIECES = st.lists(st.sampled_from(PARTS), max_size=40)
TEXTS = st.one_of(PIECES.map("".join), PIECES.map(" ".join), st.text(max_size=120))


@st.composite
def documents(draw) -> Document:
    "A text with headings anywhere in it, two at the same place included."
    text = draw(TEXTS)
    starts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    titles, pages = st.sampled_from(["", "A", "A.b", "C"]), st.sampled_from([None, 2])
    sections = tuple(Section(start, draw(titles), draw(st.integers(1, 3)), draw(pages)) for start in starts)
    return Document("d", text, draw(st.sampled_from(["", "Title"])), "d.txt", {"kind": "made up"}, sections)


CHUNKERS = {
    "fixed": lambda document, budget: fixed_chunks(document, budget),
    "overlap": lambda document, budget: fixed_chunks(document, budget, budget // 2),
    "sentence": sentence_chunks,
    "heading": heading_chunks,
    "semantic": lambda document, budget: semantic_chunks(document, letters, budget),
}


@pytest.mark.parametrize("name", CHUNKERS)
@settings(max_examples=150, deadline=None)
@given(document=documents(), budget=st.integers(1, 30))
@example(document=Document("d", ""), budget=1)
@example(document=Document("d", " \n "), budget=1)
@example(document=Document("d", "a b c " + "x." * 50 + " d e"), budget=3)
def test_places_are_exact_nothing_is_lost_and_the_budget_holds(name, document, budget):
    chunks = CHUNKERS[name](document, budget)
    covered = set()
    for chunk in chunks:
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip() == chunk.text != ""
        assert chunk.document == "d" and chunk.metadata == {"kind": "made up"} or not document.metadata
        assert count_words(chunk.text) <= budget or not re.search(r"\s", chunk.text)
        covered |= set(range(chunk.start, chunk.end))
    assert [at for at, letter in enumerate(document.text) if not letter.isspace() and at not in covered] == []
    assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})
    if name != "overlap":
        assert all(a.end <= b.start for a, b in zip(chunks, chunks[1:], strict=False))


@settings(max_examples=150, deadline=None)
@given(document=documents(), budget=st.integers(1, 30))
def test_heading_chunks_cross_no_heading_but_a_lonely_one(document, budget):
    starts = {section.start for section in document.sections}
    for chunk in heading_chunks(document, budget):
        for start in starts & set(range(chunk.start + 1, chunk.end)):
            assert "\n" not in document.text[chunk.start : start].strip()


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_sentences_are_in_order_and_hold_everything(text):
    spans = sentences(text)
    assert all(a < b and text[a:b].strip() == text[a:b] for a, b in spans)
    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())


@pytest.mark.parametrize(("text", "expected"), [
    ("One. Two! Three?", ["One.", "Two!", "Three?"]),
    ("He said \"Go.\" Then he went.", ["He said \"Go.\"", "Then he went."]),
    ("See e.g. Dr. Curie, i.e. Fig. 3 and p. 7. Done.", ["See e.g. Dr. Curie, i.e. Fig. 3 and p. 7.", "Done."]),
    ("No. That is all.", ["No.", "That is all."]),
    ("Pi is 3.14 in math.pi. J. Smith knows.", ["Pi is 3.14 in math.pi.", "J. Smith knows."]),
    ("Wrapped\nover lines. Next\none.", ["Wrapped\nover lines.", "Next\none."]),
    ("A list:\n* one\n* two\n  goes on\n1. three", ["A list:", "* one", "* two\n  goes on", "1. three"]),
    ("1. First do it. Then rest.", ["1. First do it.", "Then rest."]),
    ("So:\n```\nx = 1. Y\n\nz! A\n```\nAfter. All.", ["So:", "```\nx = 1. Y\n\nz! A\n```", "After.", "All."]),
    (">>> f(1.). G\nStop. Go.\n\nText.", [">>> f(1.). G\nStop. Go.", "Text."]),
    ("# Head. Line\nBody here.", ["# Head.", "Line", "Body here."]),
    ("Wait... what? Yes... No.", ["Wait... what?", "Yes...", "No."]),
    ("一。二！三", ["一。", "二！", "三"]),
    ("", []), (" \n\n ", []),
])
def test_sentences(text, expected):
    assert [text[start:end] for start, end in sentences(text)] == expected


@pytest.mark.parametrize("text", [".", "\"", "* ", "```\n", "A. ", "# ", "a\n"])
def test_a_long_and_strange_text_is_cut_whole(text):
    document = Document("d", text * 20_000)
    for cut in CHUNKERS.values():
        assert sum(len(chunk.text.split()) for chunk in cut(document, 50)) >= len(document.text.split())


def test_fixed_chunks_are_full_and_overlap_repeats_the_end():
    document = Document("d", " ".join(f"w{number}" for number in range(100)))
    assert [count_words(chunk.text) for chunk in fixed_chunks(document, 30)] == [30, 30, 30, 10]
    chunks = fixed_chunks(document, 30, overlap=10)
    assert [chunk.text.split()[0] for chunk in chunks] == ["w0", "w20", "w40", "w60", "w80"]
    assert chunks[0].text.split()[-10:] == chunks[1].text.split()[:10]


@settings(max_examples=100, deadline=None)
@given(words=st.integers(1, 200), size=st.integers(2, 40), data=st.data())
def test_an_overlap_of_n_minus_1_keeps_every_run_of_n_words_whole(words, size, data):
    longest = data.draw(st.integers(1, size))
    document = Document("d", " ".join(f"w{number}" for number in range(words)))
    chunks = [chunk.text.split() for chunk in fixed_chunks(document, size, overlap=longest - 1)]
    runs = {tuple(chunk[at : at + longest]) for chunk in chunks for at in range(len(chunk) - longest + 1)}
    assert len(runs) == max(0, words - longest + 1)


def test_semantic_chunks_cut_where_the_subject_turns():
    text = "aa aa. aa a. a aaa. bb bb. b bbb. bbb b."
    chunks = semantic_chunks(Document("d", text), letters, 12)
    assert [chunk.text for chunk in chunks] == ["aa aa. aa a. a aaa.", "bb bb. b bbb. bbb b."]


def test_semantic_chunks_leave_no_crumbs_where_they_need_not():
    text = "bbb b b b. " + "aa a a a. " * 11
    chunks = semantic_chunks(Document("d", text), letters, 40)
    assert min(count_words(chunk.text) for chunk in chunks) >= 10


@pytest.mark.parametrize("answer", [np.zeros((1, 3)), np.zeros(3), np.full((3, 2), np.nan), []])
def test_an_embedding_that_does_not_fit_is_named(answer):
    with pytest.raises(ValueError, match="one finite vector for each of 3 texts"):
        semantic_chunks(Document("d", "One. Two. Three."), lambda texts: answer)


def test_paths_of_headings():
    text = "intro\nGuide\nSet up\njson\njson.load\nend"
    at = {name: text.index(name) for name in ("Guide", "Set up", "json", "json.load")}
    document = Document("d", text, "D", "d.md", {}, (Section(at["Guide"], "Guide", 1), Section(at["Set up"], "Set up", 2),
                                                   Section(at["json"], "json", 1), Section(at["json.load"], "json.load", 2)))
    assert [heading_path(document, at) for at in (0, at["Guide"], at["Set up"] + 2, at["json"], len(text))] == [
        "", "Guide", "Guide > Set up", "json", "json.load"]
    assert heading_path(Document("p", "one\ntwo", sections=(Section(0, page=1), Section(4, page=2))), 5) == "page 2"
    assert [passage.title for passage in with_paths(document, fixed_chunks(document, 2))] == [
        "D", "Guide > Set up", "json", "json.load", "json.load"]


def test_titles_keep_the_ids_and_belong_to_their_document():
    document = Document("d", "One two three.", "D", sections=(Section(0, "Head"),))
    chunks = fixed_chunks(document, 2)
    assert [chunk.id for chunk in with_paths(document, chunks)] == [chunk.id for chunk in chunks]
    with pytest.raises(ValueError, match="another document"):
        with_paths(Document("e", document.text), chunks)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), budget=st.integers(0, 40))
def test_a_reader_gets_the_first_words_of_the_budget(texts, budget):
    shown = within_budget(texts, budget)
    assert sum(map(count_words, shown)) == min(budget, sum(map(count_words, texts)))
    worded = [text for text in texts if count_words(text)]
    assert all(text.startswith(piece) for text, piece in zip(worded, shown, strict=False))


def test_a_citation_opens_the_place_or_refuses():
    document = Document("d", "Fees\n\nLate\n\nTen cents. A day.", "Fees", "fees.docx", {},
                        (Section(0, "Fees", 1), Section(6, "Late", 2)))
    chunk = heading_chunks(document)[0]
    assert citation(document, chunk) == f"fees.docx, Fees > Late, characters 0-{len(document.text)}"
    pages = Document("p", "one\ntwo", "P", "p.pdf", {}, (Section(0, page=1), Section(4, page=2)))
    assert citation(pages, heading_chunks(pages)[1]) == "p.pdf, page 2, characters 4-7"
    with pytest.raises(ValueError, match="index the document again"):
        citation(replace(document, text="x" + document.text), chunk)
    with pytest.raises(ValueError, match="index the document again"):
        citation(replace(document, id="e"), chunk)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, None, "200"])
@pytest.mark.parametrize("name", CHUNKERS)
def test_a_wrong_budget_is_named(name, budget):
    cut = fixed_chunks if name == "overlap" else CHUNKERS[name]
    with pytest.raises(ValueError, match="whole number of at least 1"):
        cut(Document("d", "text"), budget)


@pytest.mark.parametrize("overlap", [-1, 200, 1.5, True, None])
def test_a_wrong_overlap_is_named(overlap):
    with pytest.raises(ValueError, match="from 0 to size - 1 = 199"):
        fixed_chunks(Document("d", "text"), overlap=overlap)


@pytest.mark.parametrize("name", CHUNKERS)
def test_what_is_no_document_is_named(name):
    with pytest.raises(TypeError, match="expected a Document, got str"):
        CHUNKERS[name]("a text", 10)


@pytest.mark.parametrize("starts", [(4, 2), (0, 99), (-1, 2)])
def test_sections_out_of_place_are_named(starts):
    with pytest.raises(ValueError, match="sorted by start and lie inside its text"):
        heading_chunks(Document("d", "a text", sections=tuple(Section(start, "A") for start in starts)))


def test_a_negative_budget_for_the_reader_is_named():
    with pytest.raises(ValueError, match="must not be negative"):
        within_budget(["text"], -1)


def test_words_are_counted_as_the_corpus_counts_them():
    text = "f(x)[0] = \"Straße\" – 3.14, naïve_name 🙂\n一二 x"
    assert count_words(text) == len(corpus.TOKEN.findall(text))
