"""The ticket demo in a real browser, and all demos on one page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, demo_of, opened, without_browser
from conftest import ROOT

pytestmark = without_browser


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    with demo_of(ROOT / "projects/1_ticket_intents/app.py") as address:
        yield address


@pytest.fixture
def page(demo: str, tmp_path: Path) -> Iterator[Page]:
    with opened(demo, tmp_path / "chrome") as found:
        yield found


def write(page: Page, ticket: str) -> None:
    page.write(ticket)
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
    page.tab("file")
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
