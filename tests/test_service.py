"""The service over real HTTP: uvicorn on a free port of the loopback interface, in a thread or a process of its own."""

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from nlp_portfolio.serving.app import BackgroundServer, Limits, create_app, read_texts
from nlp_portfolio.serving.batching import Batching
from nlp_portfolio.serving.cache import AnswerCache
from nlp_portfolio.serving.request_log import RequestLog

# Signals and users as POSIX has them; on Linux a skip is a failure.
posix = pytest.mark.required if sys.platform == "linux" else pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


class Model:
    "Counts letters; waits while the gate is shut; fails on poison."

    def __init__(self):
        self.seen, self.batches, self.gate = [], 0, threading.Event()
        self.gate.set()

    def __call__(self, texts):
        self.batches += 1
        self.seen += texts
        assert self.gate.wait(20)
        if any("poison" in text for text in texts):
            raise ValueError(f"secret words: {texts}")
        return [{"letters": len(text)} for text in texts]


class Running:
    "A service with its model and a client."

    def __init__(self, **options):
        self.model = Model()
        plan = Batching(**{"warm_up": (), "max_wait_ms": 1} | options.pop("plan", {}))
        self.app = create_app(lambda: self.model, batching=plan, **options)
        self.service = self.app.state.service
        self.server = BackgroundServer(self.app)

    def __enter__(self):
        self.server.ready()
        self.http = httpx.Client(base_url=self.server.url, timeout=20)
        return self

    def __exit__(self, *_):
        self.model.gate.set()
        self.http.close()
        self.server.stop()
        assert self.service.batcher.state == "stopped"

    def ask(self, text, **options):
        return self.http.post("/predict", json={"text": text}, **options)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def running():
    with Running(limits=Limits(deadline_s=10)) as one:
        yield one


def detail(answer):
    return answer.json()["detail"]


# ---- answers


def test_one_text_and_many_in_their_order(running):
    assert running.ask("first").json()["answers"] == [{"answer": {"letters": 5}, "source": "model"}]
    answers = running.ask(["a" * n for n in range(1, 40)]).json()["answers"]
    assert [one["answer"]["letters"] for one in answers] == list(range(1, 40))
    assert [one["source"] for one in running.ask(["first", "a", "new one"]).json()["answers"]] == ["cache", "cache", "model"]


def test_request_id_is_the_clients_own_when_it_is_harmless(running):
    own = running.ask("x", headers={"X-Request-ID": "abc-1.2_3"})
    assert own.headers["x-request-id"] == own.json()["request_id"] == "abc-1.2_3"
    for strange in ("a b", "x" * 65, "é", "<script>", ""):
        answer = running.ask("x", headers={"X-Request-ID": strange.encode("latin-1")})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize(("body", "status", "says"), [
    (b"", 422, "not valid JSON"), (b"hello", 422, "not valid JSON"), (b"\xff\xfe", 422, "not valid JSON"),
    (b"[]", 422, 'one field "text"'), (b"{}", 422, 'one field "text"'), (b'"x"', 422, 'one field "text"'),
    (b'{"text": "a", "more": 1}', 422, 'one field "text"'), (b'{"text": 5}', 422, "string or a list"),
    (b'{"text": null}', 422, "string or a list"), (b'{"text": NaN}', 422, "string or a list"),
    (b'{"text": []}', 422, "string or a list"), (b'{"text": ["a", 1]}', 422, "string or a list"),
    (b'{"text": {"a": "b"}}', 422, "string or a list"), (b'{"text": " \\n"}', 422, "text 1 is empty"),
    (b'{"text": ["a", ""]}', 422, "text 2 is empty"), (b"[" * 500_000, 422, "nested too deep"),
    (b'{"text": ' + b'{"a": ' * 100_000, 422, "nested too deep"), (b'{"text": ' + b"9" * 10_000 + b"}", 422, "not valid JSON"),
    (b'{"text": "' + b"x" * 20_001 + b'"}', 413, "text 1 is longer than 20,000 characters"),
    (json.dumps({"text": ["x"] * 65}).encode(), 413, "at most 64 texts a request, got 65"),
    (b'{"text": "' + b"x" * 10**7 + b'"}', 413, "larger than 1,000,000 bytes"),
], ids=lambda value: ascii(value)[:24])
def test_what_cannot_be_answered_is_refused_with_a_sentence(running, body, status, says):
    answer = running.http.post("/predict", content=body)
    assert (answer.status_code, says in detail(answer)) == (status, True), detail(answer)


