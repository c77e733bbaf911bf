"""Set-up says plainly what is missing, on any Python, and leaves pip's last lines when it fails."""

import ast
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402

Disk = namedtuple("Disk", "total used free")


def test_an_old_python_can_read_it() -> None:
    ast.parse((ROOT / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_old_python_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"this is Python 3\.9, and the course needs 3\.11 or newer"):
        bootstrap.check_machine()


def test_full_disk_is_noticed_before_anything_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "none")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: Disk(100 * 2**30, 99 * 2**30, 2**30))
    with pytest.raises(SystemExit, match=r"1\.0 GB of disk are free, and the environment needs 5"):
        bootstrap.check_machine()


@pytest.mark.parametrize(("output", "message"), [
    ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
    ("ERROR: No matching distribution found for torch", "pip could not install the course.*No matching distribution"),
])
def test_failing_pip_is_explained(output: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "A stand-in for the environment's Python prints what pip would and fails."
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport sys\nprint({output!r})\nsys.exit(1)\n")
    fake.chmod(0o755)
    monkeypatch.setattr(bootstrap, "PYTHON", fake)
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "setup.log")
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        bootstrap.pip("the course", "anything")
    assert output in (tmp_path / "setup.log").read_text()
