"An exported model answers like the one it came from, a broken cache is built again, and a cascade asks when it doubts."

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402
from scipy.special import log_softmax, softmax  # noqa: E402

from nlp_portfolio.classic.linear import intent_model  # noqa: E402
from nlp_portfolio.course.datasets import READERS  # noqa: E402
from nlp_portfolio.neural import compress, lora  # noqa: E402

REAL = os.environ.get("NLP_PORTFOLIO_DATA", "")
ODD = ["", " ", "🙂" * 400, "nul \0 byte", "\ud800 half a pair", "long " * 300]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(READERS["sample"]("banking77", "test")["text"])


@pytest.fixture(scope="module")
def shipped() -> lora.EncoderClassifier:
    return lora.load_adapter("banking77")


@pytest.fixture(scope="module")
def graph(shipped: lora.EncoderClassifier) -> "onnx.ModelProto":
    "The one export of this file."
    return compress.onnx_graph(shipped)


@pytest.fixture(scope="module")
def full(graph: "onnx.ModelProto") -> compress.OnnxClassifier:
    return compress.OnnxClassifier(graph)


@pytest.fixture(scope="module")
def small(graph: "onnx.ModelProto") -> compress.OnnxClassifier:
    return compress.OnnxClassifier(compress.int8_graph(graph))


@pytest.fixture
def exports(graph: "onnx.ModelProto", monkeypatch: pytest.MonkeyPatch) -> list[int]:
    "Grows by one with each export; the export itself is the one made above."
    calls: list[int] = []
    monkeypatch.setattr(compress, "onnx_graph", lambda model: calls.append(1) or graph)
    return calls


# ---- parity


@pytest.mark.required
def test_fp32_answers_like_torch(shipped: lora.EncoderClassifier, full: compress.OnnxClassifier, texts: list[str]) -> None:
    every = [*texts, *ODD]
    np.testing.assert_allclose(full.predict_logits(every), lora.predict_logits(shipped, every), atol=1e-4, rtol=0)
    np.testing.assert_allclose(full.predict_proba(every), lora.predict_proba(shipped, every), atol=1e-5, rtol=0)
    assert full.predict(every) == lora.predict(shipped, every)
    assert full.labels == shipped.labels and full.max_length == shipped.max_length


@pytest.mark.required
def test_int8_answers_like_fp32(full: compress.OnnxClassifier, small: compress.OnnxClassifier, texts: list[str]) -> None:
    reference = full.predict_logits(texts)
    found = compress.fidelity(reference, small.predict_logits(texts))
    assert found["agreement"] >= 0.995 and 0 < found["largest_difference"] <= 0.05
    two_best = np.sort(softmax(reference, axis=1), axis=1)[:, -2:]
    clear = two_best[:, 1] - two_best[:, 0] > 0.05
    assert clear.mean() > 0.9
    assert (reference.argmax(1) == small.predict_logits(texts).argmax(1))[clear].all()


@pytest.mark.parametrize("name", ["full", "small"])
def test_batched_equals_single(name: str, texts: list[str], request: pytest.FixtureRequest) -> None:
    model, every = request.getfixturevalue(name), [*texts[:40], *ODD]
    together = model.predict_logits(every, batch_size=16)
    alone = np.concatenate([model.predict_logits([text]) for text in every])
    np.testing.assert_allclose(softmax(together, axis=1), softmax(alone, axis=1), atol=1e-5 if name == "full" else 1e-3)
    assert model.predict_logits([]).shape == (0, 77) and model.predict([]) == []


def test_exporting_leaves_the_model_alone(shipped: lora.EncoderClassifier, graph: "onnx.ModelProto") -> None:
    assert hasattr(shipped.encoder, "merge_and_unload") and not hasattr(compress.merged(shipped).encoder, "merge_and_unload")
    axes = {one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim] for one in graph.graph.input}
    assert set(axes) == {"input_ids", "attention_mask"} and all(isinstance(d, str) for d in axes["input_ids"])


def test_the_int8_file_is_small_and_its_source_unchanged(graph: "onnx.ModelProto") -> None:
    before, size = graph.ByteSize(), compress.int8_graph(graph).ByteSize()
    assert size <= 25_000_000 < 90_000_000 < before == graph.ByteSize()


def test_a_block_size_the_runtime_lacks_is_refused(graph: "onnx.ModelProto") -> None:
    with pytest.raises(ValueError, match="block must be 16, 32"):
        compress.int8_graph(graph, block=48)


