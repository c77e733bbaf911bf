"""Extractive question answering: spans, windows, the best pair, scores as SQuAD's script gives them, and refusing."""

import collections
import math
import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_portfolio.course.models import minilm_path
from nlp_portfolio.neural import qa
from nlp_portfolio.neural.qa import Example

PASSAGE = "The Skerry ferry has run since 1868. Dr. Moss built it in Gdańsk for £4,000. It carries 240 passengers — and 38 cars."
WORDS = st.text(alphabet="ab the.,A1 £é🙂-\n", max_size=40)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_path())


@pytest.fixture(scope="module")
def reader():
    return qa.lora_reader(4, seed=1)


def example(answer: str = "240", passage: str = PASSAGE, question: str = "How many people fit?") -> Example:
    return Example("q", question, passage, (answer,), passage.index(answer), "a")


# ---- scores: SQuAD's own script, written down from its description


def official(text: str) -> list[str]:
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def official_f1(gold: str, said: str) -> float:
    g, s = official(gold), official(said)
    same = sum((collections.Counter(g) & collections.Counter(s)).values())
    if not g or not s:
        return float(g == s)
    return 0.0 if not same else 2 * (same / len(s)) * (same / len(g)) / (same / len(s) + same / len(g))


@pytest.mark.parametrize(("said", "gold", "em", "f1"), [
    ("240", "240", 100, 100), ("The 240.", "240", 100, 100), ("240 passengers", "240", 0, 200 / 3),
    ("", "240", 0, 0), ("cars", "240", 0, 0), ("the", "a", 100, 100),
])
def test_hand_cases(said, gold, em, f1):
    row = qa.answer_scores([said], [Example("q", "?", "p", (gold,), 0)]).iloc[0]
    assert (row["exact_match"], round(row["f1"], 6)) == (em, round(f1, 6))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(WORDS, WORDS)
def test_scores_are_those_of_the_official_script(said, gold):
    row = qa.answer_scores([said], [Example("q", "?", "p", (gold,), 0)]).iloc[0]
    assert row["f1"] == pytest.approx(100 * official_f1(gold, said), abs=1e-9)
    assert row["exact_match"] == 100.0 * (official(gold) == official(said))


def test_best_of_several_answers_counts_and_no_answer_is_all_or_nothing():
    two = Example("q", "?", "p", ("240", "240 passengers"), 0)
    assert qa.answer_scores(["240 passengers"], [two])["exact_match"].tolist() == [100.0]
    nothing = Example("q", "?", "p")
    assert qa.answer_scores(["", "240"], [nothing, nothing])["f1"].tolist() == [100.0, 0.0]


def test_scores_need_one_answer_an_example():
    with pytest.raises(ValueError, match="zip"):
        qa.answer_scores(["a"], [])


# ---- the split


def test_no_article_is_in_two_parts():
    rows = [Example(str(i), "?", "p", group=str(i % 13)) for i in range(100)]
    parts = qa.split_by_group(rows, seed=3)
    groups = [{e.group for e in part} for part in parts.values()]
    assert sum(map(len, groups)) == 13 and len(set.union(*groups)) == 13
    assert sum(map(len, parts.values())) == 100 and {name: len({e.group for e in part}) for name, part in parts.items()} == {
        "test": 2, "dev": 2, "train": 9}
    assert qa.split_by_group(rows, seed=3) == parts != qa.split_by_group(rows, seed=4)


@pytest.mark.parametrize("groups", range(3, 12))
def test_every_part_has_an_article(groups):
    parts = qa.split_by_group([Example(str(i), "?", "p", group=str(i)) for i in range(groups)])
    assert min(map(len, parts.values())) >= 1


def test_too_few_articles_are_an_error():
    with pytest.raises(ValueError, match="2 groups cannot fill 3 parts"):
        qa.split_by_group([Example("1", "?", "p", group="a"), Example("2", "?", "p", group="b")])


# ---- sentences and words


@settings(max_examples=200, deadline=None, derandomize=True)
@given(WORDS)
def test_sentences_cover_every_word_in_order(text):
    spans = qa.sentences(text)
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    assert all(not re.search(r"\w", text[b:a]) for (_, b), (a, _) in zip(spans, spans[1:], strict=False))
    assert all(a <= b for a, b in spans)


