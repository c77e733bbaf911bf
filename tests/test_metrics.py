"""nlp_portfolio.evaluation: parity with the libraries, properties, bad input, and the `evaluate` modules."""

import json
import math
import os
import random
import string
import subprocess
import sys
import warnings
from importlib import resources

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize as rouge_tokenize
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_prf
from sklearn.metrics import log_loss, precision_recall_curve
from sklearn.metrics import precision_recall_fscore_support as sklearn_prf

from nlp_portfolio.evaluation import metrics as m
from nlp_portfolio.evaluation.modules import module_names, module_path

GOLD = json.loads((resources.files("nlp_portfolio") / "data/gold/metrics.json").read_text(encoding="utf-8"))
quick = settings(max_examples=100, deadline=None, derandomize=True)
labels = st.integers(0, 3)
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=30)
tags = st.sampled_from(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b"])
sentences = st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=10), min_size=1, max_size=6)
# few words, so that n-grams repeat, and characters that tokenizers treat specially
VOCABULARY = "the cat cats sat running on a mat. 3,5 1,250.50 2-day &amp; don't U.S. — Ünal straße $5! (x) 中文 İ ..."
words = st.sampled_from(VOCABULARY.split())
texts = st.lists(words, max_size=9).map(" ".join)
valid = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
wild = valid | st.text(string.punctuation + " a1\n", max_size=30)
log_probs = st.lists(st.floats(-30, 0), min_size=1, max_size=20)


def close(ours, theirs, tolerance=1e-9):
    np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), rtol=tolerance, atol=tolerance)


def split(rows):
    return [list(side) for side in zip(*rows, strict=True)]


# ---------------------------------------------------------------- classification


@quick
@given(pairs, st.sampled_from(m.AVERAGES), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 1.0]))
def test_averages_equal_scikit_learn(rows, average, beta, zero):
    y_true, y_pred = split(rows)
    theirs = sklearn_prf(y_true, y_pred, average=average, beta=beta, zero_division=zero)[:3]
    close(m.precision_recall_f1(y_true, y_pred, average, beta=beta, zero_division=zero), theirs)


@quick
@given(pairs, st.sampled_from(m.AVERAGES), st.lists(labels, min_size=1, max_size=4, unique=True), st.sampled_from([0.0, 1.0]))
def test_chosen_labels_equal_scikit_learn(rows, average, chosen, zero):
    y_true, y_pred = split(rows)
    theirs = sklearn_prf(y_true, y_pred, average=average, labels=chosen, zero_division=zero)[:3]
    close(m.precision_recall_f1(y_true, y_pred, average, labels=chosen, zero_division=zero), theirs)


@quick
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.sampled_from([0.0, 1.0]))
def test_binary_equals_scikit_learn(rows, zero):
    y_true, y_pred = split([(int(t), int(p)) for t, p in rows])
    theirs = sklearn_prf(y_true, y_pred, average="binary", zero_division=zero)[:3]
    close(m.precision_recall_f1(y_true, y_pred, zero_division=zero), theirs)


@quick
@given(pairs)
def test_counts_add_up_and_swap(rows):
    y_true, y_pred = split(rows)
    for label, counts in m.label_counts(y_true, y_pred).items():
        assert sum(counts) == len(rows)
        assert counts == m.confusion_counts(y_true, y_pred, positive=label)
        tp, fp, fn, tn = counts
        assert m.confusion_counts(y_pred, y_true, positive=label) == (tp, fn, fp, tn)


@quick
@given(pairs, st.sampled_from(m.AVERAGES), st.randoms(use_true_random=False))
def test_scores_ignore_order_duplication_and_names(rows, average, rng):
    shuffled = rng.sample(rows, len(rows))
    base = m.precision_recall_f1(*split(rows), average)
    close(m.precision_recall_f1(*split(shuffled), average), base, 1e-12)
    close(m.precision_recall_f1(*split(rows * 3), average), base, 1e-12)
    close(m.precision_recall_f1(*split([("abcd"[t], "abcd"[p]) for t, p in rows]), average), base, 1e-12)


@quick
@given(pairs, st.sampled_from(m.AVERAGES))
def test_scores_lie_between_0_and_1_and_perfect_is_1(rows, average):
    y_true, y_pred = split(rows)
    scores = m.precision_recall_f1(y_true, y_pred, average)
    assert all(0 <= s <= 1 for s in scores)
    close(m.precision_recall_f1(y_true, y_true, average), (1, 1, 1), 1e-12)
    assert (scores.f1 > 1 - 1e-12) == (y_true == y_pred)