@pytest.mark.parametrize("body", [b'{"text": "a\\u0000b"}', b'{"text": "half \\ud800"}', '{"text": "naïve 🙂"}'.encode(),
                                  '{"text": "16"}'.encode("utf-16"), b'{"text": "' + b"x" * 20_000 + b'"}'],
                         ids=["NUL", "surrogate", "emoji", "utf-16", "largest"])
def test_odd_text_is_answered(running, body):
    answer = running.http.post("/predict", content=body)
    assert answer.status_code == 200 and answer.json()["answers"][0]["answer"]["letters"] > 1


def test_model_never_sees_half_a_surrogate_pair_nor_more_than_it_may(running):
    running.ask("x" * 15_000)
    running.http.post("/predict", content=b'{"text": "lone \\udfff"}')
    assert max(map(len, running.model.seen)) <= 2000
    assert "lone ?" in running.model.seen


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/predict", 405), ("PUT", "/predict", 405), ("POST", "/stream", 404), ("GET", "/", 404), ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200), ("GET", "/../../etc/passwd", 404), ("POST", "/health", 405)])
def test_other_routes(running, method, path, status):
    assert running.http.request(method, path).status_code == status


def test_the_docs_page_is_whole_without_a_content_network(running):
    page = running.http.get("/docs").text
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(needed) >= 3 and all(address.startswith("/") for address in needed), needed
    assert [running.http.get(address).status_code for address in needed] == [200] * len(needed)


def test_numpy_answers_are_json_and_what_is_no_json_is_an_error():
    answers = {"array": np.arange(3), "number": np.float32(0.5), "nan": float("nan"), "object": object()}
    app = create_app(lambda: lambda texts: [answers.get(text) for text in texts], cache=None)
    with BackgroundServer(app) as server, httpx.Client(base_url=server.url) as http:
        found = {name: http.post("/predict", json={"text": name}) for name in answers}
    assert found["array"].json()["answers"][0]["answer"] == [0, 1, 2]
    assert found["number"].json()["answers"][0]["answer"] == 0.5
    assert [found[name].status_code for name in ("nan", "object")] == [500, 500]
    assert detail(found["nan"]) == "the model's answer is not valid JSON"


def test_the_schema_promises_what_the_service_does(running):
    schema = running.http.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(schema["responses"]) >= {"200", "413", "422", "503", "504"}
    example = schema["requestBody"]["content"]["application/json"]["example"]
    assert running.http.post("/predict", json=example).status_code == 200


# ---- under load


def test_a_full_queue_answers_at_once_with_503_and_retry_after():
    with Running(plan={"max_batch": 1, "max_queue": 2}, cache=None, limits=Limits(deadline_s=20)) as one:
        one.model.gate.clear()
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(one.ask, f"text {i}") for i in range(3)]
            until(lambda: one.service.batcher.waiting == 2)
            start = time.perf_counter()
            refused = one.ask("one too many")
            seconds = time.perf_counter() - start
            one.model.gate.set()
            assert [answer.result().status_code for answer in asked] == [200] * 3
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1") and seconds < 0.5
        assert detail(refused) == "the queue is full: try again in 1 s"
        assert one.ask("later").status_code == 200


def test_deadline_gives_504_or_the_fallback():
    with Running(limits=Limits(deadline_s=0.1)) as one:
        one.model.gate.clear()
        start = time.perf_counter()
        late = one.ask("slow")
        assert (late.status_code, detail(late)) == (504, "no answer within the deadline")
        assert 0.08 < time.perf_counter() - start < 1
    with Running(limits=Limits(deadline_s=0.1), fallback=lambda text: "a person will answer") as one:
        one.model.gate.clear()
        late = one.ask("slow")
        assert late.json()["answers"] == [{"answer": "a person will answer", "source": "fallback"}]
        one.model.gate.set()
        assert one.ask("slow").json()["answers"][0]["source"] == "model"  # a fallback is never cached