def test_abbreviation_ends_no_sentence():
    assert [PASSAGE[a:b] for a, b in qa.sentences(PASSAGE)] == [
        "The Skerry ferry has run since 1868.", "Dr. Moss built it in Gdańsk for £4,000.",
        "It carries 240 passengers — and 38 cars."]


@pytest.mark.parametrize(("question", "wanted"), [
    ("How many people fit?", "number"), ("In which year did it start?", "when"), ("Who built the ship?", "who"),
    ("In which city is the yard?", "where"), ("What is carried?", "what"), ("Why did it stop?", "other"), ("", "other")])
def test_kind_of_question(question, wanted):
    assert qa.kind(question) == wanted


@pytest.mark.parametrize(("word", "look"), [("1868", "date"), ("May", "date"), ("may", "plain"), ("240", "number"),
                                            ("twenty-six", "number"), ("the", "function"), ("Moss", "name"), ("ferry", "plain")])
def test_look_of_a_word(word, look):
    assert qa.shape(word) == look


def test_baseline_finds_what_words_give_away():
    assert qa.lexical_answer("Who built it?", PASSAGE) == "Dr. Moss"
    assert qa.lexical_answer("How many passengers does it carry?", PASSAGE) == "240"
    assert qa.lexical_answer("Anything?", "") == ""


def test_sentence_around_a_character():
    a, b = qa.sentence_around(PASSAGE, PASSAGE.index("Gda"))
    assert PASSAGE[a:b] == "Dr. Moss built it in Gdańsk for £4,000."


# ---- windows


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 400), st.integers(1, 60), st.data())
def test_windows_cover_everything_and_share_the_stride(tokens, width, data):
    stride = data.draw(st.integers(0, width - 1))
    bounds = qa.window_bounds(tokens, width, stride)
    assert bounds[0][0] == 0 and bounds[-1][1] == tokens
    assert all(end - begin <= width for begin, end in bounds)
    assert all(one[1] - two[0] == stride for one, two in zip(bounds, bounds[1:], strict=False))
    length = min(stride + 1, tokens)
    assert all(any(a <= s and s + length <= b for a, b in bounds) for s in range(tokens - length + 1))


@pytest.mark.parametrize("stride", [-1, 8, 9])
def test_window_that_never_moves_on_is_an_error(stride):
    with pytest.raises(ValueError, match="below the width 8"):
        qa.window_bounds(10, 8, stride)


@pytest.mark.parametrize(("max_length", "stride"), [(32, 8), (48, 0), (64, 31), (384, 128)])
def test_windows_are_those_of_the_library(tokenizer, max_length, stride):
    one = example(passage=" ".join([PASSAGE] * 5))
    theirs = tokenizer(one.question, one.passage, truncation="only_second", max_length=max_length, stride=stride,
                       return_overflowing_tokens=True, return_offsets_mapping=True)
    ours = qa.windows(tokenizer, [one], max_length, stride)
    assert [w.input_ids for w in ours] == theirs["input_ids"] and [w.token_type_ids for w in ours] == theirs["token_type_ids"]
    for i, window in enumerate(ours):
        inside = [t for t, part in enumerate(theirs.sequence_ids(i)) if part == 1]
        assert [window.offsets[t] for t in inside] == [theirs["offset_mapping"][i][t] for t in inside]


@pytest.mark.parametrize("answer", ["1868", "Gdańsk", "£4,000", "Dr. Moss", "240 passengers — and 38", "The", "cars"])
def test_answer_survives_the_way_through_tokens(tokenizer, answer):
    one = example(answer)
    [window] = qa.windows(tokenizer, [one])
    i, j = qa.target(window, one)
    assert one.passage[window.offsets[i][0]:window.offsets[j][1]] == answer


def test_half_an_answer_is_none(tokenizer):
    one = example("Gdańsk for £4,000", passage=" ".join([PASSAGE]))
    goals = [qa.target(w, one) for w in qa.windows(tokenizer, [one], 24, 2)]
    assert (0, 0) in goals
    assert qa.target(qa.windows(tokenizer, [one])[0], Example("q", "?", PASSAGE)) == (0, 0)


