"Files people hand in: every one gives a document or an Unreadable with a reason, whatever is in it."

import io
import json
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import docx
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.pdfgen import canvas

from nlp_portfolio.retrieval import ingest
from nlp_portfolio.retrieval.documents import Document, passage_of
from nlp_portfolio.retrieval.ingest import (
    Limits,
    Unreadable,
    clean_name,
    markdown_sections,
    read_bytes,
    read_document,
    read_folder,
)

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def pdf(*pages: list[str], title: str | None = None) -> bytes:
    "A PDF of these pages, each a list of lines."
    out = io.BytesIO()
    paper = canvas.Canvas(out)
    if title:
        paper.setTitle(title)
    for lines in pages:
        for number, line in enumerate(lines):
            paper.drawString(72, 800 - 14 * number, line)
        paper.rect(72, 300, 90, 90, fill=1)
        paper.showPage()
    paper.save()
    return out.getvalue()


def raw_pdf(stream: bytes, filters: bytes = b"/FlateDecode") -> bytes:
    "A PDF of one page whose content is exactly this stream."
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
               b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
               b"<</Length %d/Filter %s>>stream\n%s\nendstream" % (len(stream), filters, stream),
               b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    body = b"".join(b"%d 0 obj%s endobj\n" % item for item in enumerate(objects, 1))
    return b"%PDF-1.4\n" + body + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n0\n%%EOF"


def encrypted(data: bytes, password: str, algorithm: str) -> bytes:
    out, writer = io.BytesIO(), pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(password, "owner", algorithm=algorithm)
    writer.write(out)
    return out.getvalue()


@pytest.fixture(scope="module")
def word() -> bytes:
    "A Word file with headings, a table and properties."
    out, file = io.BytesIO(), docx.Document()
    file.core_properties.title = "My terms"
    file.add_heading("Terms of use", 0)
    file.add_heading("Late fees", 1)
    file.add_paragraph("Two percent\ta month.\nNow.")
    table = file.add_table(2, 2)
    for place, text in {(0, 0): "Day", (0, 1): "Fee", (1, 0): "1", (1, 1): "2 €"}.items():
        table.cell(*place).text = text
    file.add_heading("Early", 2)
    file.add_paragraph("Nothing.")
    file.save(out)
    return out.getvalue()


def repacked(data: bytes, parts: dict[str, str | bytes]) -> bytes:
    "An archive with some parts changed or added."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in parts:
                new.writestr(name, old.read(name))
        for name, content in parts.items():
            new.writestr(name, content)
    return out.getvalue()


def body(data: bytes) -> str:
    return zipfile.ZipFile(io.BytesIO(data)).read("word/document.xml").decode()


def reason(data: bytes, name: str, **limits: float) -> str:
    "Why a file is refused; its name stands in the message."
    with pytest.raises(Unreadable) as caught:
        read_bytes(data, name, limits=Limits(**limits))
    assert str(caught.value).startswith(f"{clean_name(name)}: ") and len(str(caught.value)) > len(name) + 20
    return caught.value.reason


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    "PDFs parsed in this process, for tests of many files: the answers pass through JSON all the same."
    monkeypatch.setattr(ingest, "_in_child", lambda data, limits: json.loads(
        json.dumps(ingest._guarded(ingest.pdf_pages, data, limits))))


# Text


@pytest.mark.parametrize("codec, said", [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"),
                                         ("utf-32", "utf-32"), ("cp1252", "cp1252"), ("latin-1", "cp1252")])
def test_encodings(codec: str, said: str) -> None:
    found = read_bytes("The café is “naïve”.".replace("“", '"').replace("”", '"').encode(codec), "a.txt")
    assert (found.text, found.metadata["encoding"]) == ('The café is "naïve".', said)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u00ad\ufeff"), min_size=1))
@settings(max_examples=50)
def test_utf8_text_is_kept_as_it_is(text: str) -> None:
    if text.strip() and not text.startswith(("%PDF-", "PK\3\4", "{\\rtf", "GIF8")):
        assert read_bytes(text.encode(), "a.txt").text == text


