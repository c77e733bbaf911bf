"""The filter of project 4: nothing is allowed because something failed, spans are parts of what came, redacting settles."""

import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.cases import moderation
from nlp_portfolio.cases.moderation import (
    HELP,
    MAX_CHARS,
    Alone,
    Broken,
    Desk,
    Moderator,
    Stuck,
    ToxicRate,
    Window,
    as_answer,
    combined,
    in_time,
    measure_evasion,
    moved,
    open_desk,
    reviewer_name,
    self_harm,
    tidy,
    totals,
)
from nlp_portfolio.safety import rows
from nlp_portfolio.safety.audit import AuditError
from nlp_portfolio.safety.evasion import Plain, evasions
from nlp_portfolio.safety.policy import Failed, Span, decide, load_policy, redacted

LABELS = ("toxicity", "hate", "threat", "injection")
TRICKS = "Adaworm @.x [name]\n\u200b\u202e\u202c\u2066аd\u0337ａ\0\ud800\U000e0041\U0001f642"


class Words:
    "Reads names, and scores by word; after a name that was cut it sees the next word, as a model does whose context changed."

    entities, labels = ("name", "address", "organisation"), LABELS

    def read(self, texts):
        return [SimpleNamespace(spans=tuple(self.spans(text)), scores=self.scores(text)) for text in texts]

    def spans(self, text):
        for mark in re.finditer(r"Ada|name Lovelace|\bname\b|(?<=name )[a-z]+(?= name)", text):
            yield Span(*mark.span(), "name", 0.9)

    def scores(self, text):
        return {"toxicity": 0.95 if "worm" in text.lower() else 0.1, "hate": 0.0, "threat": 0.85 if "kill" in text else 0.0,
                "injection": 0.95 if "obey" in text else 0.0}


def mails(text):
    return [Span(*mark.span(), "email") for mark in re.finditer(r"\w+@\w+(?:\.\w+)?", text)]


def made(reader=None, **changes) -> Moderator:
    return Moderator(reader or Words(), **{"rules": mails, "suspicion": lambda text: 0.0, **changes})


FILTER = made()


def action(text: str, moderator: Moderator = FILTER) -> str:
    return moderator.moderate(text).decision.action


# ---- what it is for


@pytest.mark.parametrize(("text", "wanted", "passed"), [
    ("Hello.", "allow", "Hello."), ("", "allow", ""), (" \u200b\n", "allow", " \u200b\n"),
    ("Ask Ada, ada@x.org", "redact", "Ask [name], [email]"), ("You worm!", "block", None), ("I want to die", "review", None),
    ("obey me, Ada", "block", None), ("A\u200bd\u200ba", "redact", "[name]"), ("<Аdа>", "redact", "<[name]>"),
    ("y0u w0rm", "block", None), ("w o r m", "block", None), ("\u202emrow\u202c", "block", None), ("ｗｏｒｍ", "block", None),
    ("so nice" + "".join(chr(0xE0000 + ord(one)) for one in "obey"), "block", None)])
def test_a_text_gets_its_decision(text, wanted, passed):
    found = FILTER.moderate(text)
    assert (found.decision.action, found.text, found.decision.complete) == (wanted, passed, True)
    assert all(found.reasons) and bool(found.reasons) == (wanted != "allow") and found.seconds > 0


def test_of_another_reading_only_what_changed_is_read():
    seen = []

    class Listening(Words):
        def read(self, texts):
            seen.extend(texts)
            return super().read(texts)

    text = f"{'calm ' * 300}y0u w0rm, {'calm ' * 300}"
    assert action(text, made(Listening())) == "block"
    assert seen[0] == text and "calm you worm, calm" in seen[1] and len(seen[1]) < 500


@given(st.text("ab ", max_size=40), st.text("ab ", max_size=40), st.integers(0, 8))
def test_the_changed_part_holds_every_change(first, other, margin):
    def place(text):
        return Plain(text, range(len(text)), range(1, len(text) + 1))

    with patch.object(moderation, "MARGIN", margin):
        part = moderation._changed(place(other), place(first))
    start, end = (part.starts[0], part.ends[-1]) if part.text else (len(other), len(other))
    assert part.text == other[start:end]
    assert first.startswith(other[:start]) and first.endswith(other[end:])


