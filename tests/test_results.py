"""Results: rows are written in one step, a broken file is kept, the same measurement is found again and compared."""

import json
import os
import subprocess
import sys
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlp_portfolio.course.results as rs
from nlp_portfolio.course.datasets import load
from nlp_portfolio.course.settings import settings as choose


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    "A home of its own, profile smoke, and no data loaded before."
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path))
    monkeypatch.setattr(rs, "last_provenance", lambda: None)
    choose("smoke")
    yield
    choose("smoke")


def file_of(lesson: str, tmp_path):
    return tmp_path / "results" / f"{lesson}.json"


def test_row_is_written_as_returned(tmp_path):
    row = rs.record("99_x", model="a", f1=0.5, seconds=3)
    assert json.loads(file_of("99_x", tmp_path).read_text(encoding="utf-8")) == [row] == rs.own_rows("99_x")
    assert row["metrics"] == {"f1": 0.5, "seconds": 3.0}
    assert (row["lesson"], row["model"], row["profile"], row["source"], row["dtype"]) == ("99_x", "a", "smoke", "none", "float64")
    assert (row["seed"], row["date"]) == (42, date.today().isoformat())
    assert {"python", "numpy"} <= set(row["versions"])


def test_source_comes_from_the_data(monkeypatch):
    data = load("imdb", "test", source="sample")
    assert rs.record("99_x", "a", data=data, f1=1)["source"] == "sample"
    assert rs.record("99_x", "a", data="toy", f1=1)["source"] == "toy"
    monkeypatch.setattr(rs, "last_provenance", lambda: rs.provenance(data))
    row = rs.record("99_x", "a", f1=1)
    assert (row["source"], row["data"]) == ("sample", "imdb")


def test_same_key_replaces_and_another_key_stays(tmp_path):
    rs.record("99_x", "a", f1=0.1)
    rs.record("99_x", "a", f1=0.2)
    assert [row["metrics"]["f1"] for row in rs.own_rows("99_x")] == [0.2]
    rs.record("99_x", "b", f1=0.3)
    rs.record("99_x", "a", dtype="int8", f1=0.4)
    rs.record("99_x", "a", data="toy", f1=0.5)
    choose("cpu")
    rs.record("99_x", "a", f1=0.6)
    assert sorted(row["metrics"]["f1"] for row in rs.own_rows("99_x")) == [0.2, 0.3, 0.4, 0.5, 0.6]
    assert len({rs.row_key(row) for row in rs.own_rows("99_x")}) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, np.float32("nan"), "0.9", True])
def test_metric_that_is_no_finite_number_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="metric f1 must be a finite number"):
        rs.record("99_x", "a", f1=value)
    assert not file_of("99_x", tmp_path).exists()


def test_a_row_needs_a_metric():
    with pytest.raises(ValueError, match="at least one metric, for example accuracy=0.89"):
        rs.record("99_x", "a")


@pytest.mark.parametrize("value", [np.float32(0.25), np.int64(3), np.float64(0.1234567891), 7])
def test_numpy_numbers_become_plain_floats(value):
    kept = rs.record("99_x", "a", f1=value)["metrics"]["f1"]
    assert type(kept) is float and kept == float(f"{float(value):.6g}")


# ---- files


def test_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    file = tmp_path / "deep/er/x.json"
    rs.write_json(file, {"a": 1})

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rs.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        rs.write_json(file, {"a": 2})
    assert rs.read_json(file, dict) == {"a": 1}


def test_value_that_json_cannot_hold_leaves_the_old_file_and_no_draft(tmp_path):
    file = tmp_path / "x.json"
    rs.write_json(file, {"a": 1})
    for value in ({"a": object()}, {"a": "half \ud800"}):
        with pytest.raises((TypeError, ValueError)):
            rs.write_json(file, value)
        assert rs.read_json(file, dict) == {"a": 1}
        assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe", b"{}", b"null", b"[" * 100_000],
                         ids=["empty", "cut", "not UTF-8", "another type", "null", "deep"])
def test_broken_file_is_kept_and_said_in_one_line(tmp_path, capsys, content):
    file = file_of("99_x", tmp_path)
    file.parent.mkdir()
    file.write_bytes(content)
    assert rs.own_rows("99_x") == []
    assert capsys.readouterr().out == ("99_x.json could not be read: it was kept as 99_x.json.broken, and a new one is begun\n")
    assert file.with_name("99_x.json.broken").read_bytes() == content
    rs.record("99_x", "a", f1=1)
    assert len(rs.own_rows("99_x")) == 1


def test_second_broken_file_does_not_overwrite_the_first(tmp_path):
    file = file_of("99_x", tmp_path)
    file.parent.mkdir()
    for content in ("first", "second"):
        file.write_text(content, encoding="utf-8")
        rs.own_rows("99_x")
    assert sorted(kept.read_text(encoding="utf-8") for kept in file.parent.glob("*.broken*")) == ["first", "second"]


