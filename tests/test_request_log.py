"""The request log: no text by default, background writes, bounds, kill -9, and the same on a real PostgreSQL."""

import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nlp_portfolio.serving.request_log import COLUMNS, Entry, RequestLog, keyed_hash, storable

# Signals and users as POSIX has them; on Linux a skip is a failure.
posix = pytest.mark.required if sys.platform == "linux" else pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
SECRET = "my card 4929 1234 was swallowed by Mrs O'Neil"


def entry(i: int = 0, **change) -> Entry:
    return Entry(**({"request_id": f"r{i}", "route": "/predict", "status": 200, "ms": 1.5, "source": "model",
                     "text": SECRET} | change))


def rows(file: Path, columns: str = ", ".join(COLUMNS)) -> list[tuple]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(f"SELECT {columns} FROM request_log ORDER BY id").fetchall()
    finally:
        connection.close()


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_row_says_everything_but_the_text(tmp_path):
    log = RequestLog(tmp_path / "log.db", key=b"key")
    assert log.write(entry(note="card_swallowed")) and log.flush()
    assert (log.written, log.dropped, log.error) == (1, 0, "")
    assert b"4929" not in bytes_of(tmp_path) and b"swallowed by" not in bytes_of(tmp_path)
    ((at, *rest),) = rows(tmp_path / "log.db")
    assert rest == ["r0", "/predict", 200, 1.5, "model", len(SECRET), keyed_hash(SECRET, b"key"), None, "card_swallowed"]
    assert at.endswith("+00:00")
    assert log.close() and b"4929" not in bytes_of(tmp_path)


@posix
def test_the_file_is_for_its_owner_only(tmp_path):
    log = RequestLog(tmp_path / "deep/er/log.db")
    log.write(entry())
    log.flush()
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "deep/er").iterdir()} == {0o600}
    log.close()


def test_redacted_text_is_stored_and_only_that(tmp_path):
    log = RequestLog(tmp_path / "log.db", redact=lambda text: text.replace("4929 1234", "<CARD>"))
    log.write(entry())
    assert log.close()
    assert rows(tmp_path / "log.db", "text") == [(SECRET.replace("4929 1234", "<CARD>"),)]
    assert b"4929" not in bytes_of(tmp_path)


@pytest.mark.parametrize("redact", [lambda text: 1 / 0, lambda text: None, lambda text: 5, lambda: "x"],
                         ids=["raises", "None", "number", "signature"])
def test_a_redaction_that_fails_stores_no_text(redact, tmp_path):
    log = RequestLog(tmp_path / "log.db", redact=redact)
    log.write(entry())
    assert log.close()
    assert rows(tmp_path / "log.db", "text, chars") == [(None, len(SECRET))]
    assert b"4929" not in bytes_of(tmp_path)


def test_hashes_join_equal_texts_under_one_key_only(monkeypatch):
    assert keyed_hash("a", b"k") == keyed_hash("a", b"k") and len(keyed_hash("a\ud800", b"k")) == 32
    assert len({keyed_hash("a", b"k"), keyed_hash("b", b"k"), keyed_hash("a", b"l")}) == 3
    monkeypatch.setenv("NLP_PORTFOLIO_LOG_KEY", "from the environment")
    logs = [RequestLog("unused.db", key=key) for key in (b"given", None, None)]
    assert [log.key for log in logs] == [b"given", *[b"from the environment"] * 2]
    monkeypatch.delenv("NLP_PORTFOLIO_LOG_KEY")
    assert RequestLog("unused.db").key != RequestLog("unused.db").key


STRANGE = {"NUL": "a\0b", "surrogate": "half \ud800", "huge": "x" * 10**6, "empty": "", "sql": "'); DROP TABLE request_log; --"}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_strange_text_is_stored_like_any_other(text, tmp_path):
    log = RequestLog(tmp_path / "log.db", redact=str)
    log.write(entry(text=text, note=text, request_id=text, ms=float("nan")))
    log.write(entry(1))
    assert log.close()
    assert rows(tmp_path / "log.db", "text, chars, ms")[0] == (storable(text), len(text), 0.0)
    assert log.written == 2