@quick
@given(pairs)
def test_micro_f1_and_weighted_recall_are_accuracy(rows):
    y_true, y_pred = split(rows)
    expected = sum(t == p for t, p in rows) / len(rows)
    assert m.accuracy(y_true, y_pred) == expected
    close(m.precision_recall_f1(y_true, y_pred, "micro"), [expected] * 3, 1e-12)
    assert math.isclose(m.precision_recall_f1(y_true, y_pred, "weighted").recall, expected, abs_tol=1e-12)


@quick
@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50))
def test_f_lies_between_precision_and_recall_and_leans_with_beta(tp, fp, fn):
    counts = m.Counts(tp, fp, fn)
    precision, recall, f1 = m.prf(counts)
    assert min(precision, recall) - 1e-12 <= f1 <= max(precision, recall) + 1e-12
    assert math.isclose(m.fbeta(counts, 1e-6), precision, abs_tol=1e-9)
    assert math.isclose(m.fbeta(counts, 1e6), recall, abs_tol=1e-9)


def test_a_known_table():
    y_true, y_pred = list("aaaaabbbcc"), list("aaabcbbaca")
    assert m.label_counts(y_true, y_pred)["a"] == (3, 2, 2, 3)
    close(m.prf(m.Counts(3, 2, 2, 3)), (0.6, 0.6, 0.6), 1e-12)


def test_numpy_labels_count_like_lists():
    y_true, y_pred = np.array([1, 0, 1, 1]), np.array([True, False, False, True])
    assert m.confusion_counts(y_true, y_pred) == (2, 0, 1, 1)
    assert m.accuracy(y_true, y_pred) == 0.75


@quick
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=30).filter(lambda r: any(t for t, _ in r)))
def test_threshold_counts_equal_the_precision_recall_curve(rows):
    y_true, scores = split(rows)
    precision, recall, cuts = precision_recall_curve(y_true, scores)
    ours = [m.prf(c)[:2] for c in m.threshold_counts(y_true, scores, cuts)]
    close(ours, np.c_[precision, recall][:-1])


@quick
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_recall_never_rises_with_the_threshold(rows):
    found = [c.tp for c in m.threshold_counts(*split(rows), np.linspace(0, 1.1, 12))]
    assert found == sorted(found, reverse=True)
    assert found[0] == sum(t for t, _ in rows) and found[-1] == 0


# ---------------------------------------------------------------- entities


def two_sides(rows):
    return [[t for t, _ in row] for row in rows], [[p for _, p in row] for row in rows]


@quick
@given(sentences, st.sampled_from(m.AVERAGES), st.sampled_from([0, 1]))
def test_entities_equal_seqeval(rows, average, zero):
    y_true, y_pred = two_sides(rows)
    if any(m.entity_spans(s) for s in y_true + y_pred):  # with no entity at all, seqeval's macro average is NaN
        theirs = seqeval_prf(y_true, y_pred, average=average, zero_division=zero)[:3]
        close(m.entity_prf(y_true, y_pred, average, zero_division=zero), theirs)


@quick
@given(st.lists(tags, max_size=15))
def test_spans_equal_seqeval_and_cover_all_tags(sentence):
    spans = m.entity_spans(sentence)
    assert [(e.label, e.start, e.end - 1) for e in spans] == get_entities(sentence)
    inside = [i for e in spans for i in range(e.start, e.end)]
    assert inside == [i for i, tag in enumerate(sentence) if tag != "O"]


@quick
@given(sentences)
def test_strict_f1_equals_nervaluate(rows):
    y_true, y_pred = two_sides(rows)
    found = Evaluator(y_true, y_pred, tags=["PER", "LOC", "a-b"], loader="list").evaluate()["overall"]["strict"]
    close(m.entity_prf(y_true, y_pred), (found.precision, found.recall, found.f1))


@quick
@given(sentences, st.randoms(use_true_random=False))
def test_entity_scores_are_symmetric_bounded_and_ignore_sentence_order(rows, rng):
    y_true, y_pred = two_sides(rows)
    precision, recall, f1 = m.entity_prf(y_true, y_pred)
    assert m.entity_prf(y_pred, y_true) == (recall, precision, f1)
    assert 0 <= f1 <= 1
    assert m.entity_prf(*two_sides(rng.sample(rows, len(rows)))) == (precision, recall, f1)
    same = m.entity_prf(y_true, y_true, zero_division=1)
    assert same == (1, 1, 1)


