"""Every test runs offline on the bundled sample, in a home of its own, and a required test may not skip."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def offline_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "Sample data, no hub, results in a temporary folder: what a test measures is the same on every machine."
    monkeypatch.setenv("NLP_PORTFOLIO_SOURCE", "sample")
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("NLP_PORTFOLIO_DATA", raising=False)
    monkeypatch.delenv("NLP_PROFILE", raising=False)


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    "A copy of the working tree (tracked and untracked files that git does not ignore) that a test may break."
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = tmp_path / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return tmp_path / "tree"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    "A skip of a test marked `required` is a failure."
    report = (yield).get_result()
    if report.skipped and item.get_closest_marker("required"):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} is required and was skipped: {report.longrepr}"


def run_python(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    "Run this Python with arguments in a folder; output as text."
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout)