@pytest.mark.parametrize("data, why", [
    (b"", "empty"), (b" \n\t ", "empty"), (b"\xef\xbb\xbf", "empty"),
    (b"text\0with NUL", "binary"), (bytes(range(1, 32)) * 9, "binary"),
    ("a\0b".encode("utf-16"), "binary"), (b"\xff\xfeodd", "encoding"), ("добрый день".encode("koi8-r"), "encoding"),
    ("naïve café, déjà".encode()[:-1], "encoding"), (b"half \xed\xa0\x80 a pair \x81", "encoding"),
    (b"%PDF-1.7 x", "mismatch"), (b"PK\3\4 x", "mismatch"), (b"\x89PNG\r\n", "mismatch"), (b"{\\rtf1 x}", "mismatch")])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_what_is_no_text(data: bytes, why: str, name: str) -> None:
    assert reason(data, name) == why


def test_line_ends_and_soft_hyphens() -> None:
    assert read_bytes("one\r\ntwo\rcon\u00adtract\n".encode(), "a.txt").text == "one\ntwo\ncontract\n"


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_ten_megabytes_in_seconds(name: str) -> None:
    text = ("The café pays late fees in cash, says the clerk. " * 20 + "\n\n") * 10_000
    before = time.process_time()
    found = read_bytes(("# Fees\n\n" + text).encode(), name)
    assert time.process_time() - before < 6 and len(found.text) > 9_500_000


# Markdown

def test_markdown_headings_and_places() -> None:
    text = ("---\ntitle: 'The front'\n---\nintro\n\n# Pay *in* [time](x.md) #\n\n```py\n# none\n~~~\n```\n    # code\n\n"
            "Late\n----\n- a\n---\n#hash\n####### seven\n## snake_case_name\nEarly\n==\n| a |\n|---|\n")
    found = read_bytes(text.encode(), "a.md")
    assert found.text == text
    assert [(s.title, s.level) for s in found.sections] == [("Pay in time", 1), ("Late", 2), ("snake_case_name", 2), ("Early", 1)]
    assert [text[s.start :][:4] for s in found.sections] == ["# Pa", "Late", "## s", "Earl"]


def test_titles() -> None:
    assert read_bytes(b"---\ntitle: The front\n---\ntext", "a.md").title == "The front"
    assert read_bytes(b"text", "some/notes of may.txt").title == "notes of may"
    assert read_bytes(b"<title>T</title><p>x</p>", "a.htm").title == "T"
    assert read_bytes(b"<title>T</title><h1>H</h1>", "a.htm").title == "H"


def test_markdown_of_nothing_but_headings_is_bounded() -> None:
    assert reason(b"#\n" * 200_000, "a.md") == "unsafe"
    with pytest.raises(Unreadable, match="too long"):
        markdown_sections("a\n" * 10, until=0.0)


# HTML

def test_html() -> None:
    page = """<!DOCTYPE html><html><head><title>Fees &amp; more</title><style>p {}</style>
    <script>if (a < b) "<p>no</p>"</script></head>
    <body><nav><a>Home</a></nav><h1>Late   <i>fees</i></h1><p>Two <b>per</b>&shy;cent&nbsp;a&#x20;month.<br>Now.</p>
    <p hidden>secret</p><div style="color:red; DISPLAY : none">secret<p>secret</p></div><span aria-hidden="true">secret</span>
    <table><tr><th><p>Day</p></th><th>Fee</th></tr><tr><td>1</td><td>2&nbsp;&euro;</td></tr></table>
    <pre>if late:
    pay()</pre><ul><li>one<li>two</ul><!-- secret --><noscript>secret</noscript><h2>End</h2>last</body></html>"""
    found = read_bytes(page.encode(), "a.html")
    assert found.text == ("Late fees\n\nTwo percent\xa0a month.\nNow.\n\nDay | Fee\n1 | 2\xa0€\n\n"
                          "if late:\n    pay()\n\none\ntwo\n\nEnd\n\nlast")
    assert [(s.title, s.level, found.text[s.start :][:3]) for s in found.sections] == [("Late fees", 1, "Lat"), ("End", 2, "End")]


