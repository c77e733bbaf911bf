"""The boundary functions in one table: each has a defined answer to empty, huge, non-string, NaN, surrogate and NUL input.

A cell is a value the result must equal, a function that must hold for the result, or `error(type, part of the message)`."""

import gzip
import json
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import HTTPException

from nlp_portfolio.cases.document_qa import DocumentQA, NotThere, readable_question
from nlp_portfolio.cases.moderation import Moderator, self_harm
from nlp_portfolio.cases.tickets import TicketTagger, readable
from nlp_portfolio.classic.baseline import clean, find_copies, load_model, nb_logreg, tfidf_logreg
from nlp_portfolio.classic.features import char_ngrams, word_ngrams
from nlp_portfolio.course import results
from nlp_portfolio.course.datasets import excerpt, load, read_rows
from nlp_portfolio.course.exercise import check, exercise_ids
from nlp_portfolio.course.models import encoder
from nlp_portfolio.evaluation import errors, metrics
from nlp_portfolio.evaluation.ranking import recall_at_k
from nlp_portfolio.llm.generators import REFUSAL, Prompt, llm, orders
from nlp_portfolio.llm.grounding import fact_check
from nlp_portfolio.llm.judge import Judge
from nlp_portfolio.llm.prompts import InvalidAnswer, Template, one_of, parse
from nlp_portfolio.llm.rag import RAG
from nlp_portfolio.neural.lora import load_adapter, predict
from nlp_portfolio.retrieval.chunks import fixed_chunks, sentences
from nlp_portfolio.retrieval.corpus import questions
from nlp_portfolio.retrieval.documents import Document, Passage, normalized, passage_of, quotes
from nlp_portfolio.retrieval.hybrid import Bm25, Dense, Fused
from nlp_portfolio.retrieval.index import Index
from nlp_portfolio.retrieval.ingest import Unreadable, read_bytes, read_document
from nlp_portfolio.retrieval.vectors import embed, embed_query
from nlp_portfolio.safety.encoder import SafetyEncoder
from nlp_portfolio.safety.evasion import plain
from nlp_portfolio.safety.injection import addresses, check_output, leaked, suspicion
from nlp_portfolio.safety.pii import find
from nlp_portfolio.safety.policy import PolicyError, decide, load_policy, parse_policy
from nlp_portfolio.safety.toxicity import mask
from nlp_portfolio.serving.app import Limits, read_texts
from nlp_portfolio.text.sentences import sentence_spans

NAN, HALF, NUL, MANY = float("nan"), "half \ud800", "a\0b", 10**5
KINDS = ("empty", "huge", "non-string", "NaN", "surrogate", "NUL")
TEXTS = {"empty": "", "huge": "word " * MANY, "non-string": 5, "NaN": NAN, "surrogate": HALF, "NUL": NUL}


NUMBERS = {"empty": [], "huge": [0.5] * MANY, "non-string": ["x"], "NaN": [NAN], "surrogate": [HALF], "NUL": [NUL]}


def error(kind: type[Exception], fragment: str) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, fragment=fragment)


def near(value: float) -> Callable[[float], bool]:
    "Whether a number is this one to nine digits."
    return lambda found: math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-12)


def same_array(*values: object) -> Callable[[np.ndarray], bool]:
    return lambda found: found.tolist() == list(values)


def unit_vector(found: np.ndarray) -> bool:
    return found.shape == (1, 384) and math.isclose(float(np.linalg.norm(found)), 1, abs_tol=1e-4)


def one_in_sum(found: dict[str, float]) -> bool:
    return len(found) == 18 and math.isclose(sum(found.values()), 1, abs_tol=1e-4)


def row(*answers: object) -> dict[str, object]:
    "Answers in the order of KINDS; a single one counts for all of them."
    return dict(zip(KINDS, answers * (len(KINDS) if len(answers) == 1 else 1), strict=True))


@pytest.fixture(scope="module")
def minilm():
    return encoder("minilm")


@pytest.fixture(scope="module")
def fitted():
    return tfidf_logreg(min_df=1).fit(["good film", "bad film", "fine film", "poor film"], [1, 0, 1, 0])


@pytest.fixture(scope="module")
def adapter():
    return load_adapter("banking77")


