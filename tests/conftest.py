"""Every test runs offline on the bundled sample, in a home of its own, and a required test may not skip."""

import datetime
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent


# A slow machine is not a failing test.
settings.register_profile("course", deadline=None)
settings.load_profile("course")


def tree_files() -> list[Path]:
    "The files of the working tree: tracked, and untracked ones that git does not ignore."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


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
    for file in tree_files():
        target = tmp_path / "tree" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    return tmp_path / "tree"


class Campaign:
    "Fuzzing and killing: the suite runs a short form; `make fuzz` and `make kills` long ones, kept in tests/campaigns."

    def __init__(self) -> None:
        self.long, self._start = int(os.environ.get("NLP_PORTFOLIO_CAMPAIGN", 0)), time.monotonic()

    def count(self, short: int) -> int:
        "How many to run."
        return self.long or short

    def keep(self, name: str, **figures: object) -> None:
        "Write the figures of a long run beside the tests."
        if self.long:
            facts = {"date": datetime.date.today().isoformat(), "seconds": round(time.monotonic() - self._start), **figures}
            file = ROOT / "tests/campaigns" / f"{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@pytest.fixture
def campaign() -> Campaign:
    "How long a campaign is in this run."
    return Campaign()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-network", action="store_true", help="run the tests that ask the real hub")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-network"):
        for item in items:
            if item.get_closest_marker("network"):
                item.add_marker(pytest.mark.skip(reason="asks the real hub: --run-network"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    "A skip of a test marked `required` is a failure."
    report = (yield).get_result()
    if report.skipped and item.get_closest_marker("required"):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} is required and was skipped: {report.longrepr}"

