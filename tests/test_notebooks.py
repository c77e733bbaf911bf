"""Every notebook is executed in the smoke profile, and what it records must be what the reference says."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from nlp_portfolio.course.reference import measure
from nlp_portfolio.course.results import agrees, reference_rows, row_key
from nlp_portfolio.course.runner import course_notebooks

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


@pytest.mark.required
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.relative_to(ROOT).as_posix().removeprefix("nbs/"))
def test_notebook_runs_and_repeats_its_reference(notebook: Path) -> None:
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
