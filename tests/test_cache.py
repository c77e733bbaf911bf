"""The cache: least recently used, time to live, normalized keys, one computation for equal requests."""

import asyncio
import threading
from collections import OrderedDict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlp_portfolio.serving.cache import LRU, AnswerCache, single_spaced

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@settings(max_examples=300)
@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from(["get", "put", "tick"]), st.sampled_from(b"abcd")), max_size=60))
@example(2, [("put", 1), ("put", 2), ("get", 1), ("put", 3), ("get", 1)])
def test_lru_does_what_a_simple_model_of_it_does(size, steps):
    now, kept = [0.0], OrderedDict()
    lru = LRU(size, ttl_s=5, clock=lambda: now[0])
    for number, (what, key) in enumerate(steps):
        if what == "tick":
            now[0] += 1
        elif what == "put":
            lru.put(key, number)
            kept[key] = (now[0] + 5, number)
            kept.move_to_end(key)
            if len(kept) > size:
                kept.popitem(last=False)
        elif key in kept and kept[key][0] > now[0]:
            kept.move_to_end(key)
            assert lru.get(key) == kept[key][1]
        else:
            kept.pop(key, None)
            with pytest.raises(KeyError):
                lru.get(key)
        assert len(lru) == len(kept) <= size


@pytest.mark.parametrize(("size", "ttl"), [(0, 1), (-1, 1), (1, 0), (1, -1), (1, float("nan"))])
def test_a_cache_that_cannot_keep_anything_is_refused(size, ttl):
    with pytest.raises(ValueError, match="max_items of 1 or more and ttl_s above 0"):
        AnswerCache(size, ttl)


def test_many_threads_at_once_break_nothing():
    lru, errors = LRU(8), []

    def work(seed):
        for i in range(3000):
            key = bytes([(seed * 7 + i * i) % 23])
            try:
                lru.put(key, key)
                if lru.get(key) != key:
                    errors.append(key)
            except KeyError:
                pass
            except Exception as err:
                errors.append(err)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(lru) == 8


@pytest.mark.parametrize(("one", "other", "equal"), [
    ("a b", "  a \n b\t", True), ("a b", "ab", False), ("A", "a", False), ("\ud800", "\ud801", False), ("", " ", True),
    ("a\0b", "a b", False)], ids=ascii)
def test_texts_share_an_answer_when_their_normal_forms_are_equal(one, other, equal):
    cache = AnswerCache()
    assert (cache.key(one) == cache.key(other)) is equal
    cache.put(one, 1)
    if equal:
        assert cache.get(other) == 1
    else:
        with pytest.raises(KeyError):
            cache.get(other)


def test_normalization_is_a_choice():
    cache = AnswerCache(normalize=lambda text: single_spaced(text).casefold())
    cache.put("Where is MY card", "here")
    assert cache.get("where is my card") == "here"


def test_keys_hold_no_text_and_differ_between_processes():
    one, other = AnswerCache(), AnswerCache()
    assert one.key("secret") != other.key("secret") and len(one.key("secret" * 10**5)) == 16
    one.put("where is my card", 1)
    assert "card" not in repr(vars(one)) + repr(vars(one._lru))


@pytest.mark.parametrize("text", [None, 5, float("nan"), b"x"], ids=repr)
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="text"):
        AnswerCache().get(text)


class Slow:
    "Counts what it computes; waits until it may go on."

    def __init__(self):
        self.calls, self.go, self.cancelled = [], asyncio.Event(), 0

    async def __call__(self, text):
        self.calls.append(text)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if text == "bad":
            raise RuntimeError("bad text")
        return text.upper()


async def fetches(cache, compute, *texts):
    tasks = [asyncio.ensure_future(cache.fetch(text, compute)) for text in texts]
    await asyncio.sleep(0.01)
    return tasks


async def test_equal_requests_at_once_compute_once():
    cache, slow = AnswerCache(), Slow()
    tasks = await fetches(cache, slow, *["a"] * 20, "b", " a ")
    slow.go.set()
    answers = await asyncio.gather(*tasks)
    assert slow.calls == ["a", "b"]
    assert [kept for _, kept in answers] == [False, *[True] * 19, False, True]
    assert (cache.misses, cache.shared, cache.hits) == (2, 20, 0)
    assert await cache.fetch("a", slow) == ("A", True) and cache.hits == 1


async def test_the_first_may_leave_without_harming_the_others():
    cache, slow = AnswerCache(), Slow()
    first, second = await fetches(cache, slow, "a", "a")
    first.cancel()
    await asyncio.sleep(0.01)
    slow.go.set()
    assert await second == ("A", True)
    assert (slow.calls, slow.cancelled) == (["a"], 0)


async def test_when_all_have_left_the_work_is_cancelled_and_the_next_one_begins_anew():
    cache, slow = AnswerCache(), Slow()
    for task in await fetches(cache, slow, "a", "a"):
        task.cancel()
    await asyncio.sleep(0.01)
    assert slow.cancelled == 1
    slow.go.set()
    assert await cache.fetch("a", slow) == ("A", False)
    assert slow.calls == ["a", "a"]


async def test_an_error_reaches_all_who_wait_and_is_not_kept():
    cache, slow = AnswerCache(), Slow()
    tasks = await fetches(cache, slow, "bad", "bad")
    slow.go.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(err) for err in errors] == ["bad text"] * 2
    with pytest.raises(RuntimeError, match="bad text"):
        await cache.fetch("bad", slow)
    assert slow.calls == ["bad", "bad"] and len(cache) == 0


async def test_an_answer_that_is_too_old_is_computed_again():
    now, slow = [0.0], Slow()
    cache = AnswerCache(ttl_s=60, clock=lambda: now[0])
    slow.go.set()
    for at, kept in ((0, False), (59.9, True), (60, False)):
        now[0] = at
        assert await cache.fetch("a", slow) == ("A", kept)
    cache.clear()
    assert await cache.fetch("a", slow) == ("A", False)
