"""`keep_freed_memory` of sapis, for every peer: all get the allocator's settings that ours gets."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Loaded by its path: the file needs nothing but Python, the package around it needs what peers' environments do not have.
_SPEC = importlib.util.spec_from_file_location("memory", Path(__file__).parents[2] / "src" / "sapis" / "core" / "memory.py")
assert _SPEC and _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
keep_freed_memory = _MODULE.keep_freed_memory
