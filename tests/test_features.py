"""Features of lesson 06: n-grams and hashing equal to scikit-learn's, collisions, typos, memory."""

import json
import math
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from nlp_portfolio.classic.baseline import lowercase
from nlp_portfolio.classic.features import (
    bucket_of,
    char_ngrams,
    char_wb_ngrams,
    count_collisions,
    expected_collisions,
    hashed_counts,
    heaps_law,
    model_bytes,
    names_in_buckets,
    vocabulary_bytes,
    vocabulary_growth,
    with_typos,
    word_ngrams,
)
from nlp_portfolio.course.datasets import load

quick = settings(deadline=None, max_examples=100)
TEXTS = ["", " ", "a", "I.", "naïve café", "🙂🙂 ok", "a\0b cd", "  two\n\nlines\there ", "don't U.S. 3.5%", "ß" * 50, "İstanbul"]
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=40), st.text("ab c\n", max_size=30))
ranges = st.tuples(st.integers(1, 4), st.integers(0, 3)).map(lambda r: (r[0], r[0] + r[1]))
valid = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@pytest.fixture(scope="module")
def posts():
    return load("ag_news", "docs", source="sample")["text"]


def library(analyzer, ngrams):
    return CountVectorizer(analyzer=analyzer, ngram_range=ngrams, lowercase=False).build_analyzer()


# ---- n-grams


@quick
@given(texts, ranges)
def test_word_ngrams_equal_the_library(text, ngrams):
    assert word_ngrams(text, ngrams) == list(library("word", ngrams)(text))


@quick
@given(texts, ranges)
def test_letter_windows_inside_words_equal_the_library(text, ngrams):
    assert char_wb_ngrams(text, ngrams) == list(library("char_wb", ngrams)(text))


@quick
@given(texts, st.integers(1, 6))
def test_letter_windows_equal_the_library_where_it_squeezes_no_space(text, n):
    text = re.sub(r"\s\s+", " ", text)
    assert char_ngrams(text, n) == list(library("char", (n, n))(text))


@quick
@given(st.text(max_size=40), st.integers(1, 8))
def test_letter_windows_have_their_width_and_rebuild_the_text(text, n):
    grams = char_ngrams(text, n)
    assert len(grams) == max(0, len(text) - n + 1)
    assert {len(gram) for gram in grams} <= {n}
    assert not grams or grams[0] + "".join(gram[-1] for gram in grams[1:]) == text


def test_ngrams_equal_the_library_on_the_sample(posts):
    judge = {name: CountVectorizer(analyzer=name, ngram_range=(2, 4)).build_analyzer() for name in ("word", "char_wb")}
    for text in posts:
        assert word_ngrams(lowercase(text), (2, 4)) == judge["word"](text)
        assert char_wb_ngrams(lowercase(text), (2, 4)) == judge["char_wb"](text)


@pytest.mark.parametrize("cut", [word_ngrams, char_wb_ngrams], ids=["words", "letters"])
@pytest.mark.parametrize("ngrams", [(0, 1), (2, 1), (-1, 2), (1,), (1, 2, 3)])
def test_bad_ranges_are_refused(cut, ngrams):
    with pytest.raises(ValueError, match=r"ngrams must be \(shortest, longest\) with 1 <= shortest <= longest"):
        cut("some text", ngrams)


def test_window_width_below_one_is_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        char_ngrams("hi", 0)


@pytest.mark.parametrize("use", [word_ngrams, char_ngrams, char_wb_ngrams, bucket_of, lambda value: with_typos(value, 0.5),
                                 lambda value: hashed_counts([value], char_ngrams)],
                         ids=["word_ngrams", "char_ngrams", "char_wb_ngrams", "bucket_of", "with_typos", "hashed_counts"])
@pytest.mark.parametrize("value", [None, float("nan"), 5, b"bytes", ["list"]], ids=repr)
def test_what_is_no_text_is_refused(use, value):
    with pytest.raises(TypeError, match=f"expected text, got {type(value).__name__}"):
        use(value)


@pytest.mark.parametrize("text", ["", "\0", "half \ud800 pair", "🙂", "x" * 100_000], ids=lambda text: ascii(text[:5]))
def test_odd_texts_get_an_answer(text):
    assert isinstance(with_typos(text, 1.0), str)
    for cut in (word_ngrams, char_ngrams, char_wb_ngrams):
        assert hashed_counts([text], cut, 64, signed=False).sum() == len(cut(text))


# ---- vocabulary growth


def test_growth_counts_documents_tokens_and_vocabulary():
    table = vocabulary_growth(["a b", "b c", "c"], str.split, points=10)
    assert table.to_dict("list") == {"documents": [1, 2, 3], "tokens": [2, 4, 5], "vocabulary": [2, 3, 3]}


def test_growth_ends_with_the_library_vocabulary_and_never_shrinks(posts):
    table = vocabulary_growth(posts, lambda text: word_ngrams(lowercase(text)))
    assert table["vocabulary"].iloc[-1] == len(CountVectorizer().fit(posts).vocabulary_)
    assert table["documents"].iloc[-1] == len(posts) and len(table) <= 20
    assert (table.diff().dropna() >= 0).all(axis=None)