def test_many_threads_get_the_same_answers(small: compress.OnnxClassifier, texts: list[str]) -> None:
    expected, found = small.predict_logits(texts[:24], 8), {}

    def ask(i: int) -> None:
        found[i] = np.concatenate([small.predict_logits(texts[start : start + 8], 8) for start in (0, 8, 16)])

    crowd = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    [one.start() for one in crowd], [one.join() for one in crowd]
    assert sorted(found) == list(range(6))
    for logits in found.values():
        np.testing.assert_allclose(logits, expected, atol=0.05)


@pytest.mark.parametrize("bad", ["one string", [None], [3.5], [b"bytes"]])
def test_what_is_no_list_of_texts_is_refused(small: compress.OnnxClassifier, bad: object) -> None:
    with pytest.raises(TypeError, match="expected"):
        small.predict(bad)


def test_what_is_no_exported_classifier_is_refused(tmp_path: Path, graph: "onnx.ModelProto") -> None:
    with pytest.raises(FileNotFoundError, match="no model file 'absent.onnx'"):
        compress.OnnxClassifier(tmp_path / "absent.onnx")
    (tmp_path / "cut.onnx").write_bytes(compress.int8_graph(graph).SerializeToString()[:-5000])
    for junk in (b"", b"junk", tmp_path / "cut.onnx"):
        with pytest.raises(ValueError, match="no ONNX model that can be run"):
            compress.OnnxClassifier(junk)
    foreign = onnx.ModelProto()
    foreign.CopyFrom(graph)
    del foreign.metadata_props[:]
    with pytest.raises(ValueError, match="lacks labels, max_length, tokenizer"):
        compress.OnnxClassifier(foreign)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        compress.OnnxClassifier(graph, threads=0)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="NLP_PORTFOLIO_DATA is not set")