@pytest.fixture(scope="module")
def tagger():
    return TicketTagger.load()


def flat(texts):
    return np.full((len(texts), 4), 0.5, dtype=np.float32)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    found = Index.open(tmp_path_factory.mktemp("index") / "x", embed=flat)
    found.add([passage_of(Document("d", "It runs. It stops.", metadata={"language": "en"}), 0, 8)])
    return found


@pytest.fixture(scope="module")
def fused():
    page = Document("d", "It runs. It stops.")
    cut = [passage_of(page, 0, 8), passage_of(page, 9, 18)]
    return Fused([Bm25(cut), Dense(cut, np.eye(2), lambda text: np.array([1.0, 0.0]))], (0.3, 0.7))


@pytest.fixture(scope="module")
def qa(tmp_path_factory):
    found = DocumentQA.open(tmp_path_factory.mktemp("qa"), "quote", documentation=False)
    found.ingest("kiln.txt", b"The kiln is fired on Tuesdays.", "me")
    return found


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


@pytest.fixture(scope="module")
def moderator():
    return Moderator(SafetyEncoder.load())


@pytest.fixture
def here(tmp_path, minilm, fitted, adapter, tagger, index, fused, qa, judge, moderator):
    "What the calls of the table need."
    return SimpleNamespace(folder=tmp_path, minilm=minilm, fitted=fitted, adapter=adapter, tagger=tagger, index=index,
                           fused=fused, qa=qa, judge=judge, moderator=moderator)


def raw(x):
    "A text as the bytes of a file; other values as they are."
    return x.encode("utf-8", "surrogatepass") if isinstance(x, str) else x


def texts_of(hits):
    return [hit.passage.text for hit in hits]



def rows_of(here, line: str | bytes):
    file = here.folder / "x.jsonl.gz"
    file.write_bytes(gzip.compress(line if isinstance(line, bytes) else line.encode()))
    return read_rows(file, {"text": "string"})


def model_from(here, content: bytes):
    file = here.folder / "x.npz"
    file.write_bytes(content)
    return load_model(file)


def recorded(lesson="99_x", model="m", **values):
    "What was kept of one row."
    row = results.record(lesson, model, data="toy", **(values or {"f1": 0.5}))
    assert results.own_rows(lesson) == [row]
    return row["metrics"]["f1"]


def status(id, answer):
    feedback = check(id, answer)
    assert len(repr(feedback)) < 2000 or isinstance(id, str)
    return feedback.status

ID = exercise_ids("01")[0]
NO_TEXT = error(TypeError, "expected text, got ")
NO_NUMBER = error(ValueError, "could not convert string to float")
TWELVE = " ".join(["word"] * 12) + " …"
ZEROS, ONE = metrics.PRF(0.0, 0.0, 0.0), metrics.PRF(1.0, 1.0, 1.0)
NO_TAG = error(ValueError, "is not a BIO tag: expected O, B-TYPE or I-TYPE")
NO_PROBABILITY = error(ValueError, "probabilities must lie in 0..1")
NO_SCORE = error(ValueError, "a column must hold numbers, one per row")
NO_SPLIT = error(ValueError, "split must be a plain word such as 'train'")
NO_LIMIT = error(ValueError, "limit must be a whole number of at least 1")
NO_LESSON = error(ValueError, "lesson must be a notebook's name such as '01_imdb_baseline'")
NO_MODEL = error(ValueError, "model must be a text of 1 to 200 characters")
NO_METRIC = error(ValueError, "metric f1 must be a finite number")
MISSING = error(ValueError, "a label or a prediction is missing (NaN)")
NO_OUTCOME = error(ValueError, "mcnemar compares right and wrong (1 and 0)")

NO_SPLIT_OF_QUESTIONS = error(ValueError, "choose dev or test")
NO_K = error(ValueError, "k must be a whole number of at least 1")
NO_KEY = error(ValueError, "cannot be a metadata key")
NO_ENDING = error(Unreadable, "is not read here: save it as one of")
NO_STRING = error(TypeError, "expected string")
RUNS, BOTH = ["It runs."], ["It runs.", "It stops."]

