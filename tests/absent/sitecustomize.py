"""On PYTHONPATH in tests/test_notebooks.py: Python starts as if the modules named in ABSENT_MODULES were not installed."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

ABSENT = frozenset(os.environ.get("ABSENT_MODULES", "").split())


class Finder(PathFinder):
    "Finds what PathFinder finds, but for the absent modules."

    @classmethod
    def find_spec(cls, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return None if path is None and fullname in ABSENT else super().find_spec(fullname, path, target)


if ABSENT:
    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