def test_only_the_newest_rows_are_kept(tmp_path):
    log = RequestLog(tmp_path / "log.db", max_rows=50)
    for i in range(500):
        log.write(entry(i))
    assert log.close()
    assert rows(tmp_path / "log.db", "request_id") == [(f"r{i}",) for i in range(450, 500)]


def test_a_database_that_is_busy_blocks_nobody_and_loses_nothing(tmp_path):
    log = RequestLog(tmp_path / "log.db")
    log.write(entry())
    log.flush()
    blocker = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    start = time.perf_counter()
    handed = [log.write(entry(i)) for i in range(1, 2001)]
    assert time.perf_counter() - start < 0.5 and all(handed)
    assert log.flush(0.1) is False and log.written == 1
    blocker.execute("ROLLBACK")
    blocker.close()
    assert log.close(15) and log.written == 2001 and log.dropped == 0
    assert len(rows(tmp_path / "log.db")) == 2001


def test_memory_is_bounded_and_what_is_dropped_is_counted(tmp_path):
    folder = tmp_path / "no database can be opened here"
    folder.mkdir()
    log = RequestLog(folder, max_pending=10)
    handed = [log.write(entry(i)) for i in range(1000)]
    assert 10 <= sum(handed) <= 600 and log.dropped == 1000 - sum(handed)
    assert log.close(0.3) is False and log.error and log.written == 0
    assert log.write(entry()) is False


@pytest.mark.parametrize(("url", "kind"), [("mysql://x/y", "mysql"), ("http://x", "http")])
def test_another_kind_of_database_is_refused(url, kind):
    with pytest.raises(ValueError, match=rf"sqlite:///file or postgresql://\.\.\., not {kind}://"):
        RequestLog(url)


WRITER = """
import sys
from nlp_portfolio.serving.request_log import Entry, RequestLog
log = RequestLog(sys.argv[1])
for i in range(10**6):
    log.write(Entry(f"r{i}", "/predict", 200, 1.0, "model", "text"))
    if i % 50 == 49:
        log.flush()
        print(log.written, flush=True)
"""


def killed_writer(url: str, least: int) -> int:
    "Start a writer, kill -9 it when it has acknowledged `least` rows, and return how many it had acknowledged."
    process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= least:
            break
    process.send_signal(signal.SIGKILL)
    acknowledged = [int(line), *map(int, process.stdout.read().split())][-1]
    assert process.wait(10) == -signal.SIGKILL
    return acknowledged


@posix
@pytest.mark.parametrize("least", [50, 1000])
def test_acknowledged_rows_survive_kill_9(least, tmp_path):
    acknowledged = killed_writer(f"sqlite:///{tmp_path / 'log.db'}", least)
    found = [name for (name,) in rows(tmp_path / "log.db", "request_id")]
    assert acknowledged >= least and found[:acknowledged] == [f"r{i}" for i in range(acknowledged)]
    again = RequestLog(tmp_path / "log.db")
    again.write(entry())
    assert again.close() and len(rows(tmp_path / "log.db")) == len(found) + 1


# ---- PostgreSQL


def postgres_bin() -> Path | None:
    "Where initdb and postgres are: on the path, or where Debian keeps them."
    found = [Path(shutil.which("initdb")).resolve().parent] if shutil.which("initdb") else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