def test_a_client_may_be_in_more_of_a_hurry_but_not_in_less():
    with Running(limits=Limits(deadline_s=0.3)) as one:
        one.model.gate.clear()
        for wish, least, most in (("50", 0.04, 0.25), ("60000", 0.25, 1.0)):
            start = time.perf_counter()
            assert one.ask("slow", headers={"X-Deadline-Ms": wish}).status_code == 504
            assert least < time.perf_counter() - start < most
        assert one.ask("slow", headers={"X-Deadline-Ms": "soon"}).status_code == 422


def test_a_poisonous_text_fails_alone_and_its_error_quotes_nothing(caplog):
    with Running(plan={"max_wait_ms": 50}) as one, ThreadPoolExecutor(8) as pool:
        texts = ["one", "two", "poison 4929", "four", "five"]
        answers = list(pool.map(one.ask, texts))
        assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 200]
        assert detail(answers[2]) == "the model failed on this text (ValueError)"
    assert "4929" not in caplog.text and "secret" not in caplog.text


def test_a_poisonous_text_gets_the_fallback_where_there_is_one():
    with Running(fallback=lambda text: "later") as one:
        assert one.ask(["a", "poison"]).json()["answers"] == [
            {"answer": {"letters": 1}, "source": "model"}, {"answer": "later", "source": "fallback"}]


def test_a_fallback_that_fails_is_a_plain_500_and_the_log_quotes_nothing(caplog):
    def fallback(text):
        raise KeyError(text)

    with Running(fallback=fallback) as one:
        answer = one.ask("poison 4929")
        assert (answer.status_code, detail(answer)) == (500, "an error of the service")
        assert answer.headers["x-request-id"] in caplog.text
    assert "KeyError at test_service.py" in caplog.text and "4929" not in caplog.text


def hang_up(url: str, text: str) -> socket.socket:
    "A client that has sent its request; the caller closes it."
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"text": text}).encode()
    client = socket.create_connection((host, int(port)))
    client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    return client


@pytest.mark.parametrize("cache", [None, True], ids=["without cache", "with cache"])
def test_a_client_that_leaves_frees_its_slot_before_the_model_runs(cache):
    with Running(plan={"max_batch": 1, "max_queue": 3}, cache=cache, limits=Limits(deadline_s=20)) as one:
        one.model.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(one.ask, "running")
            until(lambda: one.model.batches == 1)
            leaving = [hang_up(one.server.url, f"leaves {i}") for i in range(3)]
            until(lambda: one.service.batcher.waiting == 3)
            for client in leaving:
                client.close()
            until(lambda: one.service.batcher.waiting == 0)
            one.model.gate.set()
            assert first.result().status_code == 200
        assert one.ask("next").status_code == 200
        assert one.model.seen == ["running", "next"]
        page = one.http.get("/metrics").text
        assert 'nlp_requests_total{route="/predict",status="499"} 3.0' in page


def test_a_cache_of_ones_own_is_used():
    with Running(cache=AnswerCache(normalize=str.lower)) as one:
        assert [one.ask(text).json()["answers"][0]["source"] for text in ("Lost CARD", "lost card")] == ["model", "cache"]


def test_equal_requests_at_once_are_computed_once():
    with Running(limits=Limits(deadline_s=20)) as one:
        one.model.gate.clear()
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(one.ask, "popular") for _ in range(12)]
            until(lambda: one.service.cache.shared == 11)
            one.model.gate.set()
            sources = sorted(answer.result().json()["answers"][0]["source"] for answer in asked)
        assert sources == ["cache"] * 11 + ["model"] and one.model.seen == ["popular"]


