"""The card of a generated set: what is in it, how it was made, what it cost; in JSON, Markdown, a picture and a sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from sapis.core.files import replacing, write_json, write_text
from sapis.data.formats.xyz import write_systems
from sapis.data.store import Store
from sapis.data.system import System

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE = "#0072B2", "#D55E00"
LEFT_OUT = {"too_large": "with too large a force", "not_converged": "that did not converge"}
SAMPLE, N_SAMPLE = "sample.extxyz.gz", 200


def sampled(n_frames: int) -> list[int]:
    """Numbers of the frames of the sample, evenly spread."""
    return np.unique(np.linspace(0, n_frames - 1, N_SAMPLE).round().astype(int)).tolist()


@dataclass
class _Counts:
    """Gathered in one pass over the frames."""

    sources: Counter[str] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)  # frames that hold each
    charges: Counter[int] = field(default_factory=Counter)
    molecules: set[str] = field(default_factory=set)
    formulas: set[str] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    binding: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    squares: float = 0.0

    def add(self, system: System, isolated: dict[int, float]) -> None:
        self.sources[str(system.tags.get("source", ""))] += 1
        self.elements.update({chemical_symbols[z] for z in system.numbers})
        self.charges[system.charge] += 1
        self.molecules.add(str(system.tags.get("smiles", "")))
        self.formulas.add(system.formula)
        self.sizes.append(len(system))
        assert system.energy is not None and system.forces is not None
        self.binding.append((system.energy - sum(isolated.get(int(z), 0.0) for z in system.numbers)) / len(system))
        self.largest.append(float(np.linalg.norm(system.forces, axis=1).max()))
        self.squares += float(np.square(system.forces).sum())


def write_card(folder: Path, structures: Store, labels: Store, *, left_out: Counter[str], settings: dict[str, Any],
               method: dict[str, Any], costs: dict[str, Any]) -> dict[str, Any]:
    """Write ``card.json``, ``card.md``, ``card.png`` and a sample of the frames; the figures of the first.

    Args:
        left_out: structures without a label, by kind of failure.
    """
    found, isolated = _Counts(), labels.isolated.get(labels.level, {})
    for system in labels:
        found.add(system, isolated)
    asked = Counter(str(system.tags.get("source", "")) for system in structures)
    sizes = np.array(found.sizes)
    size_bytes = sum(path.stat().st_size for path in labels.path.glob("shard-*.mdb"))
    card = {
        "name": "organic", "level": labels.level, "method": method, "settings": settings, "content_hash": labels.content_hash,
        "n_frames": len(labels), "n_structures": len(structures), "left_out": dict(left_out),
        "n_molecules": len(found.molecules), "n_formulas": len(found.formulas), "n_atoms": int(sizes.sum()),
        "atoms": {"smallest": int(sizes.min()), "median": float(np.median(sizes)), "largest": int(sizes.max())},
        "frames_by_source": dict(found.sources.most_common()), "structures_by_source": dict(asked.most_common()),
        "frames_by_element": dict(found.elements.most_common()),
        "frames_by_charge": {str(charge): n for charge, n in sorted(found.charges.items())},
        "force_rms_eV_A": float(np.sqrt(found.squares / (3 * sizes.sum()))), "bytes_per_frame": size_bytes / len(labels),
        "isolated_atoms_eV": {chemical_symbols[z]: energy for z, energy in isolated.items()}, "costs": costs,
    }
    write_json(folder / "card.json", card)
    _draw(folder / "card.png", found)
    write_systems(folder / SAMPLE, (labels[i] for i in sampled(len(labels))))
    write_text(folder / "card.md", _text(card))
    return card


def _text(card: dict[str, Any]) -> str:
    spent = {name: cost for name, cost in card["costs"].items() if name != "provenance"}
    rows = {
        "frames": f"{card['n_frames']:,} of {card['n_structures']:,} structures; left out: "
                  + (", ".join(f"{n:,} {LEFT_OUT.get(kind, kind)}" for kind, n in card["left_out"].items()) or "none"),
        "molecules": f"{card['n_molecules']:,}, {card['n_formulas']:,} compositions",
        "atoms": f"{card['n_atoms']:,}; {card['atoms']['smallest']} to {card['atoms']['largest']} a frame, "
                 f"median {card['atoms']['median']:g}",
        "level of theory": f"{card['level']} ({card['method']['package']} {card['method']['version']})",
        "made by": ", ".join(f"{name} {card['frames_by_source'].get(name, 0):,} of {n:,}"
                             for name, n in card["structures_by_source"].items()),
        "elements (frames)": ", ".join(f"{name} {n:,}" for name, n in card["frames_by_element"].items()),
        "charges (frames)": ", ".join(f"{charge}: {n:,}" for charge, n in card["frames_by_charge"].items()),
        "forces": f"{card['force_rms_eV_A']:.2f} eV/Å (root mean square)",
        "space": f"{card['bytes_per_frame']:.0f} bytes a frame",
        "cost": "; ".join(f"{name}: {cost['cpu_seconds']:,.0f} CPU-s, {cost['wall_seconds']:,.0f} s"
                          for name, cost in spent.items()),
        "content hash": card["content_hash"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = ", ".join(f"{name} {value}" for name, value in card["settings"].items())
    return (f"# Organic molecules at {card['level']}\n\nMolecules of a grammar, peptides, ions, water; see `sapis data generate "
            f"--help`. The same settings and versions give the same frames.\n\n| | |\n|---|---|\n{table}\n\n"
            f"Settings: {settings}.\n\n"
            f"`{SAMPLE}` holds {min(N_SAMPLE, card['n_frames'])} frames, evenly spread.\n\n![coverage](card.png)\n")


def _draw(path: Path, found: _Counts) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    _histogram(axes[0], found.sizes, "atoms of a frame", bins=range(0, max(found.sizes) + 2))
    _histogram(axes[1], found.binding, "energy less that of the atoms (eV/atom)")
    _histogram(axes[2], found.largest, "largest force of a frame (eV/Å)")
    axes[2].set_yscale("log")
    _bars(axes[3], dict(found.elements.most_common()), "frames that hold the element")
    _bars(axes[4], dict(found.sources.most_common()), "frames by origin")
    axes[5].scatter(found.sizes, found.binding, s=2, alpha=0.2, color=BLUE, linewidths=0, rasterized=True)
    axes[5].set_xlabel("atoms of a frame")
    axes[5].set_ylabel("eV/atom")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)


def _histogram(axis: Axes, values: list[float] | list[int], label: str, bins: Any = 60) -> None:
    axis.hist(values, bins=bins, color=BLUE)
    axis.set_xlabel(label)
    axis.set_ylabel("frames")


def _bars(axis: Axes, counts: dict[str, int], label: str) -> None:
    axis.bar(list(counts), list(counts.values()), color=ORANGE)
    axis.set_ylabel(label)
    axis.tick_params(axis="x", labelrotation=60)
