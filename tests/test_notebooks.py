"""Every notebook is executed in the smoke profile with no more installed than its own install line brings (the test extras
are hidden from it), and what it records must be what the reference says."""

import importlib.metadata
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nlp_portfolio.course.reference import measure
from nlp_portfolio.course.results import agrees, reference_rows, row_key
from nlp_portfolio.course.runner import course_notebooks, run_notebook

NOTEBOOKS = course_notebooks(ROOT)


def disagreements(fresh: list[dict[str, Any]], reference: list[dict[str, Any]]) -> list[str]:
    "What fresh rows say differently from the reference rows of the smoke profile, missing and extra ones included."
    new = {row_key(row): row["metrics"] for row in fresh}
    old = {row_key(row): row["metrics"] for row in reference if row["profile"] == "smoke"}
    found = [f"only {'fresh' if key in new else 'in the reference'}: {key}" for key in sorted(new.keys() ^ old.keys())]
    for key in new.keys() & old.keys():
        found += [f"{key}: metrics {sorted(new[key])} against {sorted(old[key])}"] if new[key].keys() != old[key].keys() else []
        found += [f"{key}: {metric} is {new[key][metric]}, the reference says {old[key][metric]}"
                  for metric in new[key].keys() & old[key].keys()
                  if agrees(metric, new[key][metric], old[key][metric]) is False]
    return found


def brought(package: str, extras: Iterable[str] = (), seen: set[tuple[str, str]] | None = None) -> set[str]:
    "The distributions that installing a package with these extras brings, by what is declared."
    seen = set() if seen is None else seen
    for extra in ("", *extras):
        if (canonicalize_name(package), extra) in seen:
            continue
        seen.add((canonicalize_name(package), extra))
        try:
            needed = map(Requirement, importlib.metadata.requires(package) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        for one in needed:
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                brought(one.name, one.extras, seen)
    return {name for name, _ in seen}


def modules_of(distributions: set[str]) -> set[str]:
    "The modules that these distributions, and no others, install."
    return {module for module, owners in importlib.metadata.packages_distributions().items()
            if {canonicalize_name(owner) for owner in owners} <= distributions}


def hidden(source: str) -> set[str]:
    "What a notebook must do without: modules of the test machine that its install line does not bring. None without such a line."
    if not (line := re.search(r"nlp-portfolio(?:\[([\w,]+)\])? @ git", source)):
        return set()
    return modules_of(brought("nlp-portfolio", ["dev"]) - brought("nlp-portfolio", (line[1] or "").split(",")))


@pytest.mark.required
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.relative_to(ROOT).as_posix().removeprefix("nbs/"))
def test_notebook_runs_and_repeats_its_reference(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)
    monkeypatch.setenv("ABSENT_MODULES", " ".join(sorted(hidden(source))))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT / "tests/absent"), os.environ.get("PYTHONPATH")])))
    _, rows, _ = measure(notebook, "smoke", "sample", limit=400)
    lessons = {row["lesson"] for row in rows} | {notebook.stem}
    assert disagreements([row for row in rows if row["lesson"] != "demo"],
                         [row for lesson in lessons for row in reference_rows(lesson)]) == []


def test_a_changed_number_is_seen() -> None:
    rows = [row for row in reference_rows("01_imdb_baseline") if row["profile"] == "smoke"]
    assert rows and disagreements(rows, rows) == []
    wrong = [row | {"metrics": row["metrics"] | {"accuracy": row["metrics"]["accuracy"] - 0.01}} for row in rows]
    assert len(disagreements(rows, wrong)) == len(rows)
    assert disagreements(rows[1:], rows) and disagreements(rows, rows[1:])


def test_what_the_install_line_does_not_bring_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = hidden('%pip install -q "nlp-portfolio[neural] @ git+https://example.org"')
    assert {"gradio", "presidio_analyzer", "faiss", "pytest"} <= absent
    assert not {"torch", "transformers", "faker", "numpy", "ipykernel", "nlp_portfolio"} & absent
    assert hidden("import faiss") == set()
    monkeypatch.setenv("ABSENT_MODULES", " ".join(absent))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/absent"))
    for module, message in (("faker", "printed nothing"), ("faiss", "No module named 'faiss'")):
        cell = nbformat.v4.new_code_cell(f"import {module}\nraise ValueError('printed nothing')")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
        assert message in run_notebook(tmp_path / "one.ipynb").error
