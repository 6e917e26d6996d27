"""`Report`: what a page tells, and how to read records of which any part may be absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from sapis.core.version import __version__
from sapis.data.system import System

USAGE = """\
from sapis import load
from ase.build import molecule
atoms = molecule("CH3CH2OH"); atoms.calc = load("model.sapis").calculator(); print(atoms.get_potential_energy())
"""

CITATION = f"""\
@software{{sapis_md,
  author  = {{{{The SAPIS-MD authors}}}},
  title   = {{SAPIS-MD: symmetry-aware, physics-informed scaling of foundation models for molecular dynamics}},
  year    = {{2026}},
  version = {{{__version__}}},
}}
"""


@dataclass(frozen=True)
class Report:
    """Everything a page shows.

    Attributes:
        title: heading of the page.
        recipe: the settings that were asked for, JSON values.
        records: step name (``candidates``, ``labels``, ``data``, ``train``, ``test``, ``md``, ``checks``) to
            its record as a dictionary with ``result``, ``cost`` and ``provenance``, JSON values only.
        structures: for the 3-D view; the tag ``caption`` names a structure, else its other tags do.
        usage: lines of Python that use the model.
        citation: how to cite the work, for instance as BibTeX.
    """

    title: str
    recipe: dict[str, Any] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    structures: Sequence[System] = ()
    usage: str = USAGE
    citation: str = CITATION

    def result(self, step: str) -> dict[str, Any]:
        """The result of a step; empty if there is no such record."""
        return mapping(self.records, step, "result")

    def cost(self, step: str) -> dict[str, Any]:
        """The cost of a step; empty if there is no such record."""
        return mapping(self.records, step, "cost")

    def flops(self, step: str) -> float | None:
        """Floating-point operations of a step, from its cost or its result; None if they were not counted."""
        counted = amount(self.cost(step), "flops")
        return amount(self.result(step), "flops") if counted is None else counted


def dig(value: Any, *path: str) -> Any:
    """The value under nested keys; None as soon as one of them is missing."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def mapping(value: Any, *path: str) -> dict[str, Any]:
    """The mapping under nested keys; empty if there is none."""
    found = dig(value, *path)
    return found if isinstance(found, dict) else {}


def rows(value: Any, *path: str) -> list[dict[str, Any]]:
    """The mappings in the list under nested keys; empty if there is no list."""
    found = dig(value, *path)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list | tuple) else []


def amount(value: Any, *path: str) -> float | None:
    """The finite number under nested keys; None if there is none."""
    found = dig(value, *path)
    return found if is_number(found) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether ``value`` is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two lists as arrays of one length, without the places where either is not a finite number."""
    if not isinstance(x, list | tuple) or not isinstance(y, list | tuple):
        return np.empty(0), np.empty(0)
    kept = [(a, b) for a, b in zip(x, y, strict=False) if is_number(a) and is_number(b)]
    points = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]
