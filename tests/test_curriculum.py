"Pacing rises to everything, every row is dealt, difficulty is what its formula says, and accumulated parts equal a batch."

import math
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from nlp_portfolio.exercises.lesson_23 import lost_share, part_weights  # noqa: E402
from nlp_portfolio.neural import curriculum as c  # noqa: E402

rows_of_tokens = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=20)


def plan(n: int, size: int, steps: int, seed: int = 0, **options) -> list[np.ndarray]:
    "Batches of n rows whose difficulty is their number."
    return c.curriculum_batches(range(n), size, steps, np.random.default_rng(seed), **options)


# ---- pacing


@given(st.integers(1, 300), st.floats(0.001, 1), st.floats(0.2, 8))
def test_competence_never_falls_begins_at_start_and_ends_at_everything(pace: int, start: float, power: float) -> None:
    shares = [c.competence(step, pace, start, power) for step in range(pace + 3)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(start, rel=1e-6)
    assert shares[pace:] == [1.0, 1.0, 1.0] and max(shares) == 1.0


@pytest.mark.parametrize(("step", "power", "expected"), [
    (50, 1, 0.55), (50, 2, math.sqrt(0.5 * 0.99 + 0.01)), (25, 2, math.sqrt(0.25 * 0.99 + 0.01)), (0, 2, 0.1), (99, 1, 0.991)])
def test_competence_is_the_papers(step: int, power: float, expected: float) -> None:
    assert c.competence(step, 100, 0.1, power) == pytest.approx(expected, abs=1e-12)


def test_a_root_is_quick_at_first() -> None:
    assert c.competence(10, 100, power=1) < c.competence(10, 100, power=2) < c.competence(10, 100, power=5)


@pytest.mark.parametrize("wrong", [{"pace": 0}, {"step": -1}, {"power": 0}, {"start": 0.0}, {"start": 1.5}, {"start": math.nan}])
def test_competence_refuses_values_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match="need pace >= 1, step >= 0, power > 0 and 0 < start <= 1"):
        c.competence(**({"step": 0, "pace": 10} | wrong))


# ---- difficulty


@given(rows_of_tokens)
def test_rarity_is_the_sum_of_minus_log_shares(rows: list[list[int]]) -> None:
    counts = Counter(token for row in rows for token in row)
    slow = [sum(-math.log(counts[token] / counts.total()) for token in row) for row in rows]
    np.testing.assert_allclose(c.rarity_difficulty(rows), slow, rtol=1e-9, atol=1e-9)
    assert c.length_difficulty(rows).tolist() == [len(row) for row in rows]


def test_rare_words_and_more_words_are_harder() -> None:
    common, rare, longer = c.rarity_difficulty([[1, 1, 1], [2, 1, 1], [2, 1, 1, 1]])
    assert common < rare < longer


