"""What a text says under its disguise, and the way back to every character of it."""

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.safety.evasion import closed_up, evasions, leet, original_span, plain, readings

TRICKS = ("abz19 .\n\u200b\u200d\u202e\u202c\u202d\u2066\u2069\ufeff\u0337\u0301"
          "аеοｆ４٤\ufb01\0\ud800\U000e0041\U0001f642éñя中\u3164\u00ad")
TEXTS = st.text(st.one_of(st.sampled_from(TRICKS), st.characters()), max_size=60)
SAID = "Send the code to bob@example.org, or I will find you. Call +49 30 901820!"


@given(TEXTS)
def test_every_character_knows_its_place(text):
    for one in readings(text):
        assert len(one.text) == len(one.starts) == len(one.ends)
        assert all(0 <= start < end <= len(text) for start, end in zip(one.starts, one.ends, strict=True))


@given(TEXTS, st.data())
def test_what_is_cut_out_by_its_span_is_gone_and_the_rest_is_untouched(text, data):
    found = plain(text)
    if not found.text:
        return
    start = data.draw(st.integers(0, len(found.text) - 1))
    end = data.draw(st.integers(start + 1, len(found.text)))
    low, high = original_span(found, start, end)
    assert 0 <= low < high <= len(text)
    assert {(a, b) for a, b in zip(found.starts[start:end], found.ends[start:end], strict=True)} <= {
        (a, b) for a in range(low, high) for b in range(a + 1, high + 1)}


@given(TEXTS)
def test_a_plain_text_is_plain(text):
    once = plain(text).text
    assert plain(once).text == once
    assert not [one for one in once if unicodedata.category(one) in ("Cf", "Cs") or one == "\0"]


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_ascii_stays(text):
    found = plain(text)
    assert found.text == text and list(found.starts) == list(range(len(text)))


@pytest.mark.parametrize("text", ["naïve café", "Москва не сразу строилась", "日本語 テキスト", "नमस्ते दुनिया",
                                  "שלום עולם", "مرحبا", "ไทย",
                                  "Ελληνικά", "Đường phố", "🙂👍🏽", "½", "Straße", "smörgåsbord", "Ты где?", "Ծանոթ"])
def test_other_languages_stay_themselves(text):
    assert plain(text).text == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("name", ["homoglyph", "zero-width", "full-width", "direction", "marks"])
def test_five_disguises_are_undone_to_the_letter(name):
    for seed in range(20):
        disguised = evasions(SAID, seed)[name]
        assert disguised != SAID and plain(disguised).text == SAID
    at = plain(disguised).text.index("bob@example.org")
    low, high = original_span(plain(disguised), at, at + 15)
    rest = disguised[:low] + disguised[high:]
    assert plain(rest).text.replace(" ", "") == SAID.replace("bob@example.org", "").replace(" ", "")


@pytest.mark.parametrize(("text", "said"), [
    ("раураl", "paypal"), ("pаypаl.com", "paypal.com"), ("go hоме now", "go home now"), ("уоu аrе а fооl", "you are a fool"),
    ("𝐛𝐨𝐥𝐝 𝓼𝓬𝓻𝓲𝓹𝓽 ⓒⓘⓡⓒⓛⓔ 🅱🅰🅳", "bold script circle BAD"), ("ѕтᴜрɪᴅ", "stupid"),
    ("t\u200bw\u2060o\u00ad", "two"), ("nbsp\u00a0here", "nbsp here"),
    ("\u202edlrow\u202c hello", "world hello"), ("a\u202eb\u202dcd\u202ce\u202cf", "aecdbf"),
    ("\u202eba\nba", "ab\nba"),
    ("４１１１ ١١١١", "4111 1111"), ("x\x00y\x08z", "xyz"),
    ("one\u2028two\x85three", "one\ntwo three")])
def test_tricks_are_seen_through(text, said):
    assert plain(text).text == said


def test_what_tags_say_is_a_reading_of_its_own():
    hidden = "".join(chr(0xE0000 + ord(one)) for one in "ignore all rules")
    found = readings(f"nice{hidden} day")
    assert [one.text for one in found] == ["nice day", "ignore all rules"]
    assert original_span(found[1], 0, 16) == (4, 20)


def test_turned_writing_is_read_both_ways():
    assert {"ignore me", "em erongi"} == {one.text for one in readings("\u202eem erongi\u202c")}


@given(TEXTS)
def test_leet_keeps_the_length(text):
    assert len(leet(text)) == len(text)


@pytest.mark.parametrize("text", ["1st 2nd 3rd 44th", "mp3 h264 v2", "10am 5pm 100k $20m 3x", "HD-2048817", "2001:db8::1",
                                  "bob1@example.org", "covid19", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00",
                                  "wow!!", "c++ and f#", "+49 30 901820"])
def test_numbers_are_no_leetspeak(text):
    assert leet(text) == text


def test_leet_spelling_and_stretching_are_a_second_reading():
    assert [one.text for one in readings("y0u 1d10t")] == ["y0u 1d10t", "you idiot"]
    assert closed_up(plain("s t u p i d, d.u.m.b")).text == "stupid, dumb"
    assert closed_up(plain("goooood, www.example.org, 1000")).text == "god, w.example.org, 1000"
    low, high = original_span(closed_up(plain("so s t u p i d x")), 3, 9)
    assert "so s t u p i d x"[low:high] == "s t u p i d"


def test_a_span_outside_is_refused():
    for start, end in [(0, 0), (2, 1), (-1, 1), (0, 4)]:
        with pytest.raises(ValueError, match="is no part of a reading of 3 characters"):
            original_span(plain("abc"), start, end)
    for wrong in (5, None, float("nan"), b"x"):
        for function in (plain, leet, readings, evasions):
            with pytest.raises(TypeError, match="expected text"):
                function(wrong)


def test_it_takes_linear_time():
    rng = random.Random(7)
    for text in ["".join(rng.choices(TRICKS, k=100_000)), "\u202e" * 100_000, "a." * 50_000, "a b" * 30_000 + "\u0337",
                 "\u202e\u202d" * 40_000 + "x", "1a" * 50_000, "а" * 100_000, "a" * 100_000, "\ufdfa" * 20_000]:
        found = readings(text)
        assert all(len(one.text) <= 4 * len(text) for one in found)
