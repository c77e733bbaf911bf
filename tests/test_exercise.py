"""Exercises: the machinery that judges answers, and every registered exercise both ways."""

import copy
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlp_portfolio.course.exercise as ex
from nlp_portfolio.course.exercise import Exercise, Mistake, check, exercise_ids, find, lessons_with_exercises, same

LESSONS = lessons_with_exercises()
IDS = [id for lesson in LESSONS for id in exercise_ids(lesson)]
SEEDS = range(1, 21)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    "Exercises registered by a test disappear with it."
    monkeypatch.setattr(ex, "_exercises", dict(ex._exercises))
    monkeypatch.setattr(ex, "_hints_shown", {})
    seed(42, monkeypatch)


def seed(number: int, monkeypatch) -> None:
    monkeypatch.setattr(ex, "active", lambda: SimpleNamespace(seed=number))


def add(**change) -> Exercise:
    "A registered exercise, 98.add, with parts exchanged."
    parts = {"id": "98.add", "cases": lambda rng: [(rng.randint(1, 99), rng.randint(1, 99)) for _ in range(3)],
             "solution": lambda a, b: a + b, "hints": ("Use +.", "a + b"),
             "mistakes": (Mistake(lambda a, b: a * b, "That is the product."),)}
    exercise = Exercise(**(parts | change))
    ex.register(exercise)
    return exercise


def add_value(**change) -> Exercise:
    "A registered exercise whose answer is a value: the largest of three drawn numbers."
    return add(**({"id": "98.value", "cases": lambda rng: [([rng.randint(1, 999) for _ in range(3)],)], "solution": max,
                   "mistakes": (Mistake(min, "That is the smallest."),)} | change))


# ---- same


@pytest.mark.parametrize(("answer", "expected", "equal"), [
    (1, 1.0, True), (1.0, 1, True), (0.1 + 0.2, 0.3, True), (1, 2, False),
    (True, 1, False), (1, True, False), (True, True, True), (np.bool_(True), True, True),
    ("1", 1, False), (1, "1", False), ("a", "a", True), (np.str_("a"), "a", True), ("ab", ["a", "b"], False),
    ([1, 2], (1, 2), True), (np.array([1, 2]), [1, 2], True), ([1], np.array([1]), True), ([1, 2], [1], False),
    ([[1.0000001, 2]], [[1, 2]], True), (np.eye(2), [[1, 0], [0, 1]], True), (np.float32(0.5), 0.5, True),
    ({"a": 1}, {"a": 1.0}, True), ({"a": 1, "b": 2}, {"a": 1}, False), ({"b": 1}, {"a": 1}, False), ({1: "x"}, {"1": "x"}, False),
    ({1, 2}, {2, 1}, True), ({1}, [1], False), (frozenset({1}), {1}, False), (math.nan, 1.0, False), (math.inf, math.inf, True),
    ([], [], True), ({}, {}, True), ("", [], False), (1 + 0j, 1, False),
])
def test_same(answer, expected, equal):
    assert same(answer, expected, 1e-6) is equal


@pytest.mark.parametrize(("tolerance", "equal"), [(1e-6, False), (0.01, True)])
def test_tolerance_holds_inside_containers(tolerance, equal):
    assert same({"a": [1.004, (2,)]}, {"a": [1, (2,)]}, tolerance) is equal


def test_number_too_large_for_a_float_is_compared_all_the_same():
    assert same(10**400, 10**400, 1e-6) is True
    assert same(10**400, 1.0, 1e-6) is False


answers = st.recursive(st.booleans() | st.integers(-10**9, 10**9) | st.floats(allow_nan=False) | st.text(max_size=5),
                       lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(answers, answers)
def test_same_is_reflexive_and_symmetric(one, other):
    assert same(one, copy.deepcopy(one), 1e-6)
    assert same(one, other, 1e-6) == same(other, one, 1e-6)


# ---- check


def test_right_answer_passes():
    add()
    feedback = check("98.add", lambda a, b: b + a)
    assert (feedback.status, feedback.passed, feedback.message) == ("passed", True, "3 cases right.")
    assert repr(feedback) == "✓ 98.add passed. 3 cases right."


def test_wrong_answer_says_what_was_expected_and_what_came():
    add(cases=lambda rng: [(2, 3)])
    feedback = check("98.add", lambda a, b: 7)
    assert repr(feedback) == '✗ 98.add failed. For (2, 3) expected 5, got 7. hint("98.add") helps.'


def test_typical_mistake_is_recognized():
    add()
    assert check("98.add", lambda a, b: a * b).message.endswith("That is the product.")


def test_mistake_that_shares_only_some_cases_is_not_claimed():
    add(cases=lambda rng: [(2, 3), (2, 2), (4, 5)])
    assert "product" not in check("98.add", lambda a, b: a * b if a == 2 else 0).message


def not_written(*_):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., lambda a, b: None, lambda a, b: ..., not_written], ids=repr)
def test_untouched_stub_is_not_attempted(answer):
    add()
    feedback = check("98.add", answer)
    assert feedback.status == "not attempted" and not feedback.passed
    assert 'hint("98.add")' in feedback.message


