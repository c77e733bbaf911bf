"""The ticket demo in a real browser: Chromium is driven over its DevTools protocol, as a visitor would click."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1200,1000", "--remote-debugging-port=0")

pytestmark = pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome on this machine")


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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = 20_000 + os.getpid() % 20_000
    process = subprocess.Popen([sys.executable, ROOT / "projects/1_ticket_intents/app.py", "--port", str(port)],
                               env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"})
    try:
        answered(f"http://127.0.0.1:{port}/", process)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def page(demo: str, tmp_path: Path) -> Iterator[Page]:
    from websockets.sync.client import connect

    browser = subprocess.Popen([CHROME, *FLAGS, f"--user-data-dir={tmp_path / 'chrome'}", "about:blank"], stderr=subprocess.PIPE,
                               text=True)
    try:
        address = next(line.split()[-1] for line in browser.stderr if "DevTools listening" in line)
        port = address.split(":")[2].split("/")[0]
        tabs = json.loads(answered(f"http://127.0.0.1:{port}/json", browser, 20))
        with connect(next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"], max_size=None) as socket:
            page = Page(socket)
            page.call("Page.enable")
            page.call("Page.navigate", url=demo)
            page.wait("document.querySelector('textarea')")
            yield page
    finally:
        browser.terminate()
        browser.wait(20)


def write(page: Page, ticket: str) -> None:
    page.run(f"box = document.querySelector('textarea'); box.value = {json.dumps(ticket)}; "
             "box.dispatchEvent(new Event('input', {bubbles: true}))")
    page.click("Tag it")


def test_a_ticket_gets_its_intents_and_the_reasons(page: Page) -> None:
    write(page, "Where is my parcel? Order #2048817 was due on Tuesday.")
    page.wait("document.querySelector('h3')?.innerText === 'delivery_status'")
    page.wait("document.body.innerText.includes('ms to decide on this machine')")
    text = page.text()
    assert "nearest training tickets" in text and "parcel" in text.split("Why:")[1]


def test_a_ticket_of_nobody_is_turned_away(page: Page) -> None:
    write(page, "Can you recommend a good recipe for lentil soup?")
    page.wait("document.querySelector('h3')?.innerText.startsWith('Out of scope')")


def test_a_file_is_tagged_and_a_broken_one_is_refused(page: Page, tmp_path: Path) -> None:
    good, bad = tmp_path / "tickets.csv", tmp_path / "broken.csv"
    good.write_text('id,text\n1,"where is my parcel, order 2048817"\n2,"cancel my plan please, I no longer need it"\n')
    bad.write_bytes(b"\xff\xfe\x00\x00 no csv \x81")
    page.run("[...document.querySelectorAll('[role=tab]')].find(t => t.innerText.includes('file')).click()")
    page.wait("[...document.querySelectorAll('button')].some(b => b.innerText.trim() === 'Tag all' && b.offsetParent)")
    page.click("Tag all")
    page.wait("document.body.innerText.includes('Choose a CSV file first.')")
    page.choose(good)
    page.wait_file("tickets.csv")
    page.click("Tag all")
    page.wait_file("tagged.csv")
    assert "cancel_subscription" in page.text() and "delivery_status" in page.text()
    page.run("[...document.querySelectorAll('button[aria-label=Clear]')].find(b => b.offsetParent).click()")
    page.wait("[...document.querySelectorAll('input[type=file]')].some(i => i.accept === '.csv')")
    page.choose(bad)
    page.click("Tag all")
    page.wait("document.body.innerText.includes('not a CSV file in UTF-8')")
