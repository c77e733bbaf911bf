"""Services under load: ours with batching, ours one text at a time, and LitServe, each pair with the same model.

`make bench` runs it; the table is printed and kept in the package, the tickets' rows in project 1's reports. Every server is a
process of its own on the loopback interface, caches are off, each request carries another ticket. Options: `--requests 600`.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import litserve
import pandas as pd

from nlp_portfolio.cases.tickets import TicketTagger, classifier
from nlp_portfolio.course.datasets import load
from nlp_portfolio.neural.compress import has_bf16
from nlp_portfolio.serving.app import create_app, serve
from nlp_portfolio.serving.batching import Batching
from nlp_portfolio.serving.load import Refused, closed_loop, open_loop, summary

ROOT = Path(__file__).resolve().parents[1]
KEPT, REPORT = ROOT / "nlp_portfolio/data/benchmarks/serving.json", ROOT / "projects/1_ticket_intents/reports/latency.json"
CLIENTS = (1, 8, 32)
MAX_WAIT_MS, SHORT = 2.0, 48  # characters of a short text


class Model:
    "The tagger, or its classifier alone: one label a text, so that JSON is not what is measured."

    def __init__(self, task: str, dtype: str):
        self.tagger = TicketTagger.load(dtype, task="tickets") if task == "tickets" else None
        self.labels = None if self.tagger else classifier(task, dtype)

    def predict(self, texts: list[str]) -> list[str]:
        if self.tagger:
            return [answer["intents"][0]["intent"] for answer in self.tagger.predict(texts)]
        return [self.labels.labels[row.argmax()] for row in self.labels.predict_proba(texts)]


class Api(litserve.LitAPI):
    "LitServe's form of the same model. At module level, because its worker is another process."

    def __init__(self, task: str, dtype: str, **options: Any):
        super().__init__(**options)
        self.wanted = task, dtype

    def setup(self, device: str) -> None:
        self.model = Model(*self.wanted)
        self.model.predict(["warm up"])

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str] | str) -> list[str] | str:
        return self.model.predict(texts) if isinstance(texts, list) else self.model.predict([texts])[0]

    def encode_response(self, output: str) -> dict[str, str]:
        return {"answer": output}


def start(peer: str, task: str, dtype: str, max_batch: int, port: int) -> None:
    "Serve until terminated."
    if peer == "LitServe":
        waits = {"max_batch_size": max_batch, "batch_timeout": MAX_WAIT_MS / 1000} if max_batch > 1 else {}
        server = litserve.LitServer(Api(task, dtype, **waits), accelerator="cpu", devices=1, workers_per_device=1, timeout=30)
        server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
    else:
        plan = Batching(max_batch=max_batch, max_wait_ms=MAX_WAIT_MS if max_batch > 1 else 0)
        serve(create_app(lambda: Model(task, dtype).predict, name=task, batching=plan, cache=None), port=port)


MANY = "bfloat16" if has_bf16() else "float32"
SERVERS = [  # texts, peer, task, dtype, texts a batch
    ("tickets", "ours", "tickets", "int8", 8),
    ("tickets", "LitServe", "tickets", "int8", 8),
    ("short texts", "ours", "banking77", "int8", 1),
    ("short texts", "ours", "banking77", MANY, 1),
    ("short texts", "ours", "banking77", MANY, 32),
    ("short texts", "LitServe", "banking77", MANY, 32),
]


def texts_of(kind: str, count: int) -> list[str]:
    "Tickets, or the first words of bank customers' questions, repeated until there are enough."
    source = load("tickets" if kind == "tickets" else "banking77", "train")
    texts = source["text"] if kind == "tickets" else [text[:SHORT] for text in source["text"]]
    return [texts[i % len(texts)] for i in range(count)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until_ready(url: str, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server on {url} did not get ready")
        time.sleep(0.1)


def stop(process: subprocess.Popen) -> None:
    "End a server and the workers that it started: LitServe leaves its own behind."
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


async def measure(url: str, texts: list[str], on: Callable[[dict[str, Any]], None]) -> None:
    "Closed loop at 1, 8 and 32 clients, then an open loop at 70 % of the best throughput seen."
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=256)) as client:
        async def ask(text: str) -> None:
            reply = await client.post("/predict", json={"text": text})
            if reply.status_code != 200:
                raise Refused(str(reply.status_code))

        await closed_loop(ask, texts[:64], 8)  # connections and caches of the processor are warm
        best = 0.0
        for clients in CLIENTS:
            found = summary(await closed_loop(ask, texts, clients))
            best = max(best, found["per_second"])
            on({"load": f"{clients} clients" if clients > 1 else "1 client", **found})
        rate = 0.7 * best
        on({"load": f"open loop, {rate:.0f}/s (70 %)", **summary(await open_loop(ask, texts, rate))})


def bench(requests: int) -> pd.DataFrame:
    rows = []
    for number, (kind, peer, _, dtype, max_batch) in enumerate(SERVERS):
        url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, __file__, "--server", str(number), "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        about = {"texts": kind, "server": peer, "dtype": dtype, "max_batch": max_batch}
        try:
            wait_until_ready(url, process)
            asyncio.run(measure(url, texts_of(kind, requests), lambda row, about=about: rows.append({**about, **row})))
        finally:
            stop(process)
    table = pd.DataFrame(rows)
    return table.assign(errors=1 - table.pop("answered"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1200, help="requests of each load")
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.server is not None:
        start(*SERVERS[args.server][1:], args.port)
        sys.exit()
    for task in ("tickets", "banking77"):
        classifier(task, "int8")  # built once, before anybody is timed
    table = bench(args.requests)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, model on one thread"
    facts = {"date": datetime.date.today().isoformat(), "machine": machine, "requests": args.requests,
             "max_wait_ms": MAX_WAIT_MS}
    for file, rows in ((KEPT, table), (REPORT, table[table["texts"] == "tickets"])):
        file.parent.mkdir(exist_ok=True)
        kept = {**facts, "rows": rows.round(4).to_dict("records")}
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table.round(1).to_string(index=False))
