"""The ticket service under load: ours with batching, ours one text at a time, and LitServe, with the same int8 model.

`make bench` runs it; the table is printed and written to projects/1_ticket_intents/reports/latency.json. Every server is a
process of its own on the loopback interface, caches are off, each request carries another ticket. Options: `--requests 600`.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import litserve
import pandas as pd

from nlp_portfolio.cases.tickets import TicketTagger
from nlp_portfolio.course.datasets import load
from nlp_portfolio.serving.app import create_app, serve
from nlp_portfolio.serving.batching import Batching
from nlp_portfolio.serving.load import Refused, closed_loop, open_loop, summary

REPORT = Path(__file__).resolve().parents[1] / "projects/1_ticket_intents/reports/latency.json"
CLIENTS = (1, 8, 32)
MAX_BATCH, MAX_WAIT_MS = 32, 2.0


def main_intents(texts: list[str]) -> list[str]:
    "What both servers answer: the small part of the tagger's answer, so that JSON is not what is measured."
    return [answer["intents"][0]["intent"] for answer in TAGGER.predict(texts)]


def start_ours(port: int, max_batch: int) -> None:
    global TAGGER
    TAGGER = TicketTagger.load("int8")
    plan = Batching(max_batch=max_batch, max_wait_ms=MAX_WAIT_MS if max_batch > 1 else 0)
    serve(create_app(lambda: main_intents, name="ours", batching=plan, cache=None), port=port)


class Api(litserve.LitAPI):
    "LitServe's form of the same model. At module level, because its worker is another process."

    def setup(self, device: str) -> None:
        self.tagger = TicketTagger.load("int8")
        self.tagger.predict(["warm up"])

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[str]:
        return [answer["intents"][0]["intent"] for answer in self.tagger.predict(texts)]

    def encode_response(self, output: str) -> dict[str, str]:
        return {"answer": output}


def start_litserve(port: int) -> None:
    server = litserve.LitServer(Api(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_MS / 1000), accelerator="cpu", devices=1,
                                workers_per_device=1, timeout=30)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


SERVERS: dict[str, Callable[[int], None]] = {
    "ours, batched": lambda port: start_ours(port, MAX_BATCH),
    "ours, one at a time": lambda port: start_ours(port, 1),
    "LitServe, batched": start_litserve,
}


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
    rows, source = [], load("tickets", "train")["text"]
    texts = [source[i % len(source)] for i in range(requests)]
    for name in SERVERS:
        url = f"http://127.0.0.1:{(port := free_port())}"
        process = subprocess.Popen([sys.executable, __file__, "--server", name, "--port", str(port)], stdout=subprocess.DEVNULL)
        try:
            wait_until_ready(url, process)
            asyncio.run(measure(url, texts, lambda row, name=name: rows.append({"server": name, **row})))
        finally:
            process.terminate()
            process.wait(30)
    table = pd.DataFrame(rows)
    return table.assign(errors=1 - table.pop("answered"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1200, help="requests of each load")
    parser.add_argument("--server", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.server:
        SERVERS[args.server](args.port)
        sys.exit()
    TicketTagger.load("int8")  # built once, before anybody is timed
    table = bench(args.requests)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, model on one thread"
    facts = {"date": datetime.date.today().isoformat(), "machine": machine, "requests": args.requests,
             "max_batch": MAX_BATCH, "max_wait_ms": MAX_WAIT_MS, "rows": table.round(4).to_dict("records")}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(table.round(1).to_string(index=False))