def test_the_characters_of_the_original_go_the_unseen_ones_too():
    text = "mail \u200bа\u200bd\u200ba\u0337@x.org\u200b now"
    found = FILTER.moderate(text)
    [span] = found.decision.spans
    assert (text[span.start], text[span.end - 1], span.category) == ("а", "g", "email")
    assert found.text == "mail \u200b[email]\u200b now"


def test_self_harm_meets_a_person_and_help_and_is_never_blocked_for_harsh_words():
    for text in ("I want to kill myself", "i'm a worm, I want to kill myself", "i w4nt to d1e"):
        found = FILTER.moderate(text)
        assert (found.decision.action, found.decision.category) == ("review", "self_harm"), text
        assert (found.help, found.text) == (HELP, None)
    assert action("I want to kill myself, obey!") == "review"  # it is passed on to nobody, and nobody is turned away unseen
    assert action("I want to kill myself", made(Broken("no model"))) == "block"
    assert FILTER.moderate("I could kill for a coffee").help == ""
    assert action("I will kill you, worm") == "block"


@pytest.mark.parametrize("text", [
    "I want to die", "i wanna die", "I'm going to end my life", "thinking of taking my own life", "I feel suicidal",
    "I\u2019ve been cutting myself again", "everyone is better off without me", "I don't want to be alive anymore",
    "there is no point in living", "I wrote the goodbye letters yesterday",
    "Ich will nicht mehr leben", "quiero morir", "je veux mourir"])
def test_plain_sentences_of_self_harm_are_seen(text):
    assert self_harm(text) == 0.9


@pytest.mark.parametrize("text", [
    "I am dying to see it", "kill myself laughing", "this bug kills me", "cut myself a slice", "the plant will die",
    "die Ergebnisse will ich", "I want to disappear for the weekend", "live and let die", "hang me out to dry"])
def test_everyday_words_are_no_self_harm(text):
    assert self_harm(text) == 0.0


# ---- properties


TEXTS = st.text(st.one_of(st.sampled_from(TRICKS), st.characters()), max_size=40)
PIECES = st.lists(st.sampled_from([
    "Ada", "ada@x.org", "[name]", "[email]", " ", "Lovelace", "worm", "\u200b", "I want to die", "name", ".", "\ud800", "\u202e",
    "x", "[", "]"]), max_size=12).map("".join)


@given(st.one_of(TEXTS, PIECES))
def test_spans_are_parts_of_the_text_and_the_answer_is_json(text):
    found = FILTER.moderate(text)
    assert all(0 <= span.start < span.end <= len(text) for span in found.spans)
    assert set(found.decision.spans) <= set(found.spans)
    assert found.decision.action in ("allow", "redact", "block", "review")
    if found.decision.action == "redact":
        assert found.text == redacted(text, found.decision.spans)
    answer = json.loads(json.dumps(as_answer(found), allow_nan=False))
    assert answer["action"] == found.decision.action


@given(st.one_of(TEXTS, PIECES))
def test_redacting_the_redacted_changes_nothing(text):
    once = FILTER.redact(text)
    again = FILTER.redact(once.text)
    assert again.text == once.text and again.decision.action == "allow"


def test_it_takes_several_looks_when_cutting_shows_more():
    assert FILTER.redact("Ada byron Ada").text == "[name] [name] [name]"
    assert FILTER.redact("Ada Lovelace").text == "[name]"
    assert Span(0, 12, "name", 0.9) in FILTER.redact("Ada Lovelace").decision.spans
    assert FILTER.moderate("Ada Lovelace").text == "[name] Lovelace"


def test_phrases_for_threats_fire_on_no_harmless_row_of_our_own():
    written = [row for kind in ("text", "benign", "mail", "attack", "entities") for row in rows.own(kind)]
    harmless = [row["text"] for row in written if row.get("labels", {}).get("threat", 0) <= 0.2]
    assert len(harmless) > 2400 and [text for text in harmless if moderation.threat(text)] == []
    assert sum(moderation.threat(row["text"]) > 0 for row in written if row.get("labels", {}).get("threat", 0) >= 0.7) >= 5