def test_int8_keeps_the_label_on_real_queries(full, small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", REAL)
    rows = READERS["local"]("banking77", "test")
    found = compress.fidelity(full.predict_logits(rows["text"]), small.predict_logits(rows["text"]))
    assert found["agreement"] >= 0.995 and found["largest_difference"] <= 0.05
    quality = [np.mean(np.array(one.predict(rows["text"])) == np.array(rows["intent"])) for one in (full, small)]
    assert quality[1] >= 0.995 * quality[0]


# ---- numbers in blocks

# Four digits behind the point, as large as weights are: the scale of a block near the smallest float32 would lose its own.
numbers = st.integers(-90_000, 90_000).map(lambda n: np.float32(n / 10_000))
weights = arrays(np.float32, st.tuples(st.integers(1, 70), st.integers(1, 9)), elements=numbers)


@settings(max_examples=60, deadline=None)
@given(weights, st.sampled_from([16, 32, 64]))
def test_no_number_moves_by_more_than_half_a_step(weight: np.ndarray, block: int) -> None:
    codes, scales = compress.int8_blocks(weight, block)
    again = compress.from_blocks(codes, scales, len(weight))
    assert again.shape == weight.shape and codes.dtype == np.uint8 and codes.min() >= 1
    step = np.repeat(scales, block, axis=1)[:, : len(weight)].T
    assert (np.abs(again - weight) <= step / 2 + 1e-5).all()
    assert (again[weight == 0] == 0).all()
    largest = np.abs(codes.astype(int) - 128).max(2)
    assert set(np.unique(largest)) <= {0, 127}  # every block uses the whole range, or is all zeros


def test_smaller_blocks_lose_less() -> None:
    weight = np.random.default_rng(0).standard_normal((256, 8)).astype(np.float32)
    weight[3] *= 40  # an outlier spoils the scale of its block
    lost = [np.abs(compress.from_blocks(*compress.int8_blocks(weight, b), 256) - weight).mean() for b in (16, 64, 256)]
    assert lost[0] < 0.5 * lost[1] < lost[1] < lost[2]


def test_fidelity_says_what_changed() -> None:
    a = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert compress.fidelity(a, a) == {"agreement": 1.0, "largest_difference": 0.0}
    found = compress.fidelity(a, np.array([[2.0, 0.0], [2.0, 0.0]]))
    assert found["agreement"] == 0.5 and abs(found["largest_difference"] - np.tanh(1)) < 1e-9
    for other in (a[:1], np.zeros((0, 2))):
        with pytest.raises(ValueError, match="same shape"):
            compress.fidelity(np.zeros((0, 2)) if not len(other) else a, other)


def test_the_clock_counts_calls_after_the_warm_up() -> None:
    seen: list[int] = []
    spent = compress.latency_ms(lambda batch: seen.append(len(batch)), ["a"] * 5, batch_size=2, warm_up=4)
    assert len(spent) == 3 and seen == [2, 2, 1, 2, 2, 2, 1] and (spent >= 0).all()
    for wrong in (([], 1), (["a"], 0)):
        with pytest.raises(ValueError, match="need texts and a batch size"):
            compress.latency_ms(len, *wrong)


# ---- the cache


def test_built_once_then_served_from_the_cache(exports: list[int], capsys: pytest.CaptureFixture) -> None:
    first = compress.onnx_file("banking77")
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "once" in line and "MB in" in line
    assert compress.onnx_file("banking77") == first and len(exports) == 1 and capsys.readouterr().out == ""
    card = compress.onnx_card("banking77")
    assert card["sha256"] == lora.sha256(first) and card["file_bytes"] == first.stat().st_size <= 25_000_000
    assert card["agreement"] >= 0.99 and 0 < card["largest_difference"] <= 0.05 and card["compared_on"] == "440 bundled texts"
    assert [p.suffix for p in sorted(first.parent.iterdir())] == [".json", ".onnx"]
    assert len(compress.onnx_classifier("banking77").predict(["I lost my card"])) == 1


@pytest.mark.parametrize("harm", ["cut", "empty", "changed", "gone", "no card", "broken card", "list card"])
def test_a_broken_cache_is_built_again(harm: str, exports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "_bundled_texts", lambda task: ["I lost my card"])
    file = compress.onnx_file("banking77")
    content, card = file.read_bytes(), file.with_suffix(".json")
    if harm in ("cut", "empty", "changed"):
        file.write_bytes({"cut": content[:-1000], "empty": b"", "changed": content[:-1] + bytes([content[-1] ^ 1])}[harm])
    elif harm == "gone":
        file.unlink()
    elif harm == "no card":
        card.unlink()
    else:
        card.write_text("{" if harm == "broken card" else "[]")
    assert compress.onnx_file("banking77").read_bytes() == content and len(exports) == 2
    assert json.loads(card.read_text())["sha256"] == lora.sha256(file)


def test_int8_is_made_from_a_cached_fp32_file(exports: list[int]) -> None:
    compress.onnx_file("banking77", "float32")
    compress.onnx_file("banking77", "int8")
    assert len(exports) == 1
    said = {dtype: "agreement" in compress.onnx_card("banking77", dtype) for dtype in ("int8", "float32")}
    assert said == {"int8": True, "float32": False}


def test_the_key_follows_the_adapter_the_base_and_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, source = tmp_path / "banking77", lora.adapter_folder("banking77")
    folder.mkdir()
    for one in source.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    names = {compress.onnx_path("banking77").name, compress.onnx_path(folder).name}
    assert len(names) == 1
    names.add(compress.onnx_path(folder, "float32").name)
    (folder / lora.WEIGHTS).write_bytes((folder / lora.WEIGHTS).read_bytes() + b"x")
    names.add(compress.onnx_path(folder).name)
    monkeypatch.setattr(compress.metadata, "version", lambda name: "0.0")
    names.add(compress.onnx_path(folder).name)
    assert len(names) == 4


def test_a_changed_adapter_is_not_served(tmp_path: Path) -> None:
    folder = tmp_path / "banking77"
    folder.mkdir()
    for one in lora.adapter_folder("banking77").iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    (folder / lora.WEIGHTS).write_bytes((folder / lora.WEIGHTS).read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        compress.onnx_classifier(folder)


@pytest.mark.parametrize("task, dtype, error", [("no_such_task", "int8", "no adapter"), ("banking77", "int4", "unknown dtype"),
                                                ("banking77", None, "unknown dtype 'None'")])
def test_unknown_names_are_refused(task: str, dtype: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        compress.onnx_classifier(task, dtype)


ASK = """import sys, time, pathlib
from nlp_portfolio.neural.compress import onnx_classifier
me, other = map(pathlib.Path, sys.argv[1:])
me.touch()
while not other.exists():
    time.sleep(0.01)
print(onnx_classifier("banking77").predict(["I lost my card"])[0])"""


def test_two_processes_build_it_once(exports: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "_bundled_texts", lambda task: ["I lost my card"])
    compress.onnx_file("banking77", "float32")  # so that neither has to trace
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    both = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", ASK, *order], stdout=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": str(Path(compress.__file__).parents[2])})
            for order in (names, names[::-1])]
    said = [one.communicate(timeout=240)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert [text.splitlines()[-1] for text in said] == ["lost_or_stolen_card"] * 2
    assert sum("exporting" in text for text in said) == 1


# ---- distillation

logits = arrays(np.float64, (4, 5), elements=st.floats(-8, 8))


@settings(max_examples=60, deadline=None)
@given(logits, logits, st.floats(0.5, 8))
def test_the_distillation_loss_is_a_divergence(a: np.ndarray, b: np.ndarray, t: float) -> None:
    student, teacher = torch.tensor(a), torch.tensor(b)
    loss = compress.distillation_loss(student, teacher, t)
    theirs = torch.nn.functional.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean") * t**2
    assert abs(loss - theirs) <= 1e-9 and loss >= -1e-12
    assert abs(compress.distillation_loss(teacher + 3, teacher, t)) <= 1e-9  # a constant changes no probability


def test_at_high_temperature_it_matches_centred_logits() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 9, dtype=torch.float64, requires_grad=True), torch.randn(6, 9, dtype=torch.float64)
    compress.distillation_loss(student, teacher, 500.0).backward()
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, gap.detach() / 9 / 6, rtol=0.02, atol=1e-4)  # Hinton 2015, equation 4


