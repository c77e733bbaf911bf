"""Data sets: the manifest, the three sources and their order, one line each, and every broken file named."""

import gzip
import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nlp_portfolio.course.datasets as ds

REAL = os.environ.get("NLP_PORTFOLIO_DATA")  # read before conftest takes it away
HINT = "(sample; set NLP_PORTFOLIO_DATA or go online for the full set)"
GOOD = [{"id": f"r{i}", "text": f"film number {i}", "label": i % 2, "rating": 7, "movie_id": "m"} for i in range(3)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    "No source is forced, the hub is out of reach, its cache is empty, nothing is remembered from another test."
    import datasets

    def not_cached(*_, **__):
        raise ConnectionError("out of reach")

    monkeypatch.setattr(datasets, "load_dataset", not_cached)
    monkeypatch.delenv("NLP_PORTFOLIO_SOURCE", raising=False)
    monkeypatch.setattr(ds, "online", lambda: False)
    monkeypatch.setattr(ds, "_loaded", [])
    ds.manifest.cache_clear()
    yield
    ds.manifest.cache_clear()


@pytest.fixture
def local(tmp_path, monkeypatch):
    "A function that writes a split into the folder NLP_PORTFOLIO_DATA names."
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", str(tmp_path))

    def write(content, file="train.jsonl.gz"):
        (tmp_path / "imdb").mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content).encode()
            content = gzip.compress(content) if file.endswith(".gz") else content
        (tmp_path / "imdb" / file).write_bytes(content)

    return write


@pytest.fixture
def hub(monkeypatch):
    "A function that puts an answer in the hub's place: rows, or an exception to raise."
    import datasets

    def answer(with_):
        monkeypatch.setattr(ds, "online", lambda: True)

        def load_dataset(*_, **__):
            if isinstance(with_, Exception):
                raise with_
            return datasets.Dataset.from_list(with_)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return answer


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A copy of the package's data that a test may damage."
    folder = tmp_path / "package"
    shutil.copytree(ds._package_file("."), folder)
    monkeypatch.setattr(ds, "_package_file", lambda name: folder / name)
    return folder


def plain(text: str) -> bytes:
    return gzip.compress(text.encode("utf-8", "surrogatepass"))


# ---- the manifest


@pytest.mark.parametrize("name", ds.manifest())
def test_manifest_entry_is_complete(name):
    spec = ds.manifest()[name]
    assert {"title", "unit", "task", "licence", "citation", "sample"} <= set(spec) and ("columns" in spec) != ("tables" in spec)
    assert all(isinstance(spec[field], str) and spec[field] for field in ("title", "unit", "licence", "citation"))
    tables = spec.get("tables") or {"": spec["columns"]}
    assert {kind.rstrip("?") for columns in tables.values() for kind in columns.values()} <= set(ds.TYPES)
    assert spec["sample"]["licence"].startswith("Apache-2.0")
    assert set(spec["sample"]["sha256"]) == set(spec["sample"]["rows"])
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in spec["sample"]["sha256"].values())


@pytest.mark.parametrize("name", [name for name, spec in ds.manifest().items() if "hub" in spec])
def test_hub_entry_pins_a_revision(name):
    hub = ds.manifest()[name]["hub"]
    assert re.fullmatch("[0-9a-f]{40}", hub["revision"])
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", hub["id"])
    assert all(count > 0 for count in hub["rows"].values())


@pytest.mark.parametrize(("name", "split"), [(n, s) for n, spec in ds.manifest().items() for s in spec["sample"]["rows"]])
def test_bundled_split_is_what_the_manifest_says(name, split):
    data, spec = ds.load(name, split, source="sample"), ds.manifest()[name]
    assert data.num_rows == spec["sample"]["rows"][split]
    lists = {str: "strings", list: "string_lists", dict: "spans"}
    first = {n: next((row[n] for row in data if not isinstance(row[n], list) or row[n]), None) for n in data.features}
    kinds = {n: lists[type(first[n][0])] if isinstance(first[n], list) else f.dtype
             for n, f in data.features.items()}
    assert kinds == {n: kind.rstrip("?") for n, kind in ds.columns_of(name, split).items()}
    assert len(set(data["id"])) == len(data)
    assert ds.provenance(data).version == spec["sample"]["sha256"][split]