def test_the_encoder_reads_a_text_once_and_again_only_what_will_be_stored():
    class Counting(Words):
        def read(self, texts):
            seen.append(texts)
            return super().read(texts)

    for text in ("worm", "Ada, worm", "Ada", "Ada, worm, I want to die", "I want to die"):
        seen = []
        made(Counting()).moderate(text)
        assert len(seen) == 1, text
    seen = []
    made(Counting()).redact("Ada Lovelace")
    assert len(seen) > 1


def test_the_rules_look_again_at_what_the_encoder_leaves():
    def after_names(text):
        return [Span(*mark.span(), "phone") for mark in re.finditer(r"(?<=\[name\] )\d+", text)]

    found = made(rules=after_names).moderate("Ada 4711")
    assert (found.decision.action, found.text, found.scores["phone"]) == ("redact", "[name] [phone]", 1.0)
    assert made(rules=after_names).moderate("Ada 4711, I want to die").decision.action == "review"


def test_a_plain_threat_is_seen_whatever_stands_around_it():
    calm = made(SimpleNamespace(read=lambda texts: [SimpleNamespace(spans=(), scores=dict.fromkeys(LABELS, 0.0))] * len(texts),
                                entities=Words.entities, labels=LABELS))
    for text in ("I will k\u0456ll you.", "Thank you so much, what a lovely day. I w1ll kill you. Bye!", "te voy a matar"):
        assert action(text, calm) == "block"
    assert action('He wrote to me: "I will kill you"', calm) == "review"
    assert action("I will never kill you. I'll shoot you an email, and then we will kill them in the final.", calm) == "allow"


def test_what_never_settles_is_blocked():
    class Growing(Words):
        def spans(self, text):
            return [Span(end - 1, end, "name", 0.9) for end in [len(text.rstrip("[name]"))] if end]

    found = made(Growing()).redact("b c d f g h i j k l " * 5)
    assert found.decision.action == "block" and "did not come to an end" in found.reasons[0] and found.text is None


@given(st.one_of(TEXTS, PIECES))
def test_the_same_text_gets_the_same_decision(text):
    first, second = FILTER.moderate(text), FILTER.moderate(text)
    assert (first.decision, first.text, first.spans, first.scores) == (second.decision, second.text, second.spans, second.scores)


@given(st.dictionaries(st.sampled_from(LABELS), st.floats(0, 1)), st.sampled_from(LABELS), st.floats(0, 1))
def test_a_higher_score_is_never_milder(scores, label, more):
    class Fixed(Words):
        def scores(self, text):
            return self.values

    one, other = Fixed(), Fixed()
    one.values = dict.fromkeys(LABELS, 0.0) | scores
    other.values = one.values | {label: max(one.values[label], more)}
    strength = load_policy().strength
    assert strength(action("text", made(other))) >= strength(action("text", made(one)))


def test_a_threshold_of_the_card_becomes_a_half():
    class Careful(Words):
        thresholds = {"threat": 0.99, "toxicity": 0.2}

    assert made(Careful()).moderate("kill").scores["threat"] < 0.4 < FILTER.moderate("kill").scores["threat"]
    assert made(Careful()).moderate("Hello.").scores["toxicity"] == pytest.approx(0.1 * 0.8 / (0.1 * 0.8 + 0.9 * 0.2), abs=1e-12)
    assert [moved(p, 0.7) for p in (0.0, 0.7, 1.0)] == [0.0, pytest.approx(0.5, abs=1e-12), 1.0]


def test_a_number_that_the_encoder_found_is_weighed_by_the_words_around_it():
    class Numbers(Words):
        entities = (*Words.entities, "phone", "national_id")

        def spans(self, text):
            return [Span(*mark.span(), "phone", 0.9) for mark in re.finditer(r"\d+|digits", text)]

    assert made(Numbers()).moderate("order number 77316554").text == "order number 77316554"
    assert made(Numbers()).moderate("ring me on 77316554, digits").text == "ring me on [phone], digits"


# ---- it fails closed


def raising(*args):
    raise OSError("secret text")


BAD_SCORES = [float("nan"), float("inf"), -0.1, 1.1, None, "0.1", True, [], 10**400]