@pytest.mark.parametrize("t", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(t: float) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        compress.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), t)
    with pytest.raises(ValueError, match="equal shapes"):
        compress.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_student_keeps_the_layers_named(shipped: lora.EncoderClassifier, full, texts: list[str]) -> None:
    whole, half = compress.layer_student(shipped, range(6)), compress.layer_student(shipped, (0, 2, 5))
    np.testing.assert_allclose(lora.predict_logits(whole, texts[:5]), full.predict_logits(texts[:5]), atol=1e-4)
    kept = half.encoder.encoder.layer
    assert len(kept) == half.encoder.config.num_hidden_layers == 3
    assert torch.equal(kept[1].output.dense.weight, whole.encoder.encoder.layer[2].output.dense.weight)
    assert not np.allclose(lora.predict_logits(half, texts[:5]), lora.predict_logits(whole, texts[:5]), atol=0.1)
    for wrong in ((), (6,), (-1, 2)):
        with pytest.raises(ValueError, match="layers 0 to 5"):
            compress.layer_student(shipped, wrong)


# ---- fast models and cascades


@pytest.fixture(scope="module")
def rows() -> tuple[list[str], list[str]]:
    data = READERS["sample"]("banking77", "train")
    return list(data["text"]), list(data["intent"])


def test_unrolled_scores_equal_the_pipeline(rows: tuple, texts: list[str]) -> None:
    model = intent_model().fit(*rows)
    fast, every = compress.FastLinear(model), [*texts, "", "zzzzqqq", "🙂", "\ud800"]
    np.testing.assert_allclose(fast.decision_function(every), model.decision_function(every), atol=1e-5)
    assert fast.predict(every) == list(model.predict(every)) and fast.predict([]) == []
    assert fast.decision_function([]).shape == (0, 20)
    for bad in ("one string", [None]):
        with pytest.raises(TypeError, match="expected"):
            fast.predict(bad)


def test_fast_probabilities_are_honest(rows: tuple, texts: list[str]) -> None:
    fast = compress.fast_linear(*rows)
    p = fast.predict_proba(texts)
    assert 0.05 < fast.temperature < 1 and np.allclose(p.sum(1), 1, atol=1e-5)
    right = np.array(fast.predict(texts)) == np.array(READERS["sample"]("banking77", "test")["intent"])
    assert abs(p.max(1).mean() - right.mean()) < 0.15


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_no_other_temperature_has_a_smaller_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, 4, 60)
    scores = 3 * rng.standard_normal((60, 4)) + 4 * np.eye(4)[wanted]
    loss = lambda t: -log_softmax(scores / t, axis=1)[np.arange(60), wanted].mean()  # noqa: E731
    best = compress.softmax_temperature(scores, wanted)
    assert loss(best) <= min(loss(best * 1.2), loss(best / 1.2))


