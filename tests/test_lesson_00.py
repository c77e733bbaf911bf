"""The self-check of lesson 00: where it sends a learner, and how it reads commands without running them."""

import json
import math
import random
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from nlp_portfolio.course.exercise import exercise_ids, find, same
from nlp_portfolio.exercises import lesson_00 as lesson

QUESTIONS = [id for id in exercise_ids("00") if not id.startswith("00.warmup")]
AREA_OF = {id: id.split(".")[1].split("_")[0] for id in QUESTIONS}


@pytest.fixture
def passes(tmp_path, monkeypatch):
    "A function that writes the learner's passes; the toolkit reads them from tmp_path."
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path))
    monkeypatch.setattr("nlp_portfolio.course.exercise.lessons_with_exercises", lambda: ["00"])

    def write(ids):
        (tmp_path / "progress.json").write_text(json.dumps(dict.fromkeys(ids, "2026-11-22")), encoding="utf-8")

    return write


def table(passed: set[str], others: dict[str, bool] | None = None) -> pd.DataFrame:
    "A progress table with the questions of lesson 00 and exercises of other lessons."
    rows = {id: id in passed for id in QUESTIONS} | (others or {})
    return pd.DataFrame([{"id": id, "lesson": id[:2], "passed": done} for id, done in rows.items()])


def test_five_areas_two_or_three_questions_each():
    counts = lesson.area_counts(table(set()))
    assert counts == {"python": (0, 3), "vectors": (0, 3), "probability": (0, 2), "git": (0, 2), "terminal": (0, 2)}


def test_no_passes_begins_with_the_self_check(passes):
    passes([])
    advice = lesson.entry_point()
    assert advice.startswith("**Begin with week 1, day 1.** None of the 12 questions")
    assert "Practise" not in advice  # nothing is known yet, so no area is called weak


def test_missing_progress_file_is_no_passes(passes):
    assert "None of the 12 questions" in lesson.entry_point()


def test_all_passes_has_nothing_to_practise(passes, monkeypatch):
    passes(exercise_ids("00"))
    monkeypatch.setattr(lesson, "first_open_lesson", lambda _: "01")
    advice = lesson.entry_point()
    assert advice.startswith("**Begin with lesson 01.** All 12 pass.")
    assert "Practise" not in advice


def test_only_git_weak_begins_with_lesson_01_and_practises_git(passes, monkeypatch):
    passes([id for id in QUESTIONS if AREA_OF[id] != "git"])
    monkeypatch.setattr(lesson, "first_open_lesson", lambda _: "01")
    advice = lesson.entry_point()
    assert advice.startswith("**Begin with lesson 01.** You passed 10 of 12")
    assert [line.split("**")[1] for line in advice.splitlines() if line.startswith("- ")] == ["git"]


def test_warmup_counts_for_nothing(passes):
    passes(["00.warmup_reading_minutes"])
    assert "None of the 12 questions" in lesson.entry_point()


@pytest.mark.parametrize("area", ["python", "vectors"])
def test_what_the_first_lessons_stand_on_comes_first(passes, area):
    passes([id for id in QUESTIONS if AREA_OF[id] != area])
    advice = lesson.entry_point()
    assert advice.startswith("**Begin with week 1, day 1.** The first lessons stand on " + area)
    assert f"- **{area}** (0 of 3), before lesson 01" in advice


def test_two_of_three_is_ready_and_one_of_two_is_not():
    two_thirds = table({"00.python_batches", "00.python_environment", "00.git_next_commit"})
    assert lesson.weak_areas(lesson.area_counts(two_thirds)) == ["vectors", "probability", "git", "terminal"]


@pytest.mark.parametrize(
    ("others", "place"),
    [({"01.a": True, "01.b": False, "16.a": False}, "lesson 01"),
     ({"01.a": True, "16.a": False, "17.a": False}, "lesson 16"),
     ({"01.a": True, "16.a": True, "17.a": False}, "lesson 17"),
     ({"01.a": True, "16.a": True, "17.a": True}, "week 2")],
)
def test_skips_to_the_first_open_lesson(others, place):
    state = table(set(QUESTIONS), others)
    assert lesson.where_to_begin(lesson.area_counts(state), lesson.first_open_lesson(state))[0] == place


@drawn(st.sets(st.sampled_from(QUESTIONS)))
def test_one_more_pass_never_makes_an_area_weak(passed):
    before = set(lesson.weak_areas(lesson.area_counts(table(passed))))
    for id in QUESTIONS:
        assert set(lesson.weak_areas(lesson.area_counts(table(passed | {id})))) <= before


