"""Project 4: its texts and behaviour tests are what the guide says, policy and guide agree, and the filter behaves on them."""

import ast
import json
import re
from collections import Counter, defaultdict
from typing import Any

import pytest
from conftest import ROOT

from nlp_portfolio.cases.moderation import Moderator
from nlp_portfolio.safety.evasion import plain
from nlp_portfolio.safety.policy import ACTIONS, load_policy

PROJECT = ROOT / "projects" / "4_safety_filter"
GUIDE = (PROJECT / "guide.md").read_text(encoding="utf-8")
STRENGTH = {"allow": 0, "redact": 1, "review": 2, "block": 3}


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PROJECT / "evalset" / name).read_text(encoding="utf-8").splitlines()]


CASES, BEHAVIOUR = lines("cases.jsonl"), lines("behaviour.jsonl")
KNOWN = set((PROJECT / "evalset" / "known_failures.txt").read_text(encoding="utf-8").split())


# ---- the curated texts


def test_there_are_enough_texts_of_every_kind_in_both_halves() -> None:
    assert len(CASES) >= 220 and len(CASES) == len({row["id"] for row in CASES}) == len({row["text"] for row in CASES})
    for split in ("dev", "test"):
        part = [row for row in CASES if row["split"] == split]
        assert min(Counter(row["wanted"] for row in part)[action] for action in ACTIONS) >= 20
        assert {row["language"] for row in part} == {"en", "es", "de"}
        assert {row["kind"] for row in part} == {"comment", "ticket", "chat", "e-mail"}
        assert {row["evasion"] for row in part} == {"", "homoglyph", "leet", "zero-width"}
        assert sum(row["wanted"] == "allow" and row["group"] != "" for row in part) >= 10
        assert sum(row["hard"] != "" for row in part) >= 25
    assert Counter(row["split"] for row in CASES).keys() == {"dev", "test"}


def test_every_category_with_an_action_has_texts_in_both_halves() -> None:
    due = {one.name for one in load_policy().categories if one.steps}
    for split in ("dev", "test"):
        assert due <= {name for row in CASES if row["split"] == split for name in row["categories"]}
    assert {name for row in CASES for name in row["categories"]} <= due


def test_spans_cover_whole_words_and_the_wanted_action_is_one_that_its_categories_can_have() -> None:
    steps = {one.name: {step.action for step in one.steps} for one in load_policy().categories}
    for row in CASES:
        for span in row["spans"]:
            part = row["text"][span["start"] : span["end"]]
            assert part and part == part.strip() and span["category"] in row["categories"], row["id"]
            around = row["text"][max(0, span["start"] - 1) : span["start"]], row["text"][span["end"] : span["end"] + 1]
            assert not (around[0].isalnum() and part[0].isalnum()) and not (around[1].isalnum() and part[-1].isalnum()), row["id"]
        assert (row["wanted"] == "allow") == (not row["categories"]), row["id"]
        assert row["wanted"] == "allow" or row["wanted"] in set().union(*(steps[name] for name in row["categories"])), row["id"]


def test_no_run_of_eight_words_stands_in_two_texts() -> None:
    places = defaultdict(set)
    for row in CASES:
        words = re.findall(r"\w+", plain(row["text"]).text.lower())
        for at in range(len(words) - 7):
            places[tuple(words[at : at + 8])].add(row["id"])
    assert [ids for ids in places.values() if len(ids) > 1] == []


def test_disguised_texts_are_disguised_and_the_others_are_not() -> None:
    for row in CASES:
        undone = plain(row["text"]).text != row["text"]
        assert undone == (row["evasion"] in ("homoglyph", "zero-width")), row["id"]


def luhn(digits: str) -> bool:
    "Whether the last digit is right (Luhn 1960)."
    numbers = [int(one) for one in digits if one.isdigit()][::-1]
    return (sum(numbers[::2]) + sum(sum(divmod(2 * one, 10)) for one in numbers[1::2])) % 10 == 0


def test_marked_card_numbers_pass_their_check_and_mail_addresses_are_reserved_ones() -> None:
    marked = [(span["category"], plain(row["text"][span["start"] : span["end"]]).text) for row in CASES for span in row["spans"]]
    assert all(luhn(part) for category, part in marked if category == "card")
    reserved = re.compile(r"@([\w-]+\.)*(example|example\.(com|org|net|es|de))$", re.IGNORECASE)
    assert all(reserved.search(part) for category, part in marked if category == "email")


# ---- guide and policy


def table(name: str) -> list[list[str]]:
    rows = GUIDE.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_guide_and_policy_name_the_same_categories_actions_and_thresholds() -> None:
    said = {name: what for name, what in table("policy")}
    assert said == {one.name: ", ".join(f"{step.action} from {step.at:g}" for step in one.steps) or "ignore"
                    for one in load_policy().categories}