@pytest.mark.parametrize(("rows", "message"), [([], "no rows"), ([[1], [], [2]], "row 1 has no tokens")])
def test_difficulty_of_nothing_is_refused(rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        c.rarity_difficulty(rows)


def test_length_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        c.length_difficulty([])


def test_loss_is_the_surprise_at_the_right_class() -> None:
    p = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    found = c.loss_difficulty(p, [0, 2, 1])
    np.testing.assert_allclose(found[:2], [math.log(2), -math.log(0.7)], rtol=1e-12)
    assert np.isfinite(found[2]) and found[2] > 700


@pytest.mark.parametrize(("p", "targets", "message"), [
    ([0.5, 0.5], [0], "one target a row"), ([[0.5, 0.5]], [0, 1], "one target a row"), (np.zeros((0, 2)), [], "one target a row"),
    ([[0.5, 0.5]], [2], "from 0 to 1"), ([[0.5, 0.5]], [-1], "from 0 to 1"), ([[0.5, 0.5]], [0.0], "whole numbers"),
    ([[3.0, -1.0]], [0], "softmax"), ([[math.nan, 0.5]], [0], "between 0 and 1")])
def test_loss_difficulty_refuses_what_does_not_fit(p, targets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        c.loss_difficulty(p, targets)


# ---- batches


sizes = st.tuples(st.integers(1, 60), st.integers(1, 16), st.integers(1, 40)).filter(lambda t: t[1] <= t[0])


@given(sizes, st.integers(0, 5), st.booleans())
def test_batches_have_their_size_and_no_row_twice(shape: tuple, seed: int, by_length: bool) -> None:
    n, size, steps = shape
    lengths = np.random.default_rng(seed).integers(3, 50, n) if by_length else None
    found = plan(n, size, steps, seed, lengths=lengths)
    assert [len(set(batch)) for batch in found] == [size] * steps
    assert {row for batch in found for row in batch} <= set(range(n))


@given(sizes, st.integers(1, 30), st.integers(1, 6), st.booleans())
@example((45, 5, 1), 2, 6, True)
def test_every_row_is_seen_when_a_walk_and_two_pools_are_left(shape: tuple, pace: int, pool: int, by_length: bool) -> None:
    n, size, _ = shape
    steps = pace + math.ceil(n / size) + 2 * pool  # the pool that is being dealt when all are admitted, and the last one
    found = plan(n, size, steps, pace=pace, pool=pool, lengths=[5] * n if by_length else None)
    assert {int(row) for batch in found for row in batch} == set(range(n))


@given(sizes, st.sampled_from([0.05, 0.3]), st.sampled_from([1.0, 2.0]))
def test_no_batch_holds_a_row_that_is_not_admitted(shape: tuple, start: float, power: float) -> None:
    n, size, steps = shape
    pace = max(1, steps // 2)
    for step, batch in enumerate(plan(n, size, steps, start=start, power=power)):
        assert max(batch) < max(size, math.ceil(c.competence(step, pace, start, power) * n))


def test_easy_rows_come_first_and_the_negative_turns_it_round() -> None:
    easy = plan(100, 10, 20)
    hard = c.curriculum_batches(-np.arange(100), 10, 20, np.random.default_rng(0))
    assert set(easy[0]) == set(range(10)) and set(hard[0]) == set(range(90, 100))
    assert np.mean(easy[2]) < 40 < 60 < np.mean(hard[2])


def test_everything_admitted_is_a_walk_in_random_order() -> None:
    walks = np.concatenate(plan(40, 8, 10, start=1.0)).reshape(2, 40)
    assert [sorted(walk) for walk in walks.tolist()] == [list(range(40))] * 2
    assert walks[0].tolist() != walks[1].tolist() != list(range(40))


def test_a_seed_repeats_and_another_differs() -> None:
    one, again, other = (np.concatenate(plan(50, 5, 20, seed)).tolist() for seed in (1, 1, 2))
    assert one == again != other


def test_ties_are_broken_by_chance() -> None:
    first = [c.curriculum_batches([1.0] * 60, 6, 4, np.random.default_rng(seed))[0] for seed in range(5)]
    assert len({tuple(sorted(map(int, batch))) for batch in first}) > 1


def test_grouping_by_length_saves_padding_and_keeps_the_pace() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 400)
    found = {name: plan(400, 8, 100, lengths=given) for name, given in (("grouped", lengths), ("plain", None))}
    tokens = {name: sum(8 * lengths[batch].max() for batch in batches) for name, batches in found.items()}
    assert tokens["grouped"] < 0.8 * tokens["plain"]
    assert max(found["grouped"][0]) < 40


@pytest.mark.parametrize(("options", "message"), [
    ({"difficulty": [1.0, math.nan]}, "finite"), ({"difficulty": [[1.0], [2.0]]}, "one finite number a row"),
    ({"batch_size": 3}, "from 1 to the 2 rows, got 1 and 3"), ({"batch_size": 0}, "batch size from 1"),
    ({"difficulty": []}, "from 1 to the 0 rows"), ({"steps": 0}, "steps >= 1"),
    ({"lengths": [1]}, "2 difficulties but 1 lengths"), ({"pace": 0}, "pace >= 1"),
    ({"start": 0.0}, "0 < start"), ({"power": -1.0}, "power > 0"), ({"pace": -2}, "pace >= 1")])
def test_what_makes_no_batches_is_refused(options: dict, message: str) -> None:
    right = {"difficulty": [1.0, 2.0], "batch_size": 1, "steps": 1, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=message):
        c.curriculum_batches(**(right | options))


# ---- accumulation, as the lesson's second exercise weighs it


def gradient(parts: list[tuple], weights: list[float]) -> torch.Tensor:
    "Gradient of a small tagger after a walk through the parts."
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(30, 8), torch.nn.Linear(8, 4))
    for (tokens, tags), weight in zip(parts, weights, strict=True):
        (weight * F.cross_entropy(model(tokens).flatten(0, 1), tags.flatten())).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def tagged(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Eight sentences of different lengths, padded with -100."
    rng = torch.Generator().manual_seed(seed)
    tokens, tags = torch.randint(0, 30, (8, 11), generator=rng), torch.randint(0, 4, (8, 11), generator=rng)
    for row, length in enumerate([11, 2, 9, 1, 4, 3, 1, 7]):
        tags[row, length:] = -100
    return tokens, tags


@settings(max_examples=20)
@given(st.integers(0, 50), st.lists(st.integers(1, 7), min_size=1, max_size=4, unique=True))
def test_parts_weighted_by_counted_labels_are_the_large_batch(seed: int, cuts: list[int]) -> None:
    tokens, tags = tagged(seed)
    cuts = sorted(cuts)
    parts = list(zip(tokens.tensor_split(cuts), tags.tensor_split(cuts), strict=True))
    weights = part_weights([part.tolist() for _, part in parts])
    torch.testing.assert_close(gradient(parts, weights), gradient([(tokens, tags)], [1.0]), rtol=0, atol=1e-5)


def test_a_mean_of_means_is_another_gradient() -> None:
    tokens, tags = tagged(0)
    parts = list(zip(tokens.tensor_split([1, 2]), tags.tensor_split([1, 2]), strict=True))
    whole, wrong = gradient([(tokens, tags)], [1.0]), gradient(parts, [1 / 3] * 3)
    assert float((wrong - whole).norm() / whole.norm()) > 0.1


def test_the_lost_updates_of_the_exercise_are_those_of_bfloat16() -> None:
    rng = np.random.default_rng(0)
    weights = [float(torch.tensor(w).bfloat16()) for w in rng.uniform(0.001, 20, 300)]
    updates = [float(w * factor) for w, factor in zip(weights, rng.uniform(0.0002, 0.01, 300), strict=True)]
    stayed = [(torch.tensor(w, dtype=torch.bfloat16) + torch.tensor(u)).bfloat16().item() == w
              for w, u in zip(weights, updates, strict=True)]
    assert 0.2 < np.mean(stayed) < 0.8
    assert lost_share(weights, updates) == pytest.approx(np.mean(stayed), abs=0.01)
