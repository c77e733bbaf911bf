"""What waits for a person: redacted, one reviewer at a time, decided once, recorded before it counts."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlp_portfolio.safety.audit import AuditError, AuditLog, Keys
from nlp_portfolio.safety.policy import Failed, Span, decide, load_policy
from nlp_portfolio.safety.review import HIDDEN, OUTCOMES, ReviewError, ReviewQueue, excerpt_of

POLICY = load_policy()
ZEROS = {one.name: 0.0 for one in POLICY.categories}
TEXT = "you fool, call 030 1234567"
RUDE = decide(ZEROS | {"toxicity": 0.6, "phone": 1.0}, [Span(15, 26, "phone")], POLICY)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.db", Keys((("k1", b"1" * 32),)), create=True)
    yield log
    log.close()


@pytest.fixture
def queue(log, tmp_path) -> ReviewQueue:
    return ReviewQueue(tmp_path / "review.db", log, max_waiting=5, lease_s=60, clock=Clock())


def fill(queue: ReviewQueue, n: int) -> None:
    for i in range(n):
        queue.add(TEXT, RUDE, i + 1, f"r{i}")


def test_an_item_waits_redacted(queue, tmp_path):
    item = queue.add(TEXT, RUDE, 7, "r7")
    assert (item.excerpt, item.record, item.request, item.category) == ("you fool, call [phone]", 7, "r7", "toxicity")
    assert "toxicity: review, 0.60 reaches 0.5" in item.reasons
    assert queue.items() == [item] and b"1234567" not in b"".join(file.read_bytes() for file in tmp_path.glob("review*"))


@pytest.mark.parametrize("scores", [ZEROS | {"name": Failed("names gave no answer")}, {}, ZEROS | {"phone": 1.0}])
def test_where_a_detector_failed_nothing_is_shown(queue, scores):
    assert queue.add(TEXT, decide(scores, [], POLICY), 1).excerpt == HIDDEN


@given(st.text(max_size=300))
def test_an_excerpt_is_short_and_storable(text):
    shown = excerpt_of(text, RUDE, 50)
    assert len(shown) <= 52 and "\0" not in shown and shown.encode()


@pytest.mark.parametrize("text", ["half \ud800", "a\0b", "x" * 10**6, ""])
def test_strange_texts_wait_like_any_other(queue, text):
    assert queue.add(text, decide(ZEROS | {"toxicity": 0.6}, [], POLICY), 1).id == queue.claim("ada").id


def test_one_reviewer_at_a_time(queue):
    fill(queue, 2)
    first, second = queue.claim("ada"), queue.claim("ben")
    assert (first.record, second.record, queue.claim("cyd")) == (1, 2, None)
    for who, outcome, message in (("ben", "allow", "item 1 is not 'ben'"), ("ada", "review", "one of block, redact, allow"),
                                  ("ada", "", "one of block, redact, allow")):
        with pytest.raises(ReviewError, match=message):
            queue.decide(first.id, who, outcome)
    with pytest.raises(ReviewError, match="reviewer's name"):
        queue.claim("")


def test_every_outcome_is_in_the_log(queue, log):
    fill(queue, 3)
    for outcome in OUTCOMES:
        queue.decide(queue.claim("ada").id, "ada", outcome)
    assert [(row.kind, row.data["record"], row.data["outcome"], row.data["reviewer"]) for row in log.records()] == [
        ("review", i + 1, outcome, "ada") for i, outcome in enumerate(OUTCOMES)]
    assert [(item.outcome, item.excerpt) for item in queue.items()] == [(outcome, "") for outcome in OUTCOMES]
    assert log.verify() and queue.waiting() == (0, 0.0)
    with pytest.raises(ReviewError, match="it is decided"):
        queue.decide(1, "ada", "allow")


def test_a_claim_runs_out(queue):
    fill(queue, 1)
    item = queue.claim("ada")
    queue.clock.now += 59
    assert queue.claim("ben") is None
    queue.clock.now += 2
    with pytest.raises(ReviewError, match="the claim ran out"):
        queue.decide(item.id, "ada", "allow")
    assert queue.claim("ben").id == item.id
    queue.decide(item.id, "ben", "block")
    assert queue.items()[0].reviewer == "ben"


def test_a_full_queue_refuses(queue):
    fill(queue, 5)
    queue.clock.now += 30
    assert queue.waiting() == (5, 30.0)
    with pytest.raises(ReviewError, match="5 items wait already: block"):
        queue.add(TEXT, RUDE, 9)
    queue.decide(queue.claim("ada").id, "ada", "allow")
    assert queue.add(TEXT, RUDE, 9).record == 9


def test_a_record_waits_once(queue):
    assert queue.add(TEXT, RUDE, 4).id == queue.add(TEXT, RUDE, 4).id and queue.waiting()[0] == 1


def test_what_cannot_be_recorded_is_not_decided(queue, log):
    fill(queue, 1)
    item = queue.claim("ada")
    log.append("decision", {})
    log.file.unlink()
    with pytest.raises(AuditError, match="there is no head file"):
        queue.decide(item.id, "ada", "allow")
    assert queue.items()[0].outcome == "" and queue.waiting()[0] == 1


def test_a_queue_that_cannot_be_used_is_said(tmp_path, log, queue):
    with pytest.raises(ValueError, match="a file of its own"):
        ReviewQueue(log.url, log)
    (tmp_path / "review.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(AuditError, match="review.db cannot be used .DatabaseError"):
        queue.add(TEXT, RUDE, 1)


def test_decided_items_are_forgotten_and_waiting_ones_are_not(queue, tmp_path):
    fill(queue, 3)
    queue.decide(queue.claim("ada").id, "ada", "allow")
    assert queue.forget(days=30) == 0
    queue.clock.now += 31 * 86_400
    assert (queue.forget(days=30), len(queue.items())) == (1, 2)


def test_it_is_still_there_after_a_restart(queue, log, tmp_path):
    fill(queue, 2)
    queue.claim("ada")
    again = ReviewQueue(tmp_path / "review.db", log, clock=queue.clock)
    assert again.items() == queue.items() and again.claim("ben").record == 2


def test_nobody_gets_the_same_item_twice(log, tmp_path):
    queue, claimed = ReviewQueue(tmp_path / "review.db", log), []
    fill(queue, 24)

    def work(who: str) -> None:
        while item := queue.claim(who):
            claimed.append(item.id)
            queue.decide(item.id, who, "allow")

    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(1, 25)) and log.verify().records == 24


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["add", "ada", "ben", "late", "decide ada", "decide ben"]), max_size=14))
def test_any_order_of_steps_decides_each_item_at_most_once(steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    log = AuditLog(folder / "audit.db", Keys((("k1", b"1" * 32),)), create=True)
    queue, held, added = ReviewQueue(folder / "review.db", log, 5, 60, Clock()), {}, 0
    for step in steps:
        try:
            if step == "add":
                added += 1
                queue.add(TEXT, RUDE, added)
            elif step == "late":
                queue.clock.now += 61
            elif step in ("ada", "ben"):
                held[step] = queue.claim(step)
            elif held.get(step[7:]):
                queue.decide(held[step[7:]].id, step[7:], "allow")
        except ReviewError:
            pass
    outcomes = [row.data["item"] for row in log.records()]
    assert len(set(outcomes)) == len(outcomes) == sum(item.outcome != "" for item in queue.items())


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
def test_the_file_is_for_its_owner_only(queue, tmp_path):
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("review.db*")} == {0o600}


def test_the_modules_import_nothing_heavy():
    code = ("import sys, nlp_portfolio.safety.review; "
            "print(sorted({'torch', 'transformers', 'numpy', 'pandas', 'psycopg'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert sqlite3.sqlite_version_info > (3, 35)