def test_only_kept_sentences_are_read(tokenizer):
    [window] = qa.windows(tokenizer, [example(question="How many passengers are carried?")], keep=1)
    inside = [span for span in window.offsets if span[1]]
    assert PASSAGE[inside[0][0]:inside[-1][1]] == "It carries 240 passengers — and 38 cars."


@pytest.mark.parametrize("passage", ["", " ", "🙂", "\0", "half \ud800 pair", "x" * 5000])
def test_odd_passages_make_windows(tokenizer, passage):
    made = qa.windows(tokenizer, [Example("q", "what", passage)])
    assert made and all(len(w.input_ids) == len(w.offsets) == len(w.token_type_ids) == len(w.features) <= 192 for w in made)
    assert all(b <= len(passage) for w in made for _, b in w.offsets)


@pytest.mark.parametrize("passage", [None, float("nan"), 5])
def test_what_is_no_text_is_refused(tokenizer, passage):
    with pytest.raises(TypeError):
        qa.windows(tokenizer, [Example("q", "what", passage)])


def test_features_are_what_they_are_called():
    places, x = qa.word_features("How many passengers does it carry?", PASSAGE)
    row = dict(zip(qa.FEATURES, x[[PASSAGE[p:].startswith("240") for p in places].index(True)], strict=True))
    assert {name for name, value in row.items() if value} == {"sentence score", "best sentence", "two best sentences", "1-2 away",
                                                              "number × number"}
    assert x.shape == (len(places), len(qa.FEATURES)) and len(set(qa.FEATURES)) == len(qa.FEATURES) == 38
    assert qa.word_features("what", "")[1].shape == (0, 38)


# ---- the best span


def slow(start, end, limit):
    pairs = [(i, j) for i in range(len(start)) for j in range(i, min(len(end), i + limit))]
    i, j = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
    return i, j, start[i] + end[j]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 25), st.integers(1, 30), st.integers(0, 10**6))
def test_best_span_is_the_best_of_all_pairs(n, limit, seed):
    start, end = np.random.default_rng(seed).normal(size=(2, n))
    assert qa.best_span(start, end, limit) == pytest.approx(slow(start, end, limit), abs=1e-12)


@pytest.mark.parametrize(("start", "end", "limit"), [([], [], 3), ([1.0], [1.0, 2.0], 3), ([1.0], [1.0], 0)])
def test_best_span_of_nothing_is_an_error(start, end, limit):
    with pytest.raises(ValueError, match="equally long rows of scores"):
        qa.best_span(np.array(start), np.array(end), limit)


# ---- the reader


def test_padding_and_question_never_win(reader):
    some = qa.windows(reader.tokenizer, [example(), example(passage=PASSAGE * 2)])
    for window, logits in zip(some, qa.span_logits(reader, some), strict=True):
        outside = [t for t, (a, b) in enumerate(window.offsets) if a == b and t]
        assert logits.shape == (len(window.input_ids), 2) and (logits[outside] == -1e4).all()
        assert (logits[[0, *(t for t, (a, b) in enumerate(window.offsets) if b > a)]] > -1e3).all()


def test_batch_does_not_change_an_answer(reader):
    rows = [example(), example(passage=PASSAGE * 3, question="Who?"), example("1868", question="When did it begin?")]
    together, alone = qa.read(reader, rows), [qa.read(reader, [row])[0] for row in rows]
    assert [a.text for a in together] == [a.text for a in alone]
    np.testing.assert_allclose([a.score for a in together], [a.score for a in alone], atol=1e-4)


def test_answer_is_the_text_at_its_place(reader):
    for answer in qa.read(reader, [example(), Example("q", "🙂", "x y z")]):
        assert answer.text and answer.text in PASSAGE + "x y z" and answer.end - answer.start == len(answer.text)
    assert qa.read(reader, [Example("q", "what", "")]) == [qa.Answer("", 0, 0, -math.inf)]
    assert qa.read(reader, []) == []


