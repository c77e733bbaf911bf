"""The moderation service: send a text, get a decision. `make serve P=4`, then open /docs.

POST /moderate · POST /redact · GET /review · POST /review/claim · POST /review/{id} · GET /audit/verify
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from prometheus_client import Counter

from nlp_portfolio.cases.moderation import MAX_CHARS, REVIEWER, Desk, Moderator, ToxicRate, open_desk, reviewer_name, tidy
from nlp_portfolio.course.settings import home
from nlp_portfolio.safety.audit import AuditError
from nlp_portfolio.safety.policy import ACTIONS, load_policy
from nlp_portfolio.safety.review import OUTCOMES, ReviewError
from nlp_portfolio.serving import app as core
from nlp_portfolio.serving.app import Limits, Service, answering, refusal, unless_gone

ABOUT = """Decides about texts: **allow**, **redact** (the answer's `text` is what may be passed on), **block**, or **review**
(a person looks). Every decision is on record before it is answered. What cannot be judged is blocked, and `/health` says why.

**Who reviews?** The header `X-Reviewer` names the person. The service believes it. So in production a proxy in front must set it
from the authenticated token, and must drop the one that a client sends. Offsets of spans count characters (code points)."""
LIMITS = Limits(texts=32, text_chars=MAX_CHARS, deadline_s=15, jobs=2, waiting=64, drain_s=15)
ANY, SHOWN = {"type": "object"}, 100  # items of the queue that are listed
EXAMPLE = {"text": ["Call me on +49 30 901820, Ada", "Have a nice day"]}
OUTCOME = {"type": "object", "required": ["outcome"], "additionalProperties": False,
           "properties": {"outcome": {"enum": list(OUTCOMES)}}}
NAMED = {"name": "X-Reviewer", "in": "header", "required": True, "description": "who reviews; from the authenticated token",
         "example": "maren", "schema": {"type": "string", "pattern": f"^{REVIEWER.pattern}$"}}


def refuse(err: Exception) -> HTTPException | None:
    "What the library's errors mean over HTTP. The log's own words stay inside: they may name files."
    match err:
        case ReviewError():
            return refusal(409, "this item is not yours to decide: it is decided, claimed by another, or your claim ran out")
        case AuditError():
            return refusal(503, f"the audit log cannot be used ({type(err).__name__})")
    return None


def reviewer_of(request: Request) -> str:
    "Who reviews. Raises 400 for what is no name, and for none."
    try:
        return reviewer_name(request.headers.get("x-reviewer", ""))
    except ValueError as err:
        raise refusal(400, f"X-Reviewer: {err}") from None


def item_of(id: str) -> int:
    "The number of an item. Raises 422."
    if not re.fullmatch("[0-9]{1,15}", id):
        raise refusal(422, "an item has a number, such as /review/7")
    return int(id)


def open_of(service: Service) -> Desk:
    "The desk with its log. Raises 503 when there is none."
    service.must_be_ready()
    if service.tools.log is None:
        raise refusal(503, service.tools.problem)
    return service.tools


def page(*parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    "What /docs says of a route."
    facts = core.described(ANY, **{"request": None, **more})
    return facts | {"openapi_extra": facts.get("openapi_extra", {}) | {"parameters": list(parameters)}}


def reply(value: Any) -> Response:
    return Response(core.as_json(value), media_type="application/json")


def watched(service: Service) -> Callable[[], tuple[int, dict[str, Any]]]:
    "Health with what somebody should look at: a service that can only block is not well, a high rate is a warning."
    inner = service.health

    def health() -> tuple[int, dict[str, Any]]:
        status, facts = inner()
        desk: Desk | None = service.tools
        facts["warnings"] = desk.warnings() if desk else []
        if status == 200 and (why := desk.problem or desk.moderator.trouble):
            return 503, facts | {"state": "blocking", "reason": f"every text is blocked: {why}"}
        return status, facts

    return health


class Counted:
    "Counters and gauges of the filter, on /metrics."

    def __init__(self, service: Service):
        kept, add = {"registry": service.metrics.registry}, service.metrics.gauge
        self.decisions = Counter("nlp_decisions", "Decisions, by action.", ["action"], **kept)
        self.toxic = Counter("nlp_toxic_decisions", "Decisions that were blocked or saw an insult, hate or a threat.", **kept)
        for action in ACTIONS:
            self.decisions.labels(action)
        add("toxic_share", "Share of toxic decisions in the last ten minutes.", lambda: rate(service).share)
        add("toxic_alert", "1 when that share is far above its baseline.", lambda: bool(rate(service).warning()))
        add("review_waiting", "Items that wait for a person.", lambda: waiting(service)[0])
        add("review_oldest_seconds", "For how long the oldest has waited.", lambda: waiting(service)[1])

    def note(self, answer: dict[str, Any]) -> None:
        "Count an answer."
        self.decisions.labels(answer["action"]).inc()
        self.toxic.inc(answer["toxic"])


def rate(service: Service) -> ToxicRate:
    "The rate that the alert watches; an empty one before the start."
    return service.tools.rate if service.tools else ToxicRate()


def waiting(service: Service) -> tuple[float, float]:
    "Items and seconds; not a number where nobody can tell."
    try:
        return service.tools.queue.waiting()
    except Exception:  # no queue yet, or none that answers: a page of numbers must come out all the same
        return float("nan"), float("nan")


def decided(desk: Desk, method: str, texts: list[str], id: str) -> list[dict[str, Any]]:
    "The answers to texts, each on record; once a day, what the policy keeps no longer is deleted."
    with suppress(AuditError):  # the next decision will say so
        tidy(desk)
    return [getattr(desk, method)(text, id) for text in texts]


def texts_routes(app: FastAPI, service: Service) -> None:
    "Routes that decide."
    counted = Counted(service)

    async def answered(request: Request, method: str) -> Response:
        async with answering(service, request) as said:
            deadline_s = core.read_deadline(request, service.limits)
            given = core.read_json(await core.read_body(request, service.limits))["text"]
            said.texts = core.read_texts(given, service.limits)
            id = request.scope["request_id"]
            answers = await unless_gone(request, service.work(lambda: decided(service.tools, method, said.texts, id), deadline_s))
            for one in answers:
                counted.note(one)
            body = reply({"answers": answers, "request_id": id})
            said.answers = [{"source": "model", "answer": one} for one in answers]
            return body

    @app.post("/moderate", **page(request=core.REQUEST, example=EXAMPLE))
    async def moderate(request: Request) -> Response:
        "Decide about one text or several: action, reasons, spans, and the text that may be passed on."
        return await answered(request, "handle")

    @app.post("/redact", **page(request=core.REQUEST, example=EXAMPLE))
    async def redact(request: Request) -> Response:
        "The texts without personal data, whatever else they say: for what is stored. `text` is null where a detector failed."
        return await answered(request, "redact")


def review_routes(app: FastAPI, service: Service) -> None:
    "Routes for people who look, and for whoever checks the log."
    no_item = {"status_400": "X-Reviewer is no name", "status_409": "not yours to decide"}

    async def done(request: Request, work: Callable[[Desk], Any]) -> Response:
        async with answering(service, request):
            return reply(await service.work(lambda: work(open_of(service))))

    @app.get("/review", **page())
    async def review(request: Request) -> Response:
        "What waits: the oldest first, with excerpts in which personal data is replaced."
        def listed(desk: Desk) -> dict[str, Any]:
            (count, oldest_s), items = desk.queue.waiting(), desk.queue.items()
            return {"waiting": count, "oldest_s": oldest_s, "items": [asdict(one) for one in items if not one.outcome][:SHOWN]}

        return await done(request, listed)

    @app.post("/review/claim", **page(NAMED, **no_item))
    async def claim(request: Request) -> Response:
        "Take the oldest item that nobody works on; `item` is null when there is none."
        def taken(desk: Desk) -> dict[str, Any]:
            item = desk.queue.claim(name)
            return {"item": item and asdict(item)}

        async with answering(service, request):
            name = reviewer_of(request)
            return reply(await service.work(lambda: taken(open_of(service))))

    @app.post("/review/{id}", **page(NAMED, request=OUTCOME, example={"outcome": "allow"}, **no_item))
    async def decide(id: str, request: Request) -> Response:
        "Decide an item that you claimed: allow, redact or block. On record before it counts."
        async with answering(service, request):
            name, number = reviewer_of(request), item_of(id)
            outcome = core.read_json(await core.read_body(request, service.limits), ["outcome"])["outcome"]
            if outcome not in OUTCOMES:
                raise refusal(422, f'"outcome" must be one of {", ".join(OUTCOMES)}')
            record = await service.work(lambda: open_of(service).queue.decide(number, name, outcome))
            return reply({"item": number, "outcome": outcome, "record": record})

    @app.get("/audit/verify", **page())
    async def verify(request: Request) -> Response:
        "Check every record of the audit log, and its head: edits, deletions, changes of order and a cut end are seen."
        return await done(request, lambda desk: asdict(desk.log.verify()))


def routes(app: FastAPI, service: Service) -> None:
    "The routes of this service; `service.tools` is a Desk."
    app.description, service.health = ABOUT, watched(service)
    texts_routes(app, service)
    review_routes(app, service)


def ready(folder: str | Path | None, log: str | None, keys: str | None, policy: str | None, dtype: str, threads: int,
          baseline: float, task: str) -> Desk:
    "What is there before the first text: policy, encoder, log, queue. Raises PolicyError: without a policy nothing is decided."
    moderator = Moderator.load(load_policy(policy), dtype, threads, task)
    return open_desk(moderator, folder or home() / "safety_filter", log, keys, ToxicRate(baseline))


def safety_app(folder: str | Path | None = None, audit: str | None = None, keys: str | None = None, policy: str | None = None,
               log: str | None = None, dtype: str = "int8", threads: int = 1, baseline: float = 0.05, task: str = "safety",
               limits: Limits = LIMITS) -> FastAPI:
    "The service. `audit` and `log` are files for SQLite or postgresql:// URLs; neither keeps a text."
    return core.create_app(name="safety-filter", routes=routes, refuse=refuse, log=log, limits=limits,
                           note=lambda answer: json.dumps([answer["action"], answer["category"]]),
                           prepare=lambda: ready(folder, audit, keys, policy, dtype, threads, baseline, task))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8004)
    parser.add_argument("--folder", help="where keys, audit log and review queue are; without it, in the course's own folder")
    parser.add_argument("--audit", help="where to keep the audit log: a file, or a postgresql:// URL")
    parser.add_argument("--keys", help="its key file; without it NLP_PORTFOLIO_AUDIT_KEYS, else one made in the folder")
    parser.add_argument("--policy", help="a policy file; without it, the one that the course ships")
    parser.add_argument("--log", help="where to keep the request log: a file, or a postgresql:// URL")
    parser.add_argument("--dtype", choices=("int8", "float32"), default="int8")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of the encoder")
    parser.add_argument("--baseline", type=float, default=0.05, help="usual share of toxic decisions; twice that alerts")
    parser.add_argument("--model", default="safety", help="the encoder: the shipped one, or a folder that save_heads wrote")
    args = parser.parse_args()
    core.serve(safety_app(args.folder, args.audit, args.keys, args.policy, args.log, args.dtype, args.threads, args.baseline,
                          args.model), args.host, args.port)
