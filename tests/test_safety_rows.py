"""The safety encoder is not measured on what it learned from: our own rows against each text that a lesson or project scores."""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from conftest import ROOT

from nlp_portfolio.safety import rows

DATA = ROOT / "nlp_portfolio" / "data"
SETS = ("toxicity/*", "pii/test*", "prompt_injection/indirect_test*", "hatecheck/*", "surge_toxicity/*", "moderation_eval/*",
        "xstest/*")
MEASURED = [*(file for name in SETS for file in (DATA / "samples").glob(f"{name}.jsonl")), *(DATA / "injection").glob("*.jsonl"),
            *(ROOT / "projects/4_safety_filter/evalset").glob("*.jsonl")]


def texts(value: Any) -> Iterator[str]:
    "Every string in a row."
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts(one)


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def close(row: str, places: dict[tuple[str, ...], set[int]]) -> bool:
    "Whether two trigrams and two fifths of a row's trigrams stand in one measured text."
    found = trigrams(row)
    shared = Counter(text for one in found for text in places.get(one, ()))
    return bool(shared) and max(shared.values()) >= max(2, 0.4 * len(found))


def test_no_row_is_close_to_a_text_that_is_measured() -> None:
    places = defaultdict(set)
    lines = [line for file in MEASURED for line in file.read_text(encoding="utf-8").splitlines()]
    measured = [text for line in lines for text in texts(json.loads(line))]
    for number, text in enumerate(measured):
        for one in trigrams(text):
            places[one].add(number)
    assert len(measured) > 2000 and close(next(text for text in measured if len(text.split()) > 6), places)
    ours = [json.loads(line) for line in (DATA / "safety/rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in ours}) == len(ours)
    assert [row["text"] for row in ours if close(row["text"], places)] == []


def test_a_text_stands_whole_among_harmless_ones() -> None:
    calm = [f"calm {number}" for number in range(9)]
    made = [rows.among("I will find you.", calm, random.Random(seed)) for seed in range(200)]
    assert all("I will find you." in text and "calm" in text for text in made)
    assert {text.startswith("I will") for text in made} == {text.endswith("find you.") for text in made} == {True, False}
    assert rows.among("Alone.", [], random.Random(1)) == "Alone."


def test_threats_and_cries_for_help_are_learnt_among_harmless_sentences_too() -> None:
    written = {row["text"] for row in rows.own("text") if row["labels"].get("self_harm", 0) > 0.5}
    found = [text for text, labels in rows.sources("toxicity")["own"] if labels["self_harm"] and labels["self_harm"] > 0.5]
    assert len(written) > 100 and sum(text not in written and any(one in text for one in written) for text in found) > 50
