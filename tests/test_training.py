"""nlp_portfolio.neural.training: parity with PyTorch and NumPy, repeatable runs, early stopping, class weights, bad input."""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from nlp_portfolio.neural import training as t

ROWS, WIDTH, CLASSES = 60, 8, 4
quick = settings(max_examples=60, deadline=None, derandomize=True)
numbers = st.floats(0, 1, allow_nan=False).map(lambda value: round(value, 2))


@pytest.fixture(autouse=True)
def one_thread():
    before, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(algorithms)


def blobs(rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    "Rows around one centre a class, far enough apart to be learnt and near enough to be missed."
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % CLASSES
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    return torch.tensor(centres[y] + 0.8 * rng.normal(size=(rows, WIDTH)), dtype=torch.float32), torch.from_numpy(y)


def linear(seed: int = 1) -> nn.Linear:
    t.seed_everything(seed)
    return nn.Linear(WIDTH, CLASSES)


def train(model: nn.Module, *, size: int = 16, seed: int | None = 3, data=None, dev=None, **options) -> t.History:
    batches = t.Batches(*(data or blobs()), size=size, seed=seed)
    return t.fit(model, batches, dev or t.Batches(*blobs(seed=1)), device="cpu", **options)


# ---- losses and metric


def numpy_cross_entropy(z: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    "From the definition, in float64, with nothing of PyTorch."
    z, y = z.reshape(-1, z.shape[-1]), y.ravel()
    z, y = z[y != -100], y[y != -100]
    z = z - z.max(1, keepdims=True)
    loss = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    return float((loss * weight[y]).sum() / weight[y].sum())


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (1, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_the_definition(shape, weighted):
    rng = np.random.default_rng(len(shape) + weighted)
    z, y = rng.normal(scale=4, size=(*shape, CLASSES)), rng.integers(0, CLASSES, shape)
    if y.size > 3:
        y.ravel()[[0, 2]] = -100
    weight = rng.uniform(0.5, 3, CLASSES) if weighted else np.ones(CLASSES)
    ours = t.cross_entropy(torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(weight) if weighted else None)
    assert ours.item() == pytest.approx(numpy_cross_entropy(z, y, weight), rel=1e-9)


@quick
@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 10**6))
def test_cross_entropy_and_gradient_equal_torch(rows, classes, seed):
    rng = np.random.default_rng(seed)
    z = torch.tensor(rng.normal(scale=3, size=(rows, classes)), requires_grad=True)
    y = torch.from_numpy(rng.integers(0, classes, rows))
    ours, theirs = t.cross_entropy(z, y), F.cross_entropy(z, y)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(ours, z)
    assert torch.allclose(gradient, (z.softmax(-1) - F.one_hot(y, classes)).detach() / rows, atol=1e-12)
    assert torch.autograd.gradcheck(lambda logits: t.cross_entropy(logits, y), (z,))


def test_cross_entropy_of_huge_logits_is_finite():
    assert t.cross_entropy(torch.tensor([[1000.0, 999.0]]), torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-1)))


@pytest.mark.parametrize(("logits", "labels", "says"), [
    (torch.randn(3, 4), torch.tensor([0, 1]), "one label for each row"),
    (torch.randn(3), torch.tensor([0, 1, 2]), "one label for each row"),
    (torch.randn(2, 3, 4), torch.tensor([0, 1]), "one label for each row"),
    (torch.randn(3, 4), torch.tensor([0, 1, 4]), "labels run from 0 to 4"),
    (torch.randn(3, 4), torch.tensor([0, 1, -1]), "labels run from -1"),
    (torch.randn(3, 4), torch.eye(3, 4), "use F.binary_cross_entropy_with_logits"),
    (torch.randn(3, 4), torch.tensor([0.0, 1.0, 2.0]), "use F.binary_cross_entropy_with_logits"),
    (torch.randn(2, 4), torch.tensor([-100, -100]), "nothing is left to learn from"),
])
def test_labels_that_do_not_fit(logits, labels, says):
    for function in (t.cross_entropy, t.accuracy):
        with pytest.raises(ValueError, match=says):
            function(logits, labels)