class Postgres:
    "A PostgreSQL server of our own: a fresh cluster in a temporary folder, on a free port of the loopback interface."

    def __init__(self, binaries: Path):
        self.bin, self.folder = binaries, Path(tempfile.mkdtemp(prefix="pg"))
        self.user = ("postgres" if os.path.exists("/var/lib/postgresql") else "nobody") if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://log@127.0.0.1:{self.port}/postgres"
        self.run("initdb", "-D", self.folder / "data", "-U", "log", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self.start()

    def run(self, name: str, *arguments: object) -> None:
        done = subprocess.run([str(self.bin / name), *map(str, arguments)], user=self.user, cwd=self.folder, timeout=60,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def control(self, action: str, *arguments: object) -> None:
        self.run("pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "server.log", *arguments, action)

    def start(self) -> None:
        self.control("start", "-o", f"-h 127.0.0.1 -p {self.port} -k {self.folder}")

    def stop(self) -> None:
        self.control("stop", "-m", "immediate")


@pytest.fixture(scope="module")
def postgres():
    binaries = postgres_bin()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    server = Postgres(binaries)
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


def pg_rows(server: Postgres, query: str) -> list[tuple]:
    import psycopg

    with psycopg.connect(server.url) as connection:
        done = connection.execute(query)
        return done.fetchall() if done.description else []


@pytest.fixture
def table(postgres):
    pg_rows(postgres, "DROP TABLE IF EXISTS request_log")
    return postgres


@posix
def test_postgres_keeps_the_same_rows(table):
    log = RequestLog(table.url, key=b"key")
    log.write(entry(note="card_swallowed", at=0.5))
    log.write(Entry("r1", "/predict", 422, 0.2))
    assert log.flush() and log.written == 2
    found = pg_rows(table, f"SELECT {', '.join(COLUMNS[1:])} FROM request_log ORDER BY id")
    assert found == [("r0", "/predict", 200, 1.5, "model", len(SECRET), keyed_hash(SECRET, b"key"), None, "card_swallowed"),
                     ("r1", "/predict", 422, 0.2, "", None, None, None, None)]
    assert pg_rows(table, "SELECT extract(epoch FROM at)::float FROM request_log ORDER BY id LIMIT 1") == [(0.5,)]
    assert pg_rows(table, "SELECT count(*) FROM request_log WHERE request_log::text LIKE '%4929%'") == [(0,)]
    assert log.close()


@posix
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_postgres_takes_strange_text(text, table):
    log = RequestLog(table.url, redact=str)
    log.write(entry(text=text, note=text))
    assert log.close() and log.written == 1
    assert pg_rows(table, "SELECT text, note FROM request_log") == [(storable(text), storable(text))]


@posix
def test_postgres_keeps_the_newest_rows_and_two_services_share_a_table(table):
    logs = [RequestLog(table.url, max_rows=100) for _ in range(2)]
    for i in range(300):
        logs[i % 2].write(entry(i))
    assert [log.flush() for log in logs] == [True, True]
    logs[0].write(entry(300))  # two transactions at once do not see each other's rows; the next one does
    assert [log.close() for log in logs] == [True, True]
    assert pg_rows(table, "SELECT count(*) FROM request_log") == [(100,)]
    assert pg_rows(table, "SELECT count(*) FROM request_log WHERE request_id = 'r300'") == [(1,)]


@posix
def test_a_restart_of_postgres_loses_nothing_and_blocks_nobody(table):
    log = RequestLog(table.url)
    log.write(entry(0))
    assert log.flush()
    table.stop()
    start = time.perf_counter()
    for i in range(1, 200):
        log.write(entry(i))
    assert time.perf_counter() - start < 0.5
    assert log.flush(0.3) is False and log.error == "OperationalError"
    table.start()
    assert log.flush(15) and (log.written, log.dropped, log.error) == (200, 0, "")
    assert pg_rows(table, "SELECT count(*), count(DISTINCT request_id) FROM request_log") == [(200, 200)]
    log.close()


@posix
def test_rows_that_postgres_acknowledged_survive_kill_9_of_the_service(table):
    acknowledged = killed_writer(table.url, 200)
    found = [name for (name,) in pg_rows(table, "SELECT request_id FROM request_log ORDER BY id")]
    assert found[:acknowledged] == [f"r{i}" for i in range(acknowledged)]
