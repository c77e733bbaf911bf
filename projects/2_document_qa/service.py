"""The document service: send files, ask questions, open citations. `make serve P=2`, then open /docs.

POST /ingest?name=report.pdf · POST /ask · POST /stream · GET /documents · DELETE /documents/{id} · GET /passages/{id}
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from nlp_portfolio.cases import document_qa
from nlp_portfolio.cases.document_qa import FILE, SOURCES, DocumentQA, NotThere, TooMany, as_answer, log_note, tenant_name
from nlp_portfolio.course.settings import home
from nlp_portfolio.llm.generators import LLMError
from nlp_portfolio.retrieval.ingest import Unreadable
from nlp_portfolio.serving import app as core
from nlp_portfolio.serving.app import Limits, Service, answering, refusal, unless_gone

ABOUT = """Answers from your documents and from the documentation of Python, each sentence with a citation that opens the exact
passage, or a refusal with the nearest passages.

**Whose documents?** The header `X-Tenant` names the owner: 1 to 64 letters, digits, `.`, `_`, `-`; without it, `default`. Nobody
sees another tenant's documents. The service believes the header. So in production a proxy in front must set it from the
authenticated token, and must drop the one that a client sends."""
LIMITS = Limits(body_bytes=100_000, deadline_s=30, body_s=60, jobs=2, waiting=32, drain_s=20)
INGEST_S = 300.0  # seconds for reading and indexing one file
ANY, EXAMPLE = {"type": "object"}, {"question": "What happens if I pass indent=0 to json.dumps?", "source": "all"}
QUESTION = {"type": "object", "required": ["question"], "additionalProperties": False, "properties": {
    "question": {"type": "string", "minLength": 1}, "source": {"enum": list(SOURCES), "default": "all"}}}
TENANT = {"name": "X-Tenant", "in": "header", "description": "whose documents; in production from the authenticated token",
          "schema": {"type": "string", "default": "default", "pattern": f"^{document_qa.TENANT.pattern}$"}}
NAME = {"name": "name", "in": "query", "required": True, "example": "handbook.pdf", "schema": {"type": "string", "minLength": 1},
        "description": "file name: its extension says the format, the same name again is a new version of the same document"}
TRUSTED = {"name": "trusted", "in": "query", "schema": {"type": "boolean", "default": False},
           "description": "somebody has read the file: what stands beside orders to a machine is searched too"}


def refuse(err: Exception) -> HTTPException | None:
    "What the library's errors mean over HTTP."
    match err:
        case Unreadable():
            return refusal({"too_big": 413, "format": 415, "mismatch": 415}.get(err.reason, 422), str(err))
        case TooMany():
            return refusal(409, str(err))
        case NotThere():
            return refusal(404, str(err))
        case LLMError():
            return refusal(503 if err.kind in ("unreachable", "busy", "timeout") else 502, "the language model did not answer")
    return None


def tenant_of(request: Request) -> str:
    "Who asks. Raises 400 for what is no name."
    try:
        return tenant_name(request.headers.get("x-tenant", "default"))
    except ValueError as err:
        raise refusal(400, f"X-Tenant: {err}") from None


def file_of(request: Request) -> tuple[str, bool]:
    "Name and trust of an upload. Raises 422."
    name, trusted = request.query_params.get("name", ""), request.query_params.get("trusted", "false")
    if not name.strip() or len(name) > 255:
        raise refusal(422, "?name= must give the file's name, 1 to 255 characters, such as ?name=report.pdf")
    if trusted not in ("true", "false"):
        raise refusal(422, "?trusted= must be true or false")
    return name, trusted == "true"


async def question_of(request: Request, service: Service) -> tuple[str, str]:
    "Question and source of a body. Raises 422."
    value = core.read_json(await core.read_body(request, service.limits), ["question"], ["source"])
    question, source = value["question"], value.get("source", "all")
    if not isinstance(question, str) or not question.strip():
        raise refusal(422, '"question" must be a text that is not empty')
    if source not in SOURCES:
        raise refusal(422, f'"source" must be one of {", ".join(SOURCES)}')
    return question, source


def reply(value: Any) -> Response:
    return Response(json.dumps(value, default=str), media_type="application/json")


def page(*parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    "What /docs says of a route."
    facts = core.described(ANY, **{"request": None, "status_400": "X-Tenant is no name", **more})
    return facts | {"openapi_extra": facts.get("openapi_extra", {}) | {"parameters": [TENANT, *parameters]}}


def routes(app: FastAPI, service: Service) -> None:
    "The routes of this service; `service.tools` is a DocumentQA."
    app.description, files = ABOUT, core.Jobs(1, 8)  # one file is read at a time, beside the questions
    files.start()
    service.metrics.gauge("files", "Files that are read or wait.", lambda: files.open)

    @app.post("/ingest", **page(NAME, TRUSTED, request={"type": "string", "format": "binary"}, reads="application/octet-stream",
                                status_409="too many documents", status_415="no format that is read, or not the one of its name"))
    async def ingest(request: Request) -> Response:
        "Keep a file (.txt .md .html .pdf .docx), sent as the body: `curl --data-binary @a.pdf localhost:8002/ingest?name=a.pdf`."
        async with answering(service, request):
            tenant, (name, trusted) = tenant_of(request), file_of(request)
            service.must_be_ready()
            data = await core.read_body(request, replace(service.limits, body_bytes=FILE.max_bytes))
            work = files.run(lambda: service.tools.ingest(name, data, tenant, trusted), INGEST_S)
            return reply(asdict(await unless_gone(request, work)))

    @app.post("/ask", **page(request=QUESTION, example=EXAMPLE))
    async def ask(request: Request) -> Response:
        "Answer a question with citations, or refuse and show the nearest passages. `source`: all, mine or documentation."
        async with answering(service, request) as said:
            tenant, deadline_s = tenant_of(request), core.read_deadline(request, service.limits)
            question, source = await question_of(request, service)
            said.texts = [question]
            work = service.work(lambda: as_answer(service.tools.ask(question, tenant, source)), deadline_s)
            answer = await unless_gone(request, work)
            said.answers = [{"source": "model", "answer": answer}]
            service.metrics.answers.labels("refusal" if answer["refused"] else "model").inc()
            return reply(answer | {"request_id": request.scope["request_id"]})

    @app.post("/stream", **page(request=QUESTION, example=EXAMPLE, media="text/event-stream"))
    async def stream(request: Request) -> Response:
        "The same as server-sent events: `token`, `token`, ... for the text, `answer` with what /ask returns, `done`."
        async with core.streaming(service, request):
            tenant, (question, source) = tenant_of(request), await question_of(request, service)

            def pieces(question: str) -> Iterator[str | core.Event]:
                with service.tools.stream(question, tenant, source) as found:
                    yield from found
                    yield core.Event("answer", as_answer(found.result))

            return await core.streamed(service, request, question, pieces)

    @app.get("/documents", **page())
    async def documents(request: Request) -> Response:
        "The tenant's documents."
        async with answering(service, request):
            tenant = tenant_of(request)
            return reply({"documents": [asdict(one) for one in await service.work(lambda: service.tools.documents(tenant))]})

    @app.delete("/documents/{id}", **page(status_404="no such document"))
    async def remove(id: str, request: Request) -> Response:
        "Forget a document: no answer quotes it from now on."
        async with answering(service, request):
            tenant = tenant_of(request)
            if not (count := await service.work(lambda: service.tools.remove(id, tenant))):
                raise refusal(404, "there is no such document")
            return reply({"document": id, "passages": count})

    @app.get("/passages/{id}", **page(status_404="no such passage, or no longer"))
    async def passage(id: str, request: Request) -> Response:
        "A cited passage in its document: `text[start:end]` is the passage, around it stands what is around it there."
        async with answering(service, request):
            tenant = tenant_of(request)
            return reply(asdict(await service.work(lambda: service.tools.passage(id, tenant))))


def load(folder: str | Path, generator: str | None) -> DocumentQA:
    "What is ready before the first question: index, documentation, encoder."
    opened = DocumentQA.open(folder, generator)
    opened.warm_up()
    return opened


def document_app(folder: str | Path | None = None, generator: str | None = None, log: str | None = None,
                 limits: Limits = LIMITS) -> FastAPI:
    "The service. `folder` holds documents and index; `log` is a file for SQLite or a postgresql:// URL, and keeps no text."
    return core.create_app(name="document-qa", prepare=lambda: load(folder or home() / "document_qa", generator), routes=routes,
                      refuse=refuse, log=log, note=log_note, limits=limits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--folder", help="where documents and index are kept; without it, in the course's own folder")
    parser.add_argument("--llm", help="quote, instruct, a hub id, a folder or openai:model@url; without it, that of settings.ini")
    parser.add_argument("--log", help="where to keep the request log: a file, or a postgresql:// URL")
    args = parser.parse_args()
    core.serve(document_app(args.folder, args.llm, args.log), args.host, args.port)