def test_a_body_that_never_ends_is_cut_off():
    with Running(limits=Limits(body_s=0.2)) as one:
        host, port = one.server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert client.recv(100).startswith(b"HTTP/1.1 408")


# ---- health, metrics, log


def test_health_from_loading_to_ready():
    gate = threading.Event()

    def load():
        gate.wait(10)
        return Model()

    server = BackgroundServer(create_app(load, name="tickets"))
    with httpx.Client(base_url=server.url) as http:
        until(lambda: server._server.started)
        loading, asked = http.get("/health"), http.post("/predict", json={"text": "x"})
        gate.set()
        server.ready()
        assert (loading.status_code, loading.json()["state"]) == (503, "loading")
        assert (asked.status_code, asked.headers["retry-after"]) == (503, "5")
        assert http.get("/health").json() == {"state": "ready", "reason": "", "model": "tickets", "waiting": 0}
    server.stop()


def test_a_model_that_fails_to_load_is_a_health_state():
    def load():
        raise OSError("adapter.safetensors is missing")

    server = BackgroundServer(create_app(load))
    until(lambda: server._server.service.batcher.state == "failed")
    with httpx.Client(base_url=server.url) as http:
        until(lambda: server._server.started)
        health, asked = http.get("/health"), http.post("/predict", json={"text": "x"})
        page = http.get("/metrics").text
    server.stop()
    assert (health.status_code, health.json()["state"]) == (503, "failed")
    assert health.json()["reason"] == "OSError: adapter.safetensors is missing"
    assert asked.status_code == 503 and "adapter.safetensors is missing" in detail(asked)
    assert "nlp_model_ready 0.0" in page


def test_a_model_that_hangs_is_a_health_state():
    with Running(limits=Limits(deadline_s=0.1, stuck_s=0.2)) as one:
        one.model.gate.clear()
        assert one.ask("x").status_code == 504
        until(lambda: one.http.get("/health").status_code == 503)
        assert one.http.get("/health").json()["state"] == "stuck"
        one.model.gate.set()
        until(lambda: one.http.get("/health").status_code == 200)


def test_metrics_count_what_happened():
    with Running() as one:
        one.ask(["a", "b", "c"])
        one.ask("a")
        one.ask([])
        one.http.get("/nowhere/Oneil")
        until(lambda: 'other' in one.http.get("/metrics").text)
        page = one.http.get("/metrics").text
        value = one.service.metrics.registry.get_sample_value
        assert value("nlp_answers_total", {"source": "model"}) == 3 and value("nlp_answers_total", {"source": "cache"}) == 1
        assert value("nlp_requests_total", {"route": "/predict", "status": "200"}) == 2
        assert value("nlp_requests_total", {"route": "/predict", "status": "422"}) == 1
        assert value("nlp_requests_total", {"route": "other", "status": "404"}) == 1
        assert value("nlp_batch_size_sum") == 3 and value("nlp_model_ready") == 1 and value("nlp_cache_hits") == 1
        assert "Oneil" not in page


SECRET = "my card 4929 1234 was swallowed by Mrs O'Neil"


def test_the_log_holds_a_row_for_each_text_and_no_text(tmp_path):
    with Running(log=tmp_path / "log.db", note=lambda answer: f"{answer['letters']} letters") as one:
        one.ask([SECRET, "hello"], headers={"X-Request-ID": "mine"})
        one.ask("hello")
        one.ask([])
        one.http.post("/predict", content=b"no json, " + SECRET.encode())
    found = sqlite3.connect(tmp_path / "log.db").execute(
        "SELECT request_id, status, source, chars, text, note FROM request_log ORDER BY id").fetchall()
    assert found[0] == ("mine", 200, "model", len(SECRET), None, f"{len(SECRET)} letters")
    assert [row[1:] for row in found[1:]] == [(200, "model", 5, None, "5 letters"), (200, "cache", 5, None, "5 letters"),
                                              (422, "", None, None, None), (422, "", None, None, None)]
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"4929" not in stored and b"hello" not in stored


