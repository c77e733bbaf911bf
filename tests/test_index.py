"""The index on disk and in a bucket: nothing acknowledged is lost, nothing leaks, and every search sees the newest state."""

import inspect
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlp_portfolio.retrieval.documents import Passage, matches
from nlp_portfolio.retrieval.index import MODES, Index, Stored, UnreadableIndex, sql_filter

SEED = 42
ROOT = Path(__file__).resolve().parent.parent


def embed(texts: list[str], size: int = 32) -> np.ndarray:
    "A vector for each text, a hash of it: cheap, and equal texts are nearest to each other."
    seeds = [list(text.encode("utf-8", "replace")[:64]) or [0] for text in texts]
    vectors = np.stack([np.random.default_rng(seed).normal(size=size) for seed in seeds])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def passage(name: str, document: str = "d", text: str = "", **metadata) -> Passage:
    text = text or f"passage {name} runs"
    return Passage(name, text, document, "", 0, len(text), metadata)


def ids(hits) -> list[str]:
    return [hit.passage.id for hit in hits]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.open(tmp_path / "index", embed=embed)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Index:
    "Three hundred passages that the tests only read; the later half is not in the word index yet."
    index = Index.open(tmp_path_factory.mktemp("fleet"), embed=embed)
    rows = [passage(f"p{i}", f"d{i // 10}", f"truck{i} needs a repair in town{i % 7}", lane=i % 4, town=f"town{i % 7}",
                    old=i % 2 == 0) for i in range(300)]
    index.add(rows[:150])
    index.compact()
    index.add(rows[150:])
    return index


# what goes in comes out


def test_passage_comes_back_whole(index: Index):
    metadata = {"language": "de", "year": 2024, "score": .5, "new": True}
    whole = Passage("p1", "Zwölf\0 Boxkämpfer 🥊", "d/1", "Sport\nNews", 7, 26, metadata)
    assert index.add([whole]) == 1
    for mode in MODES:
        assert [hit.passage for hit in index.search("Boxkämpfer", mode=mode)] == [whole]
    assert index.documents() == [Stored("d/1", 1)]


def test_adding_twice_changes_nothing_and_a_new_text_takes_the_place(index: Index):
    index.add([passage("a"), passage("b"), passage("a")])
    index.add([passage("a")])
    assert len(index) == 2
    index.add([passage("a", text="fresh words")])
    assert [ids(index.search(word, mode="bm25")) for word in ("fresh", "passage")] == [["a"], ["b"]] and len(index) == 2


def test_reopened_it_is_all_there(index: Index, tmp_path: Path):
    index.add(passage(f"p{i}") for i in range(30))
    again = Index.open(tmp_path / "index", embed=embed)
    assert len(again) == 30 and ids(again.search("p17", mode="bm25")) == ["p17"]


@pytest.mark.parametrize("mode", MODES)
def test_search_sees_indexed_and_new_rows(fleet: Index, mode: str):
    for i in (3, 149, 150, 299):
        text = f"truck{i} needs a repair in town{i % 7}"
        assert ids(fleet.search(text, 3, mode=mode))[0] == f"p{i}"


def test_words_are_stemmed_and_stop_words_count(index: Index):
    index.add([passage("a", text="she repaired the engines"), passage("b", text="to be or not to be")])
    assert ids(index.search("engine repairing", mode="bm25")) == ["a"]
    assert ids(index.search("not or", mode="bm25")) == ["b"]


def test_dense_is_exact_and_its_scores_are_dot_products(fleet: Index):
    texts = [f"truck{i} needs a repair in town{i % 7}" for i in range(300)]
    scores = embed(texts) @ embed(["anything"])[0]
    best = np.argsort(-scores)[:20]
    hits = fleet.search("anything", 20, mode="dense")
    assert ids(hits) == [f"p{i}" for i in best]
    np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)


def test_hybrid_is_the_sum_of_reciprocal_ranks(fleet: Index):
    query, k, sums = "truck12 repair town5", 10, {}
    for mode in ("bm25", "dense"):
        for rank, name in enumerate(ids(fleet.search(query, 50, mode=mode)), 1):
            sums[name] = sums.get(name, 0) + 1 / (60 + rank)
    hits = fleet.search(query, k)
    assert [hit.score for hit in hits] == pytest.approx(sorted(sums.values(), reverse=True)[:k], abs=1e-12)
    assert all(hit.score == pytest.approx(sums[hit.passage.id], abs=1e-12) for hit in hits)