def test_advice_is_a_string_that_notebooks_render(passes):
    passes([])
    advice = lesson.entry_point()
    assert isinstance(advice, str) and advice._repr_markdown_() == repr(advice) == str(advice)


@pytest.mark.parametrize("id", QUESTIONS)
@drawn(seed=st.integers(0, 10**6))
def test_every_draw_tells_right_from_wrong(id, seed):
    exercise = find(id)
    cases = exercise.cases(random.Random(seed))
    accept = exercise.accept or (lambda answer, expected, *case: same(answer, expected, exercise.tolerance))
    solved = [accept(exercise.solution(*case), exercise.solution(*case), *case) for case in cases]
    assert all(verdict is True for verdict in solved)
    for mistake in exercise.mistakes:
        verdicts = [accept(mistake.answer(*case), exercise.solution(*case), *case) for case in cases]
        assert any(verdict is not True for verdict in verdicts), mistake.message


@pytest.mark.parametrize("id", [id for id in QUESTIONS if find(id).accept])
@pytest.mark.parametrize(
    "answer", ["", "git", "'", "|", "..", "$", "rm -rf /", "a\x00b", "\ud800", 7, float("nan"), [], [None], {}]
)
def test_any_answer_to_a_value_question_gets_a_message(id, answer):
    exercise = find(id)
    case = exercise.draw()[0]
    verdict = exercise.accept(answer, exercise.solution(*case), *case)
    assert isinstance(verdict, str) and verdict


def test_no_answer_reveals_the_expected_value():
    for id in QUESTIONS:
        if (exercise := find(id)).accept:
            case = exercise.draw()[0]
            expected = exercise.solution(*case)
            assert repr(expected) not in exercise.accept("something else", expected, *case)