def test_a_log_that_cannot_be_written_does_not_stop_the_service(tmp_path):
    (tmp_path / "folder").mkdir()
    log = RequestLog(tmp_path / "folder", max_pending=3)
    with Running(log=log, note=lambda answer: 1 / 0, limits=Limits(drain_s=1)) as one:
        assert {one.ask(f"text {i}").status_code for i in range(20)} == {200}
        assert one.service.log.dropped > 0


# ---- streams


class Teller:
    "Tells a text word by word; the gate opens every word."

    def __init__(self):
        self.told, self.closed, self.gate = [], threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, text):
        try:
            for word in text.split():
                assert self.gate.wait(10)
                if word == "poison":
                    raise ValueError("secret")
                self.told.append(word)
                yield word
        finally:
            self.closed.set()


@pytest.fixture
def teller():
    one = Teller()
    app = create_app(Model, load_stream=lambda: one, limits=Limits(streams=2, token_s=0.5))
    with BackgroundServer(app) as server, httpx.Client(base_url=server.url, timeout=10) as http:
        one.http, one.url, one.service = http, server.url, app.state.service
        yield one
        one.gate.set()


def heard(answer):
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events]


def test_a_stream_tells_its_pieces_and_its_end(teller):
    answer = teller.http.post("/stream", json={"text": "naïve 🙂 \u2028x"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert heard(answer) == [("token", "naïve"), ("token", "🙂"), ("token", "x"), ("done", "")]
    until(lambda: teller.service.streaming == 0)


def test_a_stream_that_fails_says_so_with_a_status_or_an_event(teller):
    at_once = teller.http.post("/stream", json={"text": "poison"})
    assert (at_once.status_code, detail(at_once)) == (500, "the model failed on this text (ValueError)")
    later = heard(teller.http.post("/stream", json={"text": "one poison"}))
    assert later == [("token", "one"), ("error", "the model failed on this text (ValueError)")]
    teller.gate.clear()
    assert teller.http.post("/stream", json={"text": "never"}).status_code == 504
    assert teller.http.post("/stream", json={"text": ["a", "b"]}).status_code == 422
    until(lambda: teller.service.streaming == 0)


def test_a_client_that_leaves_ends_the_stream(teller):
    with teller.http.stream("POST", "/stream", json={"text": "word " * 300}) as answer:
        next(answer.iter_lines())
        teller.gate.clear()
    teller.http.close()
    until(lambda: teller.service.streaming == 0)
    teller.gate.set()
    assert teller.closed.wait(5) and len(teller.told) <= 300
    teller.http = httpx.Client(base_url=teller.url)
    assert heard(teller.http.post("/stream", json={"text": "still here"}))[-1] == ("done", "")


def test_no_more_streams_than_allowed(teller):
    teller.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(teller.http.post, "/stream", json={"text": "a b"}) for _ in range(2)]
        until(lambda: teller.service.streaming == 2)
        refused = teller.http.post("/stream", json={"text": "c"})
        teller.gate.set()
        assert [heard(answer.result())[-1] for answer in asked] == [("done", "")] * 2
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_service_may_only_stream():
    with BackgroundServer(create_app(None, load_stream=lambda: str.split)) as server, httpx.Client(base_url=server.url) as http:
        assert heard(http.post("/stream", json={"text": "a b"})) == [("token", "a"), ("token", "b"), ("done", "")]
        assert http.post("/predict", json={"text": "a"}).status_code == 404
    with pytest.raises(ValueError, match="load, load_stream or both"):
        create_app(None)


# ---- the end


SERVICE = """
import sys, time
from nlp_portfolio.serving.app import Limits, create_app, serve
from nlp_portfolio.serving.batching import Batching
def load():
    def predict(texts):
        time.sleep(float(sys.argv[1]))
        return [len(text) for text in texts]
    return predict
app = create_app(load, name="tickets", batching=Batching(warm_up=(), max_batch=1), log=sys.argv[2],
                 limits=Limits(deadline_s=30, drain_s=float(sys.argv[3])))
serve(app, port=0, lame_duck_s=float(sys.argv[4]))
"""


class Process:
    "A service in a process of its own."

    def __init__(self, folder, model_s=0.3, drain_s=10.0, lame_duck_s=0.0):
        arguments = [str(one) for one in (model_s, folder / "log.db", drain_s, lame_duck_s)]
        self.process = subprocess.Popen([sys.executable, "-c", SERVICE, *arguments], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.url = re.search(r"http://127\.0\.0\.1:\d+", self.process.stdout.readline())[0]
        until(self.is_ready, 20)

    def is_ready(self):
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.ConnectError:
            return False

    def end(self, seconds=10):
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, err


@posix
def test_sigterm_finishes_what_is_under_way(tmp_path):
    service = Process(tmp_path, model_s=0.8)
    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=service.url) as http:
        asked = [pool.submit(http.post, "/predict", json={"text": f"text {i}"}, timeout=20) for i in range(3)]
        until(lambda: http.get("/health").json()["waiting"] == 2)
        service.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in asked] == [200] * 3
    assert service.end() == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/health")
    rows = sqlite3.connect(tmp_path / "log.db").execute("SELECT status FROM request_log").fetchall()
    assert rows == [(200,)] * 3


