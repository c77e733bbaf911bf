"""The load generator and the queueing arithmetic: percentiles, open and closed loop, formulas against simulation."""

import asyncio
import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_portfolio.serving.load import (
    Refused,
    closed_loop,
    lindley,
    mm1_percentile,
    open_loop,
    paced,
    percentile,
    poisson_arrivals,
    queue_wait,
    summary,
    timed,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 1000))
def test_percentile_is_numpys_inverted_cdf(values, tenths):
    assert percentile(values, tenths / 10) == np.percentile(values, tenths / 10, method="inverted_cdf")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 100))
def test_percentile_is_the_smallest_value_that_keeps_its_promise(values, q):
    found = percentile(values, q)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= q * len(values)
    assert 100 * sum(value < found for value in values) < q * len(values)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1], 0), ([1], 101), ([1], float("nan"))])
def test_percentile_of_nothing_is_refused(values, q):
    with pytest.raises(ValueError, match="at least one value and 0 < q <= 100"):
        percentile(values, q)


async def test_timed_keeps_three_times_and_the_outcome():
    async def fine(text):
        await asyncio.sleep(0.02)

    async def refused(text):
        raise Refused("503")

    async def broken(text):
        raise KeyError(text)

    row = await timed(fine, "x", intended=time.perf_counter() - 1)
    assert row["outcome"] == "ok" and 0.02 <= row["done"] - row["sent"] < 0.2 and 1 <= row["sent"] - row["intended"] < 1.2
    assert [(await timed(ask, "x"))["outcome"] for ask in (refused, broken)] == ["503", "KeyError"]


class Counting:
    "Counts who is inside."

    def __init__(self, seconds: float):
        self.seconds, self.inside, self.most, self.texts = seconds, 0, 0, []

    async def __call__(self, text):
        self.inside, self.texts = self.inside + 1, [*self.texts, text]
        self.most = max(self.most, self.inside)
        await asyncio.sleep(self.seconds)
        self.inside -= 1


@pytest.mark.parametrize("clients", [1, 3, 50])
async def test_closed_loop_has_as_many_inside_as_clients_and_asks_each_text_once(clients):
    ask = Counting(0.002)
    run = await closed_loop(ask, [str(i) for i in range(30)], clients)
    assert ask.most == min(clients, 30) and sorted(ask.texts, key=int) == [str(i) for i in range(30)]
    assert len(run) == 30 and (run["sent"] == run["intended"]).all()


async def test_open_loop_sends_when_due_whatever_has_become_of_the_others():
    ask = Counting(0.3)
    run = await paced(ask, ["x"] * 20, 0.005 * np.arange(20))
    assert ask.most == 20
    assert (run["sent"] - run["intended"]).between(0, 0.05).all()
    gaps = run["intended"].diff().dropna()
    assert np.allclose(gaps, 0.005)


async def test_latency_counts_from_when_a_request_was_due():
    lock = asyncio.Lock()

    async def stalls(text):
        async with lock:
            await asyncio.sleep(0.2 if text == "0" else 0.001)

    run = await paced(stalls, [str(i) for i in range(10)], 0.01 * np.arange(10))
    from_due = 1000 * (run["done"] - run["intended"])
    assert from_due[5] > 140 and summary(run)["p50_ms"] > 100
    late = paced(stalls, ["1"], [-5.0])  # a generator that is late says so
    assert summary(await late)["p50_ms"] > 4000


def test_poisson_arrivals_come_at_the_rate_and_bunch_as_they_should():
    due = poisson_arrivals(50, 20_000, np.random.default_rng(1))
    assert math.isclose(len(due) / due[-1], 50, rel_tol=0.03) and (np.diff(due) >= 0).all()
    counts = np.bincount(due.astype(int))[:-1]
    assert math.isclose(counts.var() / counts.mean(), 1, abs_tol=0.2)
    with pytest.raises(ValueError, match="rate must be above 0"):
        poisson_arrivals(0, 5, np.random.default_rng(1))


async def test_open_loop_repeats_its_arrivals_for_a_seed():
    runs = [await open_loop(Counting(0), ["x"] * 20, 500, seed) for seed in (1, 1, 2)]
    first, same, other = (run["intended"].diff().dropna().round(6).tolist() for run in runs)
    assert first == same and first != other


def test_summary_of_known_rows():
    run = pd.DataFrame([{"intended": i / 10, "sent": i / 10, "done": i / 10 + 0.1, "outcome": "ok"} for i in range(9)]
                       + [{"intended": 0.0, "sent": 0.0, "done": 2.0, "outcome": "503"}])
    found = summary(run)
    assert (found["per_second"], found["answered"]) == (4.5, 0.9)
    assert all(math.isclose(found[name], 100) for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms"))
    nothing = summary(run[run["outcome"] == "503"])
    assert nothing["answered"] == 0 and "p95_ms" not in nothing and math.isnan(nothing["mean_ms"])


# ---- queues


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40))
def test_lindley_is_what_a_server_with_a_line_does(pairs):
    due = np.cumsum([gap for gap, _ in pairs])
    work = [needs for _, needs in pairs]
    line, waits, clock = list(zip(due, work, strict=True)), [], 0
    while line:  # second by second: whoever is first in line is served when the server is free
        came, needs = line.pop(0)
        clock = max(clock, came)
        waits.append(clock - came)
        clock += needs
    assert lindley(due, work).tolist() == waits


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0])
def test_formula_and_simulation_agree(rho, cv):
    rng, n, s = np.random.default_rng(7), 200_000, 0.01
    work = {0.0: lambda: np.full(n, s), 0.5: lambda: rng.gamma(4, s / 4, n), 1.0: lambda: rng.exponential(s, n)}[cv]()
    waits = lindley(poisson_arrivals(rho / s, n, rng), work)
    assert math.isclose(waits.mean(), queue_wait(rho / s, s, cv), rel_tol=0.06)
    if cv == 1.0:
        for q in (50, 95):
            assert math.isclose(percentile(waits + work, q), mm1_percentile(rho / s, s, q), rel_tol=0.06)


def test_an_overfull_server_never_answers():
    assert queue_wait(100, 0.01) == queue_wait(200, 0.01) == mm1_percentile(101, 0.01, 95) == math.inf
    assert queue_wait(50, 0.01, cv=0) == queue_wait(50, 0.01) / 2 == 0.005
