"""The document demo: ask your files or the Python documentation, and open every citation where it stands. `make demo P=2`."""

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

import gradio as gr

from nlp_portfolio.cases.document_qa import DocumentQA
from nlp_portfolio.llm.citations import marked
from nlp_portfolio.llm.rag import Grounded

EXAMPLES = [
    "Can I delete a directory with Path.unlink?",
    "Does os.walk follow symbolic links to folders by default?",
    "are 1, 1.0 and True the same dictionary key?",
    "What do removeprefix and removesuffix return if the string lacks the prefix or the suffix?",
    "How do I pin a package to an exact version with pip?",
]
SOURCES = [("everything", "all"), ("my documents", "mine"), ("the Python documentation", "documentation")]
TYPES = [".md", ".txt", ".html", ".pdf", ".docx"]
STYLE = """<style>
.said { font-size: 1.15em; line-height: 1.6; white-space: pre-wrap; margin-bottom: 14px }
.said a { font-weight: 600; text-decoration: none }
.place { border: 1px solid var(--border-color-primary); border-radius: 6px; margin: 6px 0; padding: 6px 10px }
.place summary { cursor: pointer }
.place pre { white-space: pre-wrap; max-height: 22em; overflow-y: auto; font-size: .9em }
.place mark { background: #ffe08a; color: #1f2937 }
.here { display: block; background: var(--background-fill-secondary); padding-left: 8px }
.here { border-left: 3px solid var(--color-accent) }
.quiet { color: var(--body-text-color-subdued); font-size: .9em; margin-top: 10px }
</style>"""
OPEN = "let d = document.getElementById('source-{0}'); d.open = true; d.ontoggle(); return false"
TOGGLE = """let p = this.querySelector('pre'), m = p.querySelector('mark') || p.querySelector('.here');
if (this.open) { p.scrollTop = m.offsetTop - p.offsetTop - 50; this.scrollIntoView({behavior: 'smooth', block: 'nearest'}) }"""
CODE = re.compile(r"^\s*(>>>|\||\+-|[-*] )|\S {3,}\S", re.MULTILINE)  # what loses its sense without its lines


@cache
def qa() -> DocumentQA:
    "One index for all visitors, in a folder that goes when the demo ends."
    folder = tempfile.TemporaryDirectory(prefix="document_qa_", ignore_cleanup_errors=True)
    opened = DocumentQA.open(folder.name)
    opened.folder = folder
    return opened


def said(text: str, numbers: set[int] = frozenset()) -> str:
    "The answer as HTML; the numbers of its citations open their passages."
    def link(mark: re.Match) -> str:
        opens = f'<a href="#source-{mark[1]}" onclick="{OPEN.format(mark[1])}">[{mark[1]}]</a>'
        return opens if int(mark[1]) in numbers else mark[0]

    text = text if CODE.search(text) else re.sub(r"[ \t]*\n[ \t]*", " ", text)  # lines of prose are the paper's, not the reader's
    return '<div class="said">' + re.sub(r"(?<=[ \]])\[(\d+)\]", link, escape(text)) + "</div>"


def place(number: int, passage: str, quotes: list[tuple[int, int]], tenant: str) -> str:
    "A passage in its document, closed until somebody opens it; the quotes are marked."
    opened = qa().passage(passage, tenant)
    a, b = opened.start, opened.end
    title = opened.heading if opened.heading.startswith(opened.title) else f"{opened.title}: {opened.heading}".removesuffix(": ")
    text = f'{escape(opened.text[:a])}<span class="here">{marked(opened.text[a:b], quotes)}</span>{escape(opened.text[b:])}'
    return (f'<details class="place" id="source-{number}" ontoggle="{TOGGLE}">'
            f"<summary><b>[{number}]</b> {escape(title)}</summary><pre>{text}</pre></details>")


def places(found: Grounded, tenant: str) -> str:
    "The cited passages, or under a refusal the nearest ones."
    if found.refused:
        near = [place(number, hit.passage.id, [], tenant) for number, hit in enumerate(found.nearest[:3], 1)]
        return "<p>The nearest passages, in case they help:</p>" + "".join(near) if near else ""
    spans: dict[int, list[tuple[int, int]]] = {}
    for one in found.citations:
        spans.setdefault(one.number, []).append((one.start, one.end))
    return "".join(place(number, found.passages[number - 1].id, spans[number], tenant) for number in sorted(spans))