# filters


VALUES = st.one_of(st.text(max_size=6), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                   st.sampled_from(["'", "''", "\\'", "x' OR '1'='1", "') OR true --", "%", "_", "\0", "\ud800", "1", "true"]))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.lists(VALUES, min_size=1, max_size=6), asked=st.one_of(VALUES, st.lists(VALUES, max_size=3)))
def test_filters_say_what_matches_says(index: Index, stored, asked):
    asked = asked if isinstance(asked, list) else [asked, stored[0]]
    rows = [passage(f"p{i}", key=value) for i, value in enumerate(stored)] + [passage("none")]
    index.delete("d")
    index.add(rows)
    for where in ({"key": asked}, {"key": stored[0]}):
        expected = {row.id for row in rows if matches(row.metadata, where)}
        for mode in MODES:
            assert set(ids(index.search("passage", 50, where, mode))) == expected


@pytest.mark.parametrize("mode", MODES)
def test_filter_holds_before_ranking(fleet: Index, mode: str):
    hits = fleet.search("truck3 repair", 20, {"town": ["town1", "town2"], "lane": 1, "old": False}, mode)
    expected = {f"p{i}" for i in range(300) if i % 7 in (1, 2) and i % 4 == 1}
    assert len(hits) == 20 and set(ids(hits)) <= expected


@pytest.mark.parametrize("key", ["", "a b", "a) OR (1=1", "a'b", 'a"', "1a", "tags, ['x']) --", "a" * 65, 5, None, "a\n"])
def test_keys_that_are_no_names_are_refused(index: Index, key):
    with pytest.raises(ValueError, match="cannot be a metadata key"):
        sql_filter({key: 1})
    with pytest.raises(ValueError, match="cannot be a metadata key"):
        index.add([Passage("p", "text", metadata={key: 1})])


ATTACKS = ["x' OR '1'='1", "') OR true --", "'; DROP TABLE passages; --", "\\' OR 1=1 --", "x'' OR tenant <> '", "\0' OR true --"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_values_cannot_leave_their_quotes(index: Index, attack: str):
    index.add([passage("mine", "mine", tenant="me"), passage("other", "other", tenant="you")])
    assert index.search("passage", where={"tenant": attack}) == []
    assert index.for_tenant(attack).search("passage") == []
    assert (index.delete(attack), index.delete(where={"tenant": attack}), index.for_tenant(attack).delete("mine")) == (0, 0, 0)
    index.for_tenant(attack).replace_document("mine", [])
    assert len(index) == 2
    index.for_tenant(attack).add([passage("p", attack)])
    assert ids(index.search("passage", where={"tenant": attack})) == ["p"]
    assert index.delete(attack) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, {"a"}, b"x", np.int64(1)])
def test_values_that_cannot_be_compared_are_refused(index: Index, value):
    with pytest.raises((ValueError, TypeError), match="metadata 'key'"):
        index.add([passage("p", key=value)])


# tenants


def test_tenants_never_meet(index: Index):
    acme, umbrella = index.for_tenant("acme"), index.for_tenant("umbrella")
    for tenant, name in ((acme, "acme"), (umbrella, "umbrella")):
        tenant.add([passage(f"p{i}", "handbook", f"{name} pays {i}") for i in range(20)])
    assert (len(acme), len(umbrella), len(index)) == (20, 20, 40)
    for mode in MODES:
        hits = acme.search("umbrella pays 3", 40, mode=mode)
        assert hits and {hit.passage.metadata["tenant"] for hit in hits} == {"acme"}
        assert acme.search("pays", where={"tenant": "umbrella"}, mode=mode) == []
    assert acme.replace_document("handbook", [passage("p0", "handbook")]) == 1
    assert acme.delete("handbook") == 1
    assert index.documents() == [Stored("handbook", 20, "umbrella")]
    with pytest.raises(ValueError, match="has tenant 'umbrella'"):
        acme.add([passage("x", tenant="umbrella")])
    for call in (acme.versions, acme.compact, lambda: acme.restore(1)):
        with pytest.raises(ValueError, match="every tenant"):
            call()
    for name in ("", "umbrella", "\ud800"):
        with pytest.raises(ValueError, match="no way from"):
            acme.for_tenant(name)


# documents and versions


