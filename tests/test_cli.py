"""The command nlp-portfolio on a tiny clone: each command, its exit status, and errors in one line."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nlp_portfolio.course import cli

LESSON = ("profile = None", "from nlp_portfolio.course.settings import settings\nsettings(profile)",
          "from nlp_portfolio.course.results import record\n"
          "record('{name}', model='toy', data='sample', accuracy=.75, seconds=1)")


def lesson(folder, name, *more):
    cells = [new_markdown_cell(f"# Title of {name}\n\n> A promise."), new_code_cell(LESSON[0], metadata={"tags": ["parameters"]}),
             *(new_code_cell(source.format(name=name)) for source in (*LESSON[1:], *more))]
    folder.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A clone with two lessons; the command runs in it."
    root = tmp_path / "clone"
    (root / "nbs/course").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/who/what"\n', encoding="utf-8")
    lesson(root / "nbs/0_start", "01_imdb_baseline")
    lesson(root / "nbs/4_evaluation", "16_metrics", "raise ValueError('on purpose')")
    monkeypatch.chdir(root)
    monkeypatch.setattr("nlp_portfolio.course.settings._active", [])  # a new process has chosen no profile yet
    return root


def call(capsys, *argv):
    "Exit status, what was printed, and the message the command ended with."
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    out, code = capsys.readouterr(), ended.value.code
    return (1, out.out, code) if isinstance(code, str) else (code, out.out, out.err)


def test_run_reports_each_notebook_and_shows_the_failing_cell(clone, capsys):
    code, out, _ = call(capsys, "run", "--profile", "smoke")
    assert code == 1
    assert re.search(r"^01_imdb_baseline\.ipynb: 4 cells, \d+ s, \d+ MB$", out, re.M)
    assert "16_metrics.ipynb failed in the cell\n\n    raise ValueError('on purpose')" in out


def test_start_runs_lesson_01_and_shows_its_table(clone, capsys):
    code, out, _ = call(capsys, "start", "--no-lab", "--profile", "smoke")
    assert code == 0
    assert "profile smoke" in out and re.search(r"toy .*accuracy .*0\.75", out)
    code, out, _ = call(capsys, "status")
    assert code == 0
    assert re.search(r"01_imdb_baseline +\d{4}-\d\d-\d\d", out) and re.search(r"16_metrics +not yet", out)


def test_start_stops_when_the_lesson_fails(clone, capsys):
    lesson(clone / "nbs/0_start", "01_imdb_baseline", "1 / 0")
    code, out, _ = call(capsys, "start", "--profile", "smoke")
    assert code == 1 and "ZeroDivisionError" in out


def test_start_opens_the_course_in_jupyterlab(clone, capsys, monkeypatch):
    lesson(clone / "nbs/0_start", "00_start")
    opened = []
    monkeypatch.setattr(cli, "run", lambda names, profile: True)
    monkeypatch.setattr(cli.subprocess, "run", lambda command, **_: opened.append(command))
    assert call(capsys, "start", "--profile", "smoke")[0] == 0
    assert opened == [[sys.executable, "-m", "jupyterlab", "nbs/0_start/00_start.ipynb"]]


def test_data_says_where_each_set_comes_from(clone, capsys):
    code, out, _ = call(capsys, "data")
    assert code == 0 and re.search(r"^imdb .*\bsample\b", out, re.M)


def test_doctor_checks_the_machine(clone, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "online", lambda: False)
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    for line in ("Python", "cores", "memory free", "disk free", "PyTorch", "GPU", "profile", "data folder", "Hugging Face hub"):
        assert re.search(rf"^{line} ", out, re.M), line
    assert re.search(r"^Hugging Face hub +not reachable", out, re.M)
    monkeypatch.setenv("NLP_PORTFOLIO_DATA", str(tmp_path / "nowhere"))
    assert "NLP_PORTFOLIO_DATA names no folder: correct or unset it" in call(capsys, "doctor")[1]


def test_doctor_says_what_to_do_on_a_small_machine(monkeypatch):
    import psutil

    monkeypatch.setattr(cli, "online", lambda: True)
    monkeypatch.setattr(cli, "_version", lambda package: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("m", (), {"available": 2**30}))
    table = cli.doctor()
    assert table.loc["memory free"].tolist() == ["1.0 GB", "close programs: a lesson takes up to 4 GB"]
    assert table.loc["PyTorch", "what to do"].endswith('pip install "nlp-portfolio[neural]"')
    assert table.loc["Hugging Face hub"].tolist() == ["reachable", "fine"]


@pytest.mark.parametrize(("claimed", "code", "verdict"), [(0.75, 0, "True"), (0.8, 1, "False")])
def test_verify_puts_measured_beside_claimed_and_fails_where_they_differ(clone, capsys, monkeypatch, claimed, code, verdict):
    row = {"lesson": "01_imdb_baseline", "model": "toy", "profile": "smoke", "source": "sample", "dtype": "float64",
           "metrics": {"accuracy": claimed, "seconds": 99}}
    monkeypatch.setattr(cli, "reference_rows", lambda lesson: [row] if lesson == row["lesson"] else [])
    monkeypatch.setattr(cli, "measure", lambda notebook, profile, source: (None, [
        {**row, "metrics": {"accuracy": 0.75, "seconds": 1}}], 1))
    monkeypatch.setattr(cli, "_adapters", lambda: [("toy adapter, accuracy", 0.5, 0.5, True)])
    found, out, _ = call(capsys, "verify")
    assert found == code and re.search(r"toy adapter, accuracy +0\.50? +0\.50? +True$", out, re.M)
    assert re.search(rf"accuracy \(smoke, sample\) +{claimed}0? +0\.75 +{verdict}$", out, re.M)
    assert "seconds" not in out


def test_reference_writes_outputs_rows_and_code_hash(clone, capsys, monkeypatch):
    (clone / "README.md").write_text("<!-- lessons -->\n<!-- /lessons -->\n", encoding="utf-8")
    code, out, _ = call(capsys, "reference", "01")
    assert code == 0 and "01_imdb_baseline: 3 rows" in out
    assert (clone / "nlp_portfolio/reference/01_imdb_baseline.json").is_file()
    nb = nbformat.read(clone / "nbs/0_start/01_imdb_baseline.ipynb", as_version=4)
    assert nb.metadata["nlp_portfolio"]["profile"] == "cpu" and len(nb.metadata["nlp_portfolio"]["code"]) == 64
    assert "Title of 01_imdb_baseline" in (clone / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("argv", "message"), [
    (["run", "77"], "nlp-portfolio: no notebook '77': choose from 01_imdb_baseline, 16_metrics"),
    (["verify", "nope"], "nlp-portfolio: no notebook 'nope': choose from 01_imdb_baseline, 16_metrics"),
    (["run", ""], "nlp-portfolio: no notebook '': choose from 01_imdb_baseline, 16_metrics"),
])
def test_unknown_notebook_is_one_line_with_the_choices(clone, capsys, argv, message):
    assert call(capsys, *argv) == (1, "", message)


@pytest.mark.parametrize("command", ["run", "status", "verify", "start", "reference"])
def test_outside_a_clone_is_one_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    code, _, message = call(capsys, command)
    assert (code, message) == (1, "nlp-portfolio: no clone of the course here: change into the cloned folder and run this again")


def test_broken_settings_are_one_line(clone, capsys):
    (clone / "settings.ini").write_text("[course]\nseed = x\n", encoding="utf-8")
    code, _, message = call(capsys, "doctor")
    assert code == 1 and message.startswith("nlp-portfolio: settings.ini: seed = 'x'") and "\n" not in message


@pytest.mark.parametrize("argv", [[], ["dance"], ["run", "--profile", "fast"], ["status", "extra"], ["start", "--lab"]])
def test_wrong_call_is_exit_status_2_with_the_usage(argv, capsys):
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "") and err.startswith("usage: nlp-portfolio")


@pytest.mark.parametrize("name", ["01", "01_imdb_baseline", "01_imdb_baseline.ipynb", "nbs/0_start/01_imdb_baseline.ipynb"])
def test_a_notebook_is_found_by_number_name_or_path(clone, name):
    assert [file.name for file in cli.pick([name])] == ["01_imdb_baseline.ipynb"]


def test_the_clone_is_found_from_below(clone, monkeypatch):
    monkeypatch.chdir(clone / "nbs/0_start")
    assert cli.repo_root() == clone
    assert [file.stem for file in cli.pick([])] == ["01_imdb_baseline", "16_metrics"]


def test_the_installed_command_and_its_help():
    code = ("import sys; sys.argv = ['nlp-portfolio', '--help']; from importlib.metadata import entry_points; "
            "(command,) = entry_points(group='console_scripts', name='nlp-portfolio'); command.load()()")
    command = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert command.returncode == 0
    for name in ("start", "run", "status", "data", "doctor", "verify"):
        assert re.search(rf"^ +{name} ", command.stdout, re.M)