@pytest.mark.parametrize("average", m.AVERAGES)
def test_no_entity_on_either_side_gives_the_agreed_value(average):
    assert m.entity_prf([["O"]], [["O"]], average) == (0, 0, 0)
    assert m.entity_prf([["O"]], [["O"]], average, zero_division=1) == (1, 1, 1)


def test_an_equal_span_in_another_sentence_is_no_hit():
    assert m.entity_prf([["B-PER"], ["O"]], [["O"], ["B-PER"]]) == (0, 0, 0)


# ---------------------------------------------------------------- question answering


@pytest.mark.parametrize("row", GOLD["squad_script"], ids=lambda row: row["prediction"] or "empty")
def test_answers_score_as_the_squad_scripts_do(row):
    assert m.exact_match(row["prediction"], row["answers"]) == row["exact_match"] == row["exact_match_v1"]
    ours = m.token_f1(row["prediction"], row["answers"])
    close(ours, row["f1"], 1e-12)
    if m.normalize_answer(row["prediction"]):  # v1.1 gives two empty answers 0
        close(ours, row["f1_v1"], 1e-12)


@quick
@given(wild, wild, wild)
def test_answer_scores_are_bounded_symmetric_and_take_the_best(a, b, c):
    assert m.exact_match(a, b) <= m.token_f1(a, b) + 1e-12 <= 1 + 2e-12
    assert m.token_f1(a, b) == m.token_f1(b, a)
    assert m.token_f1(a, [b, c]) == max(m.token_f1(a, b), m.token_f1(a, c)) == m.token_f1(a, [c, b])
    assert m.exact_match(a, a) == m.token_f1(a, a) == 1


@quick
@given(texts)
def test_normalization_removes_what_it_says(text):
    once = m.normalize_answer(text)
    assert once == m.normalize_answer("The " + (text.upper() if text.isascii() else text) + "!")
    assert not set(once) & set(string.punctuation)
    assert not {"a", "an", "the"} & set(once.split())


# ---------------------------------------------------------------- BLEU and ROUGE

BLEU_ROWS = st.lists(st.tuples(texts, st.lists(texts, min_size=2, max_size=2)), min_size=1, max_size=4)


@quick
@given(wild)
@example("well-\n")
def test_13a_cuts_as_sacrebleu(text):
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    assert m.tokenize_13a(text) == Tokenizer13a()(text.rstrip()).split()


@quick
@given(BLEU_ROWS, st.sampled_from(m.SMOOTHING), st.booleans(), st.integers(1, 5))
def test_bleu_equals_sacrebleu(rows, smooth, effective, max_n):
    predictions, references = split(rows)
    scorer = sacrebleu.BLEU(smooth_method=smooth, effective_order=effective, max_ngram_order=max_n)
    theirs = scorer.corpus_score(predictions, [list(column) for column in zip(*references, strict=True)])
    ours = m.corpus_bleu(predictions, references, max_n=max_n, smooth=smooth, effective_order=effective)
    close(ours.score, theirs.score)
    close(ours.precisions, theirs.precisions)
    close(ours[2:], (theirs.bp, theirs.sys_len, theirs.ref_len))


def test_bleu_equals_sacrebleu_on_the_gold_file():
    predictions = [row["prediction"] for row in GOLD["translation"]]
    references = [row["references"] for row in GOLD["translation"]]
    theirs = sacrebleu.corpus_bleu(predictions, [list(column) for column in zip(*references, strict=True)])
    assert m.corpus_bleu(predictions, references).score == pytest.approx(theirs.score, abs=1e-9)


@quick
@given(BLEU_ROWS, st.randoms(use_true_random=False))
def test_bleu_is_bounded_and_ignores_the_order_of_sentences_and_references(rows, rng):
    base = m.corpus_bleu(*split(rows))
    assert 0 <= base.score <= 100 + 1e-9
    other = [(p, refs[::-1]) for p, refs in rng.sample(rows, len(rows))]
    close(m.corpus_bleu(*split(other)).score, base.score, 1e-12)


@quick
@given(st.lists(texts.filter(lambda t: len(t.split()) >= 4), min_size=1, max_size=4))
def test_bleu_and_rouge_of_a_perfect_text_are_full(copies):
    close(m.corpus_bleu(copies, copies).score, 100, 1e-12)
    assert all(m.rouge_n(t, t).f1 == 1 == m.rouge_l(t, t).f1 for t in copies if m.rouge_tokens(t))