def took(found: Grounded) -> str:
    "Milliseconds by stage, and the cost."
    stages = " · ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in found.seconds.items())
    cost = "unknown" if found.cost is None else f"{found.cost:.4f}"
    return f'<div class="quiet">{stages} · cost {cost} · answered by {escape(found.model or "search alone")}</div>'


def ask(question: str, source: str, request: gr.Request) -> Iterator[str]:
    "The answer as it comes; at its end its passages, and what it took."
    if not question.strip():
        raise gr.Error("Write a question first.")
    text, stream = "", qa().stream(question, request.session_hash, source)
    for piece in stream:
        text += piece
        yield said(text)
    found = stream.result
    yield said(found.text, {one.number for one in found.citations}) + places(found, request.session_hash) + took(found)


def mine(request: gr.Request) -> gr.CheckboxGroup:
    "The visitor's documents, to choose from."
    listed = []
    for one in qa().documents(request.session_hash):
        held = f", {one.held_back} held back" if one.held_back else ""
        listed.append((f"{one.name}: {one.passages} passage{'s' * (one.passages != 1)}{held}", one.document))
    return gr.CheckboxGroup(listed, value=[], label="Your documents" if listed else "Your documents: none yet")


def upload(files: list[str] | None, trusted: bool, request: gr.Request) -> tuple[None, gr.CheckboxGroup]:
    "Read files into the visitor's documents. What cannot be read, and what gives orders, is said."
    for file in files or []:
        try:
            done = qa().ingest(Path(file).name, Path(file).read_bytes(), request.session_hash, trusted)
        except ValueError as err:
            gr.Warning(escape(str(err)), title="Not added", duration=30)
            continue
        if done.held_back:
            heard = " ... ".join(order.strip(" .!?\n") for order in done.orders)
            why = f"not searched, because of orders to whoever answers: {escape(heard[:200])}"
            gr.Warning(f"{escape(done.name)}: {done.held_back} of {done.passages} passages are {why}", duration=30)
    return None, mine(request)


def remove(documents: list[str], request: gr.Request) -> gr.CheckboxGroup:
    "Take documents out again."
    for document in documents:
        qa().remove(document, request.session_hash)
    return mine(request)


def leave(request: gr.Request) -> None:
    "A visitor who closes the page leaves nothing behind."
    for one in qa().documents(request.session_hash):
        qa().remove(one.document, request.session_hash)


def page() -> gr.Blocks:
    "The page: files on the left, question and answer on the right."
    with gr.Blocks(title="Document Q&A", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.HTML(STYLE, padding=False)
        gr.Markdown("# Answers you can check\nEach sentence is quoted from a passage, and its number opens that passage in its "
                    "document. What the documents do not answer is refused. Nothing leaves this machine.")
        with gr.Row():
            with gr.Column(scale=1):
                source = gr.Radio(SOURCES, value="all", label="Search in")
                files = gr.File(label="Add files", file_count="multiple", file_types=TYPES, height=120)
                trusted = gr.Checkbox(label="I have read them: leave out only passages with an order")
                documents = gr.CheckboxGroup([], label="Your documents: none yet")
                gone = gr.Button("Remove the ticked ones", size="sm")
                gr.Markdown("Your files are seen by you only, and removed when you close the page.")
            with gr.Column(scale=2):
                question = gr.Textbox(label="Question", lines=2, placeholder="Ask as you would ask a colleague", max_length=1_000)
                go, answer = gr.Button("Ask", variant="primary"), gr.HTML()
                gr.Examples(EXAMPLES, question, label="Try one; the last has no answer here")
        gr.on([go.click, question.submit], ask, [question, source], answer)
        files.upload(upload, [files, trusted], [files, documents])
        gone.click(remove, documents, documents)
        blocks.load(mine, None, documents)
        blocks.unload(leave)
    return blocks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=7862)
    args = parser.parse_args()
    qa().ask("What does pass do?", "nobody", "documentation")  # warm up
    page().launch(server_name=args.host, server_port=args.port, max_file_size="20mb", quiet=False)
