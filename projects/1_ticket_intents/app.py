"""The ticket demo: type a ticket, see its intents and why. `make demo P=1`, or copy the folder to a Hugging Face Space."""

import argparse
import csv
import tempfile
import time
from functools import cache
from pathlib import Path

import gradio as gr
import pandas as pd

from nlp_portfolio.cases.tickets import TicketTagger

EXAMPLES = [
    "Where is my parcel? Order #2048817 was due on Tuesday.",
    "please cancel my plan and refund the last month, account HA-482913",
    "I do NOT want my money back, just send the camera I ordered instead of this doorbell",
    "The app logs me out every time I open the video, since yesterday's update",
    "Mi termostato no enciende desde esta mañana",
    "My neighbour's cat is on your roof",
]
MAX_ROWS, PROGRESS = 5_000, gr.Progress()


@cache
def tagger() -> TicketTagger:
    "One model for all visitors, loaded at the first ticket."
    return TicketTagger.load("int8")


def answer(text: str) -> tuple[dict[str, float], str, list[tuple[str, float]], pd.DataFrame, str]:
    "Probabilities, the decision, the words behind it, the nearest training tickets, and the time it took."
    start = time.perf_counter()
    found = tagger().predict([text])[0]
    ms = 1000 * (time.perf_counter() - start)
    why = tagger().explain(text)
    named = " and ".join(one["intent"] for one in found["intents"])
    decision = "### Out of scope: no queue of ours" if found["out_of_scope"] else f"### {named}"
    most = max([abs(weight) for _, weight in why["words"]] + [0.05])
    words = [(f"{word} ", round(weight / most, 2)) for word, weight in why["words"]]
    near = pd.DataFrame([(round(one["similarity"], 2), one["intent"], one["text"]) for one in why["nearest"]],
                        columns=["cosine", "intent", "text"])
    return found["probabilities"], decision, words, near, f"{ms:.1f} ms to decide on this machine"


def tickets_of(file: str) -> list[str]:
    "The column `text` of a CSV file, or its first column. Raises gr.Error for what is no such file."
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, nrows=MAX_ROWS + 1)
    except (ValueError, csv.Error) as err:  # UnicodeDecodeError and pandas' own errors are ValueErrors
        raise gr.Error("This is not a CSV file in UTF-8. Save it as CSV with a column named text.") from err
    if not len(table) or len(table) > MAX_ROWS:
        raise gr.Error(f"The file has {'no rows' if not len(table) else f'more than {MAX_ROWS:,} rows'}: split it or add some.")
    return table["text" if "text" in table else table.columns[0]].tolist()


def tag_file(file: str | None, progress: gr.Progress = PROGRESS) -> tuple[pd.DataFrame, str]:
    "Tag every row of a CSV file: a table to look at, and the same as a file to download."
    if not file:
        raise gr.Error("Choose a CSV file first.")
    texts, rows = tickets_of(file), []
    for start in progress.tqdm(range(0, len(texts), 32), unit="batch"):
        batch = texts[start : start + 32]
        for text, found in zip(batch, tagger().predict(batch), strict=True):
            rows.append({"intents": " + ".join(one["intent"] for one in found["intents"]),
                         "probability": round(found["intents"][0]["probability"], 3), "text": text})
    out = Path(tempfile.mkdtemp()) / "tagged.csv"
    pd.DataFrame(rows).to_csv(out, index=False)
    return pd.DataFrame(rows), str(out)


def page() -> gr.Blocks:
    "The page: one ticket, or a file of them."
    with gr.Blocks(title="Ticket intents", analytics_enabled=False) as blocks:
        gr.Markdown("# What does this customer want?\n17 intents of a smart-home shop's support, or none of them. "
                    "A small encoder with a LoRA adapter, in int8, on your processor. It reads English; "
                    "of Spanish and German tickets it gets fewer than half right.")
        with gr.Tab("One ticket"), gr.Row():
            with gr.Column():
                ticket = gr.Textbox(label="Ticket", lines=5, placeholder="Write to support as you would …", max_length=4_000)
                ask = gr.Button("Tag it", variant="primary")
                gr.Examples(EXAMPLES, ticket)
            with gr.Column():
                decision, took = gr.Markdown(), gr.Markdown()
                shares = gr.Label(label="Probability of each intent", num_top_classes=5)
                words = gr.HighlightedText(label="Why: what each word adds (red) or takes (blue)", show_legend=False)
                near = gr.Dataframe(label="The nearest training tickets", wrap=True, column_widths=["16%", "28%", "56%"])
        with gr.Tab("A file of tickets"):
            gr.Markdown(f"A CSV file in UTF-8 with a column `text`, at most {MAX_ROWS:,} rows. Nothing is kept.")
            file = gr.File(label="Tickets", file_types=[".csv"])
            run = gr.Button("Tag all", variant="primary")
            table, done = gr.Dataframe(label="Tagged", wrap=True, column_widths=["30%", "15%", "55%"]), gr.File(label="Download")
        outputs = [shares, decision, words, near, took]
        gr.on([ask.click, ticket.submit], answer, ticket, outputs)
        run.click(tag_file, file, [table, done])
    return blocks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=7861)
    answer("warm up")
    page().launch(server_name="127.0.0.1", server_port=parser.parse_args().port, quiet=False)
