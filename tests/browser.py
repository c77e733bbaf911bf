"""A real browser for the demos: Chromium is driven over its DevTools protocol, as a visitor would click."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1200,1000", "--remote-debugging-port=0")

without_browser = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome on this machine")


class Page:
    "One tab: evaluate JavaScript in it, wait for a condition, choose a file."

    def __init__(self, socket: Any):
        self._socket, self._number = socket, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv(timeout=30))).get("id") != self._number:
            continue
        assert "error" not in message, message
        return message["result"]

    def run(self, code: str) -> Any:
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} did not come true; the page says {self.text()[:500]!r}"
            time.sleep(0.1)

    def text(self) -> str:
        return self.run("document.body.innerText")

    def write(self, text: str) -> None:
        "Type into the first text box that can be seen."
        box = "[...document.querySelectorAll('textarea')].find(one => one.offsetParent)"
        self.wait(box)
        self.run(f"box = {box}; box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input', {{bubbles: true}}))")

    def tab(self, name: str) -> None:
        "Open a tab by a part of its name."
        found = f"[...document.querySelectorAll('[role=tab]')].find(t => t.innerText.includes({name!r}))"
        self.wait(found)
        self.run(f"{found}.click()")

    def wait_file(self, name: str) -> None:
        "Gradio writes a file's name and its ending on two lines."
        self.wait(f"document.body.innerText.replace(/\\s/g, '').includes({name!r})")

    def click(self, name: str) -> None:
        self.run(f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {name!r}).click()")

    def choose(self, file: Path) -> None:
        found = self.call("Runtime.evaluate", expression="document.querySelector('input[type=file][accept=\".csv\"]')")
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])


def answered(address: str, process: subprocess.Popen, seconds: float = 120) -> bytes:
    "The first answer of a page that is starting."
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return reply.read()
        except OSError:
            assert process.poll() is None and time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.2)


@contextmanager
def demo_of(app: Path, offset: int = 0) -> Iterator[str]:
    "A demo in a process of its own; its address once it answers."
    address = f"http://127.0.0.1:{(port := 20_000 + (os.getpid() + offset) % 20_000)}/"
    quiet = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen([sys.executable, app, "--port", str(port)], env=quiet)
    try:
        answered(address, process, 180)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def opened(address: str, profile: Path, ready: str = "document.querySelector('textarea')") -> Iterator[Page]:
    "A page in a fresh browser, once `ready` is true in it."
    from websockets.sync.client import connect

    browser = subprocess.Popen([CHROME, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        tools = next(line.split()[-1] for line in browser.stderr if "DevTools listening" in line)
        tabs = json.loads(answered(f"http://127.0.0.1:{tools.split(':')[2].split('/')[0]}/json", browser, 20))
        with connect(next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"], max_size=None) as socket:
            page = Page(socket)
            page.call("Page.enable")
            page.call("Page.navigate", url=address)
            page.wait(ready)
            yield page
    finally:
        browser.terminate()
        browser.wait(20)