NO_GENERATOR = error(ValueError, "unknown generator")
NO_ANSWER = error(InvalidAnswer, "there is no JSON object in it")
NO_TENANT = error(ValueError, "a tenant's name has 1 to 64 plain letters")
NO_PASSAGE = error(NotThere, "there is no such passage")
HEADS = ["hate", "injection", "self_harm", "threat", "toxicity"]
ZERO_SCORES = dict.fromkeys((one.name for one in load_policy().categories), 0.0)
TICKET = Template("ticket", 1, "<ticket>{text}</ticket>")

# function: how it is called, with which inputs, and the answers to empty, huge, non-string, NaN, surrogate, NUL
TABLE = {
    "load name": (lambda at, x: load(x), TEXTS, row(error(ValueError, "unknown data set"))),
    "load name in a list": (lambda at, x: load([x]), TEXTS, row(error(ValueError, "unknown data set"))),
    "load split": (lambda at, x: load("imdb", x), TEXTS, row(NO_SPLIT)),
    "load limit": (lambda at, x: len(load("imdb", "test", limit=x)), TEXTS | {"huge": 10**400, "non-string": 5.5},
                   row(NO_LIMIT, 104, *[NO_LIMIT] * 4)),
    "load source": (lambda at, x: load("imdb", "test", source=x).num_rows, TEXTS,
                    row(104, *[error(ValueError, "unknown source")] * 5)),
    "read_rows value": (lambda at, x: rows_of(at, json.dumps({"text": x})), TEXTS, row(
        [{"text": ""}], [{"text": TEXTS["huge"]}], error(ValueError, "x.jsonl.gz, row 1: column 'text' must be string, got int"),
        error(ValueError, "must be string, got float"), error(ValueError, "half a surrogate pair"), [{"text": NUL}])),
    "read_rows file": (lambda at, x: rows_of(at, x), {
        "empty": b"", "huge": b"[" * MANY, "non-string": b"5", "NaN": b"NaN", "surrogate": b'{"text": "\xed\xa0\x80"}',
        "NUL": b"\0"}, row(
        error(ValueError, "x.jsonl.gz: holds no rows"), error(ValueError, "x.jsonl.gz, row 1: not valid JSON"),
        error(ValueError, "row 1: expected a JSON object, got int"),
        error(ValueError, "row 1: expected a JSON object, got float"),
        error(ValueError, "x.jsonl.gz: cannot be read"),
        error(ValueError, "x.jsonl.gz, row 1: not valid JSON"))),
    "record lesson": (lambda at, x: recorded(lesson=x), TEXTS, row(NO_LESSON)),
    "record model": (lambda at, x: recorded(model=x), TEXTS, row(NO_MODEL)),
    "record metric": (lambda at, x: recorded(f1=x), TEXTS | {"huge": 10**400, "non-string": None}, row(NO_METRIC)),
    "check id": (lambda at, x: status(x, 1), TEXTS, row("failed")),
    "check value": (lambda at, x: status(ID, x), TEXTS, row("failed")),
    "check function": (lambda at, x: status(ID, lambda *_: x), TEXTS, row("failed")),
    "excerpt": (lambda at, x: excerpt(x), TEXTS, row("", TWELVE, NO_TEXT, NO_TEXT, HALF, NUL)),
    "clean": (lambda at, x: clean(x), TEXTS, row("", TEXTS["huge"].strip(), NO_TEXT, NO_TEXT, "half", "a b")),
    "tfidf_logreg fit": (lambda at, x: tfidf_logreg(min_df=1).fit([x, "bad film", "fine film"], [1, 0, 1]).classes_, TEXTS,
                         row(same_array(0, 1), same_array(0, 1), NO_TEXT, NO_TEXT, same_array(0, 1), same_array(0, 1))),
    "nb_logreg fit": (lambda at, x: nb_logreg(min_df=1).fit([x, "bad film", "fine film"], [1, 0, 1]).classes_, TEXTS,
                      row(same_array(0, 1), same_array(0, 1), NO_TEXT, NO_TEXT, same_array(0, 1), same_array(0, 1))),
    "tfidf_logreg predict": (lambda at, x: at.fitted.predict([x]).shape, TEXTS, row((1,), (1,), NO_TEXT, NO_TEXT, (1,), (1,))),
    "load_model": (model_from, {"empty": b"", "huge": b"x" * MANY, "non-string": b"\x80\x04N.", "NaN": b"NaN",
                                "surrogate": b"\xed\xa0\x80", "NUL": b"\0"},
                   row(error(ValueError, "x.npz is not a model that save_model wrote"))),
    "find_copies": (lambda at, x: find_copies([x], ["a b"]), TEXTS,
                    row(same_array(False), same_array(False), NO_TEXT, NO_TEXT, same_array(False), same_array(True))),
    "find_copies pool": (lambda at, x: find_copies(["a b"], [x]), TEXTS,
                         row(same_array(False), same_array(False), NO_TEXT, NO_TEXT, same_array(False), same_array(True))),
    "Encoder.encode": (lambda at, x: at.minilm.encode([x]), TEXTS,
                       row(unit_vector, unit_vector, NO_TEXT, NO_TEXT, unit_vector, unit_vector)),
    "word_ngrams": (lambda at, x: len(word_ngrams(x)), TEXTS, row(0, MANY, NO_TEXT, NO_TEXT, 1, 0)),
    "char_ngrams": (lambda at, x: len(char_ngrams(x)), TEXTS, row(0, 5 * MANY - 2, NO_TEXT, NO_TEXT, 4, 1)),
    "predict": (lambda at, x: [label in at.adapter.labels for label in predict(at.adapter, [x])], TEXTS,
                row([True], [True], NO_TEXT, NO_TEXT, [True], [True])),
    "readable": (lambda at, x: readable(x), TEXTS, row("", TEXTS["huge"][:4000], NO_TEXT, NO_TEXT, "half ?", "a b")),
    "TicketTagger.predict": (lambda at, x: at.tagger.predict([x])[0]["probabilities"], TEXTS,
                             row(one_in_sum, one_in_sum, NO_TEXT, NO_TEXT, one_in_sum, one_in_sum)),
    "read_texts": (lambda at, x: read_texts(x, Limits()), TEXTS, row(
        error(HTTPException, "422: text 1 is empty"), error(HTTPException, "413: text 1 is longer than 20,000 characters"),
        error(HTTPException, "must be a string or a list of strings"), error(HTTPException, "must be a string or a list"),
        ["half ?"], [NUL])),
    "exact_match": (lambda at, x: metrics.exact_match(x, "a b"), TEXTS, row(0.0, 0.0, NO_TEXT, NO_TEXT, 0.0, 0.0)),
    "token_f1": (lambda at, x: metrics.token_f1(x, "a b"), TEXTS, row(0.0, 0.0, NO_TEXT, NO_TEXT, 0.0, 0.0)),
    "corpus_bleu": (lambda at, x: metrics.corpus_bleu([x], ["a b"]).score, TEXTS, row(0.0, 0.0, NO_TEXT, MISSING, 0.0, 0.0)),
    "rouge_n": (lambda at, x: metrics.rouge_n(x, "a b"), TEXTS, row(ZEROS, ZEROS, NO_TEXT, NO_TEXT, ZEROS, ONE)),
    "entity_spans": (lambda at, x: metrics.entity_spans([x]), TEXTS, row(NO_TAG)),
    "accuracy": (lambda at, x: metrics.accuracy(x, list(x)), NUMBERS,
                 row(error(ValueError, "nothing to score"), 1.0, 1.0, MISSING, 1.0, 1.0)),
    "precision_recall_f1": (lambda at, x: metrics.precision_recall_f1(x, list(x), average="macro"), NUMBERS,
                            row(error(ValueError, "nothing to score"), ONE, ONE, MISSING, ONE, ONE)),
    "perplexity": (lambda at, x: metrics.perplexity(x), NUMBERS | {"huge": [-0.5] * MANY},
                   row(error(ValueError, ""), near(math.exp(0.5)), NO_NUMBER,
                       error(ValueError, "log-probability nan at position 0"),
                       NO_NUMBER, NO_NUMBER)),
    "expected_calibration_error": (lambda at, x: errors.expected_calibration_error(x, [1] * len(x)), NUMBERS,
                                   row(error(ValueError, "non-empty columns"), near(0.5), NO_NUMBER,
                                       NO_PROBABILITY, NO_NUMBER, NO_NUMBER)),
    "bootstrap_interval": (lambda at, x: errors.bootstrap_interval(x, resamples=20).estimate, NUMBERS,
                           row(error(ValueError, "non-empty columns"), near(0.5), NO_SCORE,
                               error(ValueError, "a column holds NaN"), NO_SCORE, NO_SCORE)),
    "mcnemar": (lambda at, x: errors.mcnemar(x, [1] * len(x)), NUMBERS,
                row(error(ValueError, "non-empty columns"), NO_OUTCOME, NO_SCORE,
                    error(ValueError, "a column holds NaN"), NO_SCORE, NO_SCORE)),
    "normalized": (lambda at, x: normalized(x), TEXTS, row(
        "", lambda found: found == TEXTS["huge"].strip(), NO_TEXT, NO_TEXT, HALF, NUL)),
    "quotes": (lambda at, x: quotes("a b", x), TEXTS, row(False, False, NO_TEXT, NO_TEXT, False, False)),
    "questions": (lambda at, x: questions(x), TEXTS, row(NO_SPLIT_OF_QUESTIONS)),
    "embed": (lambda at, x: embed([x], keep=False), TEXTS,
              row(unit_vector, unit_vector, NO_TEXT, NO_TEXT, unit_vector, unit_vector)),
    "embed_query": (lambda at, x: embed_query(x).shape, TEXTS, row((384,), (384,), NO_TEXT, NO_TEXT, (384,), (384,))),
    "read_bytes data": (lambda at, x: read_bytes(raw(x), "a.txt").text, TEXTS, row(
        error(Unreadable, "it is empty"), lambda found: found.split() == ["word"] * MANY,
        error(TypeError, "expected bytes, got int"), error(TypeError, "expected bytes, got float"),
        error(Unreadable, "save it as UTF-8"), error(Unreadable, "not a text file"))),
    "read_bytes name": (lambda at, x: read_bytes(b"It runs.", x), TEXTS, row(
        NO_ENDING, error(Unreadable, "word"), error(TypeError, "expected a file name as text"),
        error(TypeError, "expected a file name as text"), NO_ENDING, NO_ENDING)),
    "read_document": (lambda at, x: read_document(x), TEXTS, row(
        error(Unreadable, "it is a folder"), error(Unreadable, "word"), error(TypeError, "expected str, bytes or os.PathLike"),
        error(TypeError, "expected str, bytes or os.PathLike"), error(Unreadable, "cannot be opened"),
        error(Unreadable, "cannot be opened"))),
    "Bm25.search": (lambda at, x: texts_of(at.fused.retrievers[0].search(x)), TEXTS, row([], [], NO_TEXT, NO_TEXT, [], [])),
    "Fused.search": (lambda at, x: texts_of(at.fused.search(x)), TEXTS, row([], BOTH, NO_TEXT, NO_TEXT, BOTH, BOTH)),
    "Fused.search k": (lambda at, x: texts_of(at.fused.search("runs", x)), TEXTS, row(NO_K, NO_K, BOTH, NO_K, NO_K, NO_K)),
    "fixed_chunks": (lambda at, x: len(fixed_chunks(Document("d", x), 200)), TEXTS, row(0, 500, NO_STRING, NO_STRING, 1, 1)),
    "Index.search": (lambda at, x: texts_of(at.index.search(x)), TEXTS, row([], RUNS, NO_TEXT, NO_TEXT, RUNS, RUNS)),
    "Index.search bm25": (lambda at, x: texts_of(at.index.search(x, mode="bm25")), TEXTS, row([], [], NO_TEXT, NO_TEXT, [], [])),
    "Index.search k": (lambda at, x: texts_of(at.index.search("runs", k=x)), TEXTS, row(
        *[error(ValueError, "a whole k of 1 or more")] * 2, RUNS, *[error(ValueError, "a whole k of 1 or more")] * 3)),
    "Index.search value": (lambda at, x: texts_of(at.index.search("runs", where={"language": x})), TEXTS, row(
        [], [], [], error(ValueError, "metadata 'language' is nan"), [], [])),
    "Index.search key": (lambda at, x: at.index.search("runs", where={x: "en"}), TEXTS, row(NO_KEY)),
    "Index.add": (lambda at, x: Index.open(at.folder / "own", embed=flat).add([Passage("p", x)]), TEXTS,
                  row(1, 1, NO_TEXT, NO_TEXT, 1, 1)),
    "recall_at_k": (lambda at, x: recall_at_k([["a"]], [{"a"}], x), TEXTS, row(NO_K, NO_K, same_array(1.0), NO_K, NO_K, NO_K)),
    "confusion_table": (lambda at, x: errors.confusion_table(x, x).shape, NUMBERS,
                        row(error(ValueError, "non-empty columns"), (1, 1), (1, 1), error(ValueError, "is missing"),
                            error(ValueError, "surrogates not allowed"), (1, 1))),
    "sentence_spans": (lambda at, x: len(sentence_spans(x)), TEXTS, row(0, 841, NO_TEXT, NO_TEXT, 1, 1)),
    "sentences": (lambda at, x: sentences(x), TEXTS, row([], [(0, 499_999)], NO_TEXT, NO_TEXT, [(0, 6)], [(0, 3)])),
    "find": (lambda at, x: find(x), TEXTS, row([], [], NO_TEXT, NO_TEXT, [], [])),
    "plain": (lambda at, x: plain(x).text, TEXTS, row("", TEXTS["huge"], NO_TEXT, NO_TEXT, "half \ufffd", "ab")),
    "mask": (lambda at, x: mask(x), TEXTS, row("", TEXTS["huge"], NO_TEXT, NO_TEXT, HALF, NUL)),
    "self_harm": (lambda at, x: self_harm(x), TEXTS, row(0.0, 0.0, NO_TEXT, NO_TEXT, 0.0, 0.0)),
    "suspicion": (lambda at, x: suspicion(x), TEXTS, row(0.0, 0.0, NO_TEXT, NO_TEXT, 0.0, 0.0)),
    "addresses": (lambda at, x: addresses(x), TEXTS, row(set(), set(), NO_TEXT, NO_TEXT, set(), set())),
    "leaked": (lambda at, x: leaked(x, "canary-4711"), TEXTS, row(False, False, NO_TEXT, NO_TEXT, False, False)),
    "check_output": (lambda at, x: check_output(x), TEXTS, row([], [], NO_TEXT, NO_TEXT, [], [])),
    "SafetyEncoder.read": (lambda at, x: sorted(at.moderator.reader.read([x])[0].scores), TEXTS | {"huge": "word " * 1000}, row(
        HEADS, HEADS, NO_TEXT, NO_TEXT, HEADS, HEADS)),
    "Moderator.moderate": (lambda at, x: (at.moderator.moderate(x).decision.action, at.moderator.moderate(x).text), TEXTS, row(
        ("allow", ""), ("block", None), NO_TEXT, NO_TEXT, ("allow", HALF), ("allow", NUL))),
    "Moderator.redact": (lambda at, x: at.moderator.redact(x).text, TEXTS, row("", None, NO_TEXT, NO_TEXT, HALF, NUL)),
    "orders": (lambda at, x: orders(x), TEXTS, row([], [], NO_TEXT, NO_TEXT, [], [])),
    "prompt question": (lambda at, x: Prompt(x).question == x, TEXTS, row(True, True, NO_TEXT, NO_TEXT, True, True)),
    "llm name": (lambda at, x: llm(x), TEXTS, row(NO_GENERATOR, NO_GENERATOR, NO_TEXT, NO_TEXT, NO_GENERATOR, NO_GENERATOR)),
    "template value": (lambda at, x: TICKET.render(text=x).question == f"<ticket>{x}</ticket>", TEXTS,
                       row(True, True, NO_TEXT, NO_TEXT, True, True)),
    "parse answer": (lambda at, x: parse(x, one_of(["a", "b"])), TEXTS, row(
        NO_ANSWER, error(InvalidAnswer, "more than 50,000 characters"), NO_TEXT, NO_TEXT, NO_ANSWER, NO_ANSWER)),
    "ask question": (lambda at, x: RAG(Bm25(at.fused.retrievers[0].passages)).ask(x).text, TEXTS, row(
        REFUSAL, error(ValueError, "at most 4,000 characters"), NO_TEXT, NO_TEXT, REFUSAL, REFUSAL)),
    "Judge.score": (lambda at, x: at.judge.supports(x, "It runs fast."), TEXTS,
                    row(False, False, NO_TEXT, NO_TEXT, False, False)),
    "Judge.score evidence": (lambda at, x: at.judge.supports("It runs fast.", x), TEXTS,
                             row(False, False, NO_TEXT, NO_TEXT, False, False)),
    "fact_check": (lambda at, x: len(fact_check(x, at.fused.retrievers[0], at.judge)), TEXTS,
                   row(0, 841, NO_TEXT, NO_TEXT, 1, 1)),
    "readable_question": (lambda at, x: readable_question(x), TEXTS,
                          row("", TEXTS["huge"][:1999], NO_TEXT, NO_TEXT, "half ?", "a b")),
    "DocumentQA.ask": (lambda at, x: at.qa.ask(x, "me").text, TEXTS, row(REFUSAL, REFUSAL, NO_TEXT, NO_TEXT, REFUSAL, REFUSAL)),
    "DocumentQA tenant": (lambda at, x: at.qa.ask("When?", x), TEXTS,
                          row(NO_TENANT, NO_TENANT, NO_TEXT, NO_TEXT, NO_TENANT, NO_TENANT)),
    "DocumentQA.ingest": (lambda at, x: at.qa.ingest("b.txt", raw(x), "me").passages, TEXTS, row(
        error(Unreadable, "it is empty"), 500, error(TypeError, "expected bytes, got int"),
        error(TypeError, "expected bytes, got float"), error(Unreadable, "save it as UTF-8"),
        error(Unreadable, "not a text file"))),
    "DocumentQA.ingest name": (lambda at, x: at.qa.ingest(x, b"It runs.", "me"), TEXTS, row(
        NO_ENDING, error(Unreadable, "word"), error(TypeError, "expected a file name as text"),
        error(TypeError, "expected a file name as text"), NO_ENDING, NO_ENDING)),
    "DocumentQA.passage": (lambda at, x: at.qa.passage(x, "me"), TEXTS, row(
        NO_PASSAGE, NO_PASSAGE, NO_TEXT, NO_TEXT, NO_PASSAGE, NO_PASSAGE)),
    "parse_policy": (lambda at, x: parse_policy(x), TEXTS, row(
        error(PolicyError, "a policy is a mapping"), error(PolicyError, "at most 100000"), NO_TEXT, NO_TEXT,
        error(PolicyError, "this is no YAML"), error(PolicyError, "this is no YAML"))),
    "decide score": (lambda at, x: decide(ZERO_SCORES | {"toxicity": x}, [], load_policy()).action, TEXTS, row("block")),
    "decide category": (lambda at, x: decide(ZERO_SCORES | {x: 0.5}, [], load_policy()).action, TEXTS, row("block")),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in TABLE for kind in KINDS])