def test_probabilities_are_no_logits():
    z, y = torch.randn(5, CLASSES), torch.tensor([0, 1, 2, 3, 0])
    with pytest.raises(ValueError, match="pass logits"):
        t.cross_entropy(z.softmax(-1), y)
    for logits in (z, z.abs(), torch.zeros(5, CLASSES), z.log_softmax(-1)):
        assert math.isfinite(t.cross_entropy(logits, y).item())


def test_accuracy_counts_what_counts():
    z = torch.tensor([[[2.0, 0, 0], [0, 2, 0], [0, 0, 2]]])
    assert t.accuracy(z, torch.tensor([[0, 0, -100]])) == 0.5
    assert t.accuracy(z[0], torch.tensor([0, 1, 2])) == 1.0


# ---- batches


@quick
@given(st.integers(1, 80), st.integers(1, 90), st.one_of(st.none(), st.integers(0, 99)))
@example(5, 5, None)
def test_every_row_is_in_exactly_one_batch(n, size, seed):
    found = t.batches(n, size, None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(found).tolist()) == list(range(n))
    assert len(found) == math.ceil(n / size) and all(len(rows) == size for rows in found[:-1])
    if seed is None:
        assert np.concatenate(found).tolist() == list(range(n))


@pytest.mark.parametrize(("n", "size"), [(0, 3), (3, 0), (-1, 2)])
def test_no_rows_or_no_size(n, size):
    with pytest.raises(ValueError, match="at least one row and a batch size of at least 1"):
        t.batches(n, size)


def order(batches: t.Batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def test_order_depends_on_seed_and_epoch_alone():
    make = partial(t.Batches, torch.arange(40.0)[:, None], list(range(40)), size=7)
    batches = make(seed=5)
    first = order(batches)
    assert first == order(batches) == order(make(seed=5)) != list(range(40))
    batches.set_epoch(1)
    assert order(batches) != first and sorted(order(batches)) == sorted(first) and order(make(seed=6)) != first
    assert order(make()) == list(range(40)) and len(make()) == 6


def test_inputs_and_labels_stay_together():
    X = torch.arange(30.0)[:, None]
    columns = {"a": X, "b": X.numpy() * 2}
    for inputs, labels in t.Batches(columns, np.arange(30), size=4, seed=1):
        assert inputs["a"].ravel().tolist() == labels.tolist() and torch.equal(inputs["b"], 2 * inputs["a"])
    texts = [f"{i}" for i in range(30)]
    for inputs, labels in t.Batches(texts, range(30), size=4, seed=1, collate=lambda some: torch.tensor([*map(int, some)])):
        assert inputs.tolist() == labels.tolist()


def test_labels_of_every_kind():
    X = torch.zeros(3, 2)
    kinds = {torch.int64: [0, 1, 2], torch.float32: [[0.0, 1.0]] * 3}
    for kind, labels in kinds.items():
        assert next(iter(t.Batches(X, labels)))[1].dtype == kind
    ragged = next(iter(t.Batches(X, [[1, 2, 3], [4], [5, 6]])))[1]
    assert ragged.tolist() == [[1, 2, 3], [4, -100, -100], [5, 6, -100]]


@pytest.mark.parametrize(("inputs", "labels", "says"), [
    (torch.zeros(3, 2), [0, 1], "3 rows of inputs but 2 labels"),
    (torch.zeros(0, 2), [], "at least one row"),
    ({"a": torch.zeros(3), "b": torch.zeros(2)}, [0, 1, 2], r"equally many rows, got \[2, 3\]"),
    ({}, [], "equally many rows"),
    (["a", "b"], [0, 1], "give collate="),
    ("text", [0, 1, 0, 1], "for a list of texts"),
    (torch.zeros(2, 2), ["fee", "card"], "give every class a number"),
    (torch.zeros(2, 2), [0.0, float("nan")], "drop those rows"),
])
def test_batches_of_what_cannot_be_batched(inputs, labels, says):
    with pytest.raises(ValueError, match=says):
        t.Batches(inputs, labels)


# ---- early stopping


def plain_stop(values: list[float], patience: int, min_delta: float) -> tuple[int, int]:
    "A second, step by step, telling of the same rule: the best epoch and how many were run."
    best, lowest, waited = 0, math.inf, 0
    for epoch, value in enumerate(values):
        if value < lowest - min_delta:
            best, lowest, waited = epoch, value, 0
        else:
            waited += 1
        if waited >= patience:
            return best, epoch + 1
    return best, len(values)


@quick
@given(st.lists(numbers, min_size=1, max_size=12), st.integers(1, 4), st.sampled_from([0.0, 0.05]))
@example([0.5, 0.5, 0.5], 2, 0.0)
@example([0.5, 0.4, 0.5, 0.39, 0.5, 0.5], 2, 0.0)
def test_early_stopping_follows_the_rule(values, patience, min_delta):
    for monitor, sign in (("dev_loss", 1), ("dev_score", -1)):
        stopping = t.EarlyStopping(patience, min_delta, monitor)
        seen = [sign * value for value in values]
        ran = next((n for n in range(1, len(seen) + 1) if stopping.should_stop(seen[:n])), len(seen))
        assert (stopping.best(seen[:ran]), ran) == plain_stop(values, patience, min_delta)


def test_nan_is_no_improvement():
    assert t.EarlyStopping(2).best([float("nan"), 0.5, float("nan"), 0.6]) == 1


@pytest.mark.parametrize("bad", [{"patience": 0}, {"min_delta": -1}, {"monitor": "loss"}])
def test_early_stopping_with_bad_settings(bad):
    with pytest.raises(ValueError, match="patience >= 1"):
        t.EarlyStopping(**bad)


def test_fit_stops_and_keeps_the_best_weights():
    model, noisy = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES)), blobs(20)
    dev = t.Batches(*blobs(seed=1))
    history = train(model, data=noisy, dev=dev, lr=0.05, epochs=60, stopping=t.EarlyStopping(patience=4))
    losses = history.column("dev_loss")
    assert len(losses) < 60 and history.best_epoch == int(np.argmin(losses)) + 1 == len(losses) - 4
    kept = F.cross_entropy(t.predict_logits(model, dev.inputs), dev.labels).item()
    assert kept == pytest.approx(min(losses), rel=1e-4) and kept < losses[-1]


