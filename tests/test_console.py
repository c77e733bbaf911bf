"""Search from the command line, over the documentation of this Python."""

import re

import pytest

from nlp_portfolio.course.cli import main
from nlp_portfolio.retrieval.console import console, shown
from nlp_portfolio.retrieval.documents import Hit, Passage


def test_a_question_as_arguments_is_answered_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", "kill", "a", "subprocess", "after", "a", "timeout", "--k", "2"])
    said = capfd.readouterr().out
    assert ended.value.code == 0
    assert re.findall(r"^(\d)\. ", said, re.M) == ["1", "2"] and "subprocess." in said and re.search(r"^\d+ ms$", said, re.M)


def test_each_line_is_a_question_until_an_empty_one(capsys: pytest.CaptureFixture[str]) -> None:
    console(k=1, lines=["base64 decode bad characters\n", "zzqqy\n", "\n", "never asked\n"])
    said = capsys.readouterr().out
    assert "base64." in said and said.count(" ms") == 2


def test_hits_are_numbered_and_cut() -> None:
    hits = [Hit(Passage("a", "word " * 500, title="One"), 0.5), Hit(Passage("b", "short", title="Two"), 0.25)]
    text = shown(hits, width=40, lines=2)
    assert text.startswith("1. One  (0.50)\n") and text.endswith("2. Two  (0.25)\n   short")
    assert max(map(len, text.splitlines())) <= 43 and "…" in text


def test_a_wrong_number_is_one_line() -> None:
    with pytest.raises(SystemExit, match="--k must be at least 1"):
        main(["search", "x", "--k", "0"])