def test_commands_are_read_and_never_run(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a command was run")

    for name in ("run", "Popen", "call", "check_output"):
        monkeypatch.setattr(subprocess, name, forbidden)
    monkeypatch.setattr("os.system", forbidden)
    for id in ("00.python_environment", "00.git_bring_back", "00.terminal_count"):
        exercise = find(id)
        case = exercise.draw()[0]
        assert exercise.accept(exercise.solution(*case), exercise.solution(*case), *case) is True


LOG = ["ERROR a: ERROR b", "INFO error page", "INFO ok", "ERROR c", ""]


@pytest.mark.parametrize("command", [
    "grep -c ERROR x.log", "grep ERROR x.log | wc -l", "cat x.log | grep -c ERROR", "wc -l < x.log", "cat x.log",
    "grep -ic error x.log", "grep -o ERROR x.log | wc -l", "grep -vc ERROR x.log", "grep -w ERROR x.log",
    "grep -c 'ERROR c' x.log",
])
def test_acted_out_prints_what_the_real_tools_print(command, tmp_path):
    if not shutil.which("grep"):
        pytest.skip("no grep on this machine")
    (tmp_path / "x.log").write_text("\n".join(LOG) + "\n", encoding="utf-8")
    real = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert lesson.acted_out(command, "x.log", LOG) == [line.strip() for line in real.removesuffix("\n").split("\n")]


@pytest.mark.parametrize(("command", "message"), [
    ("rm x.log", "only knows cat, grep and wc"), ("", "only knows"), ("grep x.log |", "only knows"),
    ("grep", "the word to look for"), ("wc x.log", "counts lines"), ("grep -c ERROR y.log", "called x.log"),
])
def test_a_command_that_cannot_be_read_says_why(command, message):
    with pytest.raises(ValueError, match=message):
        lesson.acted_out(command, "x.log", LOG)


HISTORY = [
    ("c4c4c4c", "Newest", ["M b.md"]),
    ("c3c3c3c", "Tidy", ["D a.md", "M b.md"]),
    ("c2c2c2c", "Other", ["M b.md"]),
    ("c1c1c1c", "Edit", ["M a.md"]),
    ("c0c0c0c", "First", ["A a.md"]),
]
BRING_BACK = {
    "git restore --source=c3c3c3c~1 a.md": "",
    "git restore --source c2c2c2c -- a.md": "",
    "$ git checkout HEAD~3 -- ./a.md": "",
    "git show c3c3^:a.md > a.md": "",
    "git checkout c3c3c3c a.md": "does not hold the file",
    "git checkout HEAD a.md": "does not hold the file",
    "git checkout c0c0c0c a.md": "older version: c1c1c1c",
    "git checkout c0c0c0c~1 a.md": "no such commit",
    "git checkout beef a.md": "no such commit",
    "git checkout HEAD~2 b.md": "Name the file",
    "git revert c3c3c3c": "whole commit",
    "git reset --hard HEAD~2": "moves the branch",
    "git restore a.md": "one git command",
}


@pytest.mark.parametrize(("command", "message"), BRING_BACK.items())
def test_verdicts_of_bring_back(command, message):
    verdict = lesson._bring_back_verdict(command, "", "a.md", HISTORY)
    assert message in verdict if message else verdict is True


@pytest.fixture
def git(tmp_path):
    "Run git in a fresh repository under tmp_path; gives what it printed."
    if not shutil.which("git"):
        pytest.skip("no git on this machine")
    config = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]

    def run(*words: str) -> str:
        done = subprocess.run(["git", *config, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.rstrip("\n")

    run("init")
    return run


def test_verdicts_of_bring_back_agree_with_git(git, tmp_path):
    "The same commands, judged by a real repository that has this history."
    hashes = {}
    for commit, message, changes in reversed(HISTORY):
        for change in changes:
            file = tmp_path / change[2:]
            file.unlink() if change[0] == "D" else file.write_text(f"{commit}\n", encoding="utf-8")
        git("add", "-A")
        git("commit", "-m", message)
        hashes[commit] = git("rev-parse", "--short=7", "HEAD")
    judged = [command for command in BRING_BACK if "checkout" in command and "b.md" not in command]
    assert len(judged) == 6
    for command in judged:
        real = command.strip("$ ")
        for commit, short in hashes.items():
            real = real.replace(commit, short)
        done = subprocess.run(real.split(), cwd=tmp_path, capture_output=True, text=True)
        newest = (tmp_path / "a.md").is_file() and (tmp_path / "a.md").read_text() == "c1c1c1c\n"
        assert (done.returncode == 0 and newest) == (BRING_BACK[command] == ""), command
        git("reset", "--hard", "HEAD")


def test_next_commit_agrees_with_git(git, tmp_path):
    "Every mark of the question, made in a real repository."
    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")

    for name in ("staged", "changed", "both", "gone_staged", "gone"):
        write(name, f"{name} 1\n")
    git("add", "-A")
    git("commit", "-m", "first")
    for name in ("staged", "both", "added"):
        write(name, f"{name} 2\n")
    git("add", "-A")
    git("rm", "-q", "gone_staged")
    for name in ("changed", "both", "unknown"):
        write(name, f"{name} 3\n")
    (tmp_path / "gone").unlink()
    status = git("status", "--short").split("\n")
    assert {line[:2] for line in status} == {"M ", " M", "MM", "A ", "D ", " D", "??"}
    assert sorted(lesson.next_commit(status)) == sorted(git("diff", "--cached", "--name-only").split("\n"))


@drawn(st.lists(st.integers()), st.integers(1, 9))
def test_batches_lose_and_repeat_nothing(items, size):
    cut = lesson.batches(items, size)
    assert [item for batch in cut for item in batch] == items
    assert all(len(batch) == size for batch in cut[:-1]) and all(0 < len(batch) <= size for batch in cut)


@drawn(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=5))
def test_cosine_is_that_of_scipy(pairs):
    from scipy.spatial.distance import cosine

    a, b = map(list, zip(*pairs, strict=True))
    expected = 1 - cosine(a, b) if any(a) and any(b) else 0.0
    assert math.isclose(lesson.cosine(a, b), expected, abs_tol=1e-9)


def test_shapes_are_those_of_numpy():
    for seed in range(20):
        documents, weights = find("00.vectors_shapes").cases(random.Random(seed))[0]
        assert lesson.scores_shape(documents, weights) == (np.zeros(documents) @ np.zeros(weights).T).shape


def test_probabilities_are_those_of_counting():
    rng = np.random.default_rng(0)
    toxic = rng.random(400_000) < 0.05
    flagged = rng.random(400_000) < np.where(toxic, 0.9, 0.08)
    assert math.isclose(lesson.toxic_if_flagged(0.05, 0.9, 0.08), toxic[flagged].mean(), abs_tol=0.01)
    wrong = rng.random((20_000, 20)) < 0.05
    assert math.isclose(lesson.any_wrong(0.05, 20), wrong.any(axis=1).mean(), abs_tol=0.015)


def test_a_class_attribute_is_shared_as_the_question_says():
    class Channel:
        tags = []

        def add(self, tag):
            self.tags.append(tag)

    calls = find("00.python_shared_tags").draw()[0][0]
    channels = {"mail": Channel(), "chat": Channel()}
    for who, tag in calls:
        channels[who].add(tag)
    assert channels["mail"].tags == lesson.tags_of_mail(calls)