@quick
@given(st.floats(0.5, 200), st.floats(0.1, 1.0))
def test_heaps_law_finds_the_constants_it_was_made_from(K, beta):
    n = np.array([10, 50, 400, 3000])
    assert heaps_law(n, K * n**beta) == pytest.approx((K, beta), rel=1e-6)


@pytest.mark.parametrize(("n", "v"), [([1], [2]), ([5, 5], [2, 3]), ([1, 2], [1]), ([0, 2], [1, 2]), ([1, 2], [0, 2])])
def test_heaps_law_refuses_what_has_no_line(n, v):
    with pytest.raises(ValueError, match="need two or more different n"):
        heaps_law(n, v)


@pytest.mark.parametrize(("documents", "points"), [([], 20), (["a"], 1)])
def test_growth_needs_documents_and_points(documents, points):
    with pytest.raises(ValueError, match="need at least one document and two points"):
        vocabulary_growth(documents, str.split, points)


# ---- typos


@quick
@given(st.text(max_size=60), st.integers(0, 1000))
def test_rate_zero_changes_nothing_and_short_words_are_safe(text, seed):
    assert with_typos(text, 0, seed) == text
    short = " ".join(word[:3] for word in text.split())
    assert with_typos(short, 1, seed) == short


@quick
@given(st.lists(st.text("abcdeé", min_size=4, max_size=12), min_size=1, max_size=8), st.integers(0, 1000))
def test_at_rate_one_every_longer_word_changes_by_one_letter_or_one_swap(words, seed):
    changed = with_typos(" ".join(words), 1, seed).split(" ")
    assert len(changed) == len(words)
    for word, typo in zip(words, changed, strict=True):
        drops = {word[:i] + word[i + 1:] for i in range(1, len(word) - 1)}
        swaps = {word[:i] + word[i + 1] + word[i] + word[i + 2:] for i in range(1, len(word) - 1)}
        assert typo != word and typo in drops | swaps


@quick
@given(st.lists(st.text("abcde", min_size=4, max_size=9), min_size=1, max_size=12), st.integers(0, 1000),
       st.floats(0, 1), st.floats(0, 1))
def test_a_higher_rate_keeps_the_typos_of_a_lower_one(words, seed, one, other):
    few, many = (with_typos(" ".join(words), rate, seed).split(" ") for rate in sorted((one, other)))
    assert all(a in (word, b) for word, a, b in zip(words, few, many, strict=True))


def test_the_rate_is_the_share_of_longer_words():
    changed = with_typos("letters " * 4000, 0.3, 1).split()
    share = np.mean([word != "letters" for word in changed])
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_typos_repeat_with_the_seed_and_differ_between_rows():
    text = "several longer words standing together"
    assert with_typos(text, 1, (42, 3)) == with_typos(text, 1, (42, 3))
    assert len({with_typos(text, 1, (42, row)) for row in range(20)}) > 10


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_outside_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate must lie in 0\.\.1"):
        with_typos("text", rate)


# ---- hashing


@quick
@given(st.lists(valid, min_size=1, max_size=8), st.integers(1, 5000), st.booleans())
def test_hashed_counts_equal_the_library(documents, buckets, signed):
    theirs = HashingVectorizer(n_features=buckets, alternate_sign=signed, norm=None, analyzer=char_ngrams)
    ours, theirs = hashed_counts(documents, char_ngrams, buckets, signed), theirs.transform(documents)
    assert ours.shape == theirs.shape and ours.nnz == theirs.nnz, "repeated features stand in one entry"
    np.testing.assert_array_equal(ours.toarray(), theirs.toarray())


def test_hashed_words_equal_the_library_on_the_sample(posts):
    theirs = HashingVectorizer(norm=None, n_features=2**18).transform(posts)
    assert abs(hashed_counts(posts, lambda text: word_ngrams(lowercase(text))) - theirs).nnz == 0


@quick
@given(valid, st.integers(1, 2**31 - 1))
def test_bucket_and_sign_are_in_range_and_without_buckets_there_is_one(feature, buckets):
    bucket, sign = bucket_of(feature, buckets)
    assert 0 <= bucket < buckets and sign in (1, -1)
    assert bucket_of(feature, 1) == (0, sign)


def test_buckets_are_the_same_in_every_process_and_python_hash_is_not():
    code = ("import json\nfrom nlp_portfolio.classic.features import bucket_of\n"
            "words = ['election', 'goal', 'naïve', '🙂']\n"
            "print(json.dumps([[bucket_of(w, 1000) for w in words], [hash(w) for w in words]]))")
    stable, salted = zip(*(json.loads(subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed},
                                                     capture_output=True, text=True, check=True).stdout)
                           for seed in ("1", "2")), strict=True)
    assert stable[0] == stable[1] == [list(bucket_of(w, 1000)) for w in ("election", "goal", "naïve", "🙂")]
    assert salted[0] != salted[1]