def test_answer_that_forgets_one_case_is_wrong_and_not_unattempted():
    add(cases=lambda rng: [(1, 1), (2, 2)])
    assert check("98.add", lambda a, b: 2 if a == 1 else None).status == "failed"


class Rude:
    "An object that breaks wherever Python lets it."

    def _raise(self, *_):
        raise RuntimeError("rude")

    __eq__ = __repr__ = __str__ = __bool__ = __len__ = __iter__ = __float__ = __hash__ = _raise


class RudeError(Exception):
    def __str__(self):
        raise RuntimeError("rude")


def raising(err):
    def answer(*_):
        raise err
    return answer


def endless(*case):
    return endless(*case)


RAISING = {
    "ValueError": raising(ValueError("oh no")), "SystemExit": raising(SystemExit(3)), "bare SystemExit": raising(SystemExit()),
    "recursion": endless, "wrong arguments": lambda: 1, "assertion": raising(AssertionError()),
    "stop": raising(StopIteration()), "memory": raising(MemoryError()), "error that cannot be shown": raising(RudeError()),
}


@pytest.mark.parametrize("answer", RAISING.values(), ids=RAISING)
def test_raising_answer_is_feedback_and_no_traceback(answer):
    add()
    feedback = check("98.add", answer)
    assert feedback.status == "failed" and feedback.message and str(feedback)


def test_interrupt_reaches_the_learner():
    add()
    with pytest.raises(KeyboardInterrupt):
        check("98.add", raising(KeyboardInterrupt()))


STRANGE = [Rude(), lambda a, b: Rude(), Rude, float("nan"), 10**400, "half \ud800", "\0", np.array([1, 2]),
           np.array(["a", None], dtype=object), object(), (x for x in ()), "x" * 10**6, [[]] * 1000]


@pytest.mark.parametrize("answer", STRANGE, ids=[f"{i}-{type(answer).__name__}" for i, answer in enumerate(STRANGE)])
def test_strange_answer_is_feedback(answer):
    add()
    feedback = check("98.add", answer)
    assert feedback.status == "failed" and len(repr(feedback)) < 2000