def test_effective_order_leaves_out_what_a_short_text_cannot_have():
    assert m.corpus_bleu(["a b"], ["a b"], effective_order=True).score == pytest.approx(100, abs=1e-9)
    assert m.corpus_bleu(["a b"], ["a b"]).score == 0


def test_clipping_and_brevity():
    assert m.clipped_matches(["the"] * 7, [["the", "cat", "the"], ["the"]], 1) == (2, 7)
    assert m.brevity_penalty(4, 8) == math.exp(-1) and m.brevity_penalty(8, 4) == 1 and m.brevity_penalty(0, 3) == 0
    assert m.corpus_bleu(["a b c d"], ["a b c d e f g h"]).score == pytest.approx(100 * math.exp(-1), abs=1e-9)


@pytest.mark.parametrize("stem", [None, PorterStemmer().stem], ids=["plain", "porter"])
@quick
@given(texts | wild, texts | wild, texts)
def test_rouge_equals_rouge_score(stem, prediction, reference, other):
    scorer = RougeScorer(["rouge1", "rouge2", "rouge3", "rougeL"], use_stemmer=stem is not None)
    theirs = scorer.score_multi([reference, other], prediction)
    best = [reference, other]
    ours = [m.rouge_n(prediction, best, n, stem) for n in (1, 2, 3)] + [m.rouge_l(prediction, best, stem)]
    close(ours, [tuple(s) for s in theirs.values()])


@quick
@given(texts | wild)
@example("the gas was his running dogs")
def test_rouge_tokens_equal_rouge_score(text):
    for stemmer in (None, PorterStemmer()):
        assert m.rouge_tokens(text, stemmer and stemmer.stem) == rouge_tokenize(text, stemmer)


@quick
@given(texts, texts)
def test_rouge_is_symmetric_in_f1_and_l_is_at_most_1(a, b):
    assert m.rouge_n(a, b).f1 == m.rouge_n(b, a).f1 and m.rouge_l(a, b).f1 == m.rouge_l(b, a).f1
    assert m.rouge_l(a, b).f1 <= m.rouge_n(a, b).f1


@quick
@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_lcs_equals_enumeration(a, b):
    def subsequences(xs):
        return {tuple(x for i, x in enumerate(xs) if mask >> i & 1) for mask in range(1 << len(xs))}

    assert m.lcs_length(a, b) == max(map(len, subsequences(a) & subsequences(b)))


# ---------------------------------------------------------------- perplexity