def test_each_category_with_an_action_is_defined_with_examples_and_with_the_actions_of_the_policy() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## )", GUIDE, re.M | re.S))
    defined = set(re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| [^|]+ \| [^|]+ \|$", GUIDE, re.M))
    for one in load_policy().categories:
        actions = [step.action for step in one.steps]
        if actions == ["redact"]:
            assert one.name in defined
        elif actions:
            text = sections[one.name]
            assert all(re.search(rf"^- {word}", text, re.M) for word in ("Yes", "No", "Edge"))
            assert re.findall(r"\b(block|review|redact)\b", re.search(r"^Action: ([^.]*)", text, re.M)[1]) == actions
        else:
            assert f"**{one.name.replace('_', ' ')}**" in GUIDE


def test_every_action_is_explained_from_the_strongest_to_the_mildest() -> None:
    assert [name for name in re.findall(r"^\| (\w+) \|", GUIDE, re.M) if name in ACTIONS] == list(load_policy().precedence)


# ---- the filter on them


@pytest.fixture(scope="module")
def moderator() -> Moderator:
    return Moderator.load(dtype="float32")


@pytest.mark.parametrize("row", BEHAVIOUR, ids=lambda row: f"{row['id']}-{row['kind']}-{row['capability'].replace(' ', '-')}")
def test_behaviour(moderator: Moderator, row: dict[str, Any]) -> None:
    if row["id"] in KNOWN:
        pytest.xfail("a known failure, in the model card by name")
    first = moderator.moderate(row["text"])
    if row["kind"] == "must-pass":
        assert first.decision.action in row["actions"]
        return
    second = moderator.moderate(row["other"])
    if row["kind"] == "invariance":
        assert first.decision.action == second.decision.action
    elif row["change"] == "not milder":
        assert STRENGTH[second.decision.action] >= STRENGTH[first.decision.action]
    else:
        gain = second.scores[row["category"]] - first.scores[row["category"]]
        assert gain >= -0.02 if row["change"] == "up" else gain <= 0.02


def test_behaviour_is_tested_widely_and_known_failures_are_few() -> None:
    kinds = Counter(row["kind"] for row in BEHAVIOUR)
    assert len(BEHAVIOUR) >= 60 and min(kinds[kind] for kind in ("must-pass", "invariance", "direction")) >= 12
    assert KNOWN <= {row["id"] for row in BEHAVIOUR} and len(KNOWN) <= len(BEHAVIOUR) // 4


def test_personal_data_with_a_check_digit_never_goes_on(moderator: Moderator) -> None:
    for row in CASES:
        marks = [span for span in row["spans"] if span["category"] in ("card", "iban", "email")]
        passed = moderator.moderate(row["text"]).text if marks else None
        for span in marks:
            assert passed is None or row["text"][span["start"] : span["end"]] not in passed, row["id"]


def test_nobody_who_asks_for_help_is_blocked_for_it(moderator: Moderator) -> None:
    for row in CASES:
        if row["categories"] == ["self_harm"] and row["evasion"] == "":
            reasons = moderator.moderate(row["text"]).decision.reasons
            assert all(one.action != "block" for one in reasons if one.category == "self_harm"), row["id"]


# ---- what the pages say


def test_pages_name_files_that_exist_and_counts_that_hold() -> None:
    for page in ("README.md", "guide.md", "MODEL_CARD.md"):
        text = (PROJECT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (PROJECT / target).exists(), f"{page} points at {target}"
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"{len(CASES)} texts" in readme and f"{len(BEHAVIOUR)} behavioural tests" in readme
    assert all(file.stat().st_size < 200_000 for file in PROJECT.rglob("*.png"))


def test_the_card_names_no_failure_that_is_not_known() -> None:
    card = (PROJECT / "MODEL_CARD.md").read_text(encoding="utf-8")
    listed = card.split("<!-- failures -->")[1].split("<!-- /failures -->")[0]
    shown = {tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in listed.strip().splitlines()[2:]}
    known = {(row["kind"], row["capability"], row["text"].replace("|", "/")) for row in BEHAVIOUR if row["id"] in KNOWN}
    assert shown and shown <= known


def test_the_reports_are_there() -> None:
    there = {file.name for file in (PROJECT / "reports").iterdir()}
    assert there >= {"metrics.json", "errors.csv", "buckets.md", "confusion.png"}


def test_examples_of_the_demo_are_many_and_none_chose_anything() -> None:
    tree = ast.parse((PROJECT / "app.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "EXAMPLES")
    shown = ast.literal_eval(found.value)
    assert len(shown) >= 6 and not {row["text"] for row in CASES if row["split"] == "test"} & set(shown)