def test_without_stopping_the_last_weights_stay():
    model, dev = linear(), t.Batches(*blobs(seed=1))
    history = train(model, dev=dev, epochs=3)
    kept = F.cross_entropy(t.predict_logits(model, dev.inputs), dev.labels).item()
    assert history.best_epoch is None and kept == pytest.approx(history.column("dev_loss")[-1], rel=1e-5)


# ---- fit


def weights(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().ravel() for weight in model.parameters()])


def dropped(seed: int) -> nn.Module:
    t.seed_everything(seed)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def test_two_runs_are_equal_to_the_last_digit():
    runs = [(model := dropped(7), train(model, epochs=3)) for _ in range(2)]
    assert torch.equal(weights(runs[0][0]), weights(runs[1][0])) and runs[0][1].steps == runs[1][1].steps
    assert not torch.equal(weights(runs[0][0]), weights((other := dropped(8), train(other, epochs=3))[0]))
    again = dropped(7)
    assert train(again, epochs=3, seed=4).steps != runs[0][1].steps


def test_the_shipped_loop_is_the_plain_loop():
    ours, plain = linear(), linear()
    train(ours, epochs=2, lr=0.01, weight_decay=0.1)
    optimizer, (X, y) = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1), blobs()
    for epoch in range(2):
        for rows in t.batches(ROWS, 16, np.random.default_rng([3, epoch])):
            optimizer.zero_grad()
            F.cross_entropy(plain(X[rows]), y[rows]).backward()
            optimizer.step()
    assert torch.allclose(weights(ours), weights(plain), atol=1e-7)


def test_the_convex_problem_has_the_answer_of_scikit_learn():
    (X, y), model, C = blobs(200), linear(), 1.0
    groups = [{"params": [model.weight], "weight_decay": 1 / (C * len(y))}, {"params": [model.bias]}]
    t.fit(model, [(X, y)], epochs=400, optimizer=torch.optim.Adam(groups, lr=0.3), scheduler=t.linear_warmup, device="cpu")
    theirs = LogisticRegression(C=C, max_iter=1000, tol=1e-8).fit(X.double().numpy(), y.numpy())
    assert np.abs(model.weight.detach().numpy() - theirs.coef_).max() < 1e-4
    ours = t.predict_logits(model, X).softmax(-1).numpy()
    assert np.abs(ours - theirs.predict_proba(X.double().numpy())).max() < 1e-4


