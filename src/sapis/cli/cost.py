"""The tables of `sapis info --cost`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sapis.model.cost import Part
    from sapis.model.transformer import Transformer

PASSES = {"forward": "energies", "forces": "energies, forces", "training": "training step"}
WIDTH = 112  # of the tables; a narrower terminal wraps them


def show_cost(model: str | None, *, n_atoms: int, n_neighbors: int, is_json: bool) -> None:
    """Print what a model (a file or a preset) costs part by part, or without ``model`` what each preset costs.

    Raises:
        ConfigError: neither a file nor a preset.
        FileError: no whole bundle.
    """
    import json

    from sapis.model.config import PRESETS, preset
    from sapis.model.cost import cost, cost_of, total
    from sapis.model.products import torch_flops

    sizes = {"n_atoms": n_atoms, "n_neighbors": n_neighbors}
    what = f"{n_atoms} atoms with {n_neighbors} neighbours each"
    if model is None:
        sums = {name: total(cost_of(preset(name), **sizes)) for name in PRESETS}
        if is_json:
            typer.echo(json.dumps({**sizes, "presets": {name: asdict(part) for name, part in sums.items()}}, indent=1))
            return
        _print(f"presets: {what}", list(sums.items()), n_atoms)
        return
    transformer = _transformer(model)
    parts = cost(transformer, **sizes)
    dense = torch_flops(transformer, n_atoms=n_atoms, n_edges=n_atoms * n_neighbors)
    if is_json:
        typer.echo(json.dumps({**sizes, "parts": [asdict(part) for part in parts], "total": asdict(total(parts)),
                               "torch_matrix_products": dense}, indent=1))
        return
    _print(f"{model}: {what}", [(part.name, part) for part in [*parts, total(parts)]], n_atoms)
    products = ", ".join(f"{label} {dense[name] / n_atoms / 1e6:.3g}" for name, label in PASSES.items())
    typer.echo(f"These are the compiled loops. The matrix products of torch's back-end, MFLOP per atom: {products}.")


def _transformer(model: str) -> Transformer:
    import torch

    from sapis.api import load
    from sapis.core.errors import ConfigError
    from sapis.model.config import PRESETS, preset
    from sapis.model.transformer import Transformer

    if Path(model).exists():
        return load(model).single.transformer
    if model not in PRESETS:
        raise ConfigError(expected=f"a model file, or a preset among {', '.join(PRESETS)}", received=repr(model), where="MODEL",
                          todo="mend the path or the name")
    return Transformer(preset(model), n_species=4, average_neighbors=1.0, dtype=torch.float32)


def _print(title: str, rows: list[tuple[str, Part]], n_atoms: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, caption="Per atom. MFLOP: contractions + element-wise. MB and FLOP per byte: "
                  "operands and results, each once, of a training step.", title_justify="left", caption_justify="left")
    table.add_column("")
    for heading in ("parameters", *(f"{label}\nMFLOP" for label in PASSES.values()), "MB", "FLOP/byte"):
        table.add_column(heading, justify="right")
    for name, part in rows:
        flops = [getattr(part, each) for each in PASSES]
        table.add_row(name, f"{part.n_parameters:,}",
                      *(f"{work.products / n_atoms / 1e6:.3f} + {work.elementwise / n_atoms / 1e6:.3f}" for work in flops),
                      f"{part.training.n_bytes / n_atoms / 1e6:.3f}", f"{part.training.intensity:.1f}")
    Console(width=WIDTH, markup=False, highlight=False).print(table)
