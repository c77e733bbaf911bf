"""The service of project 1 as its users start it: a process of its own, asked over HTTP, ended with SIGTERM."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def process(place: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, ROOT / "projects/1_ticket_intents/service.py", "--port", str(port), "--log", place / "log.sqlite"]
    env = {**os.environ, "NLP_PORTFOLIO_SOURCE": "sample", "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen(command, env=env)
    try:
        yield running, f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait(10)


@pytest.fixture(scope="module")
def http(process: tuple[subprocess.Popen, str]) -> Iterator[httpx.Client]:
    running, url = process
    with httpx.Client(base_url=url, timeout=30) as client:
        end = time.monotonic() + 180
        while running.poll() is None and time.monotonic() < end:
            try:
                health = client.get("/health").json()
                assert health["state"] in ("loading", "ready"), health
                if health["state"] == "ready":
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield client


def test_one_ticket_and_many_get_their_intents(http: httpx.Client) -> None:
    one = http.post("/predict", json={"text": "Where is my parcel? Order #2048817 was due on Tuesday."}).json()
    assert [answer["answer"]["intents"][0]["intent"] for answer in one["answers"]] == ["delivery_status"]
    tickets = ["cancel my plan please, I no longer need it", "the moon is made of cheese"]
    many = http.post("/predict", json={"text": tickets}).json()
    assert many["answers"][0]["answer"]["intents"][0]["intent"] == "cancel_subscription"
    assert many["answers"][1]["answer"]["out_of_scope"] is True


def test_a_ticket_in_a_hurry_gets_the_quick_answer(http: httpx.Client) -> None:
    answers = [http.post("/predict", json={"text": "I want a refund " * 100 + str(number)}, headers={"X-Deadline-Ms": "1"}).json()
               for number in range(5)]
    quick = [answer["answers"][0] for answer in answers]
    assert all(answer["answer"]["intents"][0]["intent"] == "refund_request" for answer in quick), quick


def test_health_metrics_and_docs(http: httpx.Client) -> None:
    assert http.get("/health").json()["model"] == "ticket-intents"
    assert re.search(r'nlp_requests_total\{route="/predict",status="200"\} [1-9]', http.get("/metrics").text)
    assert "/static-offline-docs/swagger-ui" in http.get("/docs").text
    assert "/predict" in http.get("/openapi.json").json()["paths"]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_sigterm_ends_it_and_the_log_holds_intents_and_no_text(http: httpx.Client, process, place: Path) -> None:
    running, _ = process
    http.post("/predict", json={"text": "please cancel my order 7731902, it was a mistake"})
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    with sqlite3.connect(place / "log.sqlite") as log:
        dump = "\n".join(log.iterdump())
    assert "cancel_order" in dump and "7731902" not in dump and "mistake" not in dump