@quick
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 9))
def test_perplexity_is_exp_of_the_cross_entropy(seed, tokens, vocabulary):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(tokens, vocabulary)), rng.integers(0, vocabulary, tokens)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    chosen = log_p[np.arange(tokens), target]
    close(m.perplexity(chosen), np.exp(-chosen.mean()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on rows that sum to 1 - 1e-16
        close(m.perplexity(chosen), math.exp(log_loss(target, np.exp(log_p), labels=range(vocabulary))))


@quick
@given(log_probs, st.integers(1, 50), st.randoms(use_true_random=False))
def test_perplexity_properties(values, units, rng):
    base = m.perplexity(values)
    assert base >= 1
    close(m.perplexity(rng.sample(values, len(values))), base, 1e-12)
    close(m.perplexity(values * 3), base, 1e-12)
    close(m.perplexity(values, units), 2 ** m.bits_per_unit(values, units), 1e-9)
    close(m.bits_per_unit(values, units) * units, m.bits_per_unit(values) * len(values), 1e-9)


def test_perplexity_of_certain_uniform_and_impossible_tokens():
    assert m.perplexity([0.0, 0.0]) == 1
    assert m.perplexity([math.log(1 / 50)] * 7) == pytest.approx(50, rel=1e-12)
    assert m.perplexity([-math.inf, -1.0]) == math.inf
    assert m.perplexity([-5000.0]) == math.inf


# ---------------------------------------------------------------- bad input

BAD = [
    (lambda: m.confusion_counts([1, 0], [1]), "2 references but 1 predictions"),
    (lambda: m.accuracy([], []), "nothing to score"),
    (lambda: m.accuracy("yes", "yes"), "wrap it in a list"),
    (lambda: m.precision_recall_f1([1, 0], [1, 1], average="mean"), "unknown average 'mean': choose one of micro"),
    (lambda: m.precision_recall_f1(list("abc"), list("abc")), "needs two classes, found 3"),
    (lambda: m.precision_recall_f1(list("ab"), list("ab")), "positive=1 never occurs.*'a', 'b'"),
    (lambda: m.fbeta(m.Counts(1, 1, 1), 0), "beta must be above 0"),
    (lambda: m.fbeta(m.Counts(1, 1, 1), math.nan), "beta must be above 0"),
    (lambda: m.threshold_counts([1, 0], [0.2, math.nan], [0.5]), "NaN"),
    (lambda: m.entity_spans("B-PER"), "expected a list of tags"),
    (lambda: m.entity_spans(["O", "PER"]), "'PER' is not a BIO tag"),
    (lambda: m.entity_spans(["B-"]), "'B-' is not a BIO tag"),
    (lambda: m.entity_spans(["S-PER"]), "'S-PER' is not a BIO tag"),
    (lambda: m.entity_prf(["O"], ["O"]), "wrap a single sentence"),
    (lambda: m.entity_prf([["O"], ["O"]], [["O"], ["O", "O"]]), "sentence 1 has 1 reference tags but 2"),
    (lambda: m.entity_prf([["O"]], [["O"]], average="binary"), "unknown average 'binary'"),
    (lambda: m.exact_match("x", []), "no reference given"),
    (lambda: m.token_f1("x", []), "no reference given"),
    (lambda: m.corpus_bleu("a text", ["a text"]), "wrap it in a list"),
    (lambda: m.corpus_bleu(["a"], ["a", "b"]), "2 references but 1 predictions"),
    (lambda: m.corpus_bleu(["a"], [[]]), "no reference given"),
    (lambda: m.corpus_bleu(["a"], ["a"], smooth="floor"), "unknown smoothing 'floor': choose one of exp, none"),
    (lambda: m.corpus_bleu(["a"], ["a"], max_n=0), "max_n must be at least 1"),
    (lambda: m.ngram_counts(["a"], 0), "n must be at least 1"),
    (lambda: m.rouge_n("a", []), "no reference given"),
    (lambda: m.rouge_n("a", "a", n=0), "n must be at least 1"),
    (lambda: m.rouge_l("a", []), "no reference given"),
    (lambda: m.perplexity([]), "at least one token"),
    (lambda: m.perplexity([-1.0, 0.4]), "0.4 at position 1 is above 0.*probabilities or a loss"),
    (lambda: m.perplexity([math.nan]), "at position 0"),
    (lambda: m.perplexity([-1.0], units=0), "units must be at least 1"),
    (lambda: m.bits_per_unit([]), "at least one token"),
    (lambda: module_path("blue"), "choose one of bleu, classification, entity_f1, perplexity, qa, rouge"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fresh_process(code, **options):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | options.pop("env", {})
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, **options)
    assert run.returncode == 0, run.stderr[-2000:]
    return run


def test_metrics_import_nothing_heavy():
    heavy = {"torch", "sklearn", "pandas", "numpy", "datasets", "evaluate", "nltk", "sacrebleu"}
    code = f"import nlp_portfolio.evaluation.metrics, nlp_portfolio.evaluation.modules, sys; print({heavy!r} & {{*sys.modules}})"
    assert fresh_process(code).stdout.strip() == "set()"


def test_lean_evaluate_leaves_torch_out_and_importable():
    code = """
import sys
from nlp_portfolio.evaluation.modules import lean_evaluate, module_path
scores = lean_evaluate().load(module_path("qa")).compute(predictions=["a b"], references=["a b"])
print(scores, {"torch", "transformers"} & {*sys.modules}, lean_evaluate() is sys.modules["evaluate"])
"""
    assert fresh_process(code).stdout.strip() == "{'exact_match': 1.0, 'f1': 1.0} set() True"


# ---------------------------------------------------------------- evaluate modules

OFFLINE = """
import json, socket, sys
def refuse(*args, **kwargs): raise OSError("this test allows no network")
socket.create_connection = socket.getaddrinfo = refuse
import evaluate
from nlp_portfolio.evaluation.modules import module_path
calls = json.load(sys.stdin)
answers = [evaluate.load(module_path(name)).compute(**kwargs) for name, kwargs in calls]
texts = {k: calls[1][1][k] for k in ("predictions", "references")}
answers.append(evaluate.combine([evaluate.load(module_path(n)) for n in ("bleu", "rouge", "qa")]).compute(**texts))
batches = evaluate.load(module_path("classification"))
for t, p in zip(calls[0][1]["references"], calls[0][1]["predictions"]): batches.add(prediction=p, reference=t)
answers.append(batches.compute(average="macro"))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    "What the modules answer in a fresh process with an empty cache and no network, and what the functions say."
    rng = random.Random(0)
    y_true, y_pred = ([rng.randrange(3) for _ in range(40)] for _ in range(2))
    predictions = [row["prediction"] for row in GOLD["translation"]]
    references = [row["references"] for row in GOLD["translation"]]
    tag_true, tag_pred = [row["true"] for row in GOLD["ner"]], [row["pred"] for row in GOLD["ner"]]
    calls = [
        ("classification", {"predictions": y_pred, "references": y_true, "average": "macro"}),
        ("bleu", {"predictions": predictions, "references": references}),
        ("rouge", {"predictions": predictions, "references": references}),
        ("rouge", {"predictions": predictions, "references": [r[0] for r in references]}),
        ("entity_f1", {"predictions": tag_pred, "references": tag_true}),
        ("qa", {"predictions": [r["prediction"] for r in GOLD["qa"]], "references": [r["answers"] for r in GOLD["qa"]]}),
        ("perplexity", {"predictions": [[-1.0, -2.5], [-0.5]], "units": 7}),
        ("classification", {"predictions": ["n", "y"], "references": ["y", "y"], "positive": "y"}),
    ]
    folder = tmp_path_factory.mktemp("hf")
    env = {
        "HF_HOME": str(folder),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
    }
    run = fresh_process(OFFLINE, input=json.dumps(calls), env=env, cwd=folder)
    return calls, json.loads(run.stdout.splitlines()[-1])


def test_every_module_is_loaded(offline):
    calls, _ = offline
    assert sorted({name for name, _ in calls}) == module_names()


def test_modules_answer_what_the_functions_answer(offline):
    calls, got = offline
    y_pred, y_true = calls[0][1]["predictions"], calls[0][1]["references"]
    predictions, references = calls[1][1]["predictions"], calls[1][1]["references"]
    macro = {"accuracy": m.accuracy(y_true, y_pred), **m.precision_recall_f1(y_true, y_pred, "macro")._asdict()}
    assert got[0] == pytest.approx(macro, abs=1e-12)
    assert got[-1] == pytest.approx(macro, abs=1e-12)
    bleu = m.corpus_bleu(predictions, references)
    assert got[1]["bleu"] == pytest.approx(bleu.score, abs=1e-9)
    assert got[1]["precisions"] == pytest.approx(list(bleu.precisions), abs=1e-9)
    assert got[1]["brevity_penalty"] == pytest.approx(bleu.brevity_penalty, abs=1e-12)
    for found, refs in ((got[2], references), (got[3], [r[0] for r in references])):
        both = list(zip(predictions, refs, strict=True))
        each = [(m.rouge_n(*pair, 1).f1, m.rouge_n(*pair, 2).f1, m.rouge_l(*pair).f1) for pair in both]
        assert [found["rouge1"], found["rouge2"], found["rougeL"]] == pytest.approx(np.mean(each, axis=0), abs=1e-12)
    assert got[4] == pytest.approx(m.entity_prf(calls[4][1]["references"], calls[4][1]["predictions"])._asdict(), abs=1e-12)
    answers = list(zip(calls[5][1]["predictions"], calls[5][1]["references"], strict=True))
    expected = {"exact_match": np.mean([m.exact_match(*a) for a in answers]), "f1": np.mean([m.token_f1(*a) for a in answers])}
    assert got[5] == pytest.approx(expected, abs=1e-12)
    assert got[6]["perplexity"] == pytest.approx(m.perplexity([-1.0, -2.5, -0.5], 7), abs=1e-12)
    assert got[6]["bits_per_unit"] == pytest.approx(m.bits_per_unit([-1.0, -2.5, -0.5], 7), abs=1e-12)
    assert got[7] == pytest.approx({"accuracy": 0.5, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}, abs=1e-12)


def test_combined_modules_answer_together(offline):
    _, got = offline
    both = got[8]
    assert both["bleu"] == pytest.approx(got[1]["bleu"], abs=1e-9)
    assert both["rougeL"] == pytest.approx(got[2]["rougeL"], abs=1e-12)
    assert 0 < both["f1"] < 1 and 0 <= both["exact_match"] < 1
