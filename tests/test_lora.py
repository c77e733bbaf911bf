"LoRA by hand equals peft, an adapter survives its round trip, and a file that is not its card's is refused."

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from sklearn.metrics import f1_score  # noqa: E402

from nlp_portfolio.course.models import MINILM, Encoder, encoder  # noqa: E402
from nlp_portfolio.neural import lora  # noqa: E402

REAL = os.environ.get("NLP_PORTFOLIO_DATA", "")
LABELS = ["card lost", "pin", "transfer"]
TEXTS = ["I lost my card", "My card is gone, help", "change my pin please", "what is my PIN",
         "send money to a friend", "transfer is late"]
NAMES = ["card lost", "card lost", "pin", "pin", "transfer", "transfer"]
CARD = {"task": "toy", "data": "six rows of this test", "licence": "Apache-2.0", "seed": 0, "recipe": {}, "command": "pytest"}


@pytest.fixture(scope="module")
def trained() -> lora.EncoderClassifier:
    "One small adapter for the whole file."
    model = lora.lora_classifier(LABELS, rank=4, seed=0)
    lora.train_classifier(model, TEXTS, NAMES, lora.Recipe(epochs=8, lr=5e-3, batch_size=6, seed=0))
    return model


@pytest.fixture
def folder(trained: lora.EncoderClassifier, tmp_path: Path) -> Path:
    return lora.save_adapter(trained, tmp_path / "toy", CARD)


def filled(n_in: int, n_out: int, rank: int, alpha: float) -> lora.LoRALinear:
    "A LoRA layer whose B is not zero."
    torch.manual_seed(n_in + n_out + rank)
    layer = lora.LoRALinear(torch.nn.Linear(n_in, n_out), rank, alpha)
    torch.nn.init.normal_(layer.B)
    return layer