def test_document_is_replaced_in_one_version(index: Index):
    index.add([passage(f"old{i}", "a") for i in range(5)] + [passage("other", "b")])
    before = index.versions()[-1].number
    assert index.replace_document("a", [passage("old0", "a", "kept"), passage("new", "a")]) == 2
    after = [version for version in index.versions() if version.number > before]
    assert [version.passages for version in after] == [3]
    assert set(ids(index.search("passage kept", mode="dense"))) == {"old0", "new", "other"}
    assert index.replace_document("a", []) == 0
    assert index.documents() == [Stored("b", 1)]


def test_replacing_asks_for_passages_of_that_document(index: Index):
    with pytest.raises(ValueError, match="cannot replace the document 'a'"):
        index.replace_document("a", [passage("p", "b")])
    with pytest.raises(ValueError, match="one tenant"):
        index.replace_document("a", [passage("p", "a", tenant="x"), passage("q", "a", tenant="y")])


def test_versions_and_restore(index: Index):
    empty = index.versions()[0]
    index.add([passage("a")])
    one = index.versions()[-1]
    index.delete("d")
    assert (empty.passages, one.passages, len(index)) == (0, 1, 0) and one.at.tzinfo is not None
    for version, expected in ((one, ["a"]), (empty, [])):
        index.restore(version.number)
        assert ids(index.search("passage", mode="bm25")) == expected
    index.add([passage("b")])  # the oldest version had no word index yet
    assert ids(index.search("passage")) == ["b"]
    with pytest.raises(ValueError, match="there is no version 999"):
        index.restore(999)


def test_delete_by_what_metadata_says(index: Index):
    index.add([passage("a", "x", year=2023), passage("b", "x", year=2024), passage("c", "y", year=2024)])
    assert index.delete("x", where={"year": 2024}) == 1
    assert index.delete(where={"year": [2022, 2023]}) == 1
    assert index.documents() == [Stored("y", 1)]
    for nothing in ({}, {"where": {}}):
        with pytest.raises(ValueError, match="say which passages"):
            index.delete(**nothing)
    assert len(index) == 1


