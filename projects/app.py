"""All demos on one page, a tab each: `make demo`. A project's models are loaded when its tab is used first."""

import argparse
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import gradio as gr


def app_of(file: Path) -> ModuleType:
    "A project's app.py as a module: its folder's name is no name to import by."
    spec = importlib.util.spec_from_file_location(f"app_{file.parent.name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page() -> gr.Blocks:
    "One tab a project, in the order of their numbers."
    pages = [app_of(file).page() for file in sorted(Path(__file__).parent.glob("[0-9]_*/app.py"))]
    with gr.Blocks(title="Projects", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        for one in pages:
            with gr.Tab(one.title):
                one.render()
    return blocks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    page().launch(server_name=args.host, server_port=args.port, max_file_size="20mb", quiet=False)
