"""The batcher: batches, lanes, bounds, deadlines, cancellation, poisonous texts, its life from loading to stopped."""

import ast
import asyncio
import gc
import inspect
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_portfolio.serving import batching
from nlp_portfolio.serving.batching import (
    Batcher,
    Batching,
    DeadlineExceeded,
    NotServing,
    PredictionFailed,
    QueueFull,
    run_batch,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gate:
    "A model that answers in capitals when the gate is open, and keeps what it was asked."

    def __init__(self, is_open: bool = True):
        self.batches, self.gate = [], threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, texts: list[str]) -> list[str]:
        self.batches.append(list(texts))
        assert self.gate.wait(10)
        if bad := [text for text in texts if "poison" in text]:
            raise ValueError(f"cannot read {bad[0]}")
        return [text.upper() for text in texts]

    @property
    def seen(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


async def started(predict, **plan) -> Batcher:
    batcher = Batcher(lambda: predict, Batching(**{"warm_up": (), "max_wait_ms": 1} | plan))
    batcher.start()
    await until(lambda: batcher.state != "loading")
    return batcher


async def until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.001)


def plain_lines(source: str) -> int:
    "Lines of code: docstrings, comments and blank lines left out."
    told = {line for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for line in range(node.lineno, node.end_lineno + 1)}
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in told
               for number, line in enumerate(source.splitlines(), 1))


def test_the_batcher_is_at_most_150_lines():
    source = inspect.getsource(batching)
    body = source[source.index("# %%", source.index("__all__")):]
    assert 100 < plain_lines(body) <= 150


# ---- run_batch


def test_one_poisonous_text_fails_alone():
    model = Gate()
    answers = run_batch(model, ["a", "poison", "c"])
    assert [answers[0], answers[2]] == ["A", "C"]
    assert isinstance(answers[1], PredictionFailed) and str(answers[1]) == "the model failed on this text (ValueError)"
    assert model.batches == [["a", "poison", "c"], ["a"], ["poison"], ["c"]]


@pytest.mark.parametrize("predict", [lambda texts: [1], lambda texts: [1] * (len(texts) + 1), lambda texts: None,
                                     lambda texts: exec("raise SystemExit(3)")], ids=["short", "long", "None", "exit"])
def test_a_model_that_breaks_its_promise_gives_errors_and_not_wrong_answers(predict):
    answers = run_batch(predict, ["a", "b", "c"])
    assert len(answers) == 3 and len({isinstance(answer, PredictionFailed) for answer in answers}) == 1


def test_one_answer_for_three_texts_is_asked_for_again_one_by_one():
    assert run_batch(lambda texts: [texts[0]], ["a", "b", "c"]) == ["a", "b", "c"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["good", "poison", "fine", ""]), max_size=12))
def test_every_text_gets_its_own_answer_or_its_own_error(texts):
    for text, answer in zip(texts, run_batch(Gate(), texts), strict=True):
        assert isinstance(answer, PredictionFailed) if text == "poison" else answer == text.upper()


# ---- batches


async def test_answers_come_back_to_who_asked_and_batches_form():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=8)
    asked = [asyncio.ensure_future(batcher.submit(f"text {i}")) for i in range(30)]
    await until(lambda: model.batches)
    model.gate.set()
    assert await asyncio.gather(*asked) == [f"TEXT {i}" for i in range(30)]
    assert max(map(len, model.batches)) == 8 and len(model.batches) <= 5
    await batcher.stop()


@pytest.mark.parametrize(("wait_ms", "at_least"), [(150, 0.14), (0, 0.0)])
async def test_a_lonely_text_waits_for_company_no_longer_than_it_must(wait_ms, at_least):
    batcher = await started(Gate(), max_wait_ms=wait_ms)
    start = time.perf_counter()
    await batcher.submit("alone")
    assert at_least <= time.perf_counter() - start < at_least + 0.1
    await batcher.stop()


async def test_a_full_batch_does_not_wait():
    batcher = await started(Gate(), max_wait_ms=5000, max_batch=4)
    await asyncio.wait_for(asyncio.gather(*(batcher.submit("abcd"[i]) for i in range(4))), 2)
    await batcher.stop()