@pytest.mark.parametrize("score", BAD_SCORES, ids=str)
def test_a_strange_score_blocks(score):
    class Strange(Words):
        def scores(self, text):
            return dict.fromkeys(LABELS, 0.0) | {"hate": score}

    found = made(Strange()).moderate("Hello.")
    assert (found.decision.action, found.decision.complete, found.text) == ("block", False, None)
    json.dumps(as_answer(found), allow_nan=False)


@pytest.mark.parametrize("answer", [
    [], [None], [SimpleNamespace(spans=(), scores={})], [SimpleNamespace(spans=(), scores={"toxicity": 0.0})],
    [SimpleNamespace(spans=(Span(0, 99, "name", 0.9),), scores=dict.fromkeys(LABELS, 0.0))],
    [SimpleNamespace(spans=(Span(0, 1, "pet", 0.9),), scores=dict.fromkeys(LABELS, 0.0))],
    [SimpleNamespace(spans=(Span(0, 1, "name", float("nan")),), scores=dict.fromkeys(LABELS, 0.0))],
    [SimpleNamespace(spans=(), scores=dict.fromkeys(LABELS, 0.0))] * 2], ids=range(8))
def test_a_strange_answer_of_the_encoder_blocks(answer):
    class Strange(Words):
        def read(self, texts):
            return answer

    found = made(Strange()).moderate("Hello.")
    assert (found.decision.action, found.decision.complete, found.text) == ("block", False, None)


@pytest.mark.parametrize("spans", [
    None, 5, [None], ["email"], [Span(0, 99, "email")], [Span(3, 3, "email")], [Span(-1, 2, "email")],
    [Span(0.0, 2.0, "email")], [Span(0, 2, "email", None)], [Span(0, 2, "email", float("nan"))], [Span(0, 2, "email", 2)],
    [Span(0, 2, "pet")], [Span(0, 2, None)],
    [Span(0, 2, "email", "0.9")], [Span("0", "2", "email")]], ids=str)
def test_strange_spans_of_the_rules_block(spans):
    found = made(rules=lambda text: spans).moderate("Hello.")
    assert (found.decision.action, found.decision.complete, found.text) == ("block", False, None)
    json.dumps(as_answer(found), allow_nan=False)


def test_what_nobody_thought_of_blocks(monkeypatch):
    monkeypatch.setattr(moderation, "_cut", raising)
    found = FILTER.moderate("Hello.")
    assert (found.decision.action, found.reasons) == ("block", ("filter: block, the filter failed (OSError)",))


@pytest.mark.parametrize("part", ["reader", "rules", "suspicion"])
def test_a_part_that_raises_blocks_and_says_so_without_the_text(part):
    broken = SimpleNamespace(read=raising, entities=Words.entities, labels=LABELS)
    moderator = made(broken) if part == "reader" else made(**{part: raising})
    found = moderator.moderate("Hello.")
    assert (found.decision.action, found.text) == ("block", None)
    assert "raised OSError" in found.reasons[0] and "secret" not in repr(found)
    if part != "suspicion":
        assert moderator.redact("Hello.").text is None
    assert moderator.trouble == ""  # one text may be strange
    for _ in range(2):
        moderator.moderate("Hello.")
    assert "raised OSError" in moderator.trouble


def test_a_part_that_hangs_blocks_in_time_and_the_next_text_at_once():
    wait = threading.Event()

    class Slow(Words):
        def read(self, texts):
            wait.wait(9)
            return super().read(texts)

    slow = made(Slow(), seconds=1.0)
    began = time.monotonic()
    assert action("Hello.", slow) == "block" and 1 <= time.monotonic() - began < 2
    time.sleep(0.1)
    began = time.monotonic()
    assert action("Hello.", slow) == "block" and time.monotonic() - began < 0.7
    assert slow.trouble == "a detector hangs"
    before = threading.active_count()
    for _ in range(20):
        action("Hello.", slow)
    assert threading.active_count() <= before + 3
    wait.set()
    time.sleep(0.2)
    assert action("Hello.", slow) == "allow" and slow.trouble == ""


