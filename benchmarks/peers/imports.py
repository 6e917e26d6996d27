"""Import one file of a package whose other files ask for more than it needs."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


def without_init(*packages: str) -> None:
    """Make submodules of ``packages`` importable without running their ``__init__`` files; parents first."""
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec and spec.submodule_search_locations is not None
        module = ModuleType(name)
        module.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = module


def stand_in(name: str, **members: Any) -> None:
    """Put a module with ``members`` in the place of ``name`` and its parents."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            module = sys.modules[path] = ModuleType(path)
            module.__path__ = []
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
    vars(sys.modules[name]).update(members)