class Fixed:
    "A model that knows the probabilities of its texts by heart, and remembers what it was asked."

    def __init__(self, labels: list[str], table: dict[str, list[float]]):
        self.labels, self.table, self.asked = labels, table, []

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        self.asked += list(texts)
        return np.array([self.table[text] for text in texts], dtype=np.float32).reshape(len(texts), len(self.labels))


def pair() -> tuple[Fixed, Fixed]:
    return (Fixed(["b", "a"], {"sure": [0.1, 0.9], "doubt": [0.6, 0.4]}),
            Fixed(["a", "b", "c"], {"sure": [0, 0, 1], "doubt": [0.3, 0.3, 0.4]}))


def test_a_cascade_asks_only_when_it_doubts() -> None:
    fast, slow = pair()
    p, asked = compress.Cascade(fast, slow, threshold=0.8).answer(["sure", "doubt"])
    assert asked.tolist() == [False, True] and slow.asked == ["doubt"]
    np.testing.assert_allclose(p, [[0.9, 0.1, 0], [0.3, 0.3, 0.4]], atol=1e-6)


def test_a_cascade_mixes_by_weight_and_keeps_the_sum() -> None:
    p, _ = compress.Cascade(*pair(), threshold=0.8, weight=0.5).answer(["doubt"])
    np.testing.assert_allclose(p, [[0.35, 0.45, 0.2]], atol=1e-6)
    assert compress.Cascade(*pair(), threshold=0.8, weight=0.5).predict(["doubt", "sure"]) == ["b", "a"]


@pytest.mark.parametrize("threshold, asked", [(0.0, []), (0.9, ["doubt"]), (1.0, ["sure", "doubt"])])
def test_the_ends_of_the_threshold(threshold: float, asked: list[str]) -> None:
    fast, slow = pair()
    compress.Cascade(fast, slow, threshold).predict(["sure", "doubt"])
    assert slow.asked == asked  # at 0.9 the fast model is exactly sure enough


def test_an_empty_question_asks_nobody() -> None:
    fast, slow = pair()
    cascade = compress.Cascade(fast, slow, 0.5)
    assert cascade.predict([]) == [] and cascade.predict_proba([]).shape == (0, 3) and slow.asked == []


@pytest.mark.parametrize("numbers", [{"threshold": -0.1}, {"threshold": 1.1}, {"threshold": float("nan")},
                                     {"threshold": 0.5, "weight": 2}])
def test_a_cascade_refuses_numbers_outside_zero_to_one(numbers: dict) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        compress.Cascade(*pair(), **numbers)


def test_a_label_only_the_fast_model_knows_is_refused() -> None:
    fast, slow = pair()
    fast.labels = ["b", "mortgage"]
    with pytest.raises(ValueError, match="does not know the label 'mortgage'"):
        compress.Cascade(fast, slow, 0.5)


def test_a_committee_averages() -> None:
    a, b = Fixed(["x", "y"], {"t": [1, 0]}), Fixed(["x", "y"], {"t": [0.2, 0.8]})
    np.testing.assert_allclose(compress.Committee([a, b], [3, 1]).predict_proba(["t"]), [[0.8, 0.2]], atol=1e-6)
    assert compress.Committee([a, b], [0, 1]).predict(["t"]) == ["y"]
    for models, shares in (([a], [1, 1]), ([], []), ([a, b], [0, 0]), ([a, b], [2, -1])):
        with pytest.raises(ValueError, match="a weight of 0 or more"):
            compress.Committee(models, shares)
    with pytest.raises(ValueError, match="same labels in the same order"):
        compress.Committee([a, Fixed(["y", "x"], {})], [1, 1])


@pytest.mark.parametrize("count", [2, 3])
def test_a_probe_names_only_labels_it_has_seen(count: int, rows: tuple, texts: list[str]) -> None:
    names = sorted(set(rows[1]))[:count]
    some = [i for i, name in enumerate(rows[1]) if name in names]
    model = compress.linear_probe([rows[0][i] for i in some], [rows[1][i] for i in some], known=["aaa_never", *names])
    guessed = lora.predict(model, [rows[0][i] for i in some])
    assert np.mean(np.array(guessed) == np.array([rows[1][i] for i in some])) > 0.9
    assert "aaa_never" not in lora.predict(model, texts) and lora.predict_proba(model, texts)[:, 0].max() == 0
