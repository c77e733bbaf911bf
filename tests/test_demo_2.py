"""The document demo in a real browser: ask, open a citation, be refused, upload a file and ask about it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, demo_of, opened, without_browser
from conftest import ROOT

pytestmark = without_browser
PROJECT = ROOT / "projects" / "2_document_qa"
READY = "document.querySelector('textarea') && document.querySelector('input[type=file]')"
ANSWERED = "document.querySelector('.quiet')?.innerText.includes('answered by')"


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    with demo_of(PROJECT / "app.py", 7) as address:
        yield address


@pytest.fixture
def page(demo: str, tmp_path: Path) -> Iterator[Page]:
    with opened(demo, tmp_path / "chrome", READY) as found:
        yield found


def ask(page: Page, question: str) -> str:
    "Ask, and wait until the last line of the answer is there."
    page.run("document.querySelector('.quiet')?.remove()")
    page.write(question)
    page.click("Ask")
    page.wait(ANSWERED, 120)
    return page.run("document.querySelector('.said').innerText")


def upload(page: Page, *files: Path) -> None:
    found = page.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")
    page.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"])


def test_an_answer_cites_and_the_citation_opens_its_passage(page: Page) -> None:
    said = ask(page, "Can I delete a directory with Path.unlink?")
    assert "use rmdir() instead" in said and "[1]" in said
    assert page.run("document.querySelector('details.place').open") is False
    page.run("document.querySelector('.said a').click()")
    page.wait("document.querySelector('details.place').open")
    opened = "document.querySelector('details.place[open]')"
    assert page.run(f"{opened}.querySelector('mark').innerText") == "If the path is a directory, use rmdir() instead."
    assert "pathlib.Path.unlink" in page.run(f"{opened}.querySelector('pre').innerText")
    assert "retrieve" in page.text() and "cost 0.0000" in page.text()


def test_a_refusal_shows_the_nearest_passages(page: Page) -> None:
    assert ask(page, "How do I pin a package to an exact version with pip?") == "The passages do not answer this question."
    assert page.run("document.querySelectorAll('details.place').length") == 3
    assert page.run("document.querySelectorAll('.said a').length") == 0


def test_an_upload_is_asked_and_removed_and_one_with_orders_is_held_back(page: Page, tmp_path: Path) -> None:
    row = next(row for row in map(json.loads, (PROJECT / "evalset" / "attacks.jsonl").read_text(encoding="utf-8").splitlines())
               if row["name"] == "kiln_news.txt")
    (tmp_path / row["name"]).write_text(row["text"], encoding="utf-8")
    upload(page, PROJECT / "evalset" / "uploads" / "handbook.md", tmp_path / row["name"])
    page.wait("document.body.innerText.includes('handbook.md: ')")
    page.wait("document.body.innerText.includes('kiln_news.txt: 1 passage, 1 held back')")
    said = ask(page, "On what days is the kiln fired?")
    assert said.startswith("The kiln is fired on Tuesdays and Fridays only.") and row["says"] not in page.text()
    page.run("[...document.querySelectorAll('label')].find(l => l.innerText.startsWith('handbook.md')).click()")
    page.click("Remove the ticked ones")
    page.wait("!document.body.innerText.includes('handbook.md: ')")
    assert "Tuesdays" not in ask(page, "On what days is the kiln fired?")


def test_what_cannot_be_read_is_said(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 no pdf at all")
    upload(page, broken)
    page.wait("document.body.innerText.includes('broken.pdf')")
    assert "none yet" in page.text()
    page.click("Ask")
    page.wait("document.body.innerText.includes('Write a question first.')")


def test_two_visitors_do_not_see_each_other(page: Page, demo: str, tmp_path: Path) -> None:
    upload(page, PROJECT / "evalset" / "uploads" / "faq.txt")
    page.wait("document.body.innerText.includes('faq.txt: ')")
    page.call("Page.navigate", url=demo + "?another")
    page.wait("document.body?.innerText?.includes('none yet') && document.querySelector('textarea')")
    assert "fifteen minutes" not in ask(page, "For how long is my machine booking kept if I am late?")
