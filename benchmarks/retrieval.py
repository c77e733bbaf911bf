"""Search over the documentation corpus: ours beside bm25s and faiss, with the same words and the same vectors, in one run.

The table is printed and kept in the package. Each row is a process of its own on one thread, so that no row
profits from another's caches. A dense query pays for its vector, which is also shown apart. Options: `--rounds 3 --only Bm25`.
"""

import argparse
import datetime
import json
import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", LANCE_CPU_THREADS="1")

import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nlp_portfolio.retrieval.corpus import evidence, passages, questions
from nlp_portfolio.retrieval.documents import Passage
from nlp_portfolio.retrieval.hybrid import Bm25, Dense, Fused, evidence_recall, words
from nlp_portfolio.retrieval.vectors import embed

KEPT = Path(__file__).resolve().parents[1] / "nlp_portfolio/data/benchmarks/retrieval.json"
K, WEIGHTS = 10, (0.3, 0.7)  # BM25 and dense: lesson 33's choice on the development questions
Search = Callable[[str], Sequence[str]]  # a query -> ids, best first


class Queries:
    "The vector of a query, computed each time, with the seconds it took."

    def __init__(self) -> None:
        from nlp_portfolio.course.models import encoder

        self.encoder, self.seconds = encoder("minilm"), []
        self.encoder.encode(["warm up"])

    def __call__(self, text: str) -> np.ndarray:
        start = time.perf_counter()
        vector = self.encoder.encode([text])[0]
        self.seconds.append(time.perf_counter() - start)
        return vector


def ours(retriever: "Bm25 | Dense | Fused") -> Search:
    return lambda query: [hit.passage.id for hit in retriever.search(query, K)]


def bm25s_itself(corpus: list[Passage], tokens: list[list[str]], _: object, __: object) -> Search:
    "The library alone, given the same words: no passages, no filters, only ids."
    import bm25s

    index = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    index.index(tokens, show_progress=False)
    names = np.array([passage.id for passage in corpus])

    def search(query: str) -> Sequence[str]:
        rows, _ = index.retrieve([words(query)], k=K, show_progress=False)
        return names[rows[0]].tolist()

    return search


def faiss_index(kind: str) -> Callable[..., Search]:
    def build(corpus: list[Passage], _: object, vectors: np.ndarray, query_vector: Queries) -> Search:
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(384) if kind == "flat" else faiss.IndexHNSWFlat(384, 32, faiss.METRIC_INNER_PRODUCT)
        if kind != "flat":
            index.hnsw.efConstruction, index.hnsw.efSearch = 200, 64
        index.add(vectors)
        names = np.array([passage.id for passage in corpus])
        return lambda query: names[index.search(query_vector(query)[None], K)[1][0]].tolist()

    return build


def lance(mode: str) -> Callable[..., Search]:
    "The index on disk, as a service uses it."
    def build(corpus: list[Passage], _: object, vectors: np.ndarray, query_vector: Queries) -> Search:
        from nlp_portfolio.retrieval.index import Index

        known = {passage.indexed: vector for passage, vector in zip(corpus, vectors, strict=True)}
        known["dimension"] = vectors[0]  # what a new index embeds, to see how long vectors are
        folder = Path(tempfile.mkdtemp()) / "index"
        index = Index.open(folder, lambda texts: np.stack([known[text] for text in texts]), query_vector, "minilm")
        index.add(corpus)
        return lambda query: [hit.passage.id for hit in index.search(query, K, mode=mode)]

    return build


def hybrid(corpus: list[Passage], _: object, vectors: np.ndarray, query_vector: Queries) -> Search:
    return ours(Fused([Bm25(corpus), Dense(corpus, vectors, query_vector)], WEIGHTS))


SYSTEMS: dict[str, tuple[bool, Callable[..., Search]]] = {  # name -> whether it needs a query's vector, and how it is built
    "bm25s": (False, bm25s_itself),
    "ours: Bm25": (False, lambda corpus, *_: ours(Bm25(corpus))),
    "faiss IndexFlatIP": (True, faiss_index("flat")),
    "faiss IndexHNSWFlat": (True, faiss_index("hnsw")),
    "ours: Dense": (True, lambda corpus, _, vectors, query_vector: ours(Dense(corpus, vectors, query_vector))),
    "ours: Fused": (True, hybrid),
    "ours: Index, bm25": (True, lance("bm25")),
    "ours: Index, dense": (True, lance("dense")),
    "ours: Index, hybrid": (True, lance("hybrid")),
}


def measure(name: str, rounds: int) -> dict[str, float | str]:
    "Build one system, ask it every question once to warm it up, then `rounds` times on the clock."
    needs_vectors, build = SYSTEMS[name]
    corpus = passages()
    asked = [question for question in questions() if question.quotes and all(evidence(question, corpus))]
    vectors = embed([passage.indexed for passage in corpus]) if needs_vectors else None
    query_vector = Queries() if needs_vectors else None
    tokens = [words(passage.indexed) for passage in corpus] if name == "bm25s" else None  # its own row does not pay for our words
    start = time.perf_counter()
    search = build(corpus, tokens, vectors, query_vector)
    built = time.perf_counter() - start
    found = [search(question.text) for question in asked]
    if query_vector:
        query_vector.seconds.clear()
    seconds = []
    for _ in range(rounds):
        for question in asked:
            start = time.perf_counter()
            search(question.text)
            seconds.append(time.perf_counter() - start)
    embedding = query_vector.seconds if query_vector else []
    recall = evidence_recall(found, [evidence(question, corpus) for question in asked], K).mean()
    return {"system": name, "build_seconds": built, "queries_per_second": len(seconds) / sum(seconds),
            "p50_ms": 1000 * np.quantile(seconds, 0.5), "p95_ms": 1000 * np.quantile(seconds, 0.95),
            "embedding_p50_ms": 1000 * np.quantile(embedding, 0.5) if embedding else 0.0,
            "search_p50_ms": 1000 * np.quantile(np.subtract(seconds, embedding) if embedding else seconds, 0.5),
            "recall_10": recall, "passages": len(corpus), "queries": len(asked),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def bench(rounds: int, only: str) -> pd.DataFrame:
    "One process a system; one that cannot be imported here is left out with a line."
    rows = []
    for name in [name for name in SYSTEMS if only in name]:
        command = [sys.executable, __file__, "--system", name, "--rounds", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} is left out: {(done.stderr.strip().splitlines() or ['it died'])[-1]}", flush=True)
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often every question is asked on the clock")
    parser.add_argument("--only", default="", help="only systems with this in their name; nothing is written then")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        print(json.dumps(measure(args.system, args.rounds)))
        sys.exit()
    table = bench(args.rounds, args.only)
    facts = {"date": datetime.date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
             "python": platform.python_version(), "k": K, "rounds": args.rounds, "rows": table.round(4).to_dict("records")}
    if not args.only:
        KEPT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(table.round(3).to_string(index=False))
