"""The house: which module may import which, what loads lazily, what is named must be installed, documented and annotated."""

import ast
import importlib.util
import inspect
import json
import re
import statistics
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from nlp_portfolio.course.runner import course_notebooks

PACKAGE = Path(__file__).resolve().parent.parent / "nlp_portfolio"
FLOORS = [{"course"}, {"text", "evaluation"}, {"classic", "labels"}, {"neural"}, {"retrieval"}, {"llm"}, {"safety"},
          {"serving", "mlops"}, {"cases", "interview"}, {"exercises"}]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
PLUGINS = re.compile(r"evaluation/modules/")  # loaded by path, by the library `evaluate`
MODULES = sorted(file for file in PACKAGE.rglob("*.py") if file.name not in ("__init__.py", "_modidx.py"))
NAMES = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in MODULES
         if not PLUGINS.search(file.as_posix()) or file.parent == PACKAGE / "evaluation"]
BY_NAME = ("import_module", "__import__")
DISCOVERY = {"nlp_portfolio.course.exercise": {"nlp_portfolio.exercises"}}  # it finds what the lessons registered, by name
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "nbdev", "fastcore"}


def imported(source: str, module: str) -> set[str]:
    "Full names of what a module's source imports, relative ones resolved; under TYPE_CHECKING and in functions too."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[:-node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in BY_NAME:
            found |= {str(text.value) for text in node.args[:1] if isinstance(text, ast.Constant)}
    return found


def violations(source: str, module: str) -> list[str]:
    "Imports from a floor above the module's own."
    own = LEVEL[module.split(".")[1]]
    floors = {name: name.split(".")[1] for name in imported(source, module) - DISCOVERY.get(module, set())
              if name.startswith("nlp_portfolio.")}
    return sorted(name for name, floor in floors.items() if floor in LEVEL and LEVEL[floor] > own)


def test_every_folder_of_the_library_stands_on_a_floor():
    folders = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir() and list(folder.glob("*.py"))}
    assert folders - {"__pycache__"} <= set(LEVEL)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_module_imports_only_from_its_floor_or_below(file):
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    assert violations(file.read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(("source", "module", "found"), [
    ("from ..neural.lora import train", "nlp_portfolio.course.results", True),
    ("import nlp_portfolio.classic.baseline", "nlp_portfolio.evaluation.metrics", True),
    ("from nlp_portfolio import classic", "nlp_portfolio.evaluation.metrics", True),
    ("from .. import serving", "nlp_portfolio.llm.api", True),
    ("def f():\n    from ..safety import pii", "nlp_portfolio.text.tokens", True),
    ("if TYPE_CHECKING:\n    from ..exercises.lesson_01 import x", "nlp_portfolio.cases.a", True),
    ("import_module('nlp_portfolio.labels.rules')", "nlp_portfolio.course.x", True),
    ("from ..course.settings import settings", "nlp_portfolio.evaluation.metrics", False),
    ("from .metrics import f1\nfrom ..text import tokens", "nlp_portfolio.evaluation.errors", False),
    ("import numpy\nfrom classic import neural", "nlp_portfolio.course.settings", False),
])
def test_the_check_sees_a_violation(source, module, found):
    assert bool(violations(source, module)) is found


# ---- light modules


def test_light_modules_load_nothing_heavy():
    light = [name for name in NAMES if name.split(".")[1] in ("course", "evaluation", "classic")]
    assert {"nlp_portfolio.course.cli", "nlp_portfolio.course.datasets", "nlp_portfolio.classic.baseline"} < set(light)
    code = (f"import importlib, sys\nheavy = {sorted(HEAVY)}\n"
            f"for name in ['nlp_portfolio', *{light}]:\n"
            "    importlib.import_module(name)\n"
            "    for found in [h for h in heavy if h in sys.modules]:\n"
            "        print(name, found)\n        heavy.remove(found)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""


def test_the_package_itself_loads_nothing():
    code = "import sys; before = set(sys.modules); import nlp_portfolio; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['nlp_portfolio']"


@pytest.mark.parametrize("name", NAMES)
def test_exported_code_imports_no_authoring_tool(name):
    source = (PACKAGE.parent / Path(*name.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert {found.split(".")[0] for found in imported(source, name)} & {"nbdev", "fastcore"} == set()


# ---- dependencies


def dependencies() -> list[str]:
    "Distribution names in pyproject.toml, the extras' included, our own left out."
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return sorted({re.match(r"[\w.-]+", one)[0].lower() for one in named} - {"nlp-portfolio"})


def test_every_dependency_is_importable():
    modules = {}
    for module, names in metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(name.lower().replace("_", "-"), []).append(module)
    elsewhere = {"torch", "transformers", "datasets", "evaluate"}  # imported by other tests; slow to import once more
    code = "import importlib\nfor name in {}:\n    importlib.import_module(name)\n    print(name)"
    wanted = {name: sorted(one for one in modules.get(name, []) if one.isidentifier() and one[0] != "_")
              for name in dependencies()}
    assert [name for name, found in wanted.items() if not found] == []
    first = [next((one for one in found if one == name.replace("-", "_")), found[0]) for name, found in wanted.items()]
    light = [name for name in first if name not in elsewhere]
    done = subprocess.run([sys.executable, "-c", code.format(light)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.split() == light
    assert [name for name in first if importlib.util.find_spec(name) is None] == []


def test_every_import_of_the_library_is_a_named_dependency():
    distributions, named = metadata.packages_distributions(), set(dependencies())
    ours = {"nlp_portfolio", *sys.stdlib_module_names}
    missing = {}
    for file in MODULES:
        tops = {name.split(".")[0] for name in imported(file.read_text(encoding="utf-8"), "nlp_portfolio.x.y")} - ours - {""}
        for top in tops:
            if not {one.lower().replace("_", "-") for one in distributions.get(top, [top])} & named:
                missing.setdefault(top, file.name)
    assert missing == {}


def lesson_code(file: Path) -> str:
    "The code of a notebook as a module; lines that only IPython reads become `pass`."
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^([ \t]*)[%!?].*$", r"\1pass", code, flags=re.M)


def installed_by(file: Path) -> set[str]:
    "Distributions that a notebook's install line brings, the core's and the laboratory's included."
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.search(r"nlp-portfolio\[([\w,]+)\] @ ", file.read_text(encoding="utf-8"))
    extras = [*(found[1].split(",") if found else ()), "lab"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return {re.match(r"[\w.-]+", one)[0].lower() for one in wanted}


@pytest.mark.parametrize("file", course_notebooks(PACKAGE.parent, lessons_only=True), ids=lambda file: file.stem)
def test_every_import_of_a_lesson_is_on_its_install_line(file):
    distributions, ours = metadata.packages_distributions(), {"nlp_portfolio", *sys.stdlib_module_names}
    tops = {name.split(".")[0] for name in imported(lesson_code(file), "x")} - ours - {"", "google"}
    named, brings = installed_by(file), lambda top: {one.lower().replace("_", "-") for one in distributions.get(top, [top])}
    assert [top for top in sorted(tops) if not brings(top) & named] == []


# ---- documentation


def exported(name: str) -> dict[str, object]:
    module = importlib.import_module(name)
    return {one: getattr(module, one) for one in module.__all__}


def named_function(value: object) -> bool:
    "Whether it was made with `def`; a lambda is a constant of its module and cannot hold a docstring."
    return inspect.isfunction(value) and value.__name__ != "<lambda>"


@pytest.mark.parametrize("name", NAMES)
def test_module_and_exported_names_say_what_they_are(name):
    assert importlib.import_module(name).__doc__
    made = {one: value for one, value in exported(name).items() if named_function(value) or inspect.isclass(value)}
    # a dataclass or named tuple writes its own signature when it has no docstring
    silent = [one for one, value in made.items() if not value.__doc__ or value.__doc__.startswith((f"{one}(", "Alias for"))]
    silent += [f"{one}.{method}" for one, value in made.items() if inspect.isclass(value)
               for method, code in vars(value).items()
               if not method.startswith("_") and (inspect.isfunction(code) or isinstance(code, property)) and not code.__doc__]
    assert silent == []


def unannotated(code, name: str) -> list[str]:
    signature = inspect.signature(code)
    bare = [f"{name}({one.name})" for i, one in enumerate(signature.parameters.values())
            if one.annotation is inspect.Parameter.empty and not (i == 0 and one.name in ("self", "cls"))]
    if signature.return_annotation is inspect.Signature.empty and not name.endswith(".__init__"):
        bare.append(f"{name} ->")
    return bare


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_returns_are_annotated(name):
    bare = []
    for one, value in exported(name).items():
        if named_function(value):
            bare += unannotated(value, one)
        elif inspect.isclass(value) and value.__module__ == name:
            methods = {m: code for m, code in vars(value).items() if inspect.isfunction(code) and code.__module__ == name
                       and code.__code__.co_filename == inspect.getsourcefile(value)}
            bare += [found for m, code in methods.items() if not m.startswith("_") or m in ("__init__", "__call__")
                     for found in unannotated(code, f"{one}.{m}")]
    assert bare == []


def body_lines(function: ast.FunctionDef) -> int:
    "Lines of a function's body, its docstring left out."
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    lengths = [body_lines(node) for file in MODULES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
               if isinstance(node, ast.FunctionDef)]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 40