@pytest.mark.parametrize("size", [32, 60])  # 60: one step an epoch; 32: the last step is shorter
def test_accumulated_parts_are_one_batch(size):
    whole, parts = linear(), linear()
    sgd = partial(torch.optim.SGD, lr=0.5)
    train(whole, size=size, epochs=3, optimizer=sgd(whole.parameters()))
    steps = train(parts, size=size // 4, accumulate=4, epochs=3, optimizer=sgd(parts.parameters())).steps
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6) and len(steps) == 3 * math.ceil(60 / size)


def test_accumulation_counts_tokens_and_not_parts():
    "One part with nine counted tokens and one with one: the mean is over ten tokens."
    X, y = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 9, dtype=torch.long)
    y[1, 1:] = -100
    whole, parts = linear(), linear()
    for model, train_on in ((whole, [(X, y)]), (parts, [(X[:1], y[:1]), (X[1:], y[1:])])):
        t.fit(model, train_on, epochs=2, accumulate=2, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), device="cpu")
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)


def test_clipping_limits_the_step_and_reports_the_norm():
    before, X, y = weights(linear()), *blobs()
    model = linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    history = t.fit(model, [(1000 * X, y)], epochs=1, optimizer=sgd, max_norm=0.5, device="cpu")
    assert history.column("grad_norm")[0] > 50
    assert (weights(model) - before).norm().item() == pytest.approx(0.5, rel=1e-3)


def test_scheduler_moves_every_optimizer_step():
    seen: list[int] = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int):
        seen.append(steps)
        return t.linear_warmup(optimizer, steps, warmup=0.5)

    history = train(linear(), size=10, accumulate=4, epochs=3, lr=0.1, scheduler=schedule)
    assert seen == [6] == [len(history.steps)]
    assert history.column("lr") == pytest.approx([0.1, 0.1 * 2 / 3, 0.0], abs=1e-9)  # 6 steps: 3 up, 3 down