def test_window_that_is_surest_against_its_own_no_answer_wins(reader, monkeypatch):
    def logits(model, some):
        made = [np.full((len(w.input_ids), 2), -3.0, dtype=np.float32) for w in some]
        for window, scores, best, none in zip(some, made, (9.0, 4.0), (8.0, -1.0), strict=True):
            inside = [t for t, (a, b) in enumerate(window.offsets) if b > a]
            scores[inside[3]], scores[0] = best, none
        return made

    monkeypatch.setattr(qa, "span_logits", logits)
    one, cut = example(), qa.windows
    monkeypatch.setattr(qa, "windows", lambda *_, **__: cut(reader.tokenizer, [one], 32, 4)[:2])
    [answer] = qa.read(reader, [one])
    assert answer.score == pytest.approx(2 * 4.0 - 2 * -1.0, abs=1e-6)
    assert answer.start > 0 and answer.text == one.passage[answer.start:answer.end]


def test_a_few_questions_are_learnt_by_heart():
    model = qa.lora_reader(8, seed=1)
    rows = [example(), example("1868", question="When did it begin?"), example("Gdańsk", question="Where was it built?"),
            Example("n", "Who sings?", PASSAGE)]
    some = qa.windows(model.tokenizer, rows)
    losses = qa.train_reader(model, some, [qa.target(w, rows[w.row]) for w in some], qa.Recipe(epochs=25, lr=3e-3, batch_size=4))
    answers = qa.read(model, rows)
    assert losses[-1] < 0.2 * losses[0]
    assert [a.text for a in answers[:3]] == ["240", "1868", "Gdańsk"] and answers[3].score < 0 < min(a.score for a in answers[:3])


def test_frozen_reader_trains_its_heads_only():
    model = qa.lora_reader(0, use_features=False)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias", "extra.weight"]


def test_training_needs_a_goal_a_window(reader):
    with pytest.raises(ValueError, match="1 windows and 0 goals"):
        qa.train_reader(reader, qa.windows(reader.tokenizer, [example()]), [])


def test_wrong_passages_do_not_hold_the_answer():
    rows = [Example(str(i), "?", f"passage {i % 4}", (str(i % 4),), 8, "ab"[i % 2]) for i in range(40)]
    made = qa.wrong_passages(rows, 0.5)
    assert len(made) == 20 and not any(e.answers for e in made)
    home = {e.id: e for e in rows}
    for e in made:
        source = home[e.id.removesuffix("-wrong")]
        assert e.passage != source.passage and e.group == source.group and source.answers[0] not in e.passage


# ---- intervals and refusing


def test_group_interval_draws_articles():
    values, groups = [1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50
    wide = qa.group_interval(values, groups, 500)
    assert (wide.estimate, wide.low, wide.high) == (0.5, 0.0, 1.0)
    fair = qa.group_interval([1.0, 0.0] * 50, [str(i // 2) for i in range(100)], 500)
    assert (fair.estimate, fair.low, fair.high) == (0.5, 0.5, 0.5)


def test_threshold_on_a_hand_case():
    curve = qa.no_answer_curve([5, 3, 1, 0], [1.0, 0.0, 1.0, 0.5], [True, False, False, True])
    assert curve["earned"].tolist() == [0.375, 0.25, 0.5, 0.75, 0.5]
    assert curve["answered"].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert qa.best_threshold(curve) == 3.0 and qa.best_threshold(curve, "answered") == -math.inf


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_ends_of_the_curve_are_always_and_never(rows):
    scores, quality, known = map(np.array, zip(*rows, strict=True))
    curve = qa.no_answer_curve(scores, quality, known)
    assert curve["earned"].iloc[0] == pytest.approx((quality * known).mean(), abs=1e-12)
    assert curve["earned"].iloc[-1] == pytest.approx((~known).mean(), abs=1e-12)
    assert curve["answered"].is_monotonic_decreasing and curve["earned"].between(0, 1).all()


@pytest.mark.parametrize("scores", [[], [1.0], [math.nan, 1.0]])
def test_curve_of_bad_columns_is_an_error(scores):
    with pytest.raises(ValueError, match="equally long, non-empty scores"):
        qa.no_answer_curve(scores, [1.0] * (2 if scores else 0), [True] * (2 if scores else 0))
