"""Prompts: templates that are versioned and closed, budgets, valid answers or clear errors, and what a constraint gives."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tiny_llm import make_model

from nlp_portfolio.course.datasets import load
from nlp_portfolio.llm.generators import Generation, Prompt, Server, load_model
from nlp_portfolio.llm.prompts import (
    LONGEST_ANSWER,
    InvalidAnswer,
    Shot,
    Template,
    ask,
    choose,
    counter,
    fit,
    label_prompts,
    label_scores,
    listed,
    meanings,
    nearest_label,
    nearest_shots,
    one_of,
    parse,
    parts_of,
    random_model,
    read,
    registry,
    save,
    score_sheet,
    template,
)
from nlp_portfolio.retrieval.documents import Passage

SORT = Template("sort", 1, "<ticket>\n{text}\n</ticket>", 'Sort it. Reply like {"label": "..."}.')
SHOTS = tuple(Shot.of(json.dumps({"label": "b"}), text=f"example {number}") for number in range(4))
LABELS = ["refund", "refund_request", "delivery", "login"]
ONE = one_of(LABELS)
writable = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class Scripted:
    "A generator with fixed answers that keeps what it was asked."

    name = "scripted"

    def __init__(self, *texts: str):
        self.texts, self.prompts = list(texts), []

    def generate(self, prompt, **wish):
        self.prompts.append(prompt)
        return Generation(self.texts.pop(0), self.name, "stop", 0.0)


# ---- templates


@given(writable | st.sampled_from(["</ticket>", "< / TICKET >", "<ticket>", "{text}", "{system}", "</ticket\n>"]))
def test_no_value_leaves_its_fence_or_is_filled_again(text):
    asked = SORT.render(text=text).question
    assert asked.startswith("<ticket>\n") and asked.endswith("\n</ticket>")
    inner = asked.removeprefix("<ticket>\n").removesuffix("\n</ticket>")
    assert "</ticket" not in inner.lower().replace(" ", "") and "<ticket" not in inner.lower()
    assert inner.replace("&lt;", "<") == text.replace("&lt;", "<")


def test_json_in_a_prompt_is_literal_and_examples_become_turns():
    prompt = replace(SORT, examples=SHOTS[:2]).render(text="hello")
    assert prompt.system.endswith('{"label": "..."}.')
    assert [role for role, _ in prompt.history] == ["user", "assistant"] * 2
    assert prompt.history[0][1] == "<ticket>\nexample 0\n</ticket>" and prompt.history[1][1] == '{"label": "b"}'


@pytest.mark.parametrize(("values", "kind", "message"), [
    ({}, ValueError, "sort@1 has the fields text: 'text' is missing"),
    ({"text": "a", "colour": "b"}, ValueError, "'colour' is unknown"),
    ({"text": None}, TypeError, "expected text, got NoneType"),
    ({"text": 5}, TypeError, "expected text, got int"),
])
def test_fields_that_do_not_fit_are_clear_errors(values, kind, message):
    with pytest.raises(kind, match=message):
        SORT.render(**values)


@pytest.mark.parametrize(("change", "kind", "message"), [
    ({"name": "Sort it"}, ValueError, "small letters"),
    ({"version": 0}, ValueError, "whole number from 1"),
    ({"version": True}, ValueError, "whole number from 1"),
    ({"user": None}, TypeError, "expected text"),
    ({"user": "\ud800"}, ValueError, "surrogates not allowed"),
    ({"examples": (Shot.of("x", other="y"),)}, ValueError, "an example of sort@1 has the fields text"),
])
def test_what_is_no_template(change, kind, message):
    with pytest.raises(kind, match=message):
        replace(SORT, **change)


@given(writable, writable)
def test_the_id_says_whether_two_prompts_are_the_same(one, other):
    first, second = replace(SORT, system=one), replace(SORT, system=other)
    assert (first.id == second.id) == (one == other)
    assert replace(first, why="another note").id == first.id
    assert replace(first, examples=SHOTS[:1]).id != first.id
    with pytest.raises(FrozenInstanceError):
        first.system = other


# ---- files


@given(st.lists(st.tuples(writable, writable, writable, st.lists(writable, max_size=2)), min_size=1, max_size=3))
def test_files_give_back_what_was_written(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("prompts") / "sort.toml"
    made = tuple(Template("sort", number, f"{user} {{text}}", system, tuple(Shot.of(one, text=one) for one in shots), why)
                 for number, (user, system, why, shots) in enumerate(rows, 1))
    save(file, made[::-1])
    assert read(file) == made
    assert tomllib.loads(file.read_text(encoding="utf-8"))["versions"][0]["id"] == made[0].id


@pytest.mark.parametrize("text", ['a"""b', 'two\nlines "', 'a\n""', "tab\t\r\n\x00\x7f", "\\n\n\\", '"""', "\n\n",
                                  "ends with \\\n\\"])
