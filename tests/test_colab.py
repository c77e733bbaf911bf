"""Each lesson alone on a machine like Colab: its environment, the lesson's own install line, an empty folder.

Colab ships PyTorch and its family, which are gigabytes and have no CPU build for every Python. Here they are stood in for
by their names and versions alone, so that the install line of a neural lesson is resolved as on Colab and must leave them
as they are; such a lesson is executed by the other tests, with the real packages.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from nlp_portfolio.course.reference import repo_url
from nlp_portfolio.course.runner import course_notebooks

LESSONS = course_notebooks(ROOT, lessons_only=True)
COLAB = ROOT / "constraints-colab.txt"
# Stood in for by their names.
HEAVY = {"torch", "transformers", "accelerate", "peft", "sentence-transformers"}


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def colab_python() -> str:
    "A Python of Colab's version where there is one, else this one."
    names = ["python3.13", "python3.12", *map(str, Path.home().glob(".pyenv/versions/3.1[23]*/bin/python"))]
    for name in names:
        if shutil.which(name) and subprocess.run([name, "-c", "pass"], capture_output=True).returncode == 0:
            return name
    return sys.executable


def name_only(site: Path, name: str, version: str) -> None:
    "Make pip believe that a package is installed, as it is on Colab; there is nothing to import."
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("")


@pytest.fixture(scope="module")
def colab() -> Path:
    "The Python of an environment with Colab's versions, kept in .cache until the constraints change."
    wanted = [line for line in COLAB.read_text().splitlines() if "==" in line and line.split("==")[0] not in HEAVY]
    key = hashlib.sha256(f"{colab_python()} {COLAB.read_text()}".encode()).hexdigest()[:12]
    venv = ROOT / ".cache" / f"colab-{key}"
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (venv / "ready").exists():
        shutil.rmtree(venv, ignore_errors=True)
        run(colab_python(), "-m", "venv", venv)
        run(python, "-m", "pip", "install", "-q", *wanted)
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        for line in COLAB.read_text().splitlines():
            if (name := line.split("==")[0]) in HEAVY:
                name_only(site, name, line.split("==")[1])
        (venv / "ready").touch()
    run(python, "-m", "pip", "uninstall", "-q", "-y", "nlp-portfolio")
    return python


def versions(python: Path) -> dict[str, str]:
    lines = run(python, "-m", "pip", "list", "--format=freeze").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("nlp-portfolio"))


@pytest.fixture(scope="module")
def machine(colab: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    "Environment variables of a machine where `google.colab` is imported and the repository's address is a local clone."
    home = tmp_path_factory.mktemp("colab-home")
    clone = home / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".venv", ".cache", ".git", "runs", "__pycache__"))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "tree under test"]):
        run(*git, *command, cwd=clone)
    (home / "stub/google/colab").mkdir(parents=True)
    for package in ("google", "google/colab"):
        (home / "stub" / package / "__init__.py").touch()
    startup = home / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text("import google.colab\n")
    kernel = home / "jupyter/kernels/colab"
    kernel.mkdir(parents=True)
    argv = [str(colab), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    (home / "gitconfig").write_text(f'[url "{clone.as_uri()}"]\n\tinsteadOf = {repo_url(ROOT)}\n')
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("NLP_", "HF_", "VIRTUAL_ENV"))}
    folders = {"PYTHONPATH": "stub", "IPYTHONDIR": "ipython", "GIT_CONFIG_GLOBAL": "gitconfig", "HF_HOME": "hf",
               "JUPYTER_PATH": "jupyter"}
    return keep | {"NLP_PORTFOLIO_SOURCE": "sample"} | {name: str(home / path) for name, path in folders.items()}


@pytest.mark.required
def test_lessons_run_alone_and_change_nothing(colab: Path, machine: dict[str, str], tmp_path: Path) -> None:
    before = versions(colab)
    for lesson in LESSONS:
        folder = tmp_path / lesson.stem
        folder.mkdir()
        nb = nbformat.read(lesson, as_version=4)
        if any("nlp-portfolio[neural" in cell.source for cell in nb.cells):
            nb.cells = nb.cells[: next(i for i, cell in enumerate(nb.cells) if "%pip install" in cell.source) + 1]
        nbformat.write(nb, folder / lesson.name)
        run(sys.executable, "-m", "papermill", lesson.name, "out.ipynb", "-k", "colab", "-p", "profile", "smoke",
            "--no-progress-bar", cwd=folder, env=machine | {"NLP_PORTFOLIO_HOME": str(folder / "runs")})
        ran = nbformat.read(folder / "out.ipynb", as_version=4)
        assert any("%pip install" in cell.source and cell.execution_count for cell in ran.cells)
    assert "nlp-portfolio" in run(colab, "-m", "pip", "list", cwd=tmp_path)
    after = versions(colab)
    assert {name: after.get(name) for name in before} == before
