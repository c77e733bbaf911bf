"""Sentences: nothing is lost, nothing is in two of them, and they end where a reader would end them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.text.sentences import LONGEST, sentence_spans

passages_of_text = st.lists(st.text(max_size=80) | st.lists(st.sampled_from(
    ["The cat sat.", "It ran (e.g. home).", "Dr. Fox", "slept .", "Is it 3.5?",
     "\n\n", "\n* ", "\n", "1.", ">>> x", "word " * 99]),
    max_size=8).map(" ".join), max_size=4)


@given(passages_of_text.map("\n".join))
def test_sentences_cover_every_letter_once(text):
    spans = sentence_spans(text)
    assert all(left[1] <= right[0] for left, right in zip(spans, spans[1:], strict=False))
    assert all(text[start:end] == text[start:end].strip() and 0 < end - start <= LONGEST for start, end in spans)
    covered = "".join(text[start:end] for start, end in spans)
    assert [one for one in covered if one.isalnum()] == [one for one in text if one.isalnum()]


@pytest.mark.parametrize(("text", "sentences"), [
    ("It runs. It stops.", ["It runs.", "It stops."]),
    ("Use a list (e.g. Python lists). Dr. Fox said \"no.\" \"Yes\" is better.",
     ["Use a list (e.g. Python lists).", "Dr. Fox said \"no.\"", "\"Yes\" is better."]),
    ("Title\n\nBroken\nline 3.5 ends. str.find returns -1.", ["Title", "Broken\nline 3.5 ends.", "str.find returns -1."]),
    ("Kinds:\n* one thing\n* two things\n", ["Kinds:", "* one thing", "* two things"]),
    ("It was old .  They left .", ["It was old .", "They left ."]),
    (">>> x = 1. \n>>> Y", [">>> x = 1. \n>>> Y"]),
    ("", []), (" \n ... \0", []),
])
def test_where_sentences_end(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


def test_long_texts_are_split_quickly():
    started = time.monotonic()
    for text in ("word " * 10**5, "\n" * 10**5, "." * 10**5, " " * 10**5 + "x", "x" * 10**5, ". A" * 10**5, '."' * 10**5):
        sentence_spans(text)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("wrong", [None, 5, b"It runs.", ["It runs."]])
def test_what_is_no_text(wrong):
    with pytest.raises(TypeError, match=f"expected text, got {type(wrong).__name__}"):
        sentence_spans(wrong)


@given(st.integers(0, 3 * LONGEST), st.sampled_from(["x", "xy ", "wörter\n"]))
def test_no_piece_is_longer_than_allowed(size, word):
    text = (word * size)[:size]
    spans = sentence_spans(text)
    assert all(0 < end - start <= LONGEST for start, end in spans)
    assert sum(end - start for start, end in spans) >= len(text.strip()) - len(spans)


def test_citations_and_sentences_are_cut_by_the_same_function():
    from nlp_portfolio.llm import generators

    assert generators.sentence_spans is sentence_spans
