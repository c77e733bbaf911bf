"""The ticket service: send a ticket, get its intents. `make serve P=1`, then open /docs.

POST /predict {"text": "..."} or {"text": ["...", "..."]} · GET /health · GET /metrics
"""

import argparse
from functools import cache
from typing import Any

from fastapi import FastAPI

from nlp_portfolio.cases.tickets import Thresholds, TicketTagger
from nlp_portfolio.classic.baseline import tfidf_logreg
from nlp_portfolio.course.datasets import load
from nlp_portfolio.serving.app import create_app, serve


class Linear:
    "TF-IDF and logistic regression: what answers while the encoder is too slow."

    def __init__(self) -> None:
        rows = load("tickets", "train")
        self.model = tfidf_logreg(min_df=1).fit(rows["text"], rows["intent"])
        self.labels, self.predict_proba = list(self.model.classes_), self.model.predict_proba


@cache
def quick() -> TicketTagger:
    "The fallback, in the form of the real one; it names one intent."
    return TicketTagger(Linear(), Thresholds(reject=0.5, several=1.0))


def load_tagger(dtype: str) -> Any:
    "What the model thread runs at the start."
    quick()
    return TicketTagger.load(dtype).predict


def ticket_app(dtype: str = "int8", log: str | None = None) -> FastAPI:
    "The service. `log` is a file for SQLite or a postgresql:// URL; it keeps intents and lengths, never texts."
    return create_app(lambda: load_tagger(dtype), name="ticket-intents", log=log,
                      fallback=lambda text: quick().predict([text])[0], note=lambda answer: answer["intents"][0]["intent"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--dtype", choices=("int8", "bfloat16", "float32"), default="int8",
                        help="int8 answers one client soonest; bfloat16 answers many where the processor has it")
    parser.add_argument("--log", help="where to keep the request log: a file, or a postgresql:// URL")
    args = parser.parse_args()
    serve(ticket_app(args.dtype, args.log), args.host, args.port)