def test_object_equal_to_everything_does_not_pass():
    class Yes(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            return True

    add_value(id="98.text", cases=lambda rng: [("abc",)], solution=str.upper, mistakes=(Mistake(str.lower, "Lower case."),))
    assert check("98.text", Yes("nonsense")).status == "failed"


UNKNOWN = ["98.nothing", "00.nothing", "", "nothing", "\0", "half \ud800", None, 5, float("nan"), [1], "../x", "x" * 10**5]


@pytest.mark.parametrize("id", UNKNOWN, ids=[ascii(id)[:12] for id in UNKNOWN])
def test_unknown_exercise_is_feedback(id):
    feedback = check(id, 1)
    assert feedback.status == "failed" and not feedback.passed and feedback.message


def test_unknown_id_of_a_known_lesson_names_its_exercises():
    with pytest.raises(ValueError, match=rf"there is no exercise '00\.nope': choose one of .*{re.escape(exercise_ids('00')[0])}"):
        find("00.nope")
    with pytest.raises(ValueError, match=r"there is no exercise '97\.x': lesson 97 has none"):
        find("97.x")


def test_learner_may_change_the_inputs():
    add(id="98.list", cases=lambda rng: [([3, 1, 2],), ([2, 1],)], solution=sorted,
        mistakes=(Mistake(lambda items: items[::-1], "Reversed."),))

    def answer(items):
        items.sort()
        return list(items)

    def spoiler(items):
        items.clear()
        return items

    assert check("98.list", answer).passed
    assert check("98.list", spoiler).message.startswith("For [3, 1, 2] expected [1, 2, 3], got [].")


def test_value_exercise_takes_the_value():
    drawn = add_value().draw()[0][0]
    assert ex.given("98.value") == drawn
    assert check("98.value", max(drawn)).passed
    assert check("98.value", min(drawn)).message == f"{min(drawn)} is not right. That is the smallest."
    assert str(max(drawn)) not in check("98.value", -1).message  # the answer itself is not given away


def test_given_of_several_arguments_is_a_tuple():
    assert ex.given(add().id) == find("98.add").draw()[0]


def test_inputs_follow_the_seed(monkeypatch):
    exercise = add()
    first = exercise.draw()
    assert exercise.draw() == first
    seed(43, monkeypatch)
    assert exercise.draw() != first


def test_inputs_are_the_same_in_another_process():
    code = f"from nlp_portfolio.course.exercise import find; print(repr(find({IDS[0]!r}).draw()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == repr(find(IDS[0]).draw())


def test_accept_replaces_equality():
    add(accept=lambda answer, expected, a, b: answer in (expected, a - b) or f"{answer} is neither sum nor difference.")
    assert check("98.add", lambda a, b: a - b).passed
    feedback = check("98.add", lambda a, b: a * b)
    assert "is neither sum nor difference. That is the product." in feedback.message and feedback.status == "failed"


@pytest.mark.parametrize("verdict", [False, None, 0])
def test_accept_that_only_says_no_still_gives_a_sentence(verdict):
    add(accept=lambda *_: verdict)
    feedback = check("98.add", lambda a, b: 0)
    assert feedback.status == "failed" and not re.match("False|None|0", feedback.message)


@pytest.mark.parametrize("change", [{"hints": ()}, {"mistakes": ()}])
def test_exercise_without_hint_or_mistake_is_refused(change):
    with pytest.raises(ValueError, match="needs at least one hint and one typical mistake"):
        add(**change)


# ---- hints, solutions, progress


def test_hints_come_in_order_and_start_again():
    add()
    assert [ex.hint("98.add") for _ in range(3)] == ["Hint 1 of 2: Use +.", "Hint 2 of 2: a + b", "Hint 1 of 2: Use +."]


def test_solution_shows_source_as_it_reads():
    shown = ex.solution(IDS[0])
    assert "def " in shown and repr(shown) == str(shown)


def test_pass_is_kept_once_and_a_failure_does_not_take_it_away(monkeypatch):
    monkeypatch.setattr(ex, "lessons_with_exercises", lambda: ["98"])
    monkeypatch.setattr(ex, "exercise_ids", lambda lesson: ["98.add", "98.value"])
    add(), add_value()
    assert ex.progress()["passed"].tolist() == [False, False]
    check("98.add", lambda a, b: a * b)
    assert ex.progress()["passed"].tolist() == [False, False]
    check("98.add", lambda a, b: a + b)
    check("98.add", lambda a, b: a * b)
    table = ex.progress()
    assert table["passed"].tolist() == [True, False]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", table["on"][0]) and table["on"][1] == ""


def test_progress_lists_every_exercise():
    assert ex.progress()["id"].tolist() == IDS


# ---- every registered exercise


@pytest.mark.parametrize("id", IDS)
def test_solution_passes_for_every_seed(id, monkeypatch):
    exercise = find(id)
    for number in SEEDS:
        seed(number, monkeypatch)
        cases = exercise.draw()
        assert cases == exercise.draw() and all(isinstance(case, tuple) for case in cases)
        feedback = check(id, exercise.solution)
        assert feedback.passed, (number, feedback)
        if len(cases) == 1:
            assert check(id, exercise.solution(*copy.deepcopy(cases[0]))).passed, number
        assert cases == exercise.draw(), "the solution changes its inputs"


@pytest.mark.parametrize("id", IDS)
def test_stub_is_not_attempted(id):
    assert [check(id, stub).status for stub in (..., None, lambda *_: ..., lambda *_: None)] == ["not attempted"] * 4


@pytest.mark.parametrize(("id", "number"), [(id, i) for id in IDS for i in range(len(find(id).mistakes))])
def test_mistake_fails_with_its_message_for_every_seed(id, number, monkeypatch):
    exercise = find(id)
    mistake = exercise.mistakes[number]
    for drawn in SEEDS:
        seed(drawn, monkeypatch)
        cases = exercise.draw()
        answer = mistake.answer if len(cases) > 1 else mistake.answer(*copy.deepcopy(cases[0]))
        feedback = check(id, answer)
        assert feedback.status == "failed" and feedback.message.endswith(mistake.message), (drawn, feedback)


@pytest.mark.parametrize("id", IDS)
def test_inputs_differ_between_seeds(id, monkeypatch):
    draws = []
    for number in SEEDS:
        seed(number, monkeypatch)
        draws.append(repr(find(id).draw()))
    assert len(set(draws)) > len(SEEDS) // 4


@pytest.mark.parametrize("id", IDS)
def test_one_constant_does_not_pass_for_every_seed(id, monkeypatch):
    exercise = find(id)
    constant, passed = exercise.solution(*copy.deepcopy(exercise.draw()[0])), []
    for number in SEEDS:
        seed(number, monkeypatch)
        cases = exercise.draw()
        passed.append(check(id, constant if len(cases) == 1 else lambda *_: constant).passed)
    assert not all(passed)


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_has_three_exercises_and_uses_each(lesson, root):
    import nbformat

    (notebook,) = [file for file in (root / "nbs").rglob(f"{lesson}_*.ipynb") if ".ipynb_checkpoints" not in file.parts]
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    checked = set(re.findall(r'check\(\s*[\'"]([^\'"]+)', "\n".join(cells)))
    assert len(exercise_ids(lesson)) >= 3
    assert checked == set(exercise_ids(lesson))
