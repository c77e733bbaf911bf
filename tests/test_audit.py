"""The audit log: every mutation is detected, nothing acknowledged is lost, and without key, head or database it is closed."""

import json
import math
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_request_log import Postgres, pg_rows, postgres_bin

from nlp_portfolio.safety import audit
from nlp_portfolio.safety.audit import (
    COLUMNS,
    AuditError,
    AuditLog,
    Head,
    Keys,
    MissingKey,
    Row,
    Tampered,
    add_key,
    create_keys,
    load_keys,
    parse_keys,
    read_head,
    recorded,
)
from nlp_portfolio.safety.policy import Decision, Failed, decide, load_policy

SEED = 50
ROOT = Path(__file__).resolve().parent.parent
SECRET = "my card 4929 1234 was swallowed by Mrs O'Neil"
posix = pytest.mark.required if sys.platform == "linux" else pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
K1, K2, FOREIGN = ("k1", b"1" * 32), ("k2", b"2" * 32), ("k1", b"x" * 32)
KEYS = Keys((K1,))


@pytest.fixture
def log(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.db", KEYS, create=True)
    yield log
    log.close()


def fill(log: AuditLog, n: int) -> None:
    for i in range(n):
        log.append("decision", {"action": ("block", "allow")[i % 2], "score": i / 100})


def sql(log: AuditLog, *statements: str) -> None:
    database = sqlite3.connect(log.url, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


# ---- what a record says


def test_a_decision_is_recorded_without_its_text(log, tmp_path):
    scores = dict.fromkeys((one.name for one in load_policy().categories), 0.0) | {
        "threat": 0.97, "hate": Failed("text raised OSError"), "injection": math.nan, "toxicity": "x" * 500}
    decision = decide(scores, [], load_policy())
    row = log.decision(decision, SECRET, scores, request="r1")
    data = next(log.records()).data
    assert data == row.data and (data["action"], data["category"], data["policy"]) == ("block", "toxicity", load_policy().version)
    assert data["scores"] | {"threat": 0.97, "hate": "failed: text raised OSError", "injection": "nan",
                             "toxicity": "no number: str"} == data["scores"]
    assert (data["chars"], data["request"], row.seq, row.key_id) == (len(SECRET), "r1", 1, "k1")
    assert b"4929" not in bytes_of(tmp_path) and b"swallowed" not in bytes_of(tmp_path)
    assert datetime.fromisoformat(row.at).tzinfo is not None
    again = log.decision(decision, SECRET, scores)
    assert again.data["text_hash"] == data["text_hash"] and again.digest != row.digest
    other = log.decision(decision, "half \ud800 \0", scores, request="\ud800" * 100)
    assert other.data["text_hash"] != data["text_hash"] and log.verify()


@pytest.mark.parametrize(("kind", "data", "message"), [
    ("purge", {}, "takes one of decision, review"), ("x", {}, "takes one of"),
    ("decision", {"x": object()}, "what JSON can hold"),
    ("decision", {"x": math.nan}, "what JSON can hold"), ("decision", {"x": "y" * 20_000}, "log numbers and names, no texts")])
def test_what_is_no_record_is_refused(log, kind, data, message):
    with pytest.raises(ValueError, match=message):
        log.append(kind, data)
    assert list(log.records()) == []


@posix
def test_the_files_are_for_their_owner_only(tmp_path):
    create_keys(tmp_path / "k/audit.key")
    log = AuditLog(tmp_path / "deep/er/audit.db", tmp_path / "k/audit.key", create=True)
    fill(log, 2)
    files = [file for file in tmp_path.rglob("audit*") if file.is_file() and file.suffix != ".lock"]
    assert len(files) >= 3 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


# ---- keys


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    made = create_keys(tmp_path / "audit.key")
    assert load_keys(tmp_path / "audit.key") == made and len(made.secret("k1")) == 32
    with pytest.raises(FileExistsError):
        create_keys(tmp_path / "audit.key")
    both = add_key(tmp_path / "audit.key")
    assert (both.ids, both.active, both.as_of("k1")) == (("k1", "k2"), "k2", made)
    assert stat.S_IMODE((tmp_path / "audit.key").stat().st_mode) == 0o600 or os.name == "nt"
    with pytest.raises(MissingKey, match="set NLP_PORTFOLIO_AUDIT_KEYS to id:hex, or name a key file"):
        load_keys()
    monkeypatch.setenv("NLP_PORTFOLIO_AUDIT_KEYS", f"a:{'0' * 64}, b:{'1' * 64}")
    assert load_keys().ids == ("a", "b")


@pytest.mark.parametrize(("text", "message"), [
    ("", "it is empty"), ("# nothing", "it is empty"), ("k1:abcd", "entry 1 is no id:key"), (f"{'0' * 64}", "entry 1"),
    (f"k1:{'0' * 64}\nk2:{'g' * 64}", "entry 2"), (f"k1:{'0' * 65}", "entry 1"),
    (f"k1:{'0' * 64},k1:{'1' * 64}", "names a key twice")])
def test_a_wrong_key_is_named_without_being_shown(text, message):
    with pytest.raises(MissingKey, match=message) as err:
        parse_keys(text, "the file")
    assert "0000" not in str(err.value) and "0000" not in repr(parse_keys(f"k1:{'0' * 64}", ""))


@posix
def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    create_keys(tmp_path / "audit.key")
    for mode in (0o640, 0o604, 0o644):
        (tmp_path / "audit.key").chmod(mode)
        with pytest.raises(MissingKey, match="chmod 600"):
            AuditLog(tmp_path / "audit.db", tmp_path / "audit.key", create=True)
    with pytest.raises(MissingKey, match="cannot be read"):
        load_keys(tmp_path / "none.key")
    (tmp_path / "latin.key").write_bytes(b"\xff")
    with pytest.raises(MissingKey, match="cannot be read"):
        load_keys(tmp_path / "latin.key")


# ---- mutations

LONG = "0123456789abcdef"


def base_log(folder: Path, keys: Keys = KEYS, n: int = 14) -> AuditLog:
    "A log with decisions, a purge, a rotation and reviews."
    log = AuditLog(folder / "audit.db", keys.as_of("k1"), create=True)
    fill(log, n // 2)
    log.purge(datetime.now(UTC) + timedelta(days=1))
    fill(log, n // 4)
    if len(keys.ids) > 1:
        log.rotate(keys)
    for i in range(n // 2):
        log.append("review", {"item": i, "outcome": "allow"})
    log.close()
    return log


def forge(rows: list[Row], start: int, log: str, keys: Keys) -> list[Row]:
    "Rows from a position on, coded anew with these keys, which may be the attacker's."
    out, previous = rows[:start], rows[start - 1].code if start else ""
    for row in rows[start:]:
        new = replace(row, digest=audit._digest(row.payload) if row.payload else row.digest)
        out.append(replace(new, code=audit._code(new, log, previous, keys)))
        previous = out[-1].code
    return out


def other_text(rng: random.Random, value: str) -> str:
    "A value changed in one place, shortened, or another altogether."
    i = rng.randrange(len(value)) if value else 0
    change = rng.choice(LONG + "ABC {}\"\0é")
    return rng.choice([value[:i] + change + value[i + 1:], value[:i] + value[i + 1:], value + change, "", value.upper(),
                       value[:i] + change + value[i:]])


def edit_field(rng, rows, head, other):
    i, name = rng.randrange(len(rows)), rng.choice([*COLUMNS[1:], "payload"])
    donor = getattr(rng.choice(rows), name)
    value = getattr(rows[i], name)
    new = donor if rng.random() < 0.3 else None if name == "payload" and rng.random() < 0.2 else other_text(rng, value or "{}")
    rows[i] = replace(rows[i], **{name: new})


def delete(rng, rows, head, other):
    i = rng.randrange(len(rows))
    del rows[i:i + rng.choice([1, 1, 2, 5, 99])]
    if rng.random() < 0.5:
        rows[:] = [replace(row, seq=n) for n, row in enumerate(rows, 1)]


def truncate(rng, rows, head, other):
    keep = rng.randrange(len(rows))
    del rows[keep:]
    head |= {"count": keep, "code": rows[-1].code if rows else ""} if rng.random() < 0.7 else {}


def reorder(rng, rows, head, other):
    i, j = sorted(rng.sample(range(len(rows)), 2))
    moved = rows[:]
    moved[i], moved[j] = moved[j], moved[i]
    if rng.random() < 0.3:
        rng.shuffle(moved)
    rows[:] = [replace(row, seq=n) for n, row in enumerate(moved, 1)] if rng.random() < 0.7 else [
        replace(row, seq=other_.seq) for row, other_ in zip(moved, rows, strict=True)]


def insert(rng, rows, head, other):
    row = rng.choice([*rows, *other])
    i = rng.randrange(len(rows) + 1)
    rows.insert(i, row)
    rows[:] = [replace(one, seq=n) for n, one in enumerate(rows, 1)]
    if rng.random() < 0.3:
        rows.append(replace(rng.choice(rows), seq=rng.choice([-1, 0, len(rows) + 7])))
    head |= {"count": len(rows), "code": rows[-1].code} if rng.random() < 0.5 else {}


def splice(rng, rows, head, other):
    i = rng.randrange(len(rows))
    rows[i:] = [replace(row, seq=i + n) for n, row in enumerate(other[i:], 1)]
    head |= {"count": len(rows), "code": rows[-1].code} if rows and rng.random() < 0.5 else {}


def rewrite(rng, rows, head, other):
    "Everything from a record on, with keys of one's own, the head too."
    keys = Keys((FOREIGN, ("k2", b"y" * 32)))
    i = rng.randrange(len(rows))
    rows[i] = replace(rows[i], payload=json.dumps({"action": "allow"}), kind="decision")
    rows[:] = forge(rows, i, head["log"], keys)
    new = Head(head["log"], len(rows), rows[-1].code, rows[-1].key_id)
    head.update(asdict(new.sealed(keys)))


def retired(rng, rows, head, other):
    "With the retired key, which was stolen: change the past, or go on under it, and sign a head with it."
    i = rng.randrange(len(rows))
    cut = [replace(row, key_id="k1") for row in rows[:i + 1]]
    cut[i] = replace(cut[i], payload=json.dumps({"action": "allow"}), kind="decision")
    new = forge(cut, min(i, next((n for n, row in enumerate(rows) if row.key_id == "k2"), i)), head["log"], Keys((K1,)))
    if rng.random() < 0.5:
        rows[:] = [*new, *rows[i + 1:]]
    else:
        rows[:] = new
        head.update(asdict(Head(head["log"], len(rows), rows[-1].code, "k1").sealed(Keys((K1,)))))


def edit_head(rng, rows, head, other):
    name = rng.choice(["log", "count", "code", "key_id", "mac"])
    if name == "count":
        head["count"] = rng.choice([0, -1, head["count"] - 1, head["count"] + 1, True, str(head["count"]), None, 1e9])
    else:
        head[name] = other_text(rng, head[name])


MUTATIONS: list[Callable] = [edit_field, edit_field, delete, truncate, reorder, insert, splice, rewrite, retired, edit_head]


def mutated(rng: random.Random, rows: list[Row], head: dict, other: list[Row]) -> tuple[str, list[Row], dict]:
    "A log that is not the one that was written."
    while True:
        new, new_head, mutation = rows[:], dict(head), rng.choice(MUTATIONS)
        mutation(rng, new, new_head, other)
        if (new, new_head) != (rows, head) and len({row.seq for row in new}) == len(new):
            return mutation.__name__, new, new_head


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "Two logs under the same keys, one to attack and one to steal records from."
    folders, keys = [tmp_path_factory.mktemp(name) for name in "ab"], Keys((K1, K2))
    logs = [base_log(folder, keys) for folder in folders]
    rows = [list(log.records()) for log in logs]
    assert [len(some) for some in rows] == [19, 19] and rows[0] != rows[1]
    return folders[0], rows[0], json.loads(logs[0].file.read_text()), rows[1]


def store(folder: Path, rows: list[Row], head: dict) -> None:
    "Put rows and a head in the place of the real ones."
    database = sqlite3.connect(folder / "audit.db", isolation_level=None)
    database.execute("PRAGMA synchronous=OFF")
    database.execute("BEGIN")
    database.execute("DELETE FROM audit_log")
    fields = [tuple("" if value is None and name != "payload" else value for name, value in asdict(row).items()) for row in rows]
    database.executemany("INSERT INTO audit_log VALUES (?, ?, ?, ?, ?, ?, ?)", fields)
    database.execute("COMMIT")
    database.close()
    (folder / "audit.db.head").write_text(json.dumps(head), encoding="utf-8")


def first_difference(rows: list[Row], new: list[Row]) -> int | None:
    "The number of the first record that is not as it was written; None when only the head differs."
    for row, found in zip(rows, new, strict=False):
        if row != found:
            return min(row.seq, found.seq)
    return None if len(rows) == len(new) else min(len(rows), len(new)) + 1


def test_every_mutation_is_detected(written, tmp_path, campaign):
    _, rows, head, other = written
    keys, rng, count, kinds = Keys((K1, K2)), random.Random(SEED), campaign.count(300), Counter()
    folder = tmp_path / "log"
    folder.mkdir()
    base_log(folder, keys)
    store(folder, rows, head)
    log, missed, unnamed = AuditLog(folder / "audit.db", keys), [], []
    assert log.verify()
    for i in range(count):
        name, new, new_head = mutated(rng, rows, head, other)
        store(folder, sorted(new, key=lambda row: row.seq), new_head)
        verdict, kinds[name] = log.verify(), kinds[name] + 1
        first = first_difference(rows, sorted(new, key=lambda row: row.seq))
        missed += [(i, name)] if verdict.ok else []
        named = verdict.broken == first or name == "retired"  # that one shows where the next key begins
        unnamed += [] if named or new_head != head or first is None else [(i, name, verdict, first)]
    store(folder, rows, head)
    assert missed == [] and unnamed == []
    assert log.verify() and set(kinds) == {one.__name__ for one in MUTATIONS}
    campaign.keep("audit_mutations", seed=SEED, mutations=count, missed=len(missed), by_kind=dict(sorted(kinds.items())))


def test_the_check_of_the_mutations_sees_a_log_that_believes_everything(written, tmp_path, monkeypatch):
    _, rows, head, other = written
    monkeypatch.setattr(audit, "_wrong", lambda *_: "")
    folder, rng, missed = tmp_path / "log", random.Random(SEED), 0
    folder.mkdir()
    base_log(folder, Keys((K1, K2)))
    log = AuditLog(folder / "audit.db", Keys((K1, K2)))
    for _ in range(30):
        _, new, new_head = mutated(rng, rows, head, other)
        store(folder, sorted(new, key=lambda row: row.seq), new_head)
        missed += bool(log.verify())
    assert missed > 5


@pytest.mark.parametrize("damage", [b"", b"garbage" * 1000, None])
@pytest.mark.parametrize("part", ["audit.db", "audit.db.head"])
def test_a_file_that_cannot_be_read_closes_the_log(tmp_path, part, damage):
    log = AuditLog(tmp_path / "audit.db", KEYS, create=True)
    fill(log, 3)
    log.close()
    (tmp_path / part).unlink()
    if damage is not None:
        (tmp_path / part).write_bytes(damage)
    again = AuditLog(tmp_path / "audit.db", KEYS)
    assert not again.verify() and again.verify().reason
    with pytest.raises(AuditError, match="audit.db"):
        again.append("decision", {})
    answer, number = recorded(again, Decision("allow", (), "", "p"), SECRET, {})
    assert (answer.action, number) == ("block", None) and "4929" not in str(answer)
    with pytest.raises(AuditError):  # a log is not begun anew over what is left of another
        AuditLog(tmp_path / "audit.db", KEYS, create=True).append("decision", {})


def test_bytes_changed_in_the_file_are_detected_or_changed_nothing(tmp_path, campaign):
    log = base_log(tmp_path, KEYS)
    sql(log, "PRAGMA journal_mode=DELETE")
    clean, rows, rng = (tmp_path / "audit.db").read_bytes(), list(log.records()), random.Random(SEED)
    sql(log, "PRAGMA journal_mode=DELETE")
    for _ in range(60):
        broken = bytearray(clean)
        for _ in range(rng.choice([1, 1, 20])):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        for extra in tmp_path.glob("audit.db-*"):
            extra.unlink()
        (tmp_path / "audit.db").write_bytes(broken)
        if log.verify():
            assert list(log.records()) == rows


# ---- the tail: what every append looks at


COPY = "SELECT {}, at, kind, key_id, digest, payload, code FROM audit_log WHERE seq = 5"

@pytest.mark.parametrize("change", ["DELETE FROM audit_log WHERE seq = 5", "UPDATE audit_log SET code = 'x' WHERE seq = 5",
                                    "DELETE FROM audit_log", "DROP TABLE audit_log",
                                    f"INSERT INTO audit_log {COPY.format(6)}", f"INSERT INTO audit_log {COPY.format(9)}"])
def test_nothing_is_written_after_a_broken_tail(log, change):
    fill(log, 5)
    sql(log, change)
    head = log.file.read_text()
    with pytest.raises(AuditError):
        log.append("decision", {})
    assert log.file.read_text() == head and not log.verify()
    assert recorded(log, Decision("allow", (), "", "p"), "x", {})[0].action == "block"


def head_before(log: AuditLog, data: dict) -> Row:
    "Append, and put the head back as it was: a crash between record and head."
    old = log.file.read_bytes()
    row = log.append("decision", data)
    log.file.write_bytes(old)
    return row


@pytest.mark.parametrize("n", [0, 3])
def test_one_signed_record_beyond_the_head_is_taken_over(log, n):
    fill(log, n)
    head_before(log, {"n": n})
    verdict = log.verify()
    assert verdict.ok and verdict.records == n + 1 and "from a crash, not yet taken over" in verdict.reason
    assert AuditLog(log.url, KEYS).head().count == n + 1
    fill(log, 1)
    assert log.verify().records == n + 2 and "crash" not in log.verify().reason


def test_two_records_beyond_the_head_are_tampering(log):
    fill(log, 2)
    old = log.file.read_bytes()
    fill(log, 2)
    log.file.write_bytes(old)
    assert log.verify().broken == 4 and "beyond the head" in log.verify().reason
    with pytest.raises(Tampered, match="the head counts 2 records, the last one has the number 4"):
        log.head()


def test_a_record_beyond_the_head_that_was_touched_is_tampering(log):
    fill(log, 2)
    head_before(log, {"action": "block"})
    sql(log, "UPDATE audit_log SET payload = replace(payload, 'block', 'allow') WHERE seq = 3")
    assert log.verify().broken == 3
    with pytest.raises(Tampered, match="record 3 beyond the head was not written by this log"):
        log.append("decision", {})


def test_a_crash_while_a_log_is_begun(tmp_path):
    log = AuditLog(tmp_path / "audit.db", KEYS, create=True)
    (tmp_path / "audit.db").unlink()  # the head was written, the table not yet
    with pytest.raises(AuditError, match=r"create=True\) begins one"):
        AuditLog(tmp_path / "audit.db", KEYS).head()
    again = AuditLog(tmp_path / "audit.db", KEYS, create=True)
    fill(again, 2)
    assert again.verify().records == 2 and again.head().log == log.head().log


def test_an_existing_log_is_continued_and_a_missing_one_is_not_begun(tmp_path):
    with pytest.raises(AuditError, match=r"there is no audit log at .*create=True\) begins one"):
        AuditLog(tmp_path / "audit.db", KEYS)
    assert list(tmp_path.iterdir()) == []
    fill(AuditLog(tmp_path / "audit.db", KEYS, create=True), 2)
    fill(AuditLog(tmp_path / "audit.db", KEYS, create=True), 2)
    assert AuditLog(tmp_path / "audit.db", KEYS).verify().records == 4
    (tmp_path / "audit.db.head").unlink()
    with pytest.raises(Tampered, match="records and no head file"):
        AuditLog(tmp_path / "audit.db", KEYS, create=True)


@pytest.mark.parametrize(("url", "message"), [("mysql://x/y", "not mysql://"), ("postgresql://x/y", "needs head=")])
def test_another_kind_of_database_is_refused(url, message):
    with pytest.raises(ValueError, match=message):
        AuditLog(url, KEYS)


def test_a_key_that_is_not_the_one(log):
    fill(log, 2)
    foreign = AuditLog(log.url, Keys((FOREIGN,)))
    assert not foreign.verify()
    with pytest.raises(Tampered, match="was not signed with the key 'k1'"):
        foreign.append("decision", {})
    with pytest.raises(MissingKey, match="'k1' is not among k7"):
        AuditLog(log.url, Keys((("k7", b"7" * 32),))).append("decision", {})


# ---- anchors, rotation, retention


def test_an_anchor_sees_what_an_older_pair_hides(log, tmp_path):
    fill(log, 3)
    log.close()
    sql(log, "PRAGMA wal_checkpoint(TRUNCATE)")
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    fill(log, 2)
    anchor = log.head()
    assert log.verify(anchor)
    fill(log, 1)
    assert log.verify(anchor)
    log.close()
    for file in tmp_path.iterdir():
        file.unlink()
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    assert log.verify().ok  # the stated limit: both files are of one moment
    verdict = log.verify(anchor)
    assert (verdict.ok, verdict.broken) == (False, 4) and "the anchor counts 5" in verdict.reason
    fill(log, 4)
    assert "not the anchor's" in log.verify(anchor).reason
    assert "anchor is of" in log.verify(replace(anchor, log="another")).reason


def test_rotation_makes_a_stolen_old_key_useless(log):
    fill(log, 3)
    both = Keys((K1, K2))
    with pytest.raises(Tampered, match=r"AuditLog\(..., keys.as_of\('k1'\)\).rotate\(keys\)"):
        AuditLog(log.url, both).append("decision", {})
    assert "retired key" in AuditLog(log.url, both).verify().reason
    log.rotate(both)
    fill(log, 2)
    assert log.verify() and [row.key_id for row in log.records()] == ["k1"] * 3 + ["k2"] * 3
    with pytest.raises(MissingKey):
        AuditLog(log.url, KEYS).append("decision", {})
    verdict = AuditLog(log.url, KEYS).verify()
    assert (verdict.ok, verdict.broken, verdict.reason) == (False, 4, "the head was not signed with the key 'k2'")
    for wrong in (KEYS, both, Keys((K2, K1))):
        with pytest.raises(MissingKey, match="a new one at the end"):
            log.rotate(wrong)


def test_a_rotation_that_crashes_half_way_is_finished_by_the_next_writer(log):
    fill(log, 2)
    old, both = log.file.read_bytes(), Keys((K1, K2))
    log.rotate(both)
    log.file.write_bytes(old)
    again = AuditLog(log.url, both)
    assert again.verify().records == 3 and "from a crash" in again.verify().reason
    fill(again, 1)
    assert again.verify().records == 4 and read_head(log.file).key_id == "k2"


def test_a_stolen_retired_key_cannot_add_the_record_that_a_crash_may_leave(log):
    fill(log, 2)
    log.rotate(Keys((K1, K2)))
    last, head = list(log.records())[-1], log.head()
    forged = replace(last, seq=4, kind="decision", key_id="k1", payload="{}", digest=audit._digest("{}"))
    row = asdict(replace(forged, code=audit._code(forged, head.log, last.code, Keys((K1, K2)))))
    sql(log, f"INSERT INTO audit_log VALUES {tuple(row.values())}")
    assert (log.verify().broken, log.verify().reason) == (4, "record 4 is signed with 'k1', which was retired before")
    with pytest.raises(Tampered, match="record 4 beyond the head was not written by this log"):
        log.append("decision", {})


def test_a_broken_log_is_not_signed_anew(log):
    fill(log, 4)
    sql(log, "UPDATE audit_log SET at = '2020' WHERE seq = 2")
    with pytest.raises(Tampered, match="does not verify is not signed anew: record 2"):
        log.rotate(Keys((K1, K2)))
    assert read_head(log.file).key_id == "k1"


def test_retention_deletes_payloads_and_the_chain_holds(log, tmp_path):
    for i in range(40):
        log.append("decision", {"word": "unforgettable " * i})
    moment = datetime.now(UTC)
    time.sleep(0.002)
    log.append("review", {"word": "recent"})
    assert log.retain(days=1) == 0 and len(list(log.records())) == 41
    assert log.purge(moment) == 40
    rows = list(log.records())
    assert [row.data is None for row in rows] == [True] * 40 + [False] * 2 and rows[-1].kind == "purge"
    assert log.verify().records == 42
    log.close()
    assert b"unforgettable" not in bytes_of(tmp_path) and b"recent" in bytes_of(tmp_path)
    assert log.retain(days=0) == 1 and log.verify() and log.retain(days=0) == 0
    sql(log, "UPDATE audit_log SET payload = NULL WHERE kind = 'purge' AND seq = 42")
    assert (log.verify().broken, "retention never deletes" in log.verify().reason) == (42, True)


def test_a_crash_in_the_middle_of_retention_is_finished_by_the_next(log, monkeypatch):
    fill(log, 3)
    monkeypatch.setattr(audit._SQLite, "empty", lambda self, through: 1 / 0)
    with pytest.raises(AuditError):
        log.retain(days=0)
    assert log.verify().records == 4 and all(row.payload for row in log.records())
    monkeypatch.undo()
    assert log.retain(days=0) == 3 and log.verify()


def test_an_emptied_payload_that_no_retention_covers_is_named(log):
    fill(log, 6)
    sql(log, "UPDATE audit_log SET payload = NULL WHERE seq IN (3, 5)")
    assert (log.verify().broken, log.verify().reason) == (3, "record 3 has lost its payload, and no retention deleted it")


# ---- several at once


def test_threads_share_a_log(log):
    errors = []

    def work(who: int) -> None:
        try:
            for i in range(10):
                log.append("decision", {"who": who, "i": i})
                if i == 5:
                    assert log.verify()
        except Exception as err:
            errors.append(err)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and log.verify().records == 40
    order = {who: [row.data["i"] for row in log.records() if row.data["who"] == who] for who in range(4)}
    assert order == dict.fromkeys(range(4), list(range(10)))


WRITER = """
import os, sys
from nlp_portfolio.safety.audit import AuditLog, load_keys
log = AuditLog(sys.argv[1], load_keys(sys.argv[2]))
for i in range(int(sys.argv[3])):
    row = log.append("decision", {"who": os.getpid(), "i": i})
    os.write(1, f"{row.seq} {row.code}\\n".encode())
"""


def writer(folder: Path, n: int = 10**6) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder / "audit.db"), str(folder / "audit.key"), str(n)],
                            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})


@posix
def test_processes_share_a_log(tmp_path):
    log = AuditLog(tmp_path / "audit.db", create_keys(tmp_path / "audit.key"), create=True)
    writers = [writer(tmp_path, 15) for _ in range(3)]
    while any(one.poll() is None for one in writers):
        assert log.verify()
        time.sleep(0.05)
    said = [line.split() for one in writers for line in one.communicate()[0].splitlines()]
    assert [one.returncode for one in writers] == [0, 0, 0]
    assert sorted(int(seq) for seq, _ in said) == list(range(1, 46)) and log.verify().records == 45
    assert {int(seq): code for seq, code in said} == {row.seq: row.code for row in log.records()}


def test_a_lock_that_is_held_is_said(log, monkeypatch):
    monkeypatch.setattr(audit, "PATIENCE", 0.05)
    lock = log.file.with_name(log.file.name + ".lock")
    with audit._locked(lock), pytest.raises(AuditError, match="has held .* for 0.05 seconds"):
        log.append("decision", {})
    assert log.append("decision", {}).seq == 1


@posix
def test_a_log_survives_a_fork(log):
    fill(log, 1)
    if not (pid := os.fork()):
        os._exit(0 if log.append("decision", {}).seq == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    fill(log, 1)
    assert log.verify().records == 3


# ---- kill -9

MOTHER = """
import os, sys
from nlp_portfolio.safety.audit import AuditLog, load_keys

def write(folder, out):
    log = AuditLog(folder + "/audit.db", load_keys(folder + "/audit.key"), create=True)
    for i in range(10**6):
        row = log.append("decision", {"i": i})
        os.write(out, f"{row.seq} {row.code}\\n".encode())

for line in sys.stdin:
    folder, name = line.split()
    if pid := os.fork():
        print(pid, flush=True)
        print(os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)
    else:
        write(folder, os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND))
"""


def lost(log: AuditLog, acknowledged: dict[int, str]) -> list[str]:
    "What is wrong after a crash: an acknowledged record that is gone or another, or a log that does not verify."
    codes, verdict = {row.seq: row.code for row in log.records()}, log.verify()
    wrong = [f"record {seq} is gone or another" for seq, code in acknowledged.items() if codes.get(seq) != code]
    return wrong + ([] if verdict else [verdict.reason])


@posix
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path, campaign):
    rng, kills, healed, acknowledged = random.Random(SEED), campaign.count(6), 0, {}
    create_keys(tmp_path / "audit.key")
    log = AuditLog(tmp_path / "audit.db", tmp_path / "audit.key", create=True)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    mother = subprocess.Popen([sys.executable, "-c", MOTHER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": paths})
    for kill in range(kills):
        out = tmp_path / f"said{kill}"
        mother.stdin.write(f"{tmp_path} {out}\n")
        mother.stdin.flush()
        pid = int(mother.stdout.readline())
        time.sleep(rng.uniform(0.02, 0.4))
        os.kill(pid, signal.SIGKILL)
        assert mother.stdout.readline() == f"{signal.SIGKILL:d}\n"
        lines = out.read_text().splitlines() if out.exists() else []
        acknowledged |= {int(seq): code for seq, code in map(str.split, lines)}
        healed += "from a crash" in log.verify().reason
        assert lost(log, acknowledged) == [], f"kill {kill}, seed {SEED}"
        assert log.head().count >= max(acknowledged, default=0)
    mother.communicate()
    assert len(acknowledged) > kills
    campaign.keep("audit_kills", seed=SEED, kills=kills, acknowledged=len(acknowledged), lost=0, between_record_and_head=healed)


def test_the_check_after_a_kill_sees_a_loss(log):
    fill(log, 3)
    codes = {row.seq: row.code for row in log.records()}
    assert lost(log, codes) == []
    assert lost(log, codes | {4: "never written"}) == ["record 4 is gone or another"]
    sql(log, "DELETE FROM audit_log WHERE seq = 3")
    assert lost(log, codes) == ["record 3 is gone or another", "record 3 is missing: the head counts 3"]


@pytest.mark.parametrize("step", ["insert", "head"])
def test_an_append_that_fails_half_way_is_no_append(log, monkeypatch, step):
    fill(log, 2)
    target = (audit._SQLite, "insert") if step == "insert" else (audit, "_replace")
    monkeypatch.setattr(*target, lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(AuditError, match="OSError.*decide nothing"):
        log.append("decision", {})
    monkeypatch.undo()
    assert log.verify().records == 2 + (step == "head")
    fill(log, 1)
    assert log.verify().records == 3 + (step == "head")


# ---- PostgreSQL


@pytest.fixture(scope="module")
def postgres():
    binaries = postgres_bin()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    server = Postgres(binaries)
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def table(postgres):
    pg_rows(postgres, "DROP TABLE IF EXISTS audit_log")
    return postgres


@posix
def test_postgres_holds_the_same_log(table, tmp_path):
    with pytest.raises(AuditError, match="a log that was never begun needs create=True"):
        AuditLog(table.url, KEYS, head=tmp_path / "pg.head").head()
    log = AuditLog(table.url, KEYS, head=tmp_path / "pg.head", create=True)
    fill(log, 4)
    anchor = log.head()
    moment = datetime.now(UTC)
    fill(log, 1)
    assert log.verify(anchor).records == 5 and log.purge(moment) == 4
    assert pg_rows(table, "SELECT kind FROM audit_log ORDER BY seq DESC LIMIT 1") == [("purge",)]  # committed, not only written
    log.rotate(Keys((K1, K2)))
    fill(log, 2)
    assert log.verify(anchor).records == 9 and [row.data is None for row in log.records()] == [True] * 4 + [False] * 5
    for number, change in ((9, "DELETE FROM audit_log WHERE seq = 9"), (2, "UPDATE audit_log SET at = '2020' WHERE seq = 2")):
        pg_rows(table, change)
        assert log.verify().broken == number
    with pytest.raises(Tampered):
        log.append("decision", {})
    log.close()


@posix
def test_two_logs_of_one_machine_share_a_postgres(table, tmp_path):
    logs = [AuditLog(table.url, KEYS, head=tmp_path / "pg.head", create=True) for _ in range(2)]
    for i in range(10):
        fill(logs[i % 2], 1)
    assert [log.verify().records for log in logs] == [10, 10]


@posix
def test_a_postgres_that_is_down_closes_the_log_and_its_return_opens_it(table, tmp_path):
    log = AuditLog(table.url.replace("log@", "log:secretword@"), KEYS, head=tmp_path / "pg.head", create=True)
    fill(log, 2)
    table.stop()
    for call in (lambda: fill(log, 1), lambda: list(log.records())):
        with pytest.raises(AuditError, match="decide nothing until it can be") as err:
            call()
        assert "secretword" not in str(err.value)
    assert not log.verify() and recorded(log, Decision("allow", (), "", "p"), "x", {})[0].action == "block"
    table.start()
    fill(log, 1)
    assert log.verify().records == 3