@posix
def test_sigterm_does_not_wait_for_a_model_that_hangs(tmp_path):
    service = Process(tmp_path, model_s=60, drain_s=1)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=service.url) as http:
        asked = pool.submit(http.post, "/predict", json={"text": "x"}, timeout=20)
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert service.end()[0] == 0
        assert time.monotonic() - start < 6
        assert asked.exception() or asked.result().status_code >= 500


@posix
def test_lame_duck_answers_while_it_says_that_it_is_draining(tmp_path):
    service = Process(tmp_path, model_s=0, lame_duck_s=1)
    service.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{service.url}/health").json()["state"] == "draining")
    assert httpx.get(f"{service.url}/health").status_code == 503
    assert httpx.post(f"{service.url}/predict", json={"text": "x"}).status_code == 200
    assert service.end() == (0, "")


def test_only_the_loopback_interface_is_bound_and_a_taken_port_is_named(running):
    assert running.server._socket.getsockname()[0] == "127.0.0.1"
    port = running.server._socket.getsockname()[1]
    done = subprocess.run([sys.executable, "-c", SERVICE.replace("port=0", f"port={port}"), "0", "unused.db", "1", "0"],
                          capture_output=True, text=True, cwd="/tmp", timeout=30)
    assert done.returncode == 1 and f"cannot listen on 127.0.0.1:{port}" in done.stderr


# ---- fuzz


def odd_text(rng: random.Random) -> str:
    return "".join(rng.choice(["a", " ", "é", "🙂", "\0", "\ud800", '"', "\\", "\u2028"]) for _ in range(rng.randrange(30)))


def odd_value(rng: random.Random, depth: int = 0):
    "A JSON value of any kind."
    kinds = [lambda: None, lambda: True, lambda: rng.randint(-10**30, 10**30),
             lambda: rng.choice([1e308, -0.0, float("nan"), float("inf")]), lambda: odd_text(rng),
             lambda: "word " * rng.choice([1, 100, 5000]), lambda: {"": 1, "text": 2, "\ud800": 3},
             lambda: [odd_value(rng, depth + 1) for _ in range(rng.randrange(5))], lambda: {"text": odd_value(rng, depth + 1)}]
    return rng.choice(kinds if depth < 3 else kinds[:7])()


def odd_body(rng: random.Random) -> bytes:
    "A request body: sensible, nearly sensible, or noise."
    kind = rng.randrange(12)
    if kind < 3:
        return json.dumps({"text": odd_value(rng)}).encode()
    if kind < 5:
        return json.dumps({"text": [f"ticket {rng.randrange(50)}" for _ in range(rng.choice([0, 1, 3, 64, 65, 200]))]}).encode()
    return [lambda: json.dumps(odd_value(rng)).encode(), lambda: rng.randbytes(rng.randrange(400)),
            lambda: b'{"text": ' * rng.choice([10, 1000, 50_000]), lambda: b"[" * rng.choice([10, 1000, 300_000]),
            lambda: json.dumps({"text": "cut short"}).encode()[: rng.randrange(21)],
            lambda: json.dumps({"text": "wide"}).encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
            lambda: b'{"text": "' + b"x" * rng.choice([19_999, 20_001, 1_200_000]) + b'"}'][kind - 5]()


