"""The tables of the bench, from records only."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

Row = dict[str, Any]


def by_peer(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of each peer, one for each seed."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["peer"], []).append(row)
    return groups


def training_table(rows: list[Row], title: str) -> Table:
    """Errors of each peer on each test, best force error first; mean ± standard deviation over seeds."""
    tests = [name for name in rows[0]["errors"] if name != "validation"]
    table = Table(title=title)
    for column in ("peer", "version", "parameters", "steps", "ms/step", "TFLOP"):
        table.add_column(column, justify="left" if column in ("peer", "version") else "right")
    for test in tests:
        for column in ("F RMSE meV/Å", "F MAE", "E RMSE meV", "E MAE meV/atom"):
            table.add_column(f"{test}\n{column}", justify="right")
    groups = by_peer(rows)
    for name in sorted(groups, key=lambda name: np.mean([row["errors"][tests[0]]["force_rmse_meV_A"] for row in groups[name]])):
        group = groups[name]
        cells = [name, group[0]["version"], f"{group[0]['n_parameters']:,}", f"{np.mean([row['n_steps'] for row in group]):,.0f}",
                 f"{1e3 * np.mean([row['cpu_seconds'] / row['n_steps'] for row in group]):.0f}",
                 f"{np.mean([row['flops'] for row in group]) / 1e12:.2f}"]
        for test in tests:
            cells += [_spread([row["errors"][test][key] for row in group]) for key in
                      ("force_rmse_meV_A", "force_mae_meV_A", "energy_rmse_meV", "energy_mae_meV_atom")]
        table.add_row(*cells)
    return table


def inference_table(rows: list[Row]) -> Table:
    """CPU time per atom and peak memory of each peer on each structure."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    table = Table(title="energy and forces, one core")
    table.add_column("peer")
    for case in cases:
        table.add_column(f"{case}\nms/atom", justify="right")
        table.add_column("peak MB", justify="right")
    for name, group in by_peer(rows).items():
        found = {row["case"]: row for row in group}
        cells = [name]
        for case in cases:
            row = found.get(case)
            cells += [f"{row['cpu_ms_per_atom']:.3f}", f"{row['peak_memory_MB']:.0f}"] if row else ["–", "–"]
        table.add_row(*cells)
    return table


def _spread(values: list[float]) -> str:
    mean = f"{np.mean(values):.1f}" if np.mean(values) >= 10 else f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.1g}"