async def test_texts_of_similar_length_share_a_batch():
    model = Gate(is_open=False)
    batcher = await started(model, bounds=(10, 100))
    asked = [asyncio.ensure_future(batcher.submit("x" * n)) for n in (5, 50, 500, 6, 60, 600, 10, 11)]
    await until(lambda: model.batches)
    model.gate.set()
    await asyncio.gather(*asked)
    lanes = [{sum(len(text) > bound for bound in (10, 100)) for text in batch} for batch in model.batches]
    assert all(len(lane) == 1 for lane in lanes) and len(model.batches) == 3
    await batcher.stop()


async def test_the_lane_that_waited_longest_is_next_so_nobody_starves():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=2, bounds=(10,))
    asked = [asyncio.ensure_future(batcher.submit("first"))]
    await until(lambda: model.batches)
    for text in ["long " * 9, "s1", "s2", "s3", "s4"]:
        asked.append(asyncio.ensure_future(batcher.submit(text)))
        await asyncio.sleep(0.002)
    model.gate.set()
    await asyncio.gather(*asked)
    assert model.batches[1] == ["long " * 9]
    await batcher.stop()


async def test_texts_are_clipped_before_they_reach_the_model():
    model = Gate()
    batcher = await started(model, max_chars=7)
    assert await batcher.submit("x" * 10**6) == "X" * 7
    assert model.seen == ["x" * 7]
    await batcher.stop()


@pytest.mark.parametrize("text", [5, None, b"bytes", ["a"], float("nan")], ids=repr)
async def test_what_is_no_text_is_refused_by_name(text):
    batcher = await started(Gate())
    with pytest.raises(TypeError, match="text"):
        await batcher.submit(text)
    assert batcher.waiting == 0
    await batcher.stop()


@pytest.mark.parametrize("plan", [{"max_batch": 0}, {"max_queue": 0}, {"max_chars": 0}, {"max_wait_ms": -1},
                                  {"max_wait_ms": float("nan")}], ids=str)
def test_a_plan_that_cannot_work_is_refused(plan):
    with pytest.raises(ValueError, match="at least"):
        Batching(**plan)


async def test_one_thread_runs_the_model():
    names = set()
    batcher = await started(lambda texts: [names.add(threading.current_thread().name)] * len(texts))
    await asyncio.gather(*(batcher.submit(str(i)) for i in range(50)))
    assert names == {"model"}
    await batcher.stop()


# ---- saying no


async def test_a_full_queue_says_no_at_once():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=1, max_queue=3)
    asked = [asyncio.ensure_future(batcher.submit("running"))]
    await until(lambda: model.batches)
    asked += [asyncio.ensure_future(batcher.submit(f"waits {i}")) for i in range(3)]
    await until(lambda: batcher.waiting == 3)
    start = time.perf_counter()
    with pytest.raises(QueueFull, match="try again in 1 s") as caught:
        await batcher.submit("one too many")
    assert time.perf_counter() - start < 0.05
    assert caught.value.retry_after == 1
    model.gate.set()
    assert len(await asyncio.gather(*asked)) == 4
    await batcher.stop()


async def test_retry_after_follows_the_pace_of_the_model():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=1, max_queue=10)
    batcher.pace = 0.5
    asked = [asyncio.ensure_future(batcher.submit("running"))]
    await until(lambda: model.batches)
    asked += [asyncio.ensure_future(batcher.submit(str(i))) for i in range(10)]
    await until(lambda: batcher.waiting == 10)
    with pytest.raises(QueueFull) as caught:
        await batcher.submit("more")
    assert caught.value.retry_after == 5
    model.gate.set()
    await asyncio.gather(*asked)
    await batcher.stop()


async def test_deadline_ends_the_wait_and_frees_the_place():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=1)
    running = asyncio.ensure_future(batcher.submit("running"))
    await until(lambda: model.batches)
    start = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
        await batcher.submit("late", timeout=0.05)
    assert 0.04 < time.perf_counter() - start < 0.5
    assert batcher.waiting == 0
    model.gate.set()
    assert await running == "RUNNING"
    await batcher.stop()
    assert model.seen == ["running"]