def odd_headers(rng: random.Random) -> dict[str, str]:
    chosen = [{}, {"X-Deadline-Ms": rng.choice(["0", "1", "-1", "x", "9" * 30, "5000"])},
              {"X-Request-ID": "a" * rng.randrange(99)},
              {"Content-Type": rng.choice(["text/plain", "application/x-www-form-urlencoded", "x/y; charset=nonsense"])}]
    return rng.choice(chosen)


PATHS = ["/health", "/metrics", "/docs", "/openapi.json", "/", "/predict/", "/%00", "/%ff"]
METHODS = ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "NONSENSE"]


@pytest.mark.required
def test_fuzz(campaign):
    rng, statuses, count = random.Random(39), {}, campaign.count(2000)
    large = b'{"text": "' + b"x" * 10**7 + b'"}'
    with Running(limits=Limits(deadline_s=5), fallback=lambda text: "later") as one:
        for number in range(count):
            path, method = rng.choice(["/predict"] * 60 + PATHS), rng.choice(["POST"] * 60 + METHODS)
            body, headers = large if number % 500 == 499 else odd_body(rng), odd_headers(rng)
            answer = one.http.request(method, path, content=body, headers=headers)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code in (200, 307, 400, 404, 405, 413, 422), (answer.status_code, method, path, body[:200])
            if answer.status_code >= 400 and method not in ("HEAD", "NONSENSE"):  # uvicorn itself refuses an unknown method
                assert detail(answer)
        assert one.ask("still here").json()["answers"][0]["answer"] == {"letters": 10}
        assert one.service.batcher.waiting == 0 and one.http.get("/health").status_code == 200
    assert {200, 404, 405, 413, 422} <= set(statuses) and statuses[200] > count / 10, statuses
    campaign.keep("service_requests", seed=39, requests=count, statuses=dict(sorted(statuses.items())))


POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
RAW = [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /predict HTTP/1.1\r\n\r\n", b"\0" * 100,
       b"\x16\x03\x01" * 50, POST + b"Content-Length: -5\r\n\r\n", POST + b"Content-Length: 1e9\r\n\r\n",
       POST + b"A: b\r\n" * 20_000 + b"\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
       POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"]


def test_what_is_no_http_is_closed_or_refused_and_the_service_lives(running):
    host, port = running.server.url.removeprefix("http://").split(":")
    for raw in RAW:
        with socket.create_connection((host, int(port)), timeout=5) as client:
            try:
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(1000)
            except (ConnectionResetError, BrokenPipeError):
                answer = b""
            assert answer == b"" or re.match(rb"HTTP/1\.1 (4\d\d|307) ", answer), raw[:60]
    assert running.ask("alive").status_code == 200


def test_read_texts_never_lets_through_what_utf_8_cannot_write():
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(chr(rng.choice([0, 65, 0xD800, 0xDFFF, 0x1F642])) for _ in range(rng.randrange(1, 9))) + "x"
        (read,) = read_texts(text, Limits())
        assert read.encode() and len(read) == len(text)


@pytest.mark.parametrize(("path", "method"), [("/predict", "POST"), ("/health", "GET"), ("/metrics", "GET"), ("/stream", "POST")])
def test_the_service_answers_only_what_its_schema_promises(path, method):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    checks, seen = [content_type_conformance, response_schema_conformance, status_code_conformance], set()
    with BackgroundServer(create_app(Model, cache=AnswerCache(10), load_stream=lambda: str.split)) as server:
        operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[path][method]

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            answer = case.call()
            seen.add(answer.status_code)
            case.validate_response(answer, checks=checks)

        ask()
    assert 200 in seen and seen <= {200, 413, 422}
