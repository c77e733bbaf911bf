"""README says what was measured: its tables are generated, and a difference from the JSON is red."""

import re

from conftest import ROOT

from nlp_portfolio.course.reference import refresh
from nlp_portfolio.course.results import reference_rows
from nlp_portfolio.course.runner import course_notebooks

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_equal_the_reference_files() -> None:
    assert refresh(README, ROOT) == README


def test_a_mutated_number_is_seen() -> None:
    value = f"{reference_rows('01_imdb_baseline')[0]['metrics']['accuracy']:.4f}"
    assert value in README
    mutated = README.replace(value, f"{float(value) + 0.01:.4f}")
    assert refresh(mutated, ROOT) != mutated


def test_readme_lists_every_lesson_and_the_two_commands() -> None:
    for lesson in course_notebooks(ROOT, lessons_only=True):
        assert f"]({lesson.relative_to(ROOT).as_posix()})" in README
    assert "make start" in README and "make test" in README


def test_links_and_pictures_exist() -> None:
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("weekly_plan/*.md"), *ROOT.glob("projects/*.md")]:
        text = file.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text) + re.findall(r'src="(?!https?:)([^"]+)"', text):
            assert (file.parent / target).exists(), f"{file.name} points at {target}"
