"""Twenty days: each has work, a deliverable and a check that is red before the work and green after it, or is marked coming."""

import json
import re
import subprocess
import sys
from datetime import date

import pytest
from conftest import ROOT

from nlp_portfolio.course import cli
from nlp_portfolio.course.exercise import exercise_ids
from nlp_portfolio.course.results import record, write_json
from nlp_portfolio.course.runner import course_notebooks
from nlp_portfolio.course.settings import home

WEEKS = {week: (ROOT / f"weekly_plan/week_{week}.md").read_text(encoding="utf-8") for week in (1, 2, 3, 4)}
DAYS = {int(number): (title, body) for text in WEEKS.values()
        for number, title, body in re.findall(r"^## Day (\d+)\. (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)}
COMING = {day for day, (title, _) in DAYS.items() if title.endswith("(coming)")}
LESSONS = {file.stem for file in course_notebooks(ROOT, lessons_only=True)}
PATTERNS = {day: re.findall(r"status \| grep -E '(.+)'", body) for day, (_, body) in DAYS.items()}
PROGRAMS = {day: code for day, (_, body) in DAYS.items() for code in re.findall(r"^python -c '\n(.*?)^'$", body, re.M | re.S)}


def test_twenty_days_five_a_week() -> None:
    assert list(DAYS) == list(range(1, 21))
    assert all(len(re.findall("^## Day ", text, re.M)) == 5 for text in WEEKS.values())


@pytest.mark.parametrize("day", sorted(set(range(1, 21)) - COMING))
def test_a_day_has_work_a_deliverable_and_a_check_of_lessons_that_exist(day: int) -> None:
    _, body = DAYS[day]
    parts = [body.find(f"**{name}.**") for name in ("Work", "Deliverable", "Check")]
    assert -1 < parts[0] < parts[1] < parts[2] and body.count("```bash") == 1
    for names in re.findall(r"nlp-portfolio run (.+?) --profile", body):
        cli.pick(names.split())
    if day > 5:  # week 1 reads `status` by eye
        recorded = {re.match(r"\^(\w+) ", pattern)[1] for pattern in PATTERNS[day]}
        run = {file.stem for names in re.findall(r"run (.+?) --profile", body) for file in cli.pick(names.split())}
        assert recorded == run
        assert f"^## Day {day}'" in body and f"`## Day {day}`" in body


@pytest.mark.parametrize("day", sorted(COMING))
def test_a_coming_day_is_told_plainly_and_ends_when_its_lessons_exist(day: int) -> None:
    _, body = DAYS[day]
    lessons = re.findall(r"`(\d\d[a-z]?_\w+)`", body)
    assert "**Coming.**" in body and "do not exist yet" in body.replace("does not", "do not") and "```" not in body
    assert lessons and not LESSONS & set(lessons)


def green(pattern: str, table: str) -> bool:
    return any(re.search(pattern, line) for line in table.splitlines())


def test_status_lines_are_red_until_the_lesson_is_recorded_and_every_exercise_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    patterns = [pattern for found in PATTERNS.values() for pattern in found]
    lessons = {pattern: re.match(r"\^(\w+) ", pattern)[1] for pattern in patterns}
    assert len(patterns) >= 16 and not any(green(pattern, cli.status().to_string()) for pattern in patterns)
    for lesson in lessons.values():
        record(lesson, "toy", data="sample", accuracy=0.5)
    needs_exercises = {pattern for pattern in patterns if " of " in pattern}
    assert {pattern for pattern in patterns if green(pattern, cli.status().to_string())} == set(patterns) - needs_exercises
    ids = [id for pattern in needs_exercises for id in exercise_ids(lessons[pattern].split("_")[0])]
    last = {exercise_ids(lessons[pattern].split("_")[0])[-1] for pattern in needs_exercises}
    write_json(home() / "progress.json", {id: date.today().isoformat() for id in ids if id not in last})
    assert not any(green(pattern, cli.status().to_string()) for pattern in needs_exercises)
    write_json(home() / "progress.json", {id: date.today().isoformat() for id in ids})
    assert all(green(pattern, cli.status().to_string()) for pattern in patterns)
    for lesson in lessons.values():
        (home() / "results" / f"{lesson}.json").unlink()
    assert not any(green(pattern, cli.status().to_string()) for pattern in patterns)


def question(number: int) -> dict:
    answered = number > 5
    return {"id": f"me-{number}", "text": f"Question {number}?", "kind": "answerable" if answered else "unanswerable",
            "quotes": ["fired on Tuesdays"] if answered else [], "answer": "", "split": "test", "source": "library",
            "document": "kiln.md"}


ASKED = [question(number) for number in range(1, 21)]
ANSWERS = [{"question": one["text"], "refused": not one["quotes"], "citations": [{"quote": quote} for quote in one["quotes"]],
            "seconds": {"total": 0.2}, "cost": 0.0} for one in ASKED]
FAILED = "id,bucket,cause,owner\nme-1,answered though unanswerable,threshold,me\n"


@pytest.fixture
def checked(tmp_path, monkeypatch):
    "Runs a day's program beside notes made of the given files: its exit status and last line."
    def call(day: int, asked=ASKED, answers=ANSWERS, failed=FAILED) -> tuple[int, str]:
        (tmp_path / "notes/documents").mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes/documents/kiln.md").write_text("# Kiln\n\nIt is fired on\nTuesdays.\n", encoding="utf-8")
        for name, rows in (("questions", asked), ("answers", answers)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"notes/{name}.jsonl").write_text(lines, encoding="utf-8")
        (tmp_path / "notes/failures.csv").write_text(failed, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        done = subprocess.run([sys.executable, "-c", PROGRAMS[day]], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]
    return call


def test_the_check_of_the_evaluation_set(checked) -> None:
    assert checked(17) == (0, "20 questions, 5 without an answer, every quote in its place")
    assert checked(17, asked=ASKED[1:])[0] == 1
    assert checked(17, asked=[*ASKED[:19], ASKED[0]])[0] == 1
    assert checked(17, asked=[*ASKED[1:], question(21)])[0] == 1
    status, said = checked(17, asked=[*ASKED[:19], ASKED[19] | {"quotes": ["fired on Mondays"]}])
    assert status == 1 and "me-20" in said


def test_the_check_of_the_answers(checked) -> None:
    assert checked(18) == (0, "20 answers, 5 refused, slowest 0.20 s, cost 0.0")
    assert "1 of 20 questions" in checked(18, answers=ANSWERS[1:])[1]
    for changed in ({"citations": []}, {"cost": None}, {"seconds": {"total": 0}}):
        status, said = checked(18, answers=[*ANSWERS[:19], ANSWERS[19] | changed])
        assert status == 1 and said.startswith("AssertionError")


def test_the_check_of_the_failure_log(checked) -> None:
    status, said = checked(19)
    assert status == 0 and said.startswith("1 failures, each with a cause and an owner")
    for failed in (FAILED.replace("threshold", ""), FAILED.replace(",me\n", ",\n"), FAILED.replace("me-1", "py-043")):
        assert checked(19, failed=failed)[0] == 1


def test_programs_hold_no_quote_that_ends_them_and_their_bash_is_well_formed() -> None:
    assert set(PROGRAMS) == {17, 18, 19} and not any("'" in program for program in PROGRAMS.values())
    assert all(body.count("'") % 2 == 0 for _, text in DAYS.values() for body in re.findall(r"```bash\n(.*?)```", text, re.S))
