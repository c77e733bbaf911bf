"""All demos on one page, in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import demo_of, opened, without_browser
from conftest import ROOT

pytestmark = without_browser


@pytest.fixture(scope="module")
def demos() -> Iterator[str]:
    with demo_of(ROOT / "projects/app.py", 23) as address:
        yield address


def test_every_project_has_a_tab_and_answers_in_it(demos: str, tmp_path: Path) -> None:
    with opened(demos, tmp_path / "chrome", "document.querySelectorAll('[role=tab]').length > 1") as page:
        page.tab("Ticket intents")
        page.write("Where is my parcel? Order #2048817 was due on Tuesday.")
        page.click("Tag it")
        page.wait("document.body.innerText.includes('ms to decide on this machine')", 120)
        page.tab("Document Q&A")
        page.wait("[...document.querySelectorAll('button')].some(b => b.innerText.trim() === 'Ask' && b.offsetParent)")
        page.write("Can I delete a directory with Path.unlink?")
        page.click("Ask")
        page.wait("document.querySelector('.quiet')?.innerText.includes('answered by')", 180)
        assert "rmdir" in page.run("document.querySelector('.said').innerText")
        page.tab("Safety filter")
        page.wait("document.querySelector('.verdict b')?.innerText === 'Redacted'", 120)