@quick
@given(st.integers(1, 60), st.floats(0, 1))
def test_warmup_rises_then_falls_to_zero(steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = t.linear_warmup(optimizer, steps, warmup), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    top = int(np.argmax(rates))
    assert max(rates) == 2.0 and rates[: top + 1] == sorted(rates[: top + 1]) and min(rates) > 0
    assert rates[top:] == sorted(rates[top:], reverse=True) and optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_modes_train_and_eval():
    seen: list[bool] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(x)

    model = Spy(WIDTH, CLASSES)
    t.fit(model, [blobs()] * 2, [blobs(seed=1)], epochs=2, device="cpu")
    assert seen == [True, True, False] * 2 and not model.training
    model.train()
    t.predict_logits(model, blobs()[0])
    assert model.training and seen[-1] is False


class Encoder(nn.Module):
    "What transformers look like: named inputs, an object with logits."

    def __init__(self, tokens: bool = False):
        super().__init__()
        self.embed, self.head, self.tokens = nn.Embedding(50, 12), nn.Linear(12, CLASSES), tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask, vectors = attention_mask.unsqueeze(-1).float(), self.embed(input_ids)
        return SimpleNamespace(logits=self.head(vectors if self.tokens else (vectors * mask).sum(1) / mask.sum(1)))


def collate(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def sentences(rng: np.random.Generator, n: int = 48) -> list[list[int]]:
    return [rng.integers(1, 50, rng.integers(2, 9)).tolist() for _ in range(n)]


def test_an_encoder_with_collate_learns():
    t.seed_everything(0)
    texts = sentences(np.random.default_rng(0))
    labels = [row[0] % CLASSES for row in texts]
    model, train_on = Encoder(), t.Batches(texts, labels, size=8, seed=0, collate=collate)
    history = t.fit(model, train_on, t.Batches(texts, labels, collate=collate), epochs=40, lr=0.03, device="cpu")
    assert history.column("dev_score")[-1] > 0.95
    logits = t.predict_logits(model, texts, batch_size=7, collate=collate)
    assert logits.shape == (48, CLASSES) and not logits.requires_grad
    assert torch.allclose(logits, t.predict_logits(model, texts, batch_size=48, collate=collate), atol=1e-5)
    assert t.accuracy(logits, torch.tensor(labels)) == pytest.approx(history.column("dev_score")[-1])


def test_token_labels_of_different_lengths_learn():
    t.seed_everything(0)
    texts = sentences(np.random.default_rng(1))
    tags = [[token % CLASSES for token in row] for row in texts]
    model, data = Encoder(tokens=True), t.Batches(texts, tags, size=8, seed=0, collate=collate)
    history = t.fit(model, data, data, epochs=30, lr=0.05, device="cpu")
    assert history.column("dev_score")[-1] > 0.99
    logits = t.predict_logits(model, texts, batch_size=5, collate=collate)
    assert logits.shape == (48, max(map(len, texts)), CLASSES)
    assert all(logits[i, : len(row)].argmax(-1).tolist() == tags[i] for i, row in enumerate(texts))


def test_other_losses_train_too():
    X, y = blobs()
    several = F.one_hot(y, CLASSES).float()
    score: Callable[[Tensor, Tensor], float] = lambda z, y: ((z > 0) == (y > 0.5)).float().mean().item()  # noqa: E731
    history = t.fit(linear(), t.Batches(X, several, seed=0), t.Batches(X, several), epochs=30, lr=0.05, device="cpu",
                    loss=F.binary_cross_entropy_with_logits, metric=score)
    assert history.column("dev_score")[-1] > 0.9
    with pytest.raises(ValueError, match="binary_cross_entropy_with_logits"):
        t.fit(linear(), t.Batches(X, several), epochs=1, device="cpu")


def test_frozen_weights_stay():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES))
    model[0].requires_grad_(False)
    before, head = model[0].weight.clone(), model[1].weight.clone()
    train(model, epochs=2, stopping=t.EarlyStopping(), weight_decay=0.5)
    assert torch.equal(model[0].weight, before) and not torch.equal(model[1].weight, head)


def test_history_is_a_table():
    history = train(linear(), epochs=2)
    frame = history.frame()
    assert frame.index.tolist() == [1, 2] and len(history.steps) == 2 * math.ceil(ROWS / 16)
    assert list(frame) == ["train_loss", "grad_norm", "lr", "dev_loss", "dev_score", "seconds"]
    assert frame["train_loss"][1] == pytest.approx(np.average(history.steps[:4], weights=[16, 16, 16, 12]))
    assert "dev_loss" not in t.fit(linear(), [blobs()], epochs=1, device="cpu").frame()


def test_progress_is_shown_when_wanted(capsys):
    train(linear(), epochs=1)
    assert capsys.readouterr().err == ""
    train(linear(), epochs=1, progress=True)
    assert "epoch 1" in capsys.readouterr().err


# ---- what stops a run


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoilt():
    X, y = blobs()
    X[5, 0] = float("nan")
    model = linear()
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d: the loss is nan .* smaller lr \(now 0.001\) or max_norm"):
        train(model, data=(X, y))
    assert weights(model).isfinite().all()


def test_a_learning_rate_that_explodes_stops():
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Linear(16, CLASSES))
    with pytest.raises(FloatingPointError, match="Try a smaller lr"):
        train(model, epochs=50, optimizer=torch.optim.SGD(model.parameters(), lr=1e20))


@pytest.mark.parametrize(("options", "says"), [
    ({"epochs": 0}, "epochs and accumulate must be at least 1"),
    ({"accumulate": 0}, "epochs and accumulate must be at least 1"),
    ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)}, "no weight of this model"),
    ({"stopping": t.EarlyStopping()}, "give dev batches"),
    ({"train": []}, "no batches in epoch 1"),
    ({"dev": []}, "dev has no batches"),
    ({"train": iter([blobs()])}, "no batches in epoch 2"),
    ({"train": iter([blobs()]), "scheduler": t.linear_warmup}, "number of steps"),
])
def test_fit_with_bad_input(options, says):
    with pytest.raises(ValueError, match=says):
        t.fit(linear(), **{"train": [blobs()], "epochs": 2, "device": "cpu"} | options)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="requires_grad is False"):
        train(linear().requires_grad_(False))


