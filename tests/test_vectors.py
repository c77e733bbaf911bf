"""Vectors by content hash: computed once, never another text's, safe against two writers and a kill, looked up without torch."""

import hashlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.retrieval import vectors
from nlp_portfolio.retrieval.corpus import passages
from nlp_portfolio.retrieval.vectors import cache_file, embed, embed_query, ship_vectors, shipped_file, vector_key

FAKE = '''
import hashlib
import numpy as np
class Fake:
    "A text's vector is drawn from its hash: no network, and another text's is never near."
    def __init__(self): self.asked = []
    def encode(self, texts, batch_size=None):
        self.asked += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") for text in texts]
        rows = np.stack([np.random.default_rng(seed).normal(size=384) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
'''
exec(FAKE)  # the same source runs in other processes below


@pytest.fixture
def fake(tmp_path, monkeypatch):
    "An encoder that costs nothing, an empty cache and nothing shipped."
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path))
    monkeypatch.setattr(vectors, "shipped_file", lambda: tmp_path / "shipped.safetensors")
    model = Fake()  # noqa: F821
    monkeypatch.setattr(vectors, "_model", lambda: model)
    vectors._shipped.cache_clear()
    vectors._query.cache_clear()
    yield model
    vectors._shipped.cache_clear()
    vectors._query.cache_clear()


def elsewhere(code, home, **kwargs):
    "Run code in another process, with the same fake encoder and cache."
    start = FAKE + "from nlp_portfolio.retrieval import vectors\nvectors._model = lambda m=Fake(): m\n"
    return subprocess.Popen([sys.executable, "-c", start + textwrap.dedent(code)], text=True,
                            env={**os.environ, "NLP_PORTFOLIO_HOME": str(home)}, **kwargs)


def test_a_text_is_computed_once_and_comes_back_in_its_place(fake):
    texts = ["a long text of several words", "short", "short", "middle text"]
    first = embed(texts)
    assert first.dtype == np.float32 and first.shape == (4, 384)
    assert np.allclose(first, Fake().encode(texts), atol=1e-6)  # noqa: F821
    assert sorted(fake.asked) == sorted(set(texts))
    assert np.array_equal(embed(texts[::-1]), first[::-1]) and len(fake.asked) == 3
    assert embed([*texts, "new"]).shape == (5, 384) and fake.asked[3:] == ["new"]


def test_nothing_is_written_when_asked_not_to(fake):
    embed(["private"], keep=False)
    embed_query("private too")
    assert not cache_file().exists()
    embed(["public"])
    assert cache_file().is_file() and b"public" not in cache_file().read_bytes()


def test_a_query_is_kept_in_memory_and_cannot_be_changed(fake):
    assert np.array_equal(embed_query("what?"), embed_query("what?")) and fake.asked == ["what?"]
    with pytest.raises(ValueError, match="read-only"):
        embed_query("what?")[0] = 1


@pytest.mark.parametrize(("call", "kind", "message"), [
    (lambda: embed("one"), TypeError, "a list of texts"), (lambda: embed([5]), TypeError, "text"),
    (lambda: embed_query(float("nan")), TypeError, "text"), (lambda: embed_query(["a"]), TypeError, "text"),
    (lambda: ship_vectors(dtype="int4"), ValueError, "unknown dtype 'int4'"),
])
def test_bad_input_is_said(fake, call, kind, message):
    with pytest.raises(kind, match=message):
        call()
    assert fake.asked == []


def test_odd_texts_have_vectors(fake):
    assert embed([]).shape == (0, 384)
    found = embed(["", "half \ud800", "a\0b", "word " * 10**4])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@given(st.lists(st.text(), unique=True, max_size=20))
def test_keys_tell_texts_apart(texts):
    assert len({vector_key(text) for text in texts}) == len({text.encode("utf-8", "replace") for text in texts})


def test_the_key_names_the_weights(monkeypatch):
    before = vector_key("a")
    monkeypatch.setattr(vectors, "MINILM_SHA256", hashlib.sha256(b"others").hexdigest())
    assert vector_key("a") != before


def test_a_file_of_other_weights_or_half_a_file_is_not_used(fake, monkeypatch, capsys):
    embed(["a"])
    whole = cache_file().read_bytes()
    for broken in (whole[:-9], b"", b"nonsense", whole.replace(b"53aa5117", b"00000000")):
        assert broken != whole
        cache_file().write_bytes(broken)
        embed(["a"])
        assert f"{cache_file().name}" in capsys.readouterr().out
        assert cache_file().read_bytes() == whole
    assert fake.asked == ["a"] * 5