@pytest.mark.filterwarnings("ignore:optimize")
def test_compact_removes_deleted_text_from_the_disk(index: Index, tmp_path: Path):
    def on_disk() -> int:
        return sum(b"umpelstiltskin" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    index.add([passage("a", "secret", "my name is Rumpelstiltskin"), passage("b")])
    assert index.delete("secret") == 1 and on_disk() > 0
    index.compact(keep_days=0)
    assert on_disk() == 0 and len(index.versions()) == 1 and ids(index.search("passage")) == ["b"]


def test_graph_finds_what_comparing_all_finds(tmp_path: Path):
    rows = [passage(f"p{i}", lane=i % 20) for i in range(700)]
    graph, exact = (Index.open(tmp_path / name, embed=embed, exact_below=below) for name, below in (("g", 600), ("e", 9999)))
    for index in (graph, exact):
        index.add(rows)
    assert [one.index_type for one in graph._table.list_indices() if one.name == "vectors"] == ["IvfHnswSq"]
    for where in (None, {"lane": 7}):
        found = [(set(ids(g)), set(ids(e))) for g, e in
                 ((graph.search(f"q{i}", 10, where, "dense"), exact.search(f"q{i}", 10, where, "dense")) for i in range(15))]
        assert np.mean([len(g & e) / 10 for g, e in found]) >= 0.98
    rounded, whole = ({hit.passage.id: hit.score for hit in index.search("q1", 10, None, "dense")} for index in (graph, exact))
    assert {name: rounded[name] for name in whole.keys() & rounded} == pytest.approx(
        {name: whole[name] for name in whole.keys() & rounded}, abs=1e-5)  # refined: the scores of the whole vectors
    for k in (100, 700):
        assert [len(graph.search("passage p3", k, mode=mode)) for mode in ("hybrid", "dense")] == [k, k]
    graph.add([passage("new", text="quite new")])
    assert ids(graph.search("quite new", 1, mode="dense")) == ["new"]
    graph.delete("d", where={"lane": 7})
    assert graph.search("passage p7 runs", 1, {"lane": 7}, "dense") == []


# bad input


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("query", ["\0", "a\0b", "\ud800", "x" * 100_000, "truck3 " * 20_000, '"(AND* OR)^~:\\/[]{}+-!',
                                   "NOT", "town3:*", "'; DROP TABLE passages; --", "𝔸🙂", "\u202e\ufeff", "%s {} $1"])
def test_any_query_is_answered(fleet: Index, query: str, mode: str):
    assert len(fleet.search(query, 3, mode=mode)) <= 3


def test_empty_queries_and_an_empty_index(index: Index, fleet: Index):
    assert [fleet.search(query, mode=mode) for query in ("", " \n\t", "\0") for mode in MODES] == [[]] * 9
    assert [index.search("anything", mode=mode) for mode in MODES] == [[]] * 3
    assert (index.add([]), index.documents(), len(index)) == (0, [], 0)


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": -1}, {"k": 2.0}, {"k": True}, {"mode": "sparse"}])
def test_senseless_searches_are_refused(fleet: Index, arguments):
    with pytest.raises(ValueError, match="a mode of .* and a whole k of 1 or more"):
        fleet.search("truck", **arguments)


def test_wrong_kinds_are_refused(fleet: Index):
    with pytest.raises(TypeError, match="expected text, got NoneType"):
        fleet.search(None)
    with pytest.raises(TypeError, match="takes passages, got str"):
        fleet.add(["text"])
    with pytest.raises(TypeError, match="expected text, got float"):
        fleet.add([Passage("p", float("nan"))])
    with pytest.raises(ValueError, match="where is a mapping"):
        fleet.search("truck", where="town")
    with pytest.raises(ValueError, match="a folder or a URL"):
        Index.open("", embed=embed)


def test_more_than_there_are(fleet: Index):
    assert len(fleet.search("truck3 repair", 10**9, {"lane": 1})) == 75


def test_half_character_pairs_are_kept_as_marks(index: Index):
    index.add([Passage("p\ud800", "te\ud800xt marks", "d\ud801", "t\ud800", 0, 11, {"x": "\ud800"})])
    [hit] = index.search("marks")
    assert hit.passage == Passage("p\ufffd", "te\ufffdxt marks", "d\ufffd", "t\ufffd", 0, 11, {"x": "\ud800"})
    assert index.delete("d\ud801") == 1


def test_the_courses_encoder_is_used_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nlp_portfolio.retrieval

    asked = []
    encoder = SimpleNamespace(embed=lambda texts: embed(texts, 384),
                              embed_query=lambda text: asked.append(text) or embed([text], 384)[0])
    monkeypatch.setattr(nlp_portfolio.retrieval, "vectors", encoder, raising=False)
    index = Index.open(tmp_path / "index")
    index.add([passage("a")])
    assert (ids(index.search("what  is it?")), asked, index.dimension) == (["a"], ["what is it?"], 384)
    assert index.embedder.startswith("sentence-transformers/all-MiniLM-L6-v2")


def test_another_embedder_is_refused(index: Index, tmp_path: Path):
    index.add([passage("a")])

    def other(texts: list[str]) -> np.ndarray:
        return embed(texts, 16)

    with pytest.raises(ValueError, match=r"index was made with the embedder 'embed', not 'test_.*other'"):
        Index.open(tmp_path / "index", embed=other)
    narrow = Index.open(tmp_path / "index", embed=other, embedder="embed")
    for call in (lambda: narrow.search("a"), lambda: narrow.add([passage("b")])):
        with pytest.raises(ValueError, match=r"shape \(1, 16\) for 1 texts, the index at .* holds 32 dimensions"):
            call()
    holes = Index.open(tmp_path / "index", embed=lambda texts: embed(texts) * np.nan, embedder="embed")
    with pytest.raises(ValueError, match="not finite"):
        holes.add([passage("b")])
    assert len(index) == 1


@pytest.mark.parametrize("part, damage", [("_versions", b""), ("_versions", b"garbage" * 100), ("_versions", None),
                                          ("data", None), ("data", b"garbage" * 100), ("_indices", None)])
def test_damage_is_named(index: Index, tmp_path: Path, part: str, damage: bytes | None):
    index.add([passage("a")])
    index.compact()
    folder = tmp_path / "index" / "passages.lance" / part
    if damage is None:
        shutil.rmtree(folder)
    for file in folder.iterdir() if damage is not None else ():
        file.write_bytes(damage)
    with pytest.raises(UnreadableIndex, match=re.escape(f"the index at {tmp_path / 'index'} cannot be read")):
        Index.open(tmp_path / "index", embed=embed).search("passage")


def test_a_file_and_a_foreign_table_are_no_index(tmp_path: Path):
    import lancedb

    (tmp_path / "file").write_text("x")
    lancedb.connect(tmp_path / "foreign").create_table("passages", [{"a": 1}])
    for name in ("file", "foreign"):
        with pytest.raises(UnreadableIndex, match=f"{name} cannot be read"):
            Index.open(tmp_path / name, embed=embed)


# several at once


WITHOUT_PYTEST = f"""
import sys
import time
import lancedb
import numpy as np
from nlp_portfolio.retrieval.documents import Passage
from nlp_portfolio.retrieval.index import Index
{inspect.getsource(embed)}
{inspect.getsource(passage)}
"""
WRITER = """
who, place = sys.argv[1:]
index = Index.open(place, embed=embed)
for batch in range(5):
    index.add([passage(f"{who}-{batch}-{i}", f"doc-{who}") for i in range(20)] + [passage(f"both-{batch}", "both")])
    index.replace_document("shared", [passage(f"shared-{who}-{batch}-{i}", "shared") for i in range(3)])
    if batch % 2:
        index.compact()
    time.sleep(0.2)  # the reader looks in between
"""


def child(code: str, *arguments: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", WITHOUT_PYTEST + code, *arguments], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})


def test_two_processes_write_while_another_reads(tmp_path: Path):
    writers = [child(WRITER, who, str(tmp_path / "index")) for who in "ab"]
    index, counts = Index.open(tmp_path / "index", embed=embed), []
    while any(writer.poll() is None for writer in writers):
        counts.append(len(index))
        index.search("passage")
        shared = {hit.passage.id.rsplit("-", 1)[0] for hit in index.search("passage shared", 500, mode="dense")
                  if hit.passage.document == "shared"}
        assert len(shared) <= 1  # of one writer and one batch, never of two
    assert [writer.communicate()[0] or writer.returncode for writer in writers] == [0, 0]
    assert counts == sorted(counts) and len(set(counts)) > 2
    assert index.documents() == [Stored("both", 5), Stored("doc-a", 100), Stored("doc-b", 100), Stored("shared", 3)]
    found = ids(index.search("passage", 500, mode="bm25"))
    assert len(found) == len(set(found)) == 208


def test_threads_share_an_index(index: Index):
    errors = []

    def work(who: int) -> None:
        try:
            for i in range(5):
                index.add([passage(f"t{who}x{i}")])
                assert ids(index.search(f"t{who}x{i}", 1, mode="bm25")) == [f"t{who}x{i}"]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(index) == 20


# kill -9


INGEST = """
import os

def ingest(place, first, log):
    def say(*words):
        os.write(log, (" ".join(map(str, words)) + chr(10)).encode())
    index = Index.open(place, embed=embed)
    for batch in range(first, first + 10_000):
        index.add([passage(f"p{batch}x{i}", f"d{batch}") for i in range(4)])
        say("added", batch)
        if batch % 3 == 2:
            index.replace_document(f"d{batch - 1}", [passage(f"q{batch - 1}x{i}", f"d{batch - 1}") for i in range(3)])
            say("replaced", batch - 1)
        if batch % 5 == 4:
            index.compact(keep_days=0)
            say("compacted", batch)

for line in sys.stdin:
    place, first = line.split()
    if pid := os.fork():
        print(pid, flush=True)
        print(os.WTERMSIG(os.waitpid(pid, 0)[1]), flush=True)
    else:
        ingest(place, int(first), os.open(f"{place}-{first}.log", os.O_CREAT | os.O_WRONLY))
"""


def killed(mother: subprocess.Popen, place: Path, first: int, delay: float) -> list[tuple[str, int]]:
    "What an ingesting process acknowledged before it was killed, `delay` seconds after it was born of one that imported all."
    mother.stdin.write(f"{place} {first}\n")
    mother.stdin.flush()
    pid = int(mother.stdout.readline())
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    assert mother.stdout.readline() == f"{signal.SIGKILL:d}\n"
    log = Path(f"{place}-{first}.log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [(what, int(number)) for what, number in map(str.split, lines)]


def lost(place: Path, said: list[tuple[str, int]]) -> list[str]:
    "What is wrong with an index after a crash: acknowledged passages that are gone, half documents, searches that miss."
    index, wrong = Index.open(place, embed=embed), []
    counts = {stored.document: stored.passages for stored in index.documents()}
    wrong += [f"{document} is half there: {count}" for document, count in counts.items() if count not in (3, 4)]
    wrong += [f"added {n} is gone" for what, n in said if what == "added" and f"d{n}" not in counts]
    wrong += [f"replaced {n} is old" for what, n in said if what == "replaced" and counts.get(f"d{n}") != 3]
    for _, number in [one for one in said if one[0] != "compacted"][-3:]:
        letter = "q" if counts.get(f"d{number}") == 3 else "p"
        for mode in MODES:
            if f"{letter}{number}x1" not in ids(index.search(f"passage {letter}{number}x1 runs", 3, mode=mode)):
                wrong.append(f"{mode} misses {letter}{number}x1")
    return wrong


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, campaign):
    rng, said, rows, kills = random.Random(SEED), {}, [], campaign.count(8)
    mother = child(INGEST)
    for kill in range(kills):
        place = tmp_path / f"index{kill // 10 if kills > 8 else kill % 2}"
        delay = rng.uniform(0, 0.15) if kill % 4 == 0 else rng.uniform(0, 0.8)  # a quarter while the index is made or opened
        new = killed(mother, place, kill * 10_000, delay)
        said.setdefault(place, []).extend(new)
        wrong = lost(place, said[place])
        rows.append((kill, delay, len(new), wrong))
        print(f"kill {kill:2} of {place.name} after {delay:.3f} s: {len(new):3} writes acknowledged,",
              f"{len(said[place]):4} in all; lost {wrong}")
    mother.communicate()
    acknowledged, gone = (sum(numbers) for numbers in zip(*((row[2], len(row[3])) for row in rows), strict=True))
    print(f"seed {SEED}: {kills} kills, {acknowledged} writes acknowledged, {gone} lost")
    assert [row for row in rows if row[3]] == []
    assert acknowledged > kills
    campaign.keep("index_kills", seed=SEED, kills=kills, acknowledged=acknowledged, lost=gone)


def test_the_check_after_a_kill_sees_a_loss(index: Index, tmp_path: Path):
    said = [("added", 1), ("added", 2), ("replaced", 2)]
    index.add([passage(f"p1x{i}", "d1") for i in range(4)])
    index.add([passage(f"q2x{i}", "d2") for i in range(3)])
    assert lost(tmp_path / "index", said) == []
    index.delete("d1")
    index.add([passage("q2x9", "d2")])
    assert {"added 1 is gone", "replaced 2 is old"} <= set(lost(tmp_path / "index", said))


# object storage


@pytest.fixture(scope="module")
def bucket() -> dict[str, str]:
    "A bucket on a small S3 server of this machine, and the options to reach it."
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    client.create_bucket(Bucket="bucket")
    yield {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_endpoint": endpoint, "aws_region": "us-east-1",
           "allow_http": "true"}
    server.stop()


@pytest.mark.filterwarnings("ignore:optimize")
def test_index_in_a_bucket(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    place = "s3://bucket/tests/index"
    index = Index.open(place, embed=embed, storage_options=bucket)
    index.add([passage(f"p{i}", f"d{i // 5}", lane=i % 2) for i in range(20)])
    for mode in MODES:
        assert ids(index.search("passage p7 runs", 1, {"lane": 1}, mode)) == ["p7"]
    full = index.versions()[-1]
    assert index.replace_document("d0", [passage("new", "d0")]) == 1 and index.delete("d1") == 5
    assert (len(index), index.search("p7", mode="bm25")) == (11, [])
    index.restore(full.number)
    assert ids(index.search("p7", mode="bm25")) == ["p7"] and len(index) == 20
    index.compact(keep_days=0)
    assert len(index.versions()) == 1
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": bucket["aws_endpoint"],
                        "REGION": "us-east-1", "ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    again = Index.open(place, embed=embed)
    assert len(again) == 20 and again.for_tenant("x").search("passage") == []


def test_two_writers_of_one_bucket(bucket: dict[str, str]):
    errors, place = [], "s3://bucket/tests/two"

    def write(who: str) -> None:
        try:
            index = Index.open(place, embed=embed, storage_options=bucket)
            for batch in range(5):
                index.add([passage(f"{who}{batch}{i}") for i in range(4)] + [passage(f"both{batch}")])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(Index.open(place, embed=embed, storage_options=bucket)) == 45


def test_unreachable_bucket_is_named(bucket: dict[str, str]):
    with pytest.raises(UnreadableIndex, match="s3://nobucket/x cannot be read"):
        Index.open("s3://nobucket/x", embed=embed, storage_options=bucket)


def test_replaced_passage_keeps_nothing_of_the_old(index: Index):
    old = passage("a", text="old words", year=2023)
    index.add([old])
    index.add([replace(old, text="new words", metadata={"year": 2024})])
    assert (index.search("words", where={"year": 2023}), index.search("old", mode="bm25")) == ([], [])