async def test_an_error_of_the_model_that_looks_like_a_timeout_is_no_deadline():
    def predict(texts):
        raise TimeoutError("from inside")

    batcher = await started(predict)
    with pytest.raises(PredictionFailed, match="TimeoutError"):
        await batcher.submit("x", timeout=5)
    await batcher.stop()


async def test_who_leaves_frees_the_place_and_is_not_computed():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=1, max_queue=2)
    running = asyncio.ensure_future(batcher.submit("running"))
    await until(lambda: model.batches)
    leaving, staying = (asyncio.ensure_future(batcher.submit(text)) for text in ("leaves", "stays"))
    await until(lambda: batcher.waiting == 2)
    leaving.cancel()
    await until(lambda: batcher.waiting == 1)
    newcomer = asyncio.ensure_future(batcher.submit("takes the place"))
    await until(lambda: batcher.waiting == 2)
    model.gate.set()
    assert await asyncio.gather(running, staying, newcomer) == ["RUNNING", "STAYS", "TAKES THE PLACE"]
    assert model.seen == ["running", "stays", "takes the place"]
    await batcher.stop()


async def test_who_leaves_a_running_batch_does_not_disturb_the_others():
    model = Gate(is_open=False)
    batcher = await started(model, max_wait_ms=20)
    one, other = (asyncio.ensure_future(batcher.submit(text)) for text in ("one", "other"))
    await until(lambda: model.batches)
    one.cancel()
    await asyncio.sleep(0)
    model.gate.set()
    assert await other == "OTHER"
    assert one.cancelled()
    await batcher.stop()


async def test_poison_through_the_batcher_and_the_next_batch_is_well():
    batcher = await started(Gate(), max_wait_ms=20)
    answers = await asyncio.gather(*(batcher.submit(text) for text in ("a", "poison", "c")), return_exceptions=True)
    assert [answers[0], answers[2]] == ["A", "C"]
    assert isinstance(answers[1], PredictionFailed) and "poison" not in str(answers[1])
    assert await batcher.submit("still here") == "STILL HERE"
    await batcher.stop()


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text(max_size=30), st.sampled_from(["stay", "leave", "hurry"])), max_size=25), st.integers(1, 8))
def test_whatever_clients_do_answers_are_theirs_and_no_place_is_lost(clients, max_batch):
    async def run():
        batcher = await started(Gate(), max_batch=max_batch, bounds=(3, 10))
        asked = [asyncio.ensure_future(batcher.submit(text, 0.0005 if what == "hurry" else None)) for text, what in clients]
        await asyncio.sleep(0)
        for task, (_, what) in zip(asked, clients, strict=True):
            if what == "leave":
                task.cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        waiting = batcher.waiting
        await batcher.stop()
        return found, waiting

    found, waiting = asyncio.run(run())
    assert waiting == 0
    for (text, what), answer in zip(clients, found, strict=True):
        if "poison" in text:
            continue
        wrong = {"stay": (), "leave": asyncio.CancelledError, "hurry": DeadlineExceeded}[what]
        assert answer == text.upper() or isinstance(answer, wrong)
        assert what != "stay" or answer == text.upper()


# ---- a life


async def test_loading_and_warming_up_come_before_ready():
    order, gate = [], threading.Event()

    def load():
        order.append("load")
        assert gate.wait(10)
        return lambda texts: [order.append(text) for text in texts]

    batcher = Batcher(load, Batching(warm_up=("warm",)))
    with pytest.raises(NotServing, match="stopped: not started"):
        await batcher.submit("too early")
    batcher.start()
    with pytest.raises(NotServing, match="loading: the model is loading"):
        await batcher.submit("too early")
    gate.set()
    await until(lambda: batcher.state == "ready")
    assert order == ["load", "warm"] and batcher.reason == ""
    await batcher.stop()


def no_weights():
    raise FileNotFoundError("the weights are missing")


def quits():
    raise SystemExit("no licence")