def test_no_file_is_bundled_that_the_manifest_does_not_name():
    named = {f"{name}/{split}.jsonl" for name, spec in ds.manifest().items() for split in spec["sample"]["sha256"]}
    folder = ds._package_file("samples")
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == named


# ---- sources, their order, the line


def test_each_source_says_one_exact_line(local, hub, capsys):
    local(GOOD)
    hub([{"text": "fine", "label": 1}, {"text": "poor", "label": 0}])
    for source in ds.SOURCES:
        ds.load("imdb", "train", source=source)
    assert capsys.readouterr().out.splitlines() == [
        "imdb train: 3 reviews from the local folder",
        "imdb train: 2 reviews from the hub",
        f"imdb train: 320 bundled reviews {HINT}",
    ]


def test_line_tells_how_many_of_how_many(local, capsys):
    local(GOOD)
    ds.load("imdb", "train", limit=2)
    ds.load("imdb", "test", limit=100, source="sample")
    assert capsys.readouterr().out.splitlines() == [
        "imdb train: 2 of 3 reviews from the local folder",
        f"imdb test: 100 of 104 bundled reviews {HINT}",
    ]


def test_one_row_is_singular(local, capsys):
    local(GOOD[:1])
    ds.load("imdb", "train")
    assert capsys.readouterr().out == "imdb train: 1 review from the local folder\n"


def test_thousands_are_grouped(local, capsys):
    local(GOOD * 400)
    ds.load("imdb", "train")
    assert capsys.readouterr().out == "imdb train: 1,200 reviews from the local folder\n"


ROWS = [{"text": "t", "label": 1}]


@pytest.mark.parametrize(("has_local", "hub_answer", "found"), [
    (True, ROWS, "local"),
    (True, OSError("down"), "local"),
    (False, ROWS, "hub"),
    (False, OSError("down"), "sample"),
    (False, None, "sample"),
])
def test_first_source_that_has_the_split_is_used(local, hub, capsys, has_local, hub_answer, found):
    if has_local:
        local(GOOD)
    if hub_answer is not None:
        hub(hub_answer)
    assert ds.provenance(ds.load("imdb", "train")).source == found
    lines = capsys.readouterr().out.splitlines()
    failed = not has_local and isinstance(hub_answer, OSError)
    assert lines[:-1] == (["imdb: the hub failed (OSError), so the bundled sample is used"] if failed else [])


@pytest.mark.parametrize("source", ds.SOURCES)
def test_environment_forces_a_source(local, hub, monkeypatch, source):
    local(GOOD)
    hub(ROWS)
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", source)
    assert ds.provenance(ds.load("imdb", "train")).source == source


def test_argument_goes_before_the_environment(local, monkeypatch):
    local(GOOD)
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "sample")
    assert ds.provenance(ds.load("imdb", "train", source="local")).source == "local"


@pytest.mark.parametrize(("source", "message"), [
    ("local", "no train.jsonl.gz of imdb in the folder that NLP_PORTFOLIO_DATA names"),
    ("hub", "the hub cannot be reached,? or has no imdb train"),
])
def test_forced_source_that_is_not_there_is_an_error_and_not_the_sample(local, capsys, source, message):
    with pytest.raises(ValueError, match=message):
        ds.load("imdb", "train", source=source)
    assert capsys.readouterr().out == ""


def test_forced_hub_shows_its_own_failure(hub):
    hub(OSError("down"))
    with pytest.raises(OSError, match="down"):
        ds.load("imdb", "train", source="hub")


def test_hub_rows_that_do_not_fit_fall_to_the_sample(hub, capsys):
    hub([{"text": None, "label": 1}])
    assert ds.provenance(ds.load("imdb", "train")).source == "sample"
    assert "the hub failed (ValueError)" in capsys.readouterr().out


def test_uncompressed_local_file_is_read_and_gzip_goes_first(local):
    local(GOOD[:1], "train.jsonl")
    assert len(ds.load("imdb", "train")) == 1
    local(GOOD)
    assert len(ds.load("imdb", "train")) == 3


def test_local_columns_beyond_the_manifest_are_left_out(local):
    local([{**GOOD[0], "source_url": "x"}])
    assert ds.load("imdb", "train").column_names == list(ds.manifest()["imdb"]["columns"])