def test_awkward_texts_survive_a_file(tmp_path, text):
    save(tmp_path / "a.toml", [replace(SORT, system=text)])
    assert read(tmp_path / "a.toml")[0].system == text


def test_a_version_changed_in_place_is_an_error(tmp_path):
    file = tmp_path / "sort.toml"
    save(file, [SORT])
    file.write_text(file.read_text().replace("Sort it.", "Sort it well."))
    with pytest.raises(ValueError, match="sort.toml: the text of sort@1 is not the one with the id .* write version 2"):
        read(file)


@pytest.mark.parametrize(("text", "message"), [
    ("name = ", "sort.toml is no file of prompts"),
    ('name = "sort"', "is no file of prompts"),
    ('name = "sort"\n[[versions]]\nversion = 1\nuser = "a"\n[[versions]]\nversion = 1\nuser = "b"', "stands there twice"),
    ('name = "sort"\n[[versions]]\nversion = 1\nuser = "a"\ncolour = 1', "unknown entry 'colour'"),
    ('name = "sort"\n[[versions]]\nversion = 1\nuser = 5', "is no file of prompts"),
    ('name = "sort"\nversions = []', "a file holds versions of one prompt"),
])
def test_files_that_are_none(tmp_path, text, message):
    (tmp_path / "sort.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "sort.toml")


def test_two_names_in_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="versions of one prompt"):
        save(tmp_path / "a.toml", [SORT, replace(SORT, name="other")])


def test_the_registry_is_whole():
    known = registry()
    assert sorted(known) == ["faq", "label", "tickets"]
    for name, versions in known.items():
        assert [one.version for one in versions] == list(range(1, len(versions) + 1))
        assert template(name) == versions[-1] and template(name, 1) == versions[0]
        assert all(one.name == name and one.why for one in versions)
    written = (Path(__file__).parent.parent / "nlp_portfolio/data/prompts").glob("*.toml")
    assert all("id = " in file.read_text() for file in written if file.stem != "labels")
    with pytest.raises(ValueError, match="no prompt is called 'none': choose one of faq"):
        template("none")
    with pytest.raises(ValueError, match="faq has the versions 1, 2, not 9"):
        template("faq", 9)


@pytest.mark.parametrize(("name", "split", "column"), [
    ("tickets", "train", "intent"), ("faq", "train", "topic"), ("ag_news", "docs", "topic"), ("banking77", "train", "intent"),
    ("clinc150", "train", "intent")])
def test_every_label_has_a_meaning(name, split, column):
    assert set(meanings(name)) == set(load(name, split)[column]) - {"oos"}
    assert len(set(meanings(name).values())) == len(meanings(name))


def test_a_later_version_changes_some_meanings_and_names_no_new_label():
    old, new = meanings("tickets", 1), meanings("tickets", 2)
    assert list(old) == list(new) and 0 < sum(old[label] != new[label] for label in old) < len(old)
    for domain, version in (("nothing", 1), ("faq", 2), ("tickets", 0)):
        with pytest.raises(ValueError, match="no meanings of"):
            meanings(domain, version)
    assert listed({"a": "b", "c": "d"}) == "- a: b\n- c: d"


# ---- examples and budgets