def test_html_encodings() -> None:
    assert read_bytes("<meta charset='koi8-r'><p>добрый день".encode("koi8-r"), "a.html").text == "добрый день"
    assert read_bytes("<meta charset=iso-8859-1><p>déjà vu".encode(), "a.html").text == "déjà vu"  # it is UTF-8, whatever it says
    assert reason("<meta charset=punycode><p>добрый день".encode("koi8-r"), "a.html") == "encoding"


@pytest.mark.parametrize("data, why", [
    (b"<div>" * 20_000 + b"x", "unsafe"), (b"<script>x</script>", "empty"), (b"<!--" * 9, "empty")])
def test_html_that_is_refused(data: bytes, why: str) -> None:
    assert reason(data, "a.html") == why


def test_html_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-secret-key")
    page = f'<!DOCTYPE html [<!ENTITY x SYSTEM "{(tmp_path / "key").as_uri()}">]><p>text &x;</p>'
    assert "the-secret-key" not in read_bytes(page.encode(), "a.html").text


def test_a_slow_page_is_given_up() -> None:
    assert reason(b"<br>" * 400_000 + b"x", "a.html", seconds=0.05) == "slow"


# PDF

def test_pdf() -> None:
    lines = ["Late fees are due. An exam-", "ple of a well-known case", "and of a well-", "known one."]
    found = read_bytes(pdf(lines, [], ["Third page."], title="Terms of use"), "terms.pdf")
    assert found.text == "Late fees are due. An example of a well-known case\nand of a well-known one.\n\nThird page."
    assert [(s.page, found.text[s.start :][:5]) for s in found.sections] == [(1, "Late "), (3, "Third")]
    assert (found.title, found.metadata["pages"], found.metadata["pages_without_text"]) == ("Terms of use", 3, 1)
    assert found.metadata["modified"][:2] == "20" and found.metadata["modified"][-1] == "Z"


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_encrypted_pdf(algorithm: str, same_process: None) -> None:
    data = pdf(["Payment is due."])
    assert reason(encrypted(data, "secret", algorithm), "a.pdf") == "encrypted"
    assert read_bytes(encrypted(data, "", algorithm), "a.pdf").text == "Payment is due."


DEEP = b"%PDF-1.4\n1 0 obj" + b"[" * 100_000 + b"endobj\ntrailer<</Root 1 0 R>>\nstartxref\n0\n%%EOF"
LOOP = (b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[2 0 R]/Count 9999999>>endobj\n"
        b"trailer<</Size 3/Root 1 0 R>>\nstartxref\n0\n%%EOF")


@pytest.mark.parametrize("make, why", [
    (lambda: pdf([], []), "no_text"), (lambda: b"%PDF-1.7\nno more", "broken"), (lambda: pdf(["x"])[:700], "broken"),
    (lambda: DEEP, "broken"), (lambda: LOOP, "broken"), (lambda: b"no pdf", "mismatch"),
    (lambda: raw_pdf(zlib.compress(b" " * 12_000_000, 9)), "unsafe"),
    (lambda: raw_pdf(zlib.compress(zlib.compress(b" " * 30_000_000, 9), 9), b"[/FlateDecode/FlateDecode]"), "unsafe"),
    (lambda: pdf(*[["x"]] * 12), "too_big")])
def test_pdf_that_is_refused(make: Callable[[], bytes], why: str, same_process: None) -> None:
    assert reason(make(), "a.pdf", max_unpacked=10_000_000, max_pages=10) == why


def test_a_pdf_is_killed_when_its_time_is_over() -> None:
    slow = raw_pdf(zlib.compress(b"BT /F1 12 Tf (a) Tj ET " * 300_000, 9))
    assert reason(slow, "a.pdf", seconds=1.0) == "slow"


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="memory of a process is bounded on Linux only")
def test_a_pdf_gets_no_more_memory_than_allowed() -> None:
    assert reason(pdf(["x"]), "a.pdf", max_memory=40_000_000) in ("too_big", "broken")


# Word

def test_docx(word: bytes) -> None:
    found = read_bytes(word, "terms.docx")
    assert found.text == "Terms of use\n\nLate fees\n\nTwo percent\ta month.\nNow.\n\nDay | Fee\n1 | 2 €\n\nEarly\n\nNothing."
    assert [(s.title, s.level) for s in found.sections] == [("Terms of use", 1), ("Late fees", 1), ("Early", 2)]
    assert all(found.text[s.start :].startswith(s.title) for s in found.sections)
    assert found.metadata["modified"] == "2013-12-23T23:15:00Z"