WRITER = """
import os, sys, time
from nlp_portfolio.course.results import record
from nlp_portfolio.course.settings import settings
settings("smoke")
open(sys.argv[2] + "/" + sys.argv[1], "w").close()
while len(os.listdir(sys.argv[2])) < 2:
    time.sleep(.001)
for i in range(40):
    record("99_x", f"{sys.argv[1]}{i}", f1=i)
"""


def test_two_processes_that_write_at_once_lose_no_row(tmp_path):
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*command, who, str(tmp_path / "ready")], env=dict(os.environ)) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert {row["model"] for row in rs.own_rows("99_x")} == {f"{who}{i}" for who in "ab" for i in range(40)}


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), json_values, max_size=4))
def test_what_is_written_is_what_is_read(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "round" / "x.json"
    rs.write_json(file, value)
    assert rs.read_json(file, dict) == value


# ---- comparing


@pytest.mark.parametrize(("value", "reference", "verdict"), [
    (0.9, 0.9, True), (0.904, 0.9, True), (0.9056, 0.9, False), (0.894, 0.9, False),
    (100.4, 100, True), (100.6, 100, False), (0.004, 0, True), (0.006, 0, False), (-0.9, 0.9, False),
])
def test_agreement_is_half_a_percent(value, reference, verdict):
    assert rs.agrees("f1", value, reference) is verdict


@pytest.mark.parametrize("metric", ["seconds", "fit_seconds", "p95_ms", "peak_mb"])
def test_metric_of_the_machine_is_never_compared(metric):
    assert rs.agrees(metric, 1, 100) is None


@pytest.mark.parametrize("metric", ["accuracy", "f1", "bleu", "items", "thumb", "forms"])
def test_metric_of_the_model_is_compared(metric):
    assert rs.agrees(metric, 1.0, 100.0) is False


def reference_row(**change):
    return {"lesson": "99_x", "model": "a", "profile": "smoke", "source": "none", "dtype": "float64",
            "metrics": {"f1": 0.5}, **change}


@pytest.fixture
def reference(monkeypatch):
    "Reference rows and published figures of lesson 99_x."
    rows = [reference_row(), reference_row(profile="full", source="local", metrics={"f1": 0.8}),
            reference_row(profile="full", source="sample", metrics={"f1": 0.1})]
    figures = [{"lesson": "99_x", "model": "BERT", "metric": "f1", "value": 0.95, "source": "paper 2019"}]
    monkeypatch.setattr(rs, "reference_rows", lambda lesson: rows)
    monkeypatch.setattr(rs, "published", lambda lesson: figures)


def test_compare_puts_yours_beside_same_key_full_run_and_published(reference):
    rs.record("99_x", "a", f1=0.52, seconds=3)
    table = rs.compare("99_x")
    assert list(table.columns) == ["yours", "reference", "agrees", "full reference", "published"]
    assert table.loc[("a", "none", "f1")].tolist() == [0.52, 0.5, False, 0.8, ""]
    assert table.loc[("a", "none", "seconds")].tolist() == [3.0, "", "", "", ""]
    assert table.loc[("BERT", "paper 2019", "f1"), "published"] == 0.95


@pytest.mark.parametrize("change", [{"dtype": "int8"}, {"data": "toy"}], ids=["dtype", "source"])
def test_reference_of_another_key_is_not_shown(reference, change):
    rs.record("99_x", "a", f1=0.5, **change)
    mine = rs.compare("99_x").loc["a"]
    assert mine.get("yours").tolist() == [0.5] and set(mine.get("reference", [""])) == {""}


def test_compare_shows_only_the_active_profile(reference):
    choose("cpu")
    rs.record("99_x", "a", f1=0.7)
    choose("smoke")
    assert "a" not in rs.compare("99_x").index.get_level_values("model")


def test_results_on_several_data_are_all_shown(reference):
    rs.record("99_x", "a", data="toy", f1=0.1)
    rs.record("99_x", "a", data="local", f1=0.9)
    assert rs.compare("99_x")["yours"].loc["a"].to_dict() == {("toy", "f1"): 0.1, ("local", "f1"): 0.9}


def test_compare_before_any_run_is_an_empty_table():
    assert rs.compare("99_nothing_here").empty


def test_reference_rows_of_an_unknown_lesson_are_none():
    assert rs.reference_rows("99_nothing_here") == []


def test_published_figures_name_their_source(root):
    import tomllib

    rows = tomllib.loads((root / "nlp_portfolio/reference/published.toml").read_text(encoding="utf-8"))["row"]
    assert rows and all({"lesson", "model", "metric", "value", "source"} <= set(row) for row in rows)
    assert rs.published(rows[0]["lesson"])[0] == rows[0]


def test_a_benchmark_is_a_table_with_its_facts() -> None:
    table, facts = rs.recorded_benchmark("serving")
    assert {"server", "load", "per_second", "p95_ms", "errors"} <= set(table) and (table["per_second"] > 0).all()
    assert {"date", "machine", "requests"} <= set(facts)
    with pytest.raises(ValueError, match="choose one of .*serving"):
        rs.recorded_benchmark("speed")