def test_optional_columns_may_be_missing_or_null(local):
    local([{"id": "a", "text": "t", "label": 1}, {"id": "b", "text": "t", "label": 0, "rating": None, "movie_id": None}])
    data = ds.load("imdb", "train")
    assert (data["rating"][:], data["movie_id"][:]) == ([None, None], [None, None])


def test_hub_offline_variable_asks_nobody(monkeypatch):
    monkeypatch.undo()  # the real probe
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
    for value in ("1", "true", "YES", "on"):
        ds.online.cache_clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert ds.online() is False


def test_the_hub_is_asked_once_per_process(monkeypatch):
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: calls.append(1) or (_ for _ in ()).throw(OSError("no")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ds.online.cache_clear()
    assert [ds.online(), ds.online()] == [False, False]
    ds.online.cache_clear()
    assert len(calls) == 1


# ---- limit


def ids(seed, monkeypatch, **kwargs):
    monkeypatch.setattr(ds, "active", lambda: SimpleNamespace(seed=seed))
    return ds.load("imdb", "train", **kwargs)["id"][:]


def test_limit_draws_with_the_seed_and_without_replacement(monkeypatch):
    everything = ids(1, monkeypatch)
    drawn = ids(1, monkeypatch, limit=40)
    assert drawn == ids(1, monkeypatch, limit=40)
    assert drawn != ids(2, monkeypatch, limit=40)
    assert len(set(drawn)) == 40 and set(drawn) < set(everything)
    assert drawn != everything[:40]  # files come sorted by class now and then: the first rows are no sample


def test_limit_of_the_whole_set_or_more_keeps_the_file_order(monkeypatch):
    everything = ids(1, monkeypatch)
    assert ids(1, monkeypatch, limit=len(everything)) == everything
    assert ids(1, monkeypatch, limit=10**30) == everything


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_an_error(limit):
    with pytest.raises(ValueError, match=f"limit must be a whole number of at least 1, got {limit}"):
        ds.load("imdb", "train", limit=limit)


# ---- provenance


@pytest.mark.parametrize("derive", [
    lambda data: data.select(range(5)),
    lambda data: data.filter(lambda row: row["label"] == 1),
    lambda data: data.shuffle(seed=1),
    lambda data: data.map(lambda row: {"length": len(row["text"])}),
    lambda data: data.train_test_split(0.2, seed=1)["test"],
    lambda data: data.remove_columns("rating"),
], ids=["select", "filter", "shuffle", "map", "split", "remove_columns"])
def test_provenance_survives(derive):
    data = ds.load("imdb", "train")
    assert ds.provenance(derive(data)) == ds.provenance(data)


@pytest.mark.parametrize("limit", [None, 7])
def test_provenance_counts_the_rows_of_the_source(limit):
    facts = ds.provenance(ds.load("imdb", "train", limit=limit))
    assert (facts.name, facts.split, facts.source, facts.rows) == ("imdb", "train", "sample", 320)
    assert ds.last_provenance() == facts


def test_licence_and_citation_travel_with_the_rows(local):
    local(GOOD)
    spec = ds.manifest()["imdb"]
    assert ds.load("imdb", "train", source="sample").info.license == spec["sample"]["licence"]
    real = ds.load("imdb", "train", source="local", limit=2)
    assert (real.info.license, real.info.citation) == (spec["licence"], spec["citation"])


def test_rows_of_another_origin_have_no_provenance():
    from datasets import Dataset

    with pytest.raises(ValueError, match=r"was not made by load\(\)"):
        ds.provenance(Dataset.from_list(GOOD))
    assert ds.last_provenance() is None


# ---- broken files


@pytest.mark.parametrize("damage", ["edited", "deleted"])
def test_changed_sample_is_refused_by_its_hash(package, damage):
    file = package / "samples/imdb/train.jsonl"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("label\": 1", "label\": 0", 1), encoding="utf-8") if damage == "edited" else file.unlink()
    with pytest.raises(ValueError, match=r"samples/imdb/train\.jsonl is missing or was changed.*Install the package again"):
        ds.load("imdb", "train")
    assert len(ds.load("imdb", "test")) == 104


