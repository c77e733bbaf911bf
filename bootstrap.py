"""Set up the course's environment in .venv: `python bootstrap.py`. Standard library only, quick when repeated.

`make start` and `make test` call it. Where make is missing (Windows) call it yourself; README.md says how to go on.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG = ROOT / ".cache" / "setup.log"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = 5


def stop(message):
    sys.exit("Set-up stopped: " + message)


def check_machine():
    if sys.version_info < (3, 11):
        stop(
            "this is Python {}.{}, and the course needs 3.11 or newer. "
            "Install one from https://www.python.org/downloads/ and run this again.".format(*sys.version_info[:2])
        )
    free = shutil.disk_usage(str(ROOT)).free / 2**30
    if not VENV.exists() and free < NEEDED_GB:
        stop(f"{free:.1f} GB of disk are free, and the environment needs {NEEDED_GB}. Free some space and run this again.")


def torch_index():
    """Where there is no GPU, PyTorch's own CPU wheels save gigabytes; they are used if their index answers."""
    if shutil.which("nvidia-smi") or sys.platform == "darwin":
        return []
    try:
        with urllib.request.urlopen(CPU_WHEELS + "/torch/", timeout=3):
            return ["--index-url", CPU_WHEELS]
    except OSError:
        return []


def pip(what, *arguments):
    """Run pip with a one-line counter; its whole output goes to the log. Stops with the reason when it fails."""
    start, packages, tail = time.time(), 0, []
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--progress-bar", "off", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with LOG.open("a", encoding="utf-8") as log:
        for line in process.stdout:
            log.write(line)
            tail = [*tail[-11:], line]
            if line.startswith(("Collecting", "Requirement already")):
                packages += 1
                name = re.match(r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line)
                show(f"  {what}: {packages} packages, {time.time() - start:.0f} s, {name[1] if name else ''}")
            elif line.startswith("Installing collected"):
                show(f"  {what}: unpacking")
    if process.wait():
        text = "".join(tail)
        if "No space left" in text or "Errno 28" in text:
            stop(f"the disk is full. Free {NEEDED_GB} GB and run this again.")
        stop(f"pip could not install {what}. The last lines were:\n\n{text}\nAll of it: .cache/setup.log")
    show(f"  {what}: done in {time.time() - start:.0f} s", end="\n")


def show(text, end=""):
    if sys.stdout.isatty():
        print("\r" + text.ljust(90), end=end, flush=True)
    elif end:
        print(text, flush=True)


def main():
    check_machine()
    LOG.parent.mkdir(exist_ok=True)
    print("Setting up the course in .venv (a few minutes the first time)", flush=True)
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True, clear=VENV.exists())
        except (OSError, subprocess.CalledProcessError) as error:
            stop(f"Python could not make an environment ({error}). On Debian or Ubuntu: apt install python3-venv.")
    pip("PyTorch", "-c", "constraints.txt", *torch_index(), "torch")
    pip("the course", "-c", "constraints.txt", "-e", ".[dev]")
    (VENV / "ready").touch()


if __name__ == "__main__":
    main()