def test_docx_without_headings_has_the_title_of_its_properties(word: bytes) -> None:
    plain = f"<w:document {WORD}><w:body><w:p><w:r><w:t>text</w:t></w:r></w:p></w:body></w:document>"
    assert read_bytes(repacked(word, {"word/document.xml": plain}), "a.docx").title == "My terms"


def test_docx_says_what_its_reader_sees(word: bytes) -> None:
    run = "<w:r>{}<w:t>{}</w:t></w:r>".format
    tracked = (
        f"<w:document {WORD}><w:body><w:p>{run('', 'The fee is ')}<w:del><w:r><w:delText>two</w:delText></w:r></w:del>"
        f"<w:ins>{run('', 'three')}</w:ins>{run('<w:rPr><w:vanish/></w:rPr>', 'secret')}{run('', ' percent.')}</w:p>"
        f"<w:moveFrom><w:p>{run('', 'gone')}</w:p></w:moveFrom>"
        f"<w:sdt><w:sdtContent><w:p>{run('', 'A control.')}</w:p></w:sdtContent></w:sdt></w:body></w:document>")
    notes = f"<w:footnotes {WORD}><w:footnote><w:p>{run('', 'A note.')}</w:p></w:footnote></w:footnotes>"
    found = read_bytes(repacked(word, {"word/document.xml": tracked, "word/footnotes.xml": notes}), "a.docx")
    assert found.text == "The fee is three percent.\n\nA control.\n\nA note."


LAUGHS = '<!DOCTYPE a [<!ENTITY l "lol">' + "".join(
    f'<!ENTITY l{i} "{("&l;" if not i else f"&l{i - 1};") * 10}">' for i in range(10)) + "]>"


@pytest.mark.parametrize("part", ["word/document.xml", "word/styles.xml", "docProps/core.xml", "word/footnotes.xml"])
@pytest.mark.parametrize("declared, entity", [(LAUGHS, "&l9;"),
                                              ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>', "&x;"),
                                              ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">', "")])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_docx_with_entities(word: bytes, part: str, declared: str, entity: str, codec: str) -> None:
    xml = (f"<?xml version='1.0' encoding='{codec}'?>{declared}"
           f"<w:document {WORD}><w:p><w:r><w:t>{entity}</w:t></w:r></w:p></w:document>")
    assert reason(repacked(word, {part: xml.encode(codec)}), "a.docx") == "unsafe"


def lying(word: bytes) -> bytes:
    "An archive whose table says that its body is small."
    data = bytearray(repacked(word, {"word/document.xml": "<a>" + " " * 5_000_000 + "</a>"}))
    for mark, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            if struct.unpack_from("<I", data, place + offset)[0] > 4_000_000:
                struct.pack_into("<I", data, place + offset, 1000)
    return bytes(data)


@pytest.mark.parametrize("change, why", [
    (lambda word: repacked(word, {"word/media/zeros.bin": b"\0" * 70_000_000}), "unsafe"),
    (lambda word: repacked(word, {"word/media/zeros.bin": b"\0" * 30_000_000}), "unsafe"),
    (lambda word: repacked(word, {f"part{i}": "" for i in range(5_100)}), "unsafe"),
    (lambda word: repacked(word, {"word/document.xml": body(word).replace("<w:body>", "<w:body>" + "<w:p>" * 3000)}), "unsafe"),
    (lying, "broken"), (lambda word: word[:9000], "broken"), (lambda word: b"PK\3\4", "broken"),
    (lambda word: b"text", "mismatch"), (lambda word: b"\xd0\xcf\x11\xe0" + b"x" * 600, "mismatch"),
    (lambda word: repacked(word, {"word/document.xml": ""}), "mismatch"),
    (lambda word: repacked(word, {"word/document.xml": "<a/>"}), "empty")],
    ids=["big", "ratio", "members", "deep", "lying", "cut", "magic only", "text", "old", "no body", "no text"])
def test_docx_that_is_refused(word: bytes, change: Callable[[bytes], bytes], why: str) -> None:
    data = change(word)
    assert len(data) < 1_000_000
    tracemalloc.start()
    try:
        assert reason(data, "a.docx") == why
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


# Whatever comes

def damaged(data: bytes, rng: random.Random) -> bytes:
    "The file cut, with bytes flipped, a piece doubled, or a piece lost."
    place, length = rng.randrange(len(data)), rng.randrange(1, 200)
    kind = rng.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place : place + length] * 3 + data[place + length :]
    if kind == 2:
        return data[:place] + data[place + length :]
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 5, 100])):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