def test_signed_inner_products_are_unbiased_and_unsigned_ones_are_not(posts):
    few = posts[:150]
    true = CountVectorizer().fit_transform(few)
    pairs = np.triu_indices(len(few), k=1)
    bias = {signed: (X @ X.T - true @ true.T).toarray()[pairs].mean() for signed in (True, False)
            for X in [hashed_counts(few, lambda text: word_ngrams(lowercase(text)), 64, signed)]}
    assert bias[False] > 10 * abs(bias[True])


def test_hashed_counts_of_nothing_and_of_one_text():
    assert hashed_counts([], char_ngrams, 8).shape == (0, 8)
    assert hashed_counts(["", "a"], char_ngrams, 8).nnz == 0
    with pytest.raises(TypeError, match="expected many documents, got one text"):
        hashed_counts("one text", char_ngrams)


@pytest.mark.parametrize("buckets", [0, -1, 2**31])
def test_bad_numbers_of_buckets_are_refused(buckets):
    for use in (lambda: bucket_of("a", buckets), lambda: hashed_counts(["a"], char_ngrams, buckets),
                lambda: expected_collisions(5, buckets), lambda: expected_collisions(0, buckets)):
        with pytest.raises(ValueError, match=r"buckets must lie in 1\.\.2\*\*31 - 1, got"):
            use()


# ---- collisions


@pytest.mark.parametrize(("features", "buckets", "expected"), [
    (0, 10, 0), (1, 10, 0), (1, 1, 0), (2, 1, 2), (7, 1, 7), (2, 10, 0.2), (23, 365, 23 * (1 - (364 / 365) ** 22)),
])
def test_expected_collisions_of_small_numbers(features, buckets, expected):
    assert expected_collisions(features, buckets) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("features", "buckets"), [(5, 3), (50, 40), (300, 1000)])
def test_expected_collisions_is_the_mean_over_random_throws(features, buckets):
    throws = np.random.default_rng(0).integers(buckets, size=(4000, features))
    sizes = np.array([np.bincount(row, minlength=buckets) for row in throws])
    counted = np.where(sizes > 1, sizes, 0).sum(axis=1)
    assert abs(counted.mean() - expected_collisions(features, buckets)) < 4 * counted.std() / math.sqrt(len(throws))


def test_counted_collisions_are_near_the_expected_ones():
    features = [f"feature {i}" for i in range(20_000)]
    for bits in (10, 14, 18):
        expected = expected_collisions(len(features), 2**bits)
        assert abs(count_collisions(features, 2**bits) - expected) < 5 * math.sqrt(2 * expected)


@quick
@given(st.lists(valid, max_size=30), st.integers(1, 50))
def test_counting_equals_comparing_all_pairs(features, buckets):
    one = {feature: bucket_of(feature, buckets)[0] for feature in features}
    meet = sum(any(a != b and one[a] == one[b] for b in one) for a in one)
    assert count_collisions(features, buckets) == meet


def test_negative_numbers_of_features_are_refused():
    with pytest.raises(ValueError, match="features must be 0 or more, got -1"):
        expected_collisions(-1, 10)


# ---- names and memory


def test_names_are_those_of_the_bucket_and_nothing_is_forgotten(posts):
    def words(text):
        return word_ngrams(lowercase(text))

    counts = CountVectorizer().fit(posts)
    totals = dict(zip(counts.get_feature_names_out(), counts.transform(posts).sum(axis=0).A1.tolist(), strict=True))
    names = names_in_buckets(posts, words, 64, range(64))
    assert {name: n for found in names.values() for name, _, n in found} == totals
    for bucket, found in names.items():
        assert all(bucket_of(name, 64) == (bucket, sign) for name, sign, _ in found)
        assert [n for *_, n in found] == sorted((n for *_, n in found), reverse=True)
    assert names_in_buckets(posts, words, 64, [3, 5]) == {3: names[3], 5: names[5]}


def test_vocabulary_bytes_is_what_a_copy_takes():
    text = json.dumps({f"feature number {i}": i for i in range(20_000)})
    tracemalloc.start()
    copy = json.loads(text)
    measured = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert vocabulary_bytes(copy) == pytest.approx(measured, rel=0.1)


def test_model_bytes_finds_every_part():
    topics, few = ["x", "y", "z", "z"], ["one two", "three four", "five one", "six"]
    words, letters = TfidfVectorizer(), TfidfVectorizer(analyzer="char_wb", use_idf=False)
    model = make_pipeline(make_union(words, letters), LinearSVC(random_state=0)).fit(few, topics)
    found, width = model_bytes(model), model[-1].coef_.shape[1]
    _, fitted = zip(*model[0].transformer_list, strict=True)
    assert found["vocabulary"] == sum(vocabulary_bytes(one.vocabulary_) for one in fitted)
    assert found["numbers"] == 8 * (3 * width + 3 + len(fitted[0].vocabulary_))
    hashed = make_pipeline(HashingVectorizer(n_features=100), LinearSVC(random_state=0)).fit(few, topics)
    assert model_bytes(hashed) == {"vocabulary": 0, "numbers": 8 * 303}