@pytest.mark.parametrize("scores", [(0.2, float("nan")), (float("nan"), 0.2), (None, 0.2), (0.2, "1"), (0.2, [])], ids=str)
def test_two_detectors_of_one_category_do_not_hide_a_failure(scores):
    policy = load_policy()
    zeros = {one.name: 0.0 for one in policy.categories}
    answers = {one.detector: (zeros, []) for one in policy.categories}
    assert decide(*combined(answers, policy), policy).action == "allow"
    assert combined({"a": ({"hate": 0.2}, [])}, policy)[0]["hate"] == Failed("there is no detector text")
    assert combined(answers | {"a": ({"hate": 0.2}, []), "b": ({"hate": 0.3}, [])}, policy)[0]["hate"] == 0.3
    one, two = scores
    broken = answers | {"a": ({"hate": one}, []), "b": ({"hate": two}, [])}
    assert decide(*combined(broken, policy), policy).action == "block"


def test_work_is_waited_for_and_no_longer():
    assert in_time(lambda: 5, 1) == 5
    with pytest.raises(TimeoutError):
        in_time(lambda: time.sleep(1), 0.05)
    with pytest.raises(OSError, match="secret"):
        in_time(raising, 1)


def test_alone_means_one_at_a_time():
    running, most = [], []

    def work(number):
        running.append(number)
        most.append(len(running))
        time.sleep(0.01)
        running.remove(number)

    once = Alone(work, 5)
    threads = [threading.Thread(target=once, args=(number,)) for number in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1] * 5 and not once.stuck
    with pytest.raises(Stuck):
        never = Alone(lambda: never(), 0.05)
        never()


def test_a_model_that_cannot_load_blocks(monkeypatch, tmp_path):
    moderator = Moderator.load(task=tmp_path / "nothing")
    assert action("Hello.", moderator) == "block" and "cannot be loaded" in moderator.reader.why and moderator.trouble
    assert action("Hello.", made(Broken("no model"))) == "block" and made(Broken("no model")).trouble == "no model"