shapes = st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(1, 12), st.sampled_from([1.0, 8.0, 32.0]))


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_by_hand_equals_peft(shape: tuple) -> None:
    layer = filled(*shape)
    config = peft.LoraConfig(r=shape[2], lora_alpha=shape[3], target_modules=["0"])
    theirs = peft.get_peft_model(torch.nn.Sequential(copy.deepcopy(layer.base)), config)
    prefix = "base_model.model.0.lora_"
    peft.set_peft_model_state_dict(theirs, {f"{prefix}A.weight": layer.A, f"{prefix}B.weight": layer.B})
    x = torch.randn(3, shape[0])
    torch.testing.assert_close(theirs(x), layer(x), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_merged_equals_unmerged_and_leaves_the_base_alone(shape: tuple) -> None:
    layer = filled(*shape)
    before, x = layer.base.weight.clone(), torch.randn(3, shape[0])
    torch.testing.assert_close(layer.merged()(x), layer(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.base.weight, before)
    assert lora.trainable_parameters(layer) == shape[2] * (shape[0] + shape[1])


def test_it_starts_as_the_base() -> None:
    base, x = torch.nn.Linear(12, 7), torch.randn(5, 12)
    assert torch.equal(lora.LoRALinear(base, 3)(x), base(x))


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1"):
        lora.LoRALinear(torch.nn.Linear(2, 2), 0)


def test_the_default_adapter_fits_two_megabytes(trained: lora.EncoderClassifier) -> None:
    base = trained.encoder.get_base_model()
    sides = {tuple(p.shape) for name, p in base.named_parameters() if "lora_A" in name}
    numbers = sum(16 * sum(layer.base_layer.weight.shape) for layer in base.modules() if hasattr(layer, "base_layer"))
    assert sides == {(4, 384), (4, 1536)} and numbers == 16 * 41472
    assert 2 * (numbers + 77 * 385) < 2_000_000


def test_only_adapter_and_head_are_trainable(trained: lora.EncoderClassifier) -> None:
    names = [name for name, p in trained.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 36 + 2
    assert all("lora_" in name or name.startswith("head.") for name in names)
    assert not any("pooler" in name for name in names)


def test_training_learns_and_leaves_the_base_alone(trained: lora.EncoderClassifier) -> None:
    assert lora.predict(trained, TEXTS) == NAMES
    ours, fresh = dict(trained.encoder.get_base_model().named_parameters()), dict(encoder("minilm").model.named_parameters())
    name = "encoder.layer.3.attention.self.query"
    assert torch.equal(ours[f"{name}.base_layer.weight"].cpu(), fresh[f"{name}.weight"].cpu())


def test_training_twice_gives_the_same_numbers() -> None:
    runs = []
    for _ in range(2):
        model = lora.lora_classifier(LABELS, rank=2, seed=1)
        runs.append(lora.train_classifier(model, TEXTS, NAMES, lora.Recipe(epochs=2, batch_size=3, seed=1)))
    assert runs[0] == runs[1]


def test_predictions_do_not_depend_on_the_batch(trained: lora.EncoderClassifier) -> None:
    texts = [*TEXTS, "", "long " * 300]
    together = lora.predict_logits(trained, texts, batch_size=8)
    alone = np.concatenate([lora.predict_logits(trained, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(lora.predict_proba(trained, texts).sum(1), 1, atol=1e-5)
    assert lora.predict_logits(trained, []).shape == (0, 3)


@pytest.mark.parametrize("texts, error", [("one string", TypeError), ([None], TypeError), ([3.5], TypeError)])
def test_what_is_no_list_of_texts_is_refused(trained: lora.EncoderClassifier, texts: object, error: type) -> None:
    with pytest.raises(error, match="expected"):
        lora.predict(trained, texts)


def test_odd_texts_get_an_answer(trained: lora.EncoderClassifier) -> None:
    assert len(lora.predict(trained, ["\ud800 half a pair", "nul \0 byte", " ", "🙂" * 500])) == 4


@pytest.mark.parametrize("labels", [["one"], ["a", "a"], []])
def test_labels_must_be_two_or_more_different_names(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="two or more different names"):
        lora.EncoderClassifier(None, labels)


def test_training_refuses_lists_that_do_not_fit(trained: lora.EncoderClassifier) -> None:
    with pytest.raises(ValueError, match="one label a text"):
        lora.train_classifier(trained, TEXTS, NAMES[:-1])
    with pytest.raises(ValueError, match="no label 'mortgage'"):
        lora.train_classifier(trained, ["x"], ["mortgage"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 9))
def test_every_row_stands_in_exactly_one_batch(lengths: list[int], size: int, seed: int) -> None:
    batches = lora.length_grouped(lengths, size, np.random.default_rng(seed), pool=3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size


def test_grouping_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 80, 2000)
    cost = lambda batches: sum(lengths[b].max() * len(b) for b in batches)  # noqa: E731
    plain = np.array_split(np.random.default_rng(1).permutation(2000), 63)
    assert cost(lora.length_grouped(lengths, 32, np.random.default_rng(1))) < 0.7 * cost(plain)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_one_cycle_stays_between_zero_and_one(steps: int, warmup: float) -> None:
    rates = [lora.one_cycle(step, steps, warmup) for step in range(steps)]
    assert 0 <= min(rates) and max(rates) <= 1 and (steps == 1 or max(rates) > 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_macro_f1_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    wanted, guessed = map(np.array, zip(*pairs, strict=True))
    assert abs(lora.macro_f1(wanted, guessed) - f1_score(wanted, guessed, average="macro", zero_division=0)) < 1e-12
    many = lora.macro_f1(np.stack([wanted, guessed]), np.stack([guessed, guessed]))
    np.testing.assert_allclose(many, [lora.macro_f1(wanted, guessed), 1.0], atol=1e-12)


def test_an_adapter_needs_less_memory_to_train() -> None:
    rows = [[101, 2000, 102]] * 4
    small, full = lora.lora_classifier(LABELS, 4), lora.EncoderClassifier(encoder("minilm"), LABELS)
    assert lora.training_mb(small, rows) < 0.5 * lora.training_mb(full, rows)
    assert lora.training_mb(small, rows * 4) > lora.training_mb(small, rows)


def test_counting_a_step_frees_what_it_counted() -> None:
    model, kept = lora.lora_classifier(LABELS, rank=4), []

    def remember(module: object, given: object, out: object) -> None:
        if isinstance(out, torch.Tensor):
            kept.append(out.untyped_storage()._weak_ref())

    hooks = [module.register_forward_hook(remember) for module in model.modules()]
    lora.training_mb(model, lora.token_rows(model, TEXTS))
    for hook in hooks:
        hook.remove()
    assert len(kept) > 20 and sum(not torch.UntypedStorage._expired(one) for one in kept) == 0


def test_round_trip_in_fp16(trained: lora.EncoderClassifier, folder: Path) -> None:
    again, texts = lora.load_adapter(folder), [*TEXTS, "something else", "card transfer pin"]
    assert lora.predict(again, texts) == lora.predict(trained, texts)
    assert np.abs(lora.predict_proba(again, texts) - lora.predict_proba(trained, texts)).max() < 0.01
    assert not np.array_equal(lora.predict_logits(again, texts), lora.predict_logits(lora.lora_classifier(LABELS, 4), texts))


def test_the_card_says_what_loading_needs(folder: Path) -> None:
    card = lora.read_card(folder)
    assert card["base"] == MINILM and "/tmp" not in json.dumps(card)
    assert card["file_bytes"] == (folder / lora.WEIGHTS).stat().st_size
    assert card["labels"] == LABELS and card["rank"] == 4 and card["licence"] == "Apache-2.0"


def change(folder: Path, **fields: object) -> None:
    file = folder / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_another_base_is_refused(folder: Path) -> None:
    change(folder, base_sha256="0" * 64)
    with pytest.raises(ValueError, match="trained on sentence-transformers/all-MiniLM-L6-v2 with weights 000000000000"):
        lora.load_adapter(folder)


def test_a_hub_base_that_cannot_be_reached_is_refused(folder: Path) -> None:
    change(folder, base="somebody/another-encoder")
    with pytest.raises(ValueError, match="trained on somebody/another-encoder"):
        lora.load_adapter(folder)  # `encoder` falls back to MiniLM offline: the card must not accept it


def test_a_base_from_a_folder_has_no_public_name(trained: lora.EncoderClassifier, tmp_path: Path) -> None:
    model = copy.copy(trained)
    model.base_name = str(tmp_path)
    with pytest.raises(ValueError, match="came from a folder"):
        lora.save_adapter(model, tmp_path / "x", CARD)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / lora.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="adapter.safetensors is missing"):
        lora.load_adapter(folder)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04\x95 a pickle", None])
def test_what_is_no_safetensors_file_is_refused(folder: Path, content: bytes | None) -> None:
    file = folder / lora.WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ValueError, match="cut short or no safetensors file"):
        lora.load_adapter(folder)


def test_a_changed_byte_is_refused(folder: Path) -> None:
    file = folder / lora.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="SHA-256 differs"):
        lora.load_adapter(folder)


@pytest.mark.parametrize("task", ["no_such_task", "", "../weights", "a" * 500, "nul\0"])
def test_an_unknown_task_is_refused(task: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="no adapter|no card.json"):
        lora.load_adapter(task)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null"])
def test_a_broken_card_is_refused(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    with pytest.raises(ValueError, match="card.json (is not valid JSON|lacks)"):
        lora.load_adapter(folder)


def test_a_card_without_origin_is_not_written(trained: lora.EncoderClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks data, licence"):
        lora.save_adapter(trained, tmp_path / "x", {"task": "toy", "seed": 0, "recipe": {}, "command": ""})
    assert not (tmp_path / "x").exists()


SENTENCES = {
    "Where is the card you promised? It should have been in my letterbox on Monday.": "card_arrival",
    "How do I switch on the new card I just got?": "activate_my_card",
    "I typed the wrong PIN three times at the cash machine and now it is blocked": "pin_blocked",
    "Someone stole my purse with my bank card in it": "lost_or_stolen_card",
    "Two identical payments to the bakery show up in my account": "transaction_charged_twice",
    "Please close my account for good": "terminate_account",
    "What's the exchange rate from euro to zloty today?": "exchange_rate",
    "The cash machine gave me less money than I asked for": "wrong_amount_of_cash_received",
    "I forgot my passcode and cannot log in": "passcode_forgotten",
    "Can I get a virtual card I can throw away after one purchase?": "get_disposable_virtual_card",
    "Do you support Apple Pay?": "apple_pay_or_google_pay",
    "I moved house, how do I update my address?": "edit_personal_details",
}


@pytest.fixture(scope="module")
def shipped() -> lora.EncoderClassifier:
    return lora.load_adapter("banking77")


@pytest.mark.required
def test_the_shipped_adapter_understands_twelve_sentences(shipped: lora.EncoderClassifier) -> None:
    assert dict(zip(SENTENCES, lora.predict(shipped, list(SENTENCES)), strict=True)) == SENTENCES


@pytest.mark.required
def test_the_shipped_file_is_small_and_its_card_complete() -> None:
    card = lora.read_card("banking77")
    file = lora.adapter_folder("banking77") / lora.WEIGHTS
    assert file.stat().st_size == card["file_bytes"] <= 2_000_000
    assert len(card["labels"]) == 77 and card["licence"] == "CC BY 4.0" and card["data"]["source"] == "local"
    assert card["metrics"]["accuracy"] >= 0.935 and card["metrics"]["rows"] == 1534
    assert {"seed", "recipe", "command", "citation"} <= set(card)
    assert [p.name for p in sorted(file.parent.iterdir())] == ["adapter.safetensors", "card.json"]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="NLP_PORTFOLIO_DATA is not set")
def test_the_cards_numbers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", REAL)
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "local")
    measured, claimed = lora.measure_adapter("banking77"), lora.read_card("banking77")["metrics"]
    assert abs(measured["accuracy"] - claimed["accuracy"]) <= 0.001


def test_several_adapters_share_one_base(trained: lora.EncoderClassifier, folder: Path) -> None:
    host, guest = lora.load_adapter(folder), lora.EncoderClassifier(encoder("minilm"), LABELS)
    host.encoder.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    before = lora.predict_logits(host, TEXTS)
    guest.encoder, guest.head = host.encoder, host.head
    host.encoder.set_adapter("other")
    assert not np.allclose(lora.predict_logits(guest, TEXTS), before, atol=1e-3)
    host.encoder.set_adapter("default")
    np.testing.assert_allclose(lora.predict_logits(host, TEXTS), before, atol=1e-6)


def test_an_encoder_of_a_folder_is_no_base(folder: Path, tmp_path: Path) -> None:
    base = encoder("minilm")
    with pytest.raises(ValueError, match="came from a folder"):
        lora.load_adapter(folder, Encoder(str(tmp_path), base.model, base.tokenizer))
