"""The 3-D view of structures: 3Dmol.js inlined, and the words that stand in where WebGL is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sapis.data.system import System
from sapis.report.markup import Html, absent, join, number, tag

N_ATOMS_SHOWN = 20_000  # about 0.8 MB of coordinates
N_STRUCTURES_SHOWN = 60


def structure_view(structures: Sequence[System]) -> Html:
    """A viewer with a button for each structure, an element key, and the captions as text."""
    shown = _within_limits(structures)
    if not shown:
        return absent("No structures were handed to this report.")
    # Only element symbols and numbers go into the script element: nothing that could close it.
    data = json.dumps([_frame(system) for system in shown])
    buttons = (tag("button", tag("span", caption(system)), tag("small", _subtitle(system)),
                   type="button", data_frame=i, aria_pressed="true" if i == 0 else "false")
               for i, system in enumerate(shown))
    left_out = len(structures) - len(shown)
    return join([
        tag("div",
            tag("div",
                tag("p", "The 3-D view needs JavaScript and WebGL, which this browser does not offer here. "
                         "The structures are named beside it.", class_="fallback"),
                id="viewer", role="img", aria_label="3-D view of the chosen structure"),
            tag("div", *buttons, class_="frames", id="frames"),
            class_="viewer"),
        tag("p", _element_key(shown), tag("span", "drag to rotate · scroll to zoom · ctrl-drag to move",
                                          class_="hint"), class_="key"),
        tag("p", f"{left_out} more structures are left out to keep this page small.", class_="note")
        if left_out else None,
        tag("script", Html(data), type="application/json", id="structure-data"),
    ])


def caption(system: System) -> str:
    """The tag ``caption``, else the formula and what the other tags say."""
    if "caption" in system.tags:
        return str(system.tags["caption"])
    parts = [system.formula]
    if "temperature_K" in system.tags:
        parts.append(f"{system.tags['temperature_K']} K")
    if "source" in system.tags:
        parts.append(str(system.tags["source"]))
    return ", ".join(parts)


def _within_limits(structures: Sequence[System]) -> Sequence[System]:
    totals = np.cumsum([len(system) for system in structures])
    n_fitting = int(np.searchsorted(totals, N_ATOMS_SHOWN, side="right"))
    return structures[: min(N_STRUCTURES_SHOWN, max(1, n_fitting))]


def _subtitle(system: System) -> Html:
    n_atoms = join([number(len(system)), " atom" if len(system) == 1 else " atoms"])
    return n_atoms if system.formula in caption(system) else join([system.formula, n_atoms], " · ")


def _frame(system: System) -> dict[str, Any]:
    """Coordinates in XYZ (without a comment: the viewer would parse one) and the cell if there is one."""
    lines = [f"{symbol} {x:.4f} {y:.4f} {z:.4f}"
             for symbol, (x, y, z) in zip(_symbols(system), system.positions, strict=True)]
    cell = system.cell.round(4).tolist() if system.pbc.any() else None
    return {"xyz": "\n".join([str(len(system)), "", *lines, ""]), "cell": cell}


def _symbols(system: System) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in system.numbers]


def _element_key(structures: Sequence[System]) -> Html:
    """Colours of the elements, the same Jmol colours that the viewer is told to use."""
    from ase.data import chemical_symbols
    from ase.data.colors import jmol_colors

    present = sorted({int(number) for system in structures for number in system.numbers})
    items = []
    for atomic_number in present:
        red, green, blue = (round(255 * float(part)) for part in jmol_colors[atomic_number])
        dot = tag("i", style=f"background:rgb({red},{green},{blue})")
        items.append(tag("span", dot, chemical_symbols[atomic_number], class_="element"))
    return join(items)
