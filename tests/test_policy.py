"""A policy says what is wrong with it, a decision is never allow by accident, and more of something bad is never milder."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.safety.policy import (
    ACTIONS,
    Category,
    Failed,
    Policy,
    PolicyError,
    Span,
    Step,
    curated,
    decide,
    detect,
    diff,
    edits,
    load_policy,
    parse_policy,
    redacted,
)

TEXT = """name: fair
version: 1.10
default: block
precedence: [block, review, redact, allow]
monotone: true
retention: {records: 180, reviews: 30}
categories:
  phone: {detector: pii, redact: 0.5}
  toxicity: {detector: text, review: 0.6, block: 0.9}
  url: {detector: pii, ignore: true}
"""
POLICY = parse_policy(TEXT)
QUIET = {"phone": 0.0, "toxicity": 0.0}


def action(scores: dict, spans: tuple = (), policy: Policy = POLICY) -> str:
    return decide(scores, spans, policy).action


# ---- the file


def test_the_shipped_policy_covers_the_project():
    policy = load_policy()
    names = {one.name for one in policy.categories}
    assert {"email", "phone", "card", "iban", "toxicity", "hate", "threat", "self_harm", "injection"} <= names
    assert policy.default == "block" and policy.monotone and len(policy.version) == 12
    assert parse_policy(yaml.safe_dump(policy.data(), sort_keys=False)).version == policy.version


def test_a_version_is_the_content():
    assert parse_policy("# a comment\n" + TEXT.replace("{records: 180, reviews: 30}", "{reviews: 30,  records: 180.0}")) == POLICY
    versions = [parse_policy(TEXT.replace(*change)).version for change in [
        ("0.9", "0.91"), ("fair", "fare"), ("1.10", "1.1"), ("default: block", "default: review"), ("180", "181"),
        ("redact: 0.5", "redact: 0.5, about: x"), ("monotone: true", "monotone: false")]]
    assert len({POLICY.version, *versions}) == 8
    assert POLICY.label == "1.10"


@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ("default: block", "default: allow", 3, "default: 'allow' is no safe default: give block or review"),
    ("default: block", "default: no", 3, "no safe default"),
    ("default: block", "", 1, "the key default is missing: add it"),
    ("[block, review, redact, allow]", "[allow, block, review, redact]", 4, "precedence: list block, review, redact, allow"),
    ("[block, review, redact, allow]", "[block, review, allow]", 4, "the strongest first and allow last"),
    ("monotone: true", "monotone: maybe", 5, "monotone: give true or false"),
    ("records: 180", "records: -1", 6, "retention.records: give a number of days"),
    ("records: 180", "recrods: 180", 6, "retention.recrods: unknown key: did you mean records?"),
    ("redact: 0.5", "redact: 5", 8, r"categories.phone.redact: 5.0 is no threshold: give a number above 0 and at most 1"),
    ("redact: 0.5", "redact: .nan", 8, "'.nan' is no threshold"), ("redact: 0.5", "redact: 0", 8, "0.0 is no threshold"),
    ("redact: 0.5", "redact: yes", 8, "True is no threshold"), ("redact: 0.5", "allow: 0.5", 8, "unknown key"),
    ("redact: 0.5", "about: x", 8, "give at least one threshold, or ignore: true"),
    ("ignore: true", "ignore: true, block: 0.5", 10, "not both"),
    ("ignore: true", "block: 0.5, ignore: maybe", 10, "url.ignore: give true, or leave it out"),
    ("detector: text, ", "", 9, "categories.toxicity: the key detector is missing"),
    ("review: 0.6, block: 0.9", "review: 0.9, block: 0.6", 9, "a higher score leads to a milder action"),
    ("review: 0.6, block: 0.9", "review: 0.9, block: 0.9", 9, "two actions at the same score"),
    ("  url:", "  phone:", 10, "categories.phone: the key stands here for the second time"),
    ("name: fair", "name: fair\nname: fare", 2, "second time"),
    ("version: 1.10", "version: [1]", 2, "version: give a text"),
    ("  phone: {detector: pii, redact: 0.5}", "  phone: 0.5", 8, "a category is a mapping such as"),
    ("name: fair", "name: &a fair\nlabel: *a", 2, r"aliases \(\*\) are not allowed"),
    ("name: fair", "name: [fair", 2, "this is no YAML"),
])
def test_a_mistake_is_named_with_its_line(old, new, line, message):
    assert old in TEXT
    with pytest.raises(PolicyError, match=message) as err:
        parse_policy(TEXT.replace(old, new, 1), "my.yaml")
    assert all(one.startswith("my.yaml, line ") for one in err.value.messages)
    assert f"my.yaml, line {line}:" in str(err.value)


def test_every_mistake_is_named_at_once():
    with pytest.raises(PolicyError) as err:
        parse_policy(TEXT.replace("default: block", "default: allow").replace("0.5", "5").replace("review:", "reviwe:"))
    assert len(err.value.messages) == 3


@pytest.mark.parametrize("text", ["", "5", "[]", "a: b: c", "categories: {}", "\0", "[" * 5000, "x" * 200_000,
                                  "a: !!python/object:os.x {}",
                                  "\ud800", "name: 2026-11-22", "? [a]\n: b"])
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(PolicyError):
        parse_policy(text)


def test_a_billion_entries_are_refused_quickly():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    start = time.perf_counter()
    with pytest.raises(PolicyError, match="line 2: aliases"):
        parse_policy(bomb)
    assert time.perf_counter() - start < 1


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(st.sampled_from([*load_policy().data(), *ACTIONS, "detector", "x"]), inner, max_size=6)))
def test_any_document_is_a_policy_or_a_named_mistake(data):
    try:
        assert isinstance(parse_policy(yaml.safe_dump(data, allow_unicode=True)), Policy)
    except PolicyError as err:
        assert err.messages


def test_a_file_that_is_not_there_decides_nothing(tmp_path: Path):
    with pytest.raises(PolicyError, match="cannot be read .FileNotFoundError.: no policy, no decision"):
        load_policy(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="UnicodeDecodeError"):
        load_policy(tmp_path / "latin.yaml")


def test_a_policy_made_by_a_program_is_checked_too():
    with pytest.raises(PolicyError, match="default: 'allow' is no safe default"):
        replace(POLICY, default="allow")
    with pytest.raises(PolicyError, match="milder"):
        replace(POLICY, categories=(Category("a", "d", (Step(0.2, "block"), Step(0.8, "review"))),))


# ---- fail closed


NUMBERS = st.floats(0, 1)
JUNK = st.one_of(st.none(), st.floats().filter(lambda x: not 0 <= x <= 1), st.text(max_size=4), st.booleans(),
                 st.binary(max_size=3), st.just([]), st.just(10**400),
                 st.just(Failed("dead")), st.just(np.float32("nan")), st.just(1j))
SCORED = [one.name for one in load_policy().categories if one.steps]


@given(st.dictionaries(st.sampled_from(SCORED), NUMBERS), st.sampled_from(SCORED), JUNK, st.sampled_from(["block", "review"]))
def test_a_broken_score_is_never_allowed(good, name, junk, default):
    policy = replace(load_policy(), default=default)
    zeros = dict.fromkeys(SCORED, 0.0)
    decision = decide(zeros | good | {name: junk}, [], policy)
    assert policy.strength(decision.action) >= policy.strength(default) and not decision.complete
    missing = zeros | good
    del missing[name]
    assert policy.strength(action(missing, (), policy)) >= policy.strength(default)


class Raises(dict):
    def get(self, *_):
        raise OSError("a text of a user")


@pytest.mark.parametrize(("scores", "spans", "why"), [
    ({}, [], "no score"), (QUIET | {"Toxicity": 0.1}, [], "no such category"), (QUIET | {5: 0.1}, [], "no such category"),
    (QUIET, [Span(0, 4, "mail")], "no such category"), (QUIET, [Span(4, 4, "phone")], "no place"),
    (QUIET, [Span(-1, 4, "phone")], "no place"), (QUIET, [Span(0, 4, "phone", math.nan)], "no place or no score"),
    (QUIET, [Span(0, None, "phone")], "no place"), (QUIET, [(0, 4)], "AttributeError"), (QUIET, 5, "TypeError"),
    (None, [], "TypeError"), (5, [], "TypeError"), (Raises(QUIET), [], "OSError"),
    (QUIET | {"phone": 0.9}, [], "where to redact"),
    (QUIET | {"phone": 0.9}, [Span(0, 4, "phone", 0.2)], "where to redact"),
    (QUIET | {"toxicity": Failed("text gave no answer")}, [], "text gave no answer"),
])
def test_what_cannot_be_judged_is_the_default(scores, spans, why):
    for default in ("block", "review"):
        decision = decide(scores, spans, replace(POLICY, default=default))
        assert (decision.action, decision.complete) == (default, False)
        assert why in " ".join(map(str, decision.reasons)) and "a text of a user" not in str(decision)


def test_a_failure_does_not_hide_what_is_worse():
    review = replace(POLICY, default="review")
    assert action({"toxicity": 0.95}, (), review) == "block"
    decision = decide({"toxicity": 0.95}, (), review)
    assert [one.action for one in decision.reasons] == ["block", "review"] and decision.category == "toxicity"


@pytest.mark.parametrize(("scores", "expected"), [
    ({}, "allow"), ({"toxicity": 0.59}, "allow"), ({"toxicity": 0.6}, "review"), ({"toxicity": np.float32(0.95)}, "block"),
    ({"phone": 0.9}, "redact"), ({"phone": 0.9, "toxicity": 0.7}, "review"), ({"toxicity": 1}, "block"),
    ({"url": math.nan}, "allow")])
def test_what_can_be_judged_is(scores, expected):
    decision = decide(QUIET | scores, [Span(0, 4, "phone", scores.get("phone", 0.0))], POLICY)
    assert decision.action == expected and decision.policy == POLICY.version and decision.complete
    assert bool(decision.reasons) == (expected != "allow")
    assert bool(decision.spans) == ("phone" in scores)


def test_precedence_is_the_policys():
    gentle = parse_policy(TEXT.replace("[block, review, redact, allow]", "[review, block, redact, allow]")
                          .replace("review: 0.6, block: 0.9", "block: 0.6") + "  threat: {detector: text, review: 0.5}\n")
    assert action(QUIET | {"toxicity": 0.9, "threat": 0.6}, (), gentle) == "review"


# ---- monotone


@st.composite
def policies(draw) -> Policy:
    "Valid monotone policies with any precedence, default and thresholds."
    order = (*draw(st.permutations(ACTIONS[:3])), "allow")
    categories = []
    for name in "abc"[:draw(st.integers(1, 3))]:
        chosen = sorted(draw(st.sets(st.sampled_from(ACTIONS[:3]), min_size=1)), key=order.index, reverse=True)
        at = sorted(draw(st.sets(st.integers(1, 100), min_size=len(chosen), max_size=len(chosen))))
        categories.append(Category(name, "d", tuple(Step(n / 100, one) for n, one in zip(at, chosen, strict=True))))
    return Policy("p", "1", draw(st.sampled_from(ACTIONS[:2])), order, tuple(categories))


@given(policies(), st.data())
def test_a_higher_score_is_never_milder(policy, data):
    names = [one.name for one in policy.categories]
    score = NUMBERS | st.sampled_from([step.at for one in policy.categories for step in one.steps]) | st.none()
    scores = {name: data.draw(score) for name in names}
    spans = [Span(0, 3, name, data.draw(NUMBERS)) for name in data.draw(st.lists(st.sampled_from(names), max_size=3))]
    name = data.draw(st.sampled_from(names))
    higher = scores | {name: data.draw(st.floats(scores[name] or 0.0, 1))} if scores[name] is not None else scores
    before, after = (policy.strength(action(one, tuple(spans), policy)) for one in (scores, higher))
    assert after >= before


def test_a_policy_may_say_that_it_is_not_monotone():
    swapped = TEXT.replace("review: 0.6, block: 0.9", "review: 0.9, block: 0.6")
    policy = parse_policy(swapped.replace("monotone: true", "monotone: false"))
    assert [action(QUIET | {"toxicity": score}, (), policy) for score in (0.5, 0.7, 0.95)] == ["allow", "block", "review"]


# ---- detectors


def test_detectors_that_raise_hang_or_are_not_there():
    def raising(text: str):
        raise RuntimeError(text)

    def hanging(text: str):
        time.sleep(0.5)
        return {"toxicity": 0.0}, []

    def fine(text: str):
        return {"phone": 0.0}, []

    for bad, why in ((raising, "text raised RuntimeError"), (hanging, "text gave no answer in 0.05 s"),
                     (lambda text: None, "text raised TypeError"), (lambda text: ({}, []), "no score"),
                     (lambda text: ({"toxicity": math.nan}, []), "no number"),
                     (lambda text: ({"toxicity": 10**400}, []), "no number")):
        start = time.perf_counter()
        scores, spans = detect({"pii": fine, "text": bad}, "my secret text", POLICY, seconds=0.05)
        decision = decide(scores, spans, POLICY)
        assert time.perf_counter() - start < 0.45 and decision.action == "block" and why in str(decision)
        assert "secret" not in str(decision) and scores["phone"] == 0.0
    assert "there is no detector text" in str(decide(*detect({"pii": fine}, "x", POLICY), POLICY))
    both = {"pii": fine, "text": lambda text: ({"toxicity": 0.2, "phone": 0.7}, [Span(0, 1, "phone")])}
    scores, spans = detect(both, "x", POLICY)
    assert (scores, action(scores, spans)) == ({"phone": 0.7, "toxicity": 0.2}, "redact")


# ---- redaction and the curated set


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=5))
def test_nothing_marked_survives_redaction(text, marks):
    spans = [Span(start, start + length, "x") for start, length in marks]
    covered = {i for span in spans for i in range(span.start, span.end)}
    kept = "".join(char for i, char in enumerate(text) if i not in covered)
    assert redacted(text, spans).replace("[x]", "") == kept.replace("[x]", "")


def test_redaction_names_the_category():
    assert redacted("call 123 now", [Span(5, 8, "phone")]) == "call [phone] now"
    assert redacted("abcdef", [Span(1, 4, "a"), Span(3, 5, "b")]) == "a[a]f"
    assert redacted("abc", []) == "abc"


def test_the_curated_set_fits_the_shipped_policy():
    cases, policy = curated(), load_policy()
    assert len(cases) == len({one.id for one in cases}) == 32 and {one.wanted for one in cases} == set(ACTIONS)
    decisions = {one.id: decide(one.scores, one.spans, policy) for one in cases}
    assert all(one.complete for one in decisions.values())
    stricter = {"author", "cake", "hotline", "quoted-injection"}
    assert {one.id for one in cases if decisions[one.id].action != one.wanted} == stricter
    lost = policy.strength
    assert [one.id for one in cases if lost(decisions[one.id].action) < lost(one.wanted)] == []
    rows = [json.loads(line) for line in (Path(__file__).parent.parent / "nlp_portfolio/data/policies/curated.jsonl")
            .read_text(encoding="utf-8").splitlines()]
    assert all(part in row["text"] for row in rows for part in row.get("marks", {}).values())


def test_a_diff_lists_what_changes_and_nothing_else():
    old = load_policy()
    data = old.data()
    data["categories"]["threat"] |= {"review": 0.2, "block": 0.6}
    new = parse_policy(yaml.safe_dump(data, sort_keys=False))
    assert edits(old, new) == ["categories.threat.block: 0.8 -> 0.6", "categories.threat.review: 0.4 -> 0.2"]
    changes, cases = diff(old, new, curated()), curated()
    changed = {one.id for one in cases if action(one.scores, one.spans, old) != action(one.scores, one.spans, new)}
    assert {one.id for one in changes} == changed and len(changed) == len(changes) > 2
    assert {(one.id, one.before, one.after, one.category) for one in changes} >= {("cake", "review", "block", "threat")}
    assert diff(old, old, cases) == [] and edits(old, old) == []