@pytest.mark.parametrize("kind", ["txt", "md", "html", "docx", "pdf"])
def test_damaged_files_give_a_document_or_a_reason(kind: str, word: bytes, same_process: None) -> None:
    text = "# Fees\n\nThe café pays **late** fees.\n\n```\ncode\n```\n" * 20
    page = "<html><title>T</title><body><h1>Fees</h1><table><tr><td>1</td></tr></table><pre>x</pre><p>café</p></body></html>" * 5
    good = {"txt": text.encode(), "md": text.encode(), "html": page.encode(), "docx": word,
            "pdf": pdf(["Late fees are due."], ["A second page."], title="Terms")}[kind]
    rng, whole = random.Random(7), 0
    for _ in range(60):
        try:
            found = read_bytes(damaged(good, rng), f"a.{kind}")
        except Unreadable as error:
            assert error.reason and str(error).startswith("a.")
        else:
            whole += 1
            assert found.text.strip() and found.text.encode() and found.title
            starts = [section.start for section in found.sections]
            assert starts == sorted(starts) and all(0 <= start < len(found.text) for start in starts)
    assert 0 < whole


@given(st.binary(max_size=300), st.sampled_from(["", "<p>", "%PDF-1.4\n", "PK\3\4", "# "]),
       st.sampled_from([".txt", ".md", ".html", ".docx"]))
@settings(max_examples=150)
def test_any_bytes_give_a_document_or_a_reason(data: bytes, begin: str, extension: str) -> None:
    try:
        assert isinstance(read_bytes(begin.encode() + data, "a" + extension), Document)
    except Unreadable as error:
        assert error.reason


@given(st.text(max_size=40))
def test_any_name(name: str) -> None:
    clean = clean_name(name)
    assert clean == clean_name(clean) and not clean.startswith("/") and ".." not in clean.split("/")
    clean.encode()  # no half surrogates
    found = read_bytes(b"text", f"{name}x.txt")
    assert found.source == clean_name(f"{name}x.txt")


@pytest.mark.parametrize("data, name, part", [("text", "a.txt", "expected bytes"), (None, "a.txt", "expected bytes"),
                                              (b"text", 5, "file name as text"), (b"text", None, "file name as text")])
def test_wrong_arguments(data: object, name: object, part: str) -> None:
    with pytest.raises(TypeError, match=part):
        read_bytes(data, name)


@pytest.mark.parametrize("name", ["", "notes", "a.doc", "a.exe", ".txt", "a.txt.exe", "..", "/"])
def test_unsupported_extensions(name: str) -> None:
    with pytest.raises(Unreadable, match="save it as one of") as caught:
        read_bytes(b"text", name)
    assert caught.value.reason == "format"


def test_limits() -> None:
    assert reason(b"x" * 101, "a.txt", max_bytes=100) == "too_big"
    assert reason(b"<p>hi</p>" * 20, "a.html", max_characters=30) == "too_big"
    assert reason("ééé".encode() * 20, "a.md", max_characters=30) == "too_big"
    with pytest.raises(ValueError, match="above 0: max_pages"):
        Limits(max_pages=0)


def test_an_unreadable_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(Unreadable("empty", "a.txt: it is empty")))
    assert (error.reason, str(error)) == ("empty", "a.txt: it is empty")


# Identity

def test_the_id_is_the_name_and_the_version_is_the_hash() -> None:
    first, again, changed = (read_bytes(data, "a.txt") for data in (b"one", b"one", b"two"))
    assert first == again and first.id == changed.id and first.metadata["sha256"] != changed.metadata["sha256"]
    other = read_bytes(b"one", "a.txt", tenant="acme")
    assert other.id != first.id and other.metadata["tenant"] == "acme" and read_bytes(b"one", "b/a.txt").id != first.id


