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


def passed(rows: list[Row], *, ours: str = "sapis") -> dict[str, dict[str, float]]:
    """Of each peer: which parts of its CPU seconds and FLOPs ``ours`` took, by its curve on the validation frames, to the force
    error at which the peer ended there; means over seeds that both have. A peer that it did not reach in all of them is left out.
    """
    known = {row["seed"]: row["history"] for row in rows if row["peer"] == ours}
    found: dict[str, dict[str, float]] = {}
    for name, group in by_peer(rows).items():
        pairs = [(row, next((point for point in known[row["seed"]]
                             if point["validation_force_rmse_meV_A"] <= row["errors"]["validation"]["force_rmse_meV_A"]), None))
                 for row in group if row["seed"] in known]
        if name != ours and pairs and all(point is not None for _, point in pairs):
            found[name] = {key: float(np.mean([point[key] / row[key] for row, point in pairs if point is not None]))
                           for key in ("cpu_seconds", "flops")}
    return found


def training_table(rows: list[Row], title: str) -> Table:
    """Errors of each peer on each test, best force error first, mean ± standard deviation over seeds; and see `passed`."""
    tests = [name for name in rows[0]["errors"] if name != "validation"]
    table = Table(title=title)
    for column in ("peer", "version", "parameters", "steps", "ms/step", "TFLOP"):
        table.add_column(column, justify="left" if column in ("peer", "version") else "right")
    for test in tests:
        for column in ("F RMSE meV/Å", "F MAE", "E RMSE meV", "E MAE meV/atom"):
            table.add_column(f"{test}\n{column}", justify="right")
    for column in ("of its CPU-s", "of its FLOPs"):
        table.add_column(f"passed by sapis\nin {column}", justify="right")
    groups, parts = by_peer(rows), passed(rows)
    for name in sorted(groups, key=lambda name: np.mean([row["errors"][tests[0]]["force_rmse_meV_A"] for row in groups[name]])):
        group = groups[name]
        cells = [name, group[0]["version"], f"{group[0]['n_parameters']:,}", f"{np.mean([row['n_steps'] for row in group]):,.0f}",
                 f"{1e3 * np.mean([row['cpu_seconds'] / row['n_steps'] for row in group]):.0f}",
                 f"{np.mean([row['flops'] for row in group]) / 1e12:.2f}"]
        for test in tests:
            cells += [_spread([row["errors"][test][key] for row in group]) for key in
                      ("force_rmse_meV_A", "force_mae_meV_A", "energy_rmse_meV", "energy_mae_meV_atom")]
        cells += [f"{parts[name][key]:.3f}" if name in parts else "–" for key in ("cpu_seconds", "flops")]
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