@pytest.mark.parametrize(("load", "reason"), [
    (no_weights, "FileNotFoundError: the weights are missing"), (quits, "SystemExit: no licence"),
    (lambda: "not a function", "TypeError: 'str' object is not callable"),
    (lambda: lambda texts: 1 / 0, "ZeroDivisionError: division by zero"),
], ids=["missing", "exit", "no function", "warm-up fails"])
async def test_a_model_that_does_not_load_is_a_state_with_a_reason(load, reason):
    batcher = Batcher(load)
    batcher.start()
    await until(lambda: batcher.state != "loading")
    assert (batcher.state, batcher.reason) == ("failed", reason)
    with pytest.raises(NotServing, match=f"failed: {reason.split(':')[0]}"):
        await batcher.submit("x")
    await batcher.stop()


async def test_an_error_in_the_loop_is_a_state_and_nobody_waits_forever():
    def on_batch(size, seconds):
        raise RuntimeError("the counter broke")

    model = Gate()
    batcher = Batcher(lambda: model, Batching(max_batch=1, warm_up=()), on_batch)
    batcher.start()
    await until(lambda: batcher.state == "ready")
    answers = await asyncio.wait_for(asyncio.gather(*map(batcher.submit, "ab"), return_exceptions=True), 5)
    assert answers[0] == "A" and isinstance(answers[1], NotServing)
    assert (batcher.state, batcher.reason) == ("failed", "RuntimeError: the counter broke")
    await batcher.stop()


async def test_stop_finishes_what_waits_and_takes_nothing_new():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=2, max_wait_ms=10_000)
    asked = [asyncio.ensure_future(batcher.submit(str(i))) for i in range(5)]
    await until(lambda: model.batches)
    stopping = asyncio.ensure_future(batcher.stop())
    await asyncio.sleep(0)
    with pytest.raises(NotServing, match="draining"):
        await batcher.submit("late")
    model.gate.set()
    await stopping
    assert await asyncio.gather(*asked) == list("01234")
    assert batcher.state == "stopped"


async def test_stop_does_not_wait_for_a_model_that_hangs():
    model = Gate(is_open=False)
    batcher = await started(model, max_batch=1)
    asked = [asyncio.ensure_future(batcher.submit(str(i))) for i in range(3)]
    await until(lambda: model.batches)
    start = time.perf_counter()
    await batcher.stop(drain_s=0.1)
    assert time.perf_counter() - start < 1
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 1)
    assert [type(answer) for answer in answers] == [NotServing] * 3
    model.gate.set()


async def test_stop_while_loading_is_quick_and_a_second_life_works():
    gate, model = threading.Event(), Gate()

    def load():
        gate.wait(5)
        return model

    batcher = Batcher(load, Batching(warm_up=()))
    batcher.start()
    await asyncio.sleep(0.01)
    await asyncio.wait_for(batcher.stop(), 1)
    assert batcher.state == "stopped"
    gate.set()
    batcher.start()
    await until(lambda: batcher.state == "ready")
    assert await batcher.submit("again") == "AGAIN"
    await batcher.stop()


async def test_threads_end_with_their_batchers():
    gc.collect()
    before = sum(thread.name == "model" for thread in threading.enumerate())
    for _ in range(5):
        await (await started(Gate())).stop()
    await until(lambda: sum(thread.name == "model" for thread in threading.enumerate()) <= before)


# ---- a real model


@pytest.mark.required
async def test_batched_answers_equal_single_answers_of_the_real_model():
    import torch

    from nlp_portfolio.course.datasets import load
    from nlp_portfolio.neural.lora import load_adapter, predict_logits

    torch.manual_seed(0)
    model = load_adapter("banking77")
    texts = [*load("banking77", "test")["text"][:40], "a", "card " * 150, "naïve café 🙂", "a\0b", "half \ud800", " "]
    alone = np.concatenate([predict_logits(model, [text]) for text in texts])
    sizes = []
    batcher = Batcher(lambda: lambda batch: predict_logits(model, batch, len(batch)), Batching(max_wait_ms=20, warm_up=()),
                      lambda size, seconds: sizes.append(size))
    batcher.start()
    await until(lambda: batcher.state == "ready")
    together = np.stack(await asyncio.gather(*(batcher.submit(text) for text in texts)))
    await batcher.stop()
    assert max(sizes) > 8
    assert float(np.abs(together - alone).max()) < 1e-5 * float(np.abs(alone).max())
    assert together.argmax(1).tolist() == alone.argmax(1).tolist()