ROW = json.dumps(GOOD[0])
BROKEN = {
    "missing column": (plain(ROW + '\n{"id": "b", "text": "t"}\n'), r"row 2: column 'label' is missing \(found id, text\)"),
    "wrong type": (plain('{"id": "a", "text": "t", "label": "1"}'), r"row 1: column 'label' must be int64, got str"),
    "number for text": (plain('{"id": "a", "text": 5, "label": 1}'), r"column 'text' must be string, got int"),
    "bool for int": (plain('{"id": "a", "text": "t", "label": true}'), r"column 'label' must be int64, got bool"),
    "NaN for int": (plain('{"id": "a", "text": "t", "label": NaN}'), r"column 'label' must be int64, got float"),
    "null where required": (plain('{"id": "a", "text": null, "label": 1}'), r"column 'text' must be string, got NoneType"),
    "wrong type of an optional column": (plain('{"id": "a", "text": "t", "label": 1, "rating": "7"}'), r"'rating' must be int64"),
    "broken JSON": (plain(f'{ROW}\n{ROW}\n{{"id": "c", "text'), r"row 3: not valid JSON"),
    "not an object": (plain(f"{ROW}\n[1, 2]"), r"row 2: expected a JSON object, got list"),
    "deep nesting": (plain("[" * 100_000), r"row 1: not valid JSON \(maximum recursion depth"),
    "lone surrogate": (plain('{"id": "a", "text": "half \\ud83d", "label": 1}'), r"'text' holds half a surrogate pair"),
    "byte order mark": (plain("\ufeff" + ROW), r"row 1: not valid JSON \(Unexpected UTF-8 BOM"),
    "not gzip": (ROW.encode(), r"train\.jsonl\.gz: cannot be read \(Not a gzipped file.*download the file again"),
    "cut gzip": (gzip.compress((ROW + "\n").encode() * 500)[:-20], r"train\.jsonl\.gz: cannot be read \("),
    "damaged gzip": (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 40, r"train\.jsonl\.gz: cannot be read \("),
    "latin-1": (gzip.compress('{"id": "a", "text": "café", "label": 1}'.encode("latin-1")),
                r"train\.jsonl\.gz: cannot be read \('utf-8' codec"),
    "empty gzip": (plain(""), r"train\.jsonl\.gz: holds no rows"),
    "zero bytes": (b"", r"train\.jsonl\.gz: holds no rows"),
    "blank lines only": (plain("\n\n  \n"), r"train\.jsonl\.gz: holds no rows"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_file_is_a_clear_error_and_never_the_sample(local, capsys, content, message):
    local(content)
    with pytest.raises(ValueError, match=message):
        ds.load("imdb", "train")
    assert capsys.readouterr().out == ""


def test_number_too_large_for_its_column_names_the_row(local):
    local(plain(f'{ROW}\n{{"id": "b", "text": "t", "label": {2**70}}}'))
    with pytest.raises(ValueError, match=r"train\.jsonl\.gz, row 2: column 'label'"):
        ds.load("imdb", "train")


def test_blank_lines_are_skipped_and_rows_keep_their_line_number(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(f"\n{ROW}\n\n  \n{ROW}\n", encoding="utf-8")
    assert len(ds.read_rows(file, ds.manifest()["imdb"]["columns"])) == 2
    file.write_text(f"\n\n{ROW}\nbroken\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.jsonl, row 4: not valid JSON"):
        ds.read_rows(file, ds.manifest()["imdb"]["columns"])


@pytest.mark.parametrize("text", ["a\0b", "two\u2028lines\u0085here\x0c", "", "😀", "x" * 1_000_000], ids=lambda t: repr(t[:9]))
def test_text_of_any_kind_comes_through_unchanged(local, text):
    local([{**GOOD[0], "text": text}, GOOD[1]])
    assert ds.load("imdb", "train")["text"][:] == [text, GOOD[1]["text"]]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"a": st.text(st.characters(exclude_categories=["Cs"])), "n": st.integers(-9, 9)},
                                      optional={"o": st.none() | st.floats(allow_nan=False, allow_infinity=False)}), min_size=1))
def test_rows_written_are_the_rows_read(tmp_path, rows):
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()))
    back = ds.read_rows(file, {"a": "string", "n": "int64", "o": "float64?"})
    assert back == [{"o": None, **row} for row in rows]


def test_missing_data_folder_is_an_error_and_does_not_show_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="the folder that NLP_PORTFOLIO_DATA names does not exist") as caught:
        ds.load("imdb", "train")
    assert str(tmp_path) not in str(caught.value)