def test_the_nearest_example_stands_last():
    texts = ["where is my parcel", "the parcel has not arrived", "give me my money back", "how do I log in"]
    shots = [Shot.of(str(at // 2), text=text) for at, text in enumerate(texts)]
    from nlp_portfolio.retrieval.vectors import embed

    vectors = embed(texts, keep=False)
    found = nearest_shots("my parcel, where is it?", shots, vectors, k=2)
    assert [shot.text for shot in found] == [texts[1], texts[0]]
    assert [shot.answer for shot in nearest_shots("my parcel, where is it?", shots, vectors, k=2, per_answer=1)] == ["1", "0"]
    with pytest.raises(ValueError, match="k=0"):
        nearest_shots("x", shots, vectors, k=0)
    with pytest.raises(ValueError, match="3 vectors, 4 shots"):
        nearest_shots("x", shots, vectors[:3])


def words(prompt: Prompt) -> int:
    return len(prompt.text().split())


@given(st.lists(st.integers(1, 40), max_size=5), st.lists(st.integers(1, 40), max_size=3), st.integers(20, 250))
def test_a_fitted_template_loses_examples_from_the_first_then_passages(sizes, papers, budget):
    shots = tuple(Shot.of(f"answer {at}", text="word " * size) for at, size in enumerate(sizes))
    passages = tuple(Passage(str(at), "word " * size) for at, size in enumerate(papers))
    one = replace(SORT, examples=shots)
    found = fit(one, {"text": "why"}, words, budget, passages)
    answers = [text for role, text in found.prompt.history if role == "assistant"]
    assert answers == [shot.answer for shot in shots][len(shots) - found.examples :]
    assert len(found.prompt.history) == 2 * found.examples
    assert words(found.prompt) == found.tokens <= budget
    assert found.prompt.system == SORT.system and "why" in found.prompt.question
    if found.examples:
        assert found.prompt.passages == passages
    if found.examples < len(shots):
        more = replace(one, examples=shots[len(shots) - found.examples - 1 :])
        assert words(more.render(passages, text="why")) > budget


def test_rules_and_question_are_never_cut():
    with pytest.raises(ValueError, match="ask something shorter"):
        fit(replace(SORT, examples=SHOTS), {"text": "why"}, words, 5)


def test_parts_add_up():
    one = replace(SORT, examples=SHOTS)
    parts = parts_of(one, {"text": "why"}, words)
    assert sum(parts.values()) == words(one.render(text="why")) and min(parts.values()) > 0


# ---- answers that are data


@pytest.mark.parametrize("text", [
    '{"label": "login"}', '```json\n{"label": "login"}\n```', 'Sure {x}! {"label":"login"} Bye.',
    '{"label": "login"}{"label": "login"}',
    '{"other": 1} {"label": "login"}', '{"label": "none"} no, {"label": "login"}', "{" * 3 + '"label": "login"}',
    '{"label": "login"}\n{"label": "lo',
])
def test_one_valid_object_is_found(text):
    assert parse(text, ONE).label == "login"


@pytest.mark.parametrize(("text", "message"), [
    ("", "there is no JSON object"), ("login", "there is no JSON object"), ("[1, 2]", "there is no JSON object"),
    ('{"label": "log', "broken or not complete"), ("{'label': 'login'}", "broken or not complete"),
    ('{"label": NaN}', "broken or not"), ('{"label": "login", "label": "refund"}', "broken or not complete"),
    ('{"label": "logout"}', "label: Input should be 'refund'"), ('{"label": "login", "sure": true}', "the object: Extra inputs"),
    ("{}", "label: Field required"), ('{"label": ["login"]}', "label: Input"),
    ('{"thoughts": {"label": "login"}, "label": "ref', "broken or not complete"),
    ('{"label": "login"} or {"label": "refund"}', "two valid objects in it, and they differ"),
    ("{" * 20_000, "broken or not complete"), ('{"a":' * 5_000, "broken or not complete"),
    ("x" * (LONGEST_ANSWER + 1), "more than 50,000"),
])
def test_what_is_no_answer(text, message):
    start = time.monotonic()
    with pytest.raises(InvalidAnswer, match=message) as caught:
        parse(text, ONE)
    assert caught.value.texts == (text,)
    assert time.monotonic() - start < 5


@given(writable)
def test_any_text_is_an_answer_or_an_error_that_does_not_quote_it(text):
    marked = f"{text} SECRET-7"
    for written in (marked, json.dumps({"label": marked}), json.dumps({"label": "login", marked: 1})):
        with pytest.raises(InvalidAnswer) as caught:
            parse(written, ONE)
        assert "SECRET-7" not in str(caught.value)


@given(st.sampled_from(LABELS), writable.filter(lambda text: "{" not in text), writable.filter(lambda text: "{" not in text))
def test_prose_around_an_object_changes_nothing(label, before, after):
    assert parse(before + json.dumps({"label": label}) + after, ONE).label == label


def test_a_schema_of_ones_own():
    class Triage(BaseModel):
        intent: str
        urgent: bool

    found = parse('I say {"intent": "login", "urgent": true}.', Triage)
    assert (found.intent, found.urgent) == ("login", True)
    with pytest.raises(InvalidAnswer, match="urgent: Input should be a valid boolean"):
        parse('{"intent": "login", "urgent": "perhaps"}', Triage)
    for labels in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="labels, each once"):
            one_of(labels)
    with pytest.raises(TypeError, match="expected text, got NoneType"):
        parse(None, ONE)


def test_asking_again_says_what_was_wrong():
    clerk = Scripted("Log in, I think.", '{"label": "logout"}', '{"label": "login"}')
    done = ask(clerk, replace(SORT, examples=SHOTS[:1]), ONE, {"text": "help"}, tries=3)
    assert (done.value.label, done.tries) == ("login", 3)
    second, third = clerk.prompts[1:]
    assert "there is no JSON object" in second.question and "label: Input should be" in third.question
    assert [text for _, text in third.history] == [
        "<ticket>\nexample 0\n</ticket>", '{"label": "b"}', "<ticket>\nhelp\n</ticket>", '{"label": "logout"}']
    assert second.system == third.system == SORT.system


def test_when_no_try_is_valid():
    with pytest.raises(InvalidAnswer, match="no valid answer in 2 tries; the last one: there is no JSON object") as caught:
        ask(Scripted("a", "b"), SORT, ONE, {"text": "help"})
    assert caught.value.texts == ("a", "b")
    for tries in (0, 1.5, True):
        with pytest.raises(ValueError, match="tries must be"):
            ask(Scripted("a"), SORT, ONE, {"text": "help"}, tries=tries)
    with pytest.raises(ValueError, match="'text' is missing"):
        ask(Scripted("a"), SORT, ONE)


# ---- constraint


@pytest.fixture(scope="module", params=["causal", "plain", "t5"])
def tiny(request, tmp_path_factory):
    kind = "t5" if request.param == "t5" else "causal"
    extra = {} if request.param == "causal" else {"template": None}
    return load_model(str(make_model(tmp_path_factory.mktemp(request.param), kind, **extra)))


ASKED = SORT.render(text="Where is the cat?")


def test_a_constrained_model_says_one_of_the_labels(tiny):
    said = {choose(tiny, SORT.render(text=text), LABELS).text for text in ("cat", "dog", "bird", "house", "The mat!")}
    assert said <= set(LABELS)
    assert tiny.generate(ASKED, max_tokens=8).text.strip() not in LABELS
    answers = [json.dumps({"label": label}) for label in LABELS]
    assert parse(choose(tiny, ASKED, answers).text, ONE).label in LABELS
    assert choose(tiny, ASKED, ["only this one"]).text == "only this one"


def test_a_label_that_begins_another_can_be_said(tiny):
    "The end of text is one of the branches: a greedy walk by hand takes the same one."
    import torch

    end = [tiny.tokenizer.eos_token_id]
    allowed = {text: tiny.tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in LABELS}
    ids, paths, written = tiny.tokens(ASKED), list(allowed.values()), []
    while not any(path == written for path in paths):
        with torch.inference_mode():
            if tiny.paired:
                begin = tiny.model.config.decoder_start_token_id
                begun = torch.tensor([[begin, *written]])
                logits = tiny.model(input_ids=torch.tensor([ids]), decoder_input_ids=begun).logits[0, -1]
            else:
                logits = tiny.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
        following = sorted({path[len(written)] for path in paths if path[: len(written)] == written})
        written.append(max(following, key=lambda token: float(logits[token])))
    found = choose(tiny, ASKED, LABELS)
    assert allowed[found.text] == written and found.completion_tokens == len(written)


def test_label_scores_are_what_the_models_own_loss_says(tiny):
    "The loss is the mean over tokens; a model in bfloat16 rounds it, the scores are not rounded."
    import torch

    scores = label_scores(tiny, ASKED, LABELS)
    assert list(scores) == LABELS and all(score < 0 for score in scores.values())
    assert sum(map(math.exp, scores.values())) <= 1
    ids = tiny.tokens(ASKED)
    for label, score in scores.items():
        path = [*tiny.tokenizer(label, add_special_tokens=False)["input_ids"], tiny.tokenizer.eos_token_id]
        whole, target = (ids, path) if tiny.paired else ([*ids, *path], [-100] * len(ids) + path)
        with torch.inference_mode():
            loss = tiny.model(input_ids=torch.tensor([whole]), labels=torch.tensor([target])).loss
        assert score == pytest.approx(-float(loss) * len(path), rel=0.01)


def test_lists_that_cannot_be_decoded(tiny):
    for allowed in ([], ["a", ""]):
        with pytest.raises(ValueError, match="none of them empty"):
            choose(tiny, ASKED, allowed)
    with pytest.raises(ValueError, match="holds the end of text"):
        choose(tiny, ASKED, [f"a{tiny.tokenizer.eos_token}b"])
    with pytest.raises(TypeError, match="expected text"):
        choose(tiny, ASKED, [5])
    with pytest.raises(TypeError, match="use ask for a server"):
        choose(Server("http://127.0.0.1:9/v1", "m"), ASKED, LABELS)
    with pytest.raises(ValueError, match="ask something shorter"):
        choose(tiny, SORT.render(text="cat " * 5000), LABELS)


def test_counting_is_exact_in_this_process_and_cautious_for_a_server(tiny):
    assert counter(tiny)(ASKED) == tiny.generate(ASKED, max_tokens=1).prompt_tokens
    assert counter(Server("http://127.0.0.1:9/v1", "m"))(ASKED) == -(-len(ASKED.text()) // 3)


def test_the_random_model_is_the_same_each_time_and_leaves_the_seed_alone():
    import torch

    texts = ["Where is my parcel?", "I cannot log in."]
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, other = random_model(texts), random_model(texts)
    assert float(torch.rand(1)) == float(expected)
    assert one.generate(ASKED, max_tokens=5).text == other.generate(ASKED, max_tokens=5).text
    assert random_model(texts, seed=7).generate(ASKED, max_tokens=5).text != one.generate(ASKED, max_tokens=5).text


def test_a_server_is_asked_and_validated(tmp_path):
    make_model(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).parent / "tiny_llm.py"), str(tmp_path), str(port)]
    process = subprocess.Popen(command, env=os.environ)
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/seen", timeout=1)
                break
            except httpx.TransportError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        with pytest.raises(InvalidAnswer, match="no valid answer in 2 tries") as caught:
            ask(Server(f"http://127.0.0.1:{port}/v1"), SORT, ONE, {"text": "Where is the cat?"}, max_tokens=6)
        assert len(caught.value.texts) == 2 and all(caught.value.texts)
    finally:
        process.terminate()
        process.wait(10)


# ---- the sheet


def test_the_sheet_counts_invalid_answers_as_wrong():
    sheet = score_sheet({"a": {"p@1": ["x", "y", None, "x"], "p@2": ["x"] * 4}}, {"a": ["x", "x", "x", "x"]}, resamples=200)
    first, second = sheet.to_dict("records")
    assert (first["prompt"], first["accuracy"], first["valid"], first["rows"]) == ("p@1", 0.5, 0.75, 4)
    assert first["low"] < 0.5 < first["high"]
    assert (second["accuracy"], second["low"], second["high"]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="p@1 has 1 answers on a, where there are 2 rows"):
        score_sheet({"a": {"p@1": ["x"]}}, {"a": ["x", "x"]})
    with pytest.raises(ValueError, match="has 0 answers"):
        score_sheet({"a": {"p@1": []}}, {"a": []})


def test_label_prompts_and_the_nearest_of_them():
    one = Template("label", 1, "About {label}: {meaning} {examples}")
    known = {"cancel_order": "Stop it.", "Sports": "Games."}
    assert label_prompts(one, known, {"cancel_order": ["a", "b"], "Sports": ["c"]}) == [
        "About cancel order: Stop it. a b", "About sports: Games. c"]
    assert label_prompts(template("label", 1), known) == ["cancel order", "sports"]
    with pytest.raises(ValueError, match="'examples' is missing"):
        label_prompts(one, known)
    assert nearest_label(np.eye(3)[[2, 0]], np.eye(3), ["a", "b", "c"]) == ["c", "a"]