def test_a_broken_shipped_file_is_an_error(fake, tmp_path):
    (tmp_path / "shipped.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="shipped.safetensors is not a whole file"):
        embed(["a"])


def test_what_is_shipped_is_not_computed_and_shipping_twice_is_the_same(fake, tmp_path):
    texts = [f"text {number}" for number in range(40)]
    exact = Fake().encode(texts)  # noqa: F821
    for dtype, loss in (("float32", 1e-6), ("float16", 1e-6), ("int8", 5e-4)):
        file = ship_vectors(texts=texts, dtype=dtype)
        content = file.read_bytes()
        cache_file().unlink(missing_ok=True)
        fake.asked.clear()
        found = embed(texts)
        assert fake.asked == [] and not cache_file().exists()
        assert (1 - (found * exact).sum(1)).max() < loss and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert ship_vectors(texts=texts[::-1], dtype=dtype).read_bytes() == content
        file.unlink()
        vectors._shipped.cache_clear()


def test_a_long_run_is_kept_step_by_step(fake, monkeypatch):
    monkeypatch.setattr(vectors, "STEP", 4)
    texts = ["x" * number for number in range(1, 11)]

    class Stopped(Fake):  # noqa: F821
        def encode(self, texts, batch_size=None):
            if len(self.asked) >= 8:
                raise KeyboardInterrupt
            return super().encode(texts, batch_size)

    stopped = Stopped()
    monkeypatch.setattr(vectors, "_model", lambda: stopped)
    with pytest.raises(KeyboardInterrupt):
        embed(texts)
    monkeypatch.setattr(vectors, "_model", lambda: fake)
    assert embed(texts).shape == (10, 384) and fake.asked == ["x" * 9, "x" * 10]


def test_processes_that_write_at_once_lose_nothing(fake, tmp_path):
    writers = [elsewhere(f"for step in range(6): vectors.embed([f'{who} {{step}}'])", tmp_path) for who in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    embed([f"{who} {step}" for who in "abc" for step in range(6)])
    assert fake.asked == []
    assert [file.name for file in cache_file().parent.iterdir()] == [cache_file().name]


def test_a_kill_while_writing_leaves_the_cache_whole_and_its_draft_is_cleared(fake, tmp_path):
    embed(["before"])
    whole = cache_file().read_bytes()
    killed = elsewhere("import os; os.replace = lambda *_: os._exit(9)\nvectors.embed(['during'])", tmp_path)
    assert killed.wait(60) == 9
    assert cache_file().read_bytes() == whole and len(list(cache_file().parent.glob("*.tmp"))) == 1
    lock = cache_file().with_name(cache_file().name + ".lock")
    assert lock.exists()  # as the killed process left it; a writer waits some seconds for its owner
    lock.unlink()
    embed(["after"])
    assert not list(cache_file().parent.glob("*.tmp"))
    embed(["before", "after"])
    assert fake.asked == ["before", "after"]


# --- the file that ships with the package

def test_looking_up_the_shipped_vectors_imports_no_torch(tmp_path):
    code = """
        import sys
        from nlp_portfolio.retrieval.vectors import _shipped, embed
        places, rows = _shipped()
        print(len(places), rows.shape, "torch" in sys.modules, "transformers" in sys.modules)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) > 6000 and out[-2:] == ["False", "False"]


def test_the_shipped_file_is_small_and_of_unit_vectors():
    assert shipped_file().stat().st_size <= 6 * 10**6
    _, rows = vectors._read(shipped_file())
    assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_the_shipped_file_covers_the_passages():
    places, _ = vectors._read(shipped_file())
    there = np.mean([vector_key(passage.indexed) in places for passage in passages()])
    assert there == 1 if sys.version_info[:2] == (3, 11) else there > 0.5


@pytest.mark.required
def test_shipped_vectors_are_the_encoders():
    from nlp_portfolio.course.models import encoder

    shipped = {vector_key(passage.indexed): passage.indexed for passage in passages()}
    places, rows = vectors._read(shipped_file())
    some = [(places[key], text) for key, text in sorted(shipped.items()) if key in places][::400]
    fresh = encoder("minilm").encode([text for _, text in some])
    assert len(some) >= 8 and (1 - (rows[[at for at, _ in some]] * fresh).sum(1)).max() < 5e-4