def test_predict_logits_of_nothing():
    with pytest.raises(ValueError, match="at least one row"):
        t.predict_logits(linear(), torch.zeros(0, WIDTH))


# ---- class weights


@quick
@given(st.lists(st.integers(0, 3), min_size=4, max_size=60).filter(lambda labels: len(set(labels)) == 4))
def test_class_weights_equal_scikit_learn(labels):
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=np.array(labels))
    ours = t.class_weights(labels, 4)
    assert np.allclose(ours.numpy(), theirs, rtol=1e-6)
    assert torch.equal(ours, t.class_weights([*labels, -100], 4))
    assert ours[torch.tensor(labels)].mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("labels", "classes", "says"), [
    ([0, 0, 2], 3, r"no rows for the classes \[1\]"), ([], 2, "no rows"), ([0, 3], 2, "labels run from 0 to 3"),
    ([-1, 0], 2, "labels run from -1"),
])
def test_class_weights_of_bad_labels(labels, classes, says):
    with pytest.raises(ValueError, match=says):
        t.class_weights(labels, classes)


def test_class_weights_find_more_of_the_rare_class():
    X, y = blobs(400)
    keep = (y != 0) | (torch.arange(400) < 20)
    recall = {}
    for name, weight in {"none": None, "balanced": t.class_weights(y[keep], CLASSES)}.items():
        train(model := linear(), data=(X[keep], y[keep]), epochs=20, lr=0.02, loss=partial(t.cross_entropy, weight=weight))
        recall[name] = (t.predict_logits(model, X).argmax(1) == y)[y == 0].float().mean().item()
    assert recall["balanced"] > recall["none"] + 0.05


# ---- saving


def test_saved_weights_give_equal_logits_and_train_on_equally(tmp_path):
    model = dropped(2)
    train(model, epochs=2)
    file = t.save_weights(model, tmp_path / "deep" / "model")
    assert file.name == "model.safetensors"
    again = t.load_weights(dropped(9), file)
    X = blobs()[0]
    assert not again.training and torch.equal(t.predict_logits(again, X), t.predict_logits(model, X))
    for one in (model, again):
        t.seed_everything(5)
        train(one, epochs=2)
    assert torch.equal(weights(model), weights(again))


def test_plain_sgd_resumes_where_it_stopped(tmp_path):
    "Four epochs at once, and two, saved and loaded, and two more in the same order."
    def sgd(model: nn.Module, epochs: range) -> None:
        for epoch in epochs:
            batches = t.Batches(*blobs(), size=16, seed=3)
            batches.set_epoch(epoch)
            t.fit(model, list(batches), epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")

    whole, first = linear(), linear()
    train(whole, epochs=4, optimizer=torch.optim.SGD(whole.parameters(), lr=0.1))
    sgd(first, range(2))
    second = t.load_weights(linear(8), t.save_weights(first, tmp_path / "half.safetensors"))
    sgd(second, range(2, 4))
    assert torch.equal(weights(whole), weights(second))


def test_tied_weights_are_saved_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(200, 200), nn.Linear(200, 200)
            self.b.weight = self.a.weight

    model = Tied()
    file = t.save_weights(model, tmp_path / "tied")
    other = t.load_weights(Tied(), file)
    assert torch.equal(other.b.weight, model.a.weight) and file.stat().st_size < 1.5 * 200 * 200 * 4


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94."])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (file := tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors holds no weights for this Linear"):
        t.load_weights(linear(), file)


def test_weights_of_another_shape_are_refused(tmp_path):
    file = t.save_weights(nn.Linear(3, 2), tmp_path / "small")
    with pytest.raises(ValueError, match="no weights for this Linear"):
        t.load_weights(linear(), file)
    with pytest.raises(FileNotFoundError):
        t.load_weights(linear(), tmp_path / "missing.safetensors")