def test_a_long_text_has_an_answer():
    assert action("a " * (MAX_CHARS // 2)) == "allow"
    began = time.monotonic()
    assert action("a " * (MAX_CHARS // 2) + "a") == "block"
    found = FILTER.moderate("\u202ea" * 5_000_000)
    assert (found.decision.action, found.text, found.spans) == ("block", None, ()) and time.monotonic() - began < 1
    assert found.reasons == ("filter: block, 10,000,000 characters are more than the 10,000 that are read",)
    assert FILTER.trouble == ""  # nobody's fault but the sender's


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "-x", "4111111111111111", "x\n", "DE67392077181464064709"])
def test_a_reviewer_has_a_name_that_may_be_stored(name):
    assert reviewer_name("maren.k-2") == "maren.k-2"
    with pytest.raises(ValueError, match="a reviewer's name has 1 to 64 plain letters"):
        reviewer_name(name)


@pytest.mark.parametrize("wrong", [5, None, float("nan"), b"x", ["x"]])
def test_what_is_no_text_is_an_error(wrong):
    for method in (FILTER.moderate, FILTER.redact):
        with pytest.raises(TypeError, match="expected text, got "):
            method(wrong)


# ---- the alert


def decision(text: str):
    return FILTER.moderate(text).decision


def test_the_alert_needs_a_share_and_a_number():
    now = [0.0]
    rate, calm, toxic = ToxicRate(0.1, 2.0, 20, 600, clock=lambda: now[0]), decision("Hello."), decision("worm")
    for one in [toxic] * 19:
        rate.note(one)
    assert rate.warning() == "" and rate.share == 1.0
    rate.note(toxic)
    assert rate.warning().startswith("100% of the last 20 decisions were toxic, the baseline is 10%")
    for one in [calm] * 80:
        rate.note(one)
    assert (rate.share, rate.warning()) == (0.2, "")  # not more than twice the baseline
    rate.note(toxic)
    assert rate.warning() != ""
    now[0] = 599
    assert rate.warning() != ""
    now[0] = 600
    assert (rate.warning(), rate.share) == ("", 0.0)


def test_a_window_stays_small():
    now = [0.0]
    window = Window(600, lambda: now[0])
    for step in range(5000):
        now[0] = 7.0 * step
        window.note(step % 2 == 0)
    assert len(window._slots) <= 60 and 80 <= totals(window)[0] <= 90


# ---- the desk


@pytest.fixture
def desk(tmp_path) -> Desk:
    return open_desk(FILTER, tmp_path / "desk")


def stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_every_decision_is_on_record_before_the_answer(desk):
    texts = ["Hello.", "Ada", "worm", "I want to die"]
    answers = [desk.handle(text, f"r{i}") for i, text in enumerate(texts)]
    actions = ["allow", "redact", "block", "review"]
    assert [one["record"] for one in answers] == [1, 2, 3, 4] and desk.log.verify().records == 4
    assert [row.data["action"] for row in desk.log.records()] == [one["action"] for one in answers] == actions
    assert [row.data["request"] for row in desk.log.records()] == ["r0", "r1", "r2", "r3"]
    assert desk.queue.waiting()[0] == 1 and desk.queue.items()[0].record == 4
    assert desk.redact("You worm, ada@x.org")["text"] == "You worm, [email]" and desk.log.verify().records == 5


def test_a_log_that_cannot_be_written_blocks(desk, monkeypatch):
    def full(*args):
        raise AuditError("disk full")

    monkeypatch.setattr(desk.log, "append", full)
    for text in ("Hello.", "Ada", "I want to die"):
        answer = desk.handle(text)
        assert (answer["action"], answer["text"], answer["record"]) == ("block", None, None)
    assert desk.queue.waiting()[0] == 0


def test_a_log_that_cannot_be_opened_blocks(tmp_path):
    open_desk(FILTER, tmp_path).handle("Hello.")
    (tmp_path / "audit.keys").unlink()
    desk = open_desk(FILTER, tmp_path)
    answer = desk.handle("Hello.")
    assert (answer["action"], answer["text"], answer["complete"]) == ("block", None, False)
    assert desk.warnings() == ["the audit log cannot be used (MissingKey)"] == [answer["reasons"][0]["why"]]
    assert not (tmp_path / "audit.keys").exists()  # no fresh key for an old log
    assert open_desk(FILTER, tmp_path / "x", "mysql://host/db").warnings() == ["the audit log cannot be used (ValueError)"]


def test_a_full_queue_blocks_on_record(desk):
    desk.queue.max_waiting = 1
    answers = [desk.handle("I want to die")["action"] for _ in range(2)]
    assert answers == ["review", "block"]
    assert [row.data["action"] for row in desk.log.records()] == ["review", "review", "block"]


def test_nothing_of_a_text_is_stored(desk, tmp_path):
    for text in ("Hello Ada, ada@x.org", "worm Ada ada@x.org secret", "I want to die, says Ada, mail ada@x.org"):
        desk.handle(text)
    desk.redact("Ada secret")
    found = stored(tmp_path)
    assert b"says [name], mail [email]" in found
    for raw in (b"Ada", b"ada@x.org", b"Hello", b"secret"):
        assert raw not in found


def test_retention_follows_the_policy(desk, monkeypatch):
    desk.handle("Hello.")
    seen = []
    monkeypatch.setattr(desk.log, "retain", lambda days: seen.append(days) or 3)
    monkeypatch.setattr(desk.queue, "forget", lambda days: seen.append(days) or 2)
    assert (tidy(desk), tidy(desk), seen) == (5, 0, [180.0, 30.0])


# ---- evasion


def test_what_a_disguise_costs_is_measured():
    table = measure_evasion(FILTER, ["You are a worm.", "Ask ada@x.org about the worms"]).set_index("disguise")
    undone = ["none", "homoglyph", "zero-width", "full-width", "direction", "marks"]
    assert list(table.index) == ["none", *evasions("x")]
    assert (table.loc[undone, "caught"] == 1).all()
    blind = table["not undone"]
    assert blind["full-width"] == 0 < blind["zero-width"] < blind["none"] == 1
    assert measure_evasion(FILTER, []).empty


def test_the_policy_knows_what_the_parts_find():
    names = {one.name for one in load_policy().categories}
    assert set(rows.ENTITIES) | set(moderation.PII) | set(LABELS) | {"self_harm"} <= names
