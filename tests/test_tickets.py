"""Project 1: the tagger's answers, its shipped file, the guide's examples, and the behavioural cases at their pass rates."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nlp_portfolio.cases import tickets as tk  # noqa: E402
from nlp_portfolio.course.datasets import load, manifest  # noqa: E402
from nlp_portfolio.neural import lora  # noqa: E402

PROJECT = Path(__file__).resolve().parent.parent / "projects" / "1_ticket_intents"
TEXTS = ["Where is my parcel? Order #2048817", "refund pls", "Please cancel my plan.", "wie lösche ich meine Daten?"]
LABELS = ["cancel_order", "out_of_scope", "refund_request"]
RATES = {"must_pass": 1.0, "invariance": 0.9, "direction": 0.9}  # stated after a first measurement; see the project's README


@pytest.fixture(scope="module")
def tagger() -> tk.TicketTagger:
    return tk.TicketTagger.load()


def plain(value: object) -> bool:
    "Whether a value holds Python's own types only."
    if isinstance(value, dict):
        return all(type(key) is str and plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return type(value) in (str, float, bool)


# ---- what goes in


@given(st.text(st.characters(exclude_categories=[]), max_size=300))
def test_readable_gives_one_clean_line(text: str) -> None:
    clean = tk.readable(text)
    assert clean == " ".join(clean.split()) and tk.readable(clean) == clean
    assert clean.isprintable()
    assert clean.encode("utf-8").decode("utf-8") == clean


def test_readable_keeps_what_people_write() -> None:
    assert tk.readable("¿Dónde está?\n\nGrüße 🙂 – Łukasz") == "¿Dónde está? Grüße 🙂 – Łukasz"
    assert len(tk.readable("ab " * 10**6)) <= tk.MAX_CHARS


@pytest.mark.parametrize("value", [None, 5, 1.5, math.nan, b"bytes", ["a"], {"a": 1}])
def test_what_is_no_text_is_refused(tagger: tk.TicketTagger, value: object) -> None:
    with pytest.raises(TypeError, match="expected text"):
        tagger.predict([value])
    with pytest.raises(TypeError, match="expected text"):
        tagger.explain(value)


def test_one_string_is_no_list(tagger: tk.TicketTagger) -> None:
    with pytest.raises(TypeError, match=r"write \[text\]"):
        tagger.predict("refund pls")


# ---- thresholds

probabilities = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.01).map(
    lambda p: np.array(p) / sum(p))


@settings(max_examples=200)
@given(probabilities, probabilities, st.floats(0.01, 1), st.floats(0.01, 1))
def test_named_intents_keep_their_order_and_rejection_stands_alone(
        p: np.ndarray, q: np.ndarray, reject: float, several: float) -> None:
    named = tk.named_intents(p, q, LABELS, tk.Thresholds(reject, several))
    whole, parts = dict(zip(LABELS, p, strict=True)), dict(zip(LABELS, q, strict=True))
    if whole.pop("out_of_scope") >= reject:
        assert named == ["out_of_scope"]
    else:
        other = next(label for label in whole if label != named[0])
        assert whole[named[0]] >= whole[other]
        assert named[1:] == ([other] if parts[other] >= several and whole[other] >= tk.TRACE else [])


def test_further_intents_stand_by_their_probability() -> None:
    labels, whole = ["a", "b", "c", "out_of_scope"], np.array([0.5, 0.2, 0.2, 0.1])
    named = tk.named_intents(whole, np.array([0.1, 0.8, 0.9, 0.99]), labels, tk.Thresholds(0.5, 0.7))
    assert named == ["a", "c", "b"]


def rows(out: int, ours: int) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    "Tickets with rising probabilities of out_of_scope; those out of scope have the higher ones."
    q = np.concatenate([np.linspace(0.3, 0.99, out), np.linspace(0.01, 0.5, ours)])
    whole = np.column_stack([1 - q, q, 0 * q])
    return whole, 0 * whole, [["out_of_scope"]] * out + [["cancel_order"]] * ours


def test_the_promise_is_kept_by_the_lowest_threshold() -> None:
    p, none, intents = rows(20, 100)
    at = tk.choose_thresholds(p, none, intents, LABELS, turned_away=0.1)
    away = np.mean(p[20:, 1] >= at.reject)
    assert away <= 0.1 < np.mean(p[20:, 1] >= at.reject - 0.02)


def test_several_is_where_most_sets_are_exact() -> None:
    whole = np.array([[0.5, 0.1, 0.4], [0.7, 0.1, 0.2], [0.68, 0.1, 0.22], [0.0, 1.0, 0.0]])
    parts = np.array([[0.9, 0.0, 0.85], [0.9, 0.0, 0.6], [0.9, 0.0, 0.7], [0.0, 0.9, 0.0]])
    intents = [["cancel_order", "refund_request"], ["cancel_order"], ["cancel_order"], ["out_of_scope"]]
    at = tk.choose_thresholds(whole, parts, intents, LABELS)
    assert 0.7 < at.several <= 0.85
    named = [tk.named_intents(p, q, LABELS, at) for p, q in zip(whole, parts, strict=True)]
    assert tk.exact_sets(intents, named).all()


@given(st.text(st.sampled_from("ab .!?,;\nand but "), max_size=200))
def test_clauses_are_parts_of_the_ticket_in_order(text: str) -> None:
    text, position = tk.readable(text), 0
    parts = tk.clauses(text)
    assert len(parts) != 1 and len(parts) <= tk.MAX_CLAUSES and all(len(part.split()) >= 3 for part in parts)
    for part in parts:
        position = text.index(part, position) + len(part)


@pytest.mark.parametrize(("out", "ours"), [(0, 5), (5, 0)])
def test_a_threshold_needs_both_kinds_of_tickets(out: int, ours: int) -> None:
    with pytest.raises(ValueError, match="tickets of ours and tickets out of scope"):
        tk.choose_thresholds(*rows(out, ours), LABELS)


def test_exact_sets_ask_for_all_and_nothing_else() -> None:
    assert tk.exact_sets([["a", "b"], ["a"], ["a", "b"]], [["b", "a"], ["a", "b"], ["a"]]).tolist() == [True, False, False]
    with pytest.raises(ValueError):
        tk.exact_sets([["a"]], [])


def test_a_ticket_with_two_intents_stands_twice_among_the_training_rows() -> None:
    texts, labels = tk.training_rows([{"text": "x", "intents": ["a", "b"]}, {"text": "y", "intents": ["c"]}])
    assert (texts, labels) == (["x", "x", "y"], ["a", "b", "c"])


# ---- answers


def test_answers_are_plain_and_complete(tagger: tk.TicketTagger) -> None:
    for answer in tagger.predict(TEXTS):
        assert plain(answer) and json.loads(json.dumps(answer)) == answer
        assert list(answer) == ["intents", "out_of_scope", "probabilities"]
        assert list(answer["probabilities"]) == tagger.labels and len(tagger.labels) == 18
        assert math.isclose(sum(answer["probabilities"].values()), 1, abs_tol=1e-5)
        named = [one["intent"] for one in answer["intents"]]
        assert answer["out_of_scope"] is (named == ["out_of_scope"])
        first, *more = answer["intents"]
        assert first["probability"] == answer["probabilities"][first["intent"]]
        assert all(one["probability"] >= tagger.thresholds.several for one in more)
    assert tagger.predict([]) == []


def test_batched_equals_single(tagger: tk.TicketTagger) -> None:
    texts = load("tickets", "dev")["text"][:40]
    together, alone = tagger.predict(texts), [tagger.predict([text])[0] for text in texts]
    assert [[named["intent"] for named in one["intents"]] for one in together] == [
        [named["intent"] for named in one["intents"]] for one in alone]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(list(a["probabilities"].values()), list(b["probabilities"].values()), atol=1e-5)


def test_two_wishes_in_two_clauses_are_two_intents(tagger: tk.TicketTagger) -> None:
    (answer,) = tagger.predict(["Please cancel my subscription today. And where is my parcel, order #2071144?"])
    assert {named["intent"] for named in answer["intents"]} == {"cancel_subscription", "delivery_status"}
    assert sorted(answer["intents"][1]) == ["intent", "probability"]


@pytest.mark.parametrize("text", ["", "  \n\t", "\0", "\x00 \x01\x7f"])
def test_an_empty_ticket_is_out_of_scope_with_certainty(tagger: tk.TicketTagger, text: str) -> None:
    (answer,) = tagger.predict([text])
    assert answer["intents"] == [{"intent": "out_of_scope", "probability": 1.0}] and answer["out_of_scope"] is True
    assert sum(answer["probabilities"].values()) == 1
    assert tagger.explain(text) == {"words": [], "nearest": []}


@pytest.mark.parametrize("text", ["a" * 10_000_000, "\ud800 refund", "refund\0 pls", "🙂" * 5000, "refund " * 10**5,
                                  "\u202e" * 50])
def test_strange_tickets_get_an_answer(tagger: tk.TicketTagger, text: str) -> None:
    assert plain(tagger.predict([text])[0])


def test_noise_between_words_changes_nothing(tagger: tk.TicketTagger) -> None:
    a, b = tagger.predict(["Where is my parcel?", "\0 Where\n\nis   my\x01 parcel?\t"])
    assert a == b


# ---- explanations


def test_explanation_is_occlusion(tagger: tk.TicketTagger) -> None:
    text = "Where is my parcel?"
    why, p = tagger.explain(text), tagger.probabilities([text, "Where is my"])
    main = tagger.labels.index(tagger.predict([text])[0]["intents"][0]["intent"])
    assert [word for word, _ in why["words"]] == text.split() and plain(why)
    assert math.isclose(why["words"][-1][1], p[0, main] - p[1, main], abs_tol=1e-5)
    assert max(why["words"], key=lambda one: one[1])[0] == "parcel?"


def test_nearest_tickets_are_training_tickets_in_order(tagger: tk.TicketTagger) -> None:
    known = load("tickets", "train")[7]
    near = tagger.explain(known["text"], nearest=5)["nearest"]
    assert near[0]["text"] == known["text"] and near[0]["intent"] == known["intent"]
    assert math.isclose(near[0]["similarity"], 1, abs_tol=0.005)
    assert [one["similarity"] for one in near] == sorted((one["similarity"] for one in near), reverse=True)
    assert len(near) == 5 and {one["text"] for one in near} <= set(load("tickets", "train")["text"])


@given(st.integers(0, 300))
def test_without_takes_every_word_out_once(words: int) -> None:
    text = " ".join(f"w{i}" for i in range(words))
    parts = tk.without(text)
    assert " ".join(part for part, _ in parts) == text and len(parts) <= tk.PASSES
    assert all(sorted((part + " " + rest).split()) == sorted(text.split()) for part, rest in parts)


# ---- the shipped file


@pytest.mark.required
def test_the_shipped_files_are_small_and_the_card_is_complete() -> None:
    card, folder = lora.read_card("tickets"), lora.adapter_folder("tickets")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter.safetensors", "card.json", "neighbours.safetensors"]
    assert card["file_bytes"] == (folder / lora.WEIGHTS).stat().st_size <= 2_000_000
    assert (folder / tk.NEIGHBOURS).stat().st_size <= 1_000_000
    assert card["data"]["version"] == manifest()["tickets"]["sample"]["sha256"]["train"]
    assert card["labels"] == sorted(set(load("tickets", "train")["intent"])) and card["metrics"]["rows"] == 522
    assert {"seed", "recipe", "command", "citation", "thresholds"} <= set(card)
    assert card["measured_by"] == "nlp_portfolio.cases.tickets:measure_tagger"


def test_the_cards_numbers_hold() -> None:
    measured, claimed = tk.measure_tagger(), lora.read_card("tickets")["metrics"]
    assert measured.keys() == claimed.keys()
    for name in ("accuracy", "macro_f1", "exact_sets", "out_of_scope_caught", "turned_away"):
        assert abs(measured[name] - claimed[name]) <= 0.002, name


def test_the_cards_thresholds_are_those_of_the_development_part(tagger: tk.TicketTagger) -> None:
    dev = load("tickets", "dev")
    assert tk.choose_thresholds(*tagger.readings(dev["text"]), dev["intents"], tagger.labels) == tagger.thresholds


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16 or int8, got 'float12'"):
        tk.TicketTagger.load(dtype="float12")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A tagger of a few tickets, made the way the shipped one was."
    folder = tmp_path_factory.mktemp("weights") / "small"
    tk.train_tagger(folder, lora.Recipe(epochs=1, batch_size=16), rank=2, limit=48)
    return folder


def test_a_trained_tagger_loads_from_its_folder(small: Path) -> None:
    made = tk.TicketTagger.load(task=small)
    assert len(made.explain("refund pls", nearest=60)["nearest"]) == 48
    assert made.predict(["refund pls"])[0]["intents"][0]["intent"] in made.labels
    assert lora.read_card(small)["data"]["rows_used"] >= 48


def test_neighbours_of_another_file_are_refused(small: Path, tmp_path: Path) -> None:
    made = tk.TicketTagger.load(task=small)
    kept = (small / tk.NEIGHBOURS).read_bytes()
    (small / tk.NEIGHBOURS).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        with pytest.raises(ValueError, match="not the file that card.json describes"):
            made.explain("refund pls")
    finally:
        (small / tk.NEIGHBOURS).write_bytes(kept)


# ---- the project


def test_the_guide_quotes_its_tickets_word_for_word() -> None:
    guide = (PROJECT / "guide.md").read_text(encoding="utf-8")
    tickets = {row["id"]: row for row in load("tickets", "train")}
    quotes = re.findall(r'"(.+?)" \((ticket-\d{4})\)', guide)
    assert len(quotes) == 18 * 6 + 8
    assert [id for quote, id in quotes if quote != " ".join(tickets[id]["text"].split())] == []


def test_the_guide_gives_every_intent_its_examples() -> None:
    guide = (PROJECT / "guide.md").read_text(encoding="utf-8")
    tickets = {row["id"]: row for row in load("tickets", "train")}
    sections = {name: text for name, text in re.findall(r"### `(\w+)`\n(.*?)(?=\n### |\Z)", guide, re.S)}
    assert sorted(sections) == sorted({row["intent"] for row in tickets.values()})
    for name, text in sections.items():
        parts = [re.findall(r"ticket-\d{4}", part) for part in re.split("\nYes:\n|\nNo:\n|\nEdge:\n", text)[1:]]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert all(tickets[id]["intent"] == name for part in (parts[0], parts[2]) for id in part)
        assert not any(name in tickets[id]["intents"] for id in parts[1])


def cases() -> list[dict]:
    return [json.loads(line) for line in (PROJECT / "evalset/cases.jsonl").read_text(encoding="utf-8").splitlines()]


def test_cases_are_many_of_each_kind_and_none_is_a_ticket() -> None:
    kinds = pd.Series([case["kind"] for case in cases()]).value_counts()
    assert set(kinds.index) == set(RATES) and kinds.min() >= 20
    assert len({case["id"] for case in cases()}) == len(cases())
    tickets = {text for part in ("train", "dev", "test") for text in load("tickets", part)["text"]}
    assert {case[key] for case in cases() for key in ("text", "variant") if key in case} & tickets == set()
    assert {case["intent"] for case in cases() if case["kind"] == "must_pass"} == set(lora.read_card("tickets")["labels"])


@pytest.mark.required
@pytest.mark.parametrize("kind", RATES)
def test_cases_hold_at_their_stated_rate(tagger: tk.TicketTagger, kind: str) -> None:
    held = {case["id"]: tk.passes(tagger, case) for case in cases() if case["kind"] == kind}
    assert sum(held.values()) / len(held) >= RATES[kind], [id for id, ok in held.items() if not ok]


def test_a_case_can_fail(tagger: tk.TicketTagger) -> None:
    wrong = [{"kind": "must_pass", "text": TEXTS[0], "intent": "complaint"},
             {"kind": "invariance", "text": TEXTS[0], "variant": "Tell me a joke about whales"},
             {"kind": "direction", "text": TEXTS[0], "variant": TEXTS[0], "intent": "delivery_status", "direction": "up"},
             {"kind": "direction", "text": TEXTS[0], "variant": TEXTS[0], "intent": "delivery_status", "direction": "down"}]
    assert [tk.passes(tagger, case) for case in wrong] == [False] * 4
    with pytest.raises(ValueError, match="must_pass, invariance or direction"):
        tk.passes(tagger, {"kind": "other", "text": "a"})


def frame() -> pd.DataFrame:
    "Three test tickets, two of them wrong."
    part = load("tickets", "test").to_pandas().head(3).assign(prediction=lambda f: f["intent"], confidence=[0.5, 0.9, 0.7])
    part = part.assign(label=part["intent"])
    part.loc[[0, 1], "prediction"] = ["complaint", "out_of_scope"]
    return part.assign(correct=part["label"] == part["prediction"])


def test_reports_hold_the_errors_and_few_words(tmp_path: Path) -> None:
    tk.write_reports(frame(), {"accuracy": 1 / 3}, tmp_path / "reports")
    errors = pd.read_csv(tmp_path / "reports/errors.csv")
    assert errors["id"].tolist() == frame().loc[[1, 0], "id"].tolist() and errors["probability"].tolist() == [0.9, 0.5]
    assert errors["bucket"].tolist()[0] == "taken for out of scope"
    assert errors["words"].str.split().str.len().max() <= 13  # twelve and the dots
    assert json.loads((tmp_path / "reports/metrics.json").read_text(encoding="utf-8")) == {"accuracy": 1 / 3}
    assert (tmp_path / "reports/confusion.png").stat().st_size > 1000
    assert "| taken for out of scope | 1 |" in (tmp_path / "reports/buckets.md").read_text(encoding="utf-8")


def test_the_committed_card_and_reports_say_what_the_adapters_card_says() -> None:
    metrics = json.loads((PROJECT / "reports/metrics.json").read_text(encoding="utf-8"))
    claimed = lora.read_card("tickets")["metrics"]
    assert metrics["shipped file"] == claimed
    assert abs(metrics["models"]["lora, shipped"]["accuracy"] - claimed["accuracy"]) <= 0.002
    page = (PROJECT / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| accuracy | {claimed['accuracy']:.3f} |" in page and f"| macro_f1 | {claimed['macro_f1']:.3f} |" in page
    assert len(pd.read_csv(PROJECT / "reports/errors.csv")) == round((1 - claimed["accuracy"]) * claimed["rows"])