def test_boundary(name, kind, here):
    call, inputs, answers = TABLE[name]
    expected = answers[kind]
    if isinstance(expected, SimpleNamespace):
        with pytest.raises(expected.kind) as caught:
            call(here, inputs[kind])
        assert expected.fragment in str(caught.value)
        return
    found = call(here, inputs[kind])
    assert expected(found) if callable(expected) else (type(found), found) == (type(expected), expected)


def test_no_boundary_function_is_forgotten():
    "Each function that takes a learner's data has its rows in the table."
    wanted = {"load", "read_rows", "record", "check", "excerpt", "clean", "tfidf_logreg", "load_model",
              "find_copies", "Encoder.encode", "word_ngrams", "embed", "read_bytes", "read_document", "Bm25.search",
              "Fused.search", "Index.search", "Index.add", "fixed_chunks",
              "predict", "TicketTagger.predict", "read_texts", "questions",
              "accuracy", "precision_recall_f1", "corpus_bleu", "rouge_n", "perplexity", "expected_calibration_error", "mcnemar"}
    assert wanted <= {name.split(" ")[0] for name in TABLE}
    assert all(set(answers) == set(inputs) == set(KINDS) for _, inputs, answers in TABLE.values())


def test_a_lesson_name_stays_inside_the_results_folder(tmp_path):
    with pytest.raises(ValueError, match="lesson"):
        results.record("../../outside", "m", data="toy", f1=1)
    assert list(tmp_path.rglob("outside*")) == []
