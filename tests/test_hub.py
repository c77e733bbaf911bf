"""The hub path against a local stand-in of the hub's file layout: real HTTP, a fresh process and a fresh cache for each load."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from nlp_portfolio.course.datasets import manifest

HUB = manifest()["imdb"]["hub"]
API, FILES = f"/api/datasets/{HUB['id']}", f"/datasets/{HUB['id']}/resolve/{HUB['revision']}/"
CARD = "---\nconfigs:\n- config_name: plain_text\n  data_files:\n  - split: train\n    path: plain_text/train-*\n---\n"
PARQUET = "plain_text/train-00000-of-00001.parquet"
SAMPLE_LINE = "imdb train: 320 bundled reviews (sample; set NLP_PORTFOLIO_DATA or go online for the full set)"
LOAD = """
import json, os, sys, time
from nlp_portfolio.course import datasets as ds
import datasets  # so that only the load itself is timed
if os.environ.get("PROBED"):
    ds.online = lambda: True
slept = []
time.sleep = slept.append  # waits between retries are counted, not waited for
start = time.perf_counter()
try:
    data = ds.load("imdb", "train")
except Exception as err:
    sys.exit(f"{type(err).__name__}: {err}")
seconds = time.perf_counter() - start + sum(slept)
kinds = {name: feature.dtype for name, feature in data.features.items()}
facts = ds.provenance(data)
print(json.dumps({"seconds": seconds, "rows": data[:3], "kinds": kinds, "source": facts.source, "version": facts.version}))
"""


def parquet(rows: list[tuple[str, int]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"text": list(texts), "label": pa.array(labels, pa.int64())}), out := io.BytesIO())
    return out.getvalue()


CONTENT = {"README.md": CARD.encode(), PARQUET: parquet([("A good film.", 1), ("A bad film.", 0)])}


def entry(path: str) -> dict:
    body = CONTENT[path]
    return {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


def tree(under: str) -> list[dict]:
    "The files and folders right below a folder of the repository."
    depth = len(PurePosixPath(under).parts) + 1
    below = [path for path in CONTENT if path.startswith(under and under + "/")]
    folders = {"/".join(PurePosixPath(path).parts[:depth]) for path in below if len(PurePosixPath(path).parts) > depth}
    return ([entry(path) for path in below if len(PurePosixPath(path).parts) == depth]
            + [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)])


class Handler(BaseHTTPRequestHandler):
    "The endpoints `datasets.load_dataset` asks for a Parquet data set, and the ways in which a hub fails."

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fails(self, path: str) -> bool:
        "Whether this hub fails here; then the failure has been sent."
        mode = self.server.mode
        if mode == "hangs":
            self.server.closing.wait(30)
        elif mode == "speaks no HTTP":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.close_connection = True
        elif mode == "drops":
            self.close_connection = True
        elif mode == "500" or (mode == "500 for the rows" and path.endswith(".parquet")):
            self.send(b"out of order", 500)
        elif mode == "garbage" or (mode == "garbage for the rows" and path.endswith(".parquet")):
            self.send(b"<html>Welcome to this hotel's network</html>", ETag='"g"', X_Repo_Commit=HUB["revision"])
        else:
            return False
        return True

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.fails(path):
            return
        found, wanted = None, path.removeprefix(FILES)
        if path in (API, f"{API}/revision/{HUB['revision']}"):
            found = {"_id": "1", "id": HUB["id"], "sha": HUB["revision"], "private": False, "gated": False, "disabled": False,
                     "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in CONTENT]}
        elif path.startswith(f"{API}/tree/{HUB['revision']}"):
            found = tree(path.removeprefix(f"{API}/tree/{HUB['revision']}").strip("/"))
        elif path == f"{API}/paths-info/{HUB['revision']}":
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            found = [entry(name) for name in paths if name in CONTENT]
        elif path.startswith(FILES) and wanted in CONTENT:
            etag = f'"{hashlib.sha1(CONTENT[wanted]).hexdigest()}"'
            return self.send(CONTENT[wanted], ETag=etag, X_Repo_Commit=HUB["revision"])
        if found is None:
            return self.send(b'{"error": "Entry not found"}', 404, X_Error_Code="EntryNotFound")
        self.send(json.dumps(found).encode(), Content_Type="application/json")

    do_GET = do_HEAD = do_POST = answer


@contextmanager
def stand_in(mode: str = "works"):
    "A hub on a free port of this machine; `asked` collects its requests."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.mode, server.asked, server.closing, server.daemon_threads = mode, [], threading.Event(), True
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


def load(cache: Path, endpoint: str, limit: float = 60, **variables: str) -> SimpleNamespace:
    "Load imdb train in a fresh process with this hub and this cache: its result and its printed lines."
    keep = {name: value for name, value in os.environ.items()
            if not name.startswith(("HF_", "NLP_PORTFOLIO_SOURCE", "NLP_PORTFOLIO_DATA")) and not name.lower().endswith("_proxy")}
    env = keep | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, last = done.stdout.splitlines()
    return SimpleNamespace(lines=lines, stderr=done.stderr, **json.loads(last))


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory):
    "A load that works, the cache it left behind, and what was asked for."
    cache = tmp_path_factory.mktemp("hf")
    with stand_in() as hub:
        result = load(cache, hub.url)
    return result, cache, hub.asked


def test_rows_get_the_columns_of_the_manifest(yesterday):
    result, _, _ = yesterday
    assert result.rows == {"id": ["train-0", "train-1"], "text": ["A good film.", "A bad film."], "label": [1, 0],
                           "rating": [None, None], "movie_id": [None, None]}
    assert result.kinds == {name: kind.rstrip("?") for name, kind in manifest()["imdb"]["columns"].items()}


def test_line_and_provenance_name_the_hub_and_its_revision(yesterday):
    result, _, _ = yesterday
    assert result.lines == ["imdb train: 2 reviews from the hub"]
    assert (result.source, result.version) == ("hub", HUB["revision"])


def test_only_the_pinned_revision_is_asked_for(yesterday):
    asked = [line for line in yesterday[2] if HUB["id"] in line]
    assert f"GET {FILES}{PARQUET}" in asked
    assert [line for line in asked if HUB["revision"] not in line] == []


@pytest.mark.parametrize("mode", ["drops", "speaks no HTTP", "garbage", "garbage for the rows"])
def test_failing_hub_falls_to_the_sample_at_once_with_one_line(tmp_path, mode):
    with stand_in(mode) as hub:
        result = load(tmp_path, hub.url)
    assert result.source == "sample" and result.seconds < 5
    assert result.lines[-1] == SAMPLE_LINE
    assert len(result.lines) <= 2 and all("the hub failed" in line for line in result.lines[:-1])


@pytest.mark.parametrize("mode", ["500", "500 for the rows"])
def test_server_error_is_not_retried_for_half_a_minute(tmp_path, mode):
    with stand_in(mode) as hub:
        result = load(tmp_path, hub.url)
    assert result.source == "sample" and result.lines[-1] == SAMPLE_LINE
    assert result.seconds < 15 and len(hub.asked) < 15


def test_hub_that_goes_away_after_the_probe_costs_one_line(tmp_path):
    with stand_in() as hub:
        pass  # its port is free again: connections are refused
    result = load(tmp_path, hub.url, PROBED="1")
    assert result.source == "sample" and result.seconds < 15
    assert len(result.lines) == 2 and "the hub failed" in result.lines[0]


def test_hub_that_accepts_and_never_answers_is_noticed_by_the_probe(tmp_path):
    with stand_in("hangs") as hub:
        result = load(tmp_path, hub.url, limit=10)
    assert (result.source, result.lines) == ("sample", [SAMPLE_LINE])


@pytest.mark.parametrize("gone", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["variable", "refused"])
def test_set_downloaded_yesterday_is_there_without_a_network(yesterday, gone):
    with stand_in() as hub:
        pass
    result = load(yesterday[1], hub.url, **gone)
    assert (result.source, result.version) == ("hub", HUB["revision"])
    assert result.rows == yesterday[0].rows and result.seconds < 5


def test_cached_copy_of_another_revision_is_not_taken_for_the_pinned_one(yesterday, tmp_path):
    cache = shutil.copytree(yesterday[1], tmp_path / "hf")
    shutil.rmtree(cache / "hub")
    (pinned,) = cache.glob(f"datasets/*/*/*/{HUB['revision']}")
    pinned.rename(pinned.with_name("1" * 40))
    with stand_in("drops") as hub:
        result = load(cache, hub.url, PROBED="1")
    assert result.source == "sample"


def test_mirror_that_refuses_connections_is_noticed_at_once(tmp_path):
    with stand_in() as hub:
        pass
    result = load(tmp_path, hub.url)
    assert (result.source, result.lines) == ("sample", [SAMPLE_LINE])
    assert result.seconds < 5


def test_offline_variable_sends_no_request_at_all(tmp_path):
    with stand_in() as hub:
        result = load(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert hub.asked == []
    assert (result.source, result.lines) == ("sample", [SAMPLE_LINE])
    assert result.seconds < 5