def test_sections_and_passages_fit(word: bytes) -> None:
    found = read_bytes(word, "a.docx")
    start = found.sections[1].start
    assert passage_of(found, start, start + 9).text == "Late fees"


# Files

def test_read_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    os.utime(tmp_path / "a.txt", (1_700_000_000, 1_700_000_000))
    found = read_document(tmp_path / "a.txt")
    assert (found.source, found.metadata["modified"]) == ("a.txt", "2023-11-14T22:13:20Z")
    assert found.id == read_bytes(b"text", "a.txt").id and str(tmp_path) not in repr(found)
    assert read_document(str(tmp_path / "a.txt"), name="x/b.txt").source == "x/b.txt"


def test_missing_and_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file 'a.txt'") as caught:
        read_document(tmp_path / "a.txt")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(TypeError):
        read_document(5)
    for path, why in [(tmp_path, "not_a_file"), (Path("a\0b.txt"), "denied"), (tmp_path / ("x" * 5000 + ".txt"), "denied")]:
        with pytest.raises(Unreadable) as refused:
            read_document(path)
        assert refused.value.reason == why and str(tmp_path) not in str(refused.value)


def test_200_megabytes_are_refused_before_reading(tmp_path: Path) -> None:
    big = tmp_path / "big.txt"
    big.touch()
    os.truncate(big, 200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable, match="200,000,000 bytes") as caught:
            read_document(big)
        assert caught.value.reason == "too_big" and tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Path]:
    "A folder with links, and a secret beside it."
    folder = tmp_path / "uploads"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the key")
    (folder / "a.txt").write_text("text")
    try:
        (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    except OSError:
        pytest.skip("no links on this system")
    (folder / "in.txt").symlink_to(folder / "a.txt")
    (folder / "sub" / "up.txt").symlink_to(folder / "a.txt")
    (folder / "circle.txt").symlink_to(folder / "circle.txt")
    (folder / "nowhere.txt").symlink_to(folder / "nothing")
    (folder / "all").symlink_to(tmp_path)
    yield folder


def test_links_stay_in_their_folder(linked: Path) -> None:
    assert read_document(linked / "in.txt").text == "text"
    for path in (linked / "out.txt", linked / "sub" / "up.txt"):
        with pytest.raises(Unreadable, match="leaves its folder"):
            read_document(path)
    assert read_document(linked / "sub" / "up.txt", root=linked).text == "text"
    with pytest.raises(Unreadable):
        read_document(linked / "circle.txt")
    found = {path.relative_to(linked).as_posix(): getattr(answer, "reason", "read") for path, answer in read_folder(linked)}
    assert found == {"a.txt": "read", "in.txt": "read", "sub/up.txt": "read", "out.txt": "link", "all": "link",
                     "circle.txt": "denied", "nowhere.txt": "denied"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(Unreadable, match="no file"):
        read_document(tmp_path / "pipe.txt")


def test_one_bad_file_loses_nothing(tmp_path: Path, word: bytes) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    files = {"a.txt": b"text", "deep/a.txt": b"other", "b.docx": word, "c.docx": word[:500], "d.pdf": pdf(["Hello there."]),
             "e.xlsx": b"PK", "f.md": b"", ".hidden.txt": b"x", "~$b.docx": b"x", ".git/x.txt": b"x"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = {path.relative_to(tmp_path).as_posix(): answer for path, answer in read_folder(tmp_path, tenant="acme")}
    assert {name: getattr(answer, "reason", "read") for name, answer in found.items()} == {
        "a.txt": "read", "b.docx": "read", "c.docx": "broken", "d.pdf": "read", "e.xlsx": "format", "f.md": "empty",
        "deep/a.txt": "read"}
    assert found["a.txt"].id != found["deep/a.txt"].id and found["deep/a.txt"].metadata["tenant"] == "acme"
    with pytest.raises(NotADirectoryError):
        read_folder(tmp_path / "a.txt")


def test_missing_extra_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(ImportError):
        read_bytes(b"<p>text</p>", "a.html")
