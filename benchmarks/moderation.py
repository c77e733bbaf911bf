"""The moderation service under load: texts of 1 kB, with personal data (cut, and read once more) and without.

`make bench` runs it; the table is printed and kept in the package and in project 4's reports. The server is a process of its own
on the loopback interface with its audit log on the disk: every answer waits for its record. Each request carries another text.
Options: `--requests 600`, `--threads 2`, `--model FOLDER`.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from serving import ROOT, free_port, stop, wait_until_ready

from nlp_portfolio.cases.moderation import Broken, Moderator, open_desk
from nlp_portfolio.course.datasets import load
from nlp_portfolio.course.settings import home
from nlp_portfolio.serving.load import Refused, closed_loop, open_loop, summary

SERVICE = ROOT / "projects/4_safety_filter/service.py"
KEPT, REPORT = ROOT / "nlp_portfolio/data/benchmarks/moderation.json", ROOT / "projects/4_safety_filter/reports/latency.json"
CHARS = 1000  # of a text
PERSONAL = "Write to {name}@example.org or call +49 30 {number}, {day}."


def texts_of(count: int, personal: float, seed: int = 7) -> list[str]:
    "Texts of 1,000 characters from reviews of the sample, two where one is short; a share ends with an address and a number."
    rng, pool = random.Random(seed), sorted(load("imdb", "train", source="sample")["text"], key=len)[-150:]
    made = []
    for _ in range(count):
        name = "".join(rng.choices("bcdfgl", k=6))
        about = PERSONAL.format(name=name, number=rng.randrange(10**6, 10**7), day=rng.randrange(10**6))
        end = f" {about}" if rng.random() < personal else ""
        made.append(("\n\n".join(rng.sample(pool, 2)))[: CHARS - len(end)] + end)
    return made


def disk() -> Path:
    "A folder on the disk: a temporary one may be in memory, where a record costs nothing."
    home().mkdir(parents=True, exist_ok=True)
    return home()


def audit_ms(count: int = 200) -> dict[str, float]:
    "What a record costs: signed, on the disk, the head on the disk."
    with tempfile.TemporaryDirectory(dir=disk()) as folder:
        desk, times = open_desk(Moderator(Broken("not needed"), rules=lambda text: []), folder), []
        found = desk.moderator.moderate("text")
        for _ in range(count):
            began = time.perf_counter()
            desk.log.decision(found.decision, "text", found.scores)
            times.append(1000 * (time.perf_counter() - began))
    return {"audit_p50_ms": round(sorted(times)[count // 2], 3), "audit_p95_ms": round(sorted(times)[int(0.95 * count)], 3)}


async def measure(url: str, requests: int, on: Callable[[dict[str, Any]], None]) -> None:
    "One client with each kind of text; eight clients with both kinds; then an open loop at 70 % of the best throughput seen."
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=256)) as client:
        async def ask(text: str) -> None:
            reply = await client.post("/moderate", json={"text": text})
            if reply.status_code != 200 or not reply.json()["answers"][0]["complete"]:
                raise Refused(str(reply.status_code))

        await closed_loop(ask, texts_of(32, 0.5, 1), 4)  # connections and caches of the processor are warm
        for kind, share in (("no personal data", 0.0), ("personal data", 1.0)):
            on({"texts": kind, "load": "1 client", **summary(await closed_loop(ask, texts_of(requests, share), 1))})
        both = texts_of(requests, 0.5, 3)
        one = summary(await closed_loop(ask, both, 1))
        on({"texts": "half and half", "load": "1 client", **one})
        eight = summary(await closed_loop(ask, both, 8))
        on({"texts": "half and half", "load": "8 clients", **eight})
        rate = 0.7 * max(one["per_second"], eight["per_second"])
        on({"texts": "half and half", "load": f"open loop, {rate:.0f}/s (70 %)", **summary(await open_loop(ask, both, rate))})


def bench(requests: int, threads: int, model: str) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=disk()) as folder:
        url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, SERVICE, "--port", str(port), "--folder", folder, "--threads", str(threads), "--model", model]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_until_ready(url, process)
            asyncio.run(measure(url, requests, rows.append))
        finally:
            stop(process)
    table = pd.DataFrame(rows)
    return table.assign(errors=1 - table.pop("answered"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400, help="requests of each load")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of the encoder")
    parser.add_argument("--model", default="safety", help="the encoder: the shipped one, or a folder")
    args = parser.parse_args()
    table = bench(args.requests, args.threads, args.model)
    facts = {"date": datetime.date.today().isoformat(), "requests": args.requests, "chars": CHARS, **audit_ms(),
             "machine": f"{platform.machine()}, {os.cpu_count()} cores, encoder int8 on {args.threads} threads"}
    for file in (KEPT, REPORT):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**facts, "rows": table.round(4).to_dict("records")}, indent=1) + "\n", encoding="utf-8")
    print(table.round(1).to_string(index=False))
    print({name: value for name, value in facts.items() if name.startswith("audit")})