def test_forced_sample_needs_no_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", str(tmp_path / "nowhere"))
    assert len(ds.load("imdb", "test", source="sample")) == 104


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "imbd"}, r"unknown data set 'imbd': choose one of .*imdb"),
    ({"name": "imdb", "split": "dev"}, r"no sample of imdb dev is bundled"),
    ({"name": "imdb", "source": "disk"}, r"unknown source 'disk': choose one of local, hub, sample"),
])
def test_unknown_names_say_what_there_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        ds.load(**arguments)


def test_unknown_source_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "cloud")
    with pytest.raises(ValueError, match="unknown source 'cloud'"):
        ds.load("imdb", "train")


# ---- excerpt and catalogue


@pytest.mark.parametrize(("text", "words", "shown"), [
    ("one two three", 2, "one two …"),
    ("one two", 2, "one two"),
    ("one<br /><br />two\n three", 9, "one two three"),
    ("", 12, ""),
    (" \n ", 12, ""),
])
def test_excerpt(text, words, shown):
    assert ds.excerpt(text, words) == shown


@given(st.text())
def test_excerpt_is_one_line_of_at_most_twelve_words(text):
    shown = ds.excerpt(text)
    assert len(shown.removesuffix(" …").split()) <= 12
    assert shown.splitlines() in ([shown], [])


def test_catalogue_says_where_each_set_comes_from(local):
    table = ds.catalogue()
    assert list(table.index) == list(ds.manifest())
    assert (table.loc["imdb", "source here"], table.loc["imdb", "bundled rows"]) == ("sample", 424)
    assert table.loc["imdb", "hub rows"] == 50_000
    local(GOOD)
    assert ds.catalogue().loc["imdb", "source here"] == "local"


def test_catalogue_follows_the_forced_source(local, monkeypatch):
    local(GOOD)
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "sample")
    assert ds.catalogue().loc["imdb", "source here"] == "sample"
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "hub")
    assert ds.catalogue().loc["imdb", "source here"] == "nothing"


# ---- the real reviews


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="NLP_PORTFOLIO_DATA is not set")
@pytest.mark.parametrize(("split", "rows"), [("train", 10_000), ("test", 5_000)])
def test_real_imdb_has_its_columns_and_counts(monkeypatch, capsys, split, rows):
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", REAL)
    data = ds.load("imdb", split)
    assert data.column_names == ["id", "text", "label", "rating", "movie_id"]
    assert capsys.readouterr().out == f"imdb {split}: {rows:,} reviews from the local folder\n"
    assert sorted(set(data["rating"])) == [1, 2, 3, 4, 7, 8, 9, 10]
    assert sum(data["label"]) == rows // 2
    assert all((label == 1) == (rating >= 7) for label, rating in zip(data["label"], data["rating"], strict=True))


def test_hub_classes_are_numbered_by_name() -> None:
    "Copies of a set number their classes differently; the manifest's order counts."
    hub = ds.manifest()["banking77"]["hub"]
    assert len(set(hub["label_names"])) == 77
    row = ds._renamed({"id": "x", "text": "Where is it?", "label": 5, "label_text": "card_linking"}, hub)
    assert row == {"id": "x", "text": "Where is it?", "label": 1, "intent": "card_linking"}
    with pytest.raises(ValueError, match="no_such_intent"):
        ds._renamed({"label_text": "no_such_intent"}, hub)


def test_hub_classes_stored_as_numbers_become_names() -> None:
    names = {"label": ["World", "Sports", "Business", "Sci/Tech"]}
    row = ds._renamed({"id": "x", "text": "a", "label": 3}, ds.manifest()["ag_news"]["hub"], names)
    assert row == {"id": "x", "text": "a", "topic": "Sci/Tech"}


@pytest.mark.parametrize(("value", "message"), [
    ("refund", "must be strings, got str"), (["refund", 3], "must be a list of strings"), (["\ud800"], "half a surrogate pair")])
def test_list_of_strings_is_checked(value, message) -> None:
    columns = {"intents": "strings"}
    assert ds._check({"intents": ["refund", "billing"]}, columns, "row 1") == {"intents": ["refund", "billing"]}
    with pytest.raises(ValueError, match=message):
        ds._check({"intents": value}, columns, "row 1")
