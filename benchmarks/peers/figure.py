"""The figure of the bench: error against CPU time and against FLOPs, from records only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.peers.table import by_peer

matplotlib.use("Agg")

import matplotlib.pyplot as plt

WIDTH, HEIGHT = 11.0, 5.2  # inches
MIN_GAP = 0.045  # between the names at the ends of the curves, as a fraction of the axis


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Validation force error of each peer while it trains, log-log; one line for each seed, dashed for another recipe."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), sharey=True, layout="constrained")
    groups = by_peer(rows)
    families = list(dict.fromkeys(name.split("-")[0] for name in groups))
    colours = {family: "black" if family == "sapis" else plt.get_cmap("tab10")(k % 10) for k, family in enumerate(families)}
    for axis, key, label in zip(axes, ("cpu_seconds", "flops"), ("CPU seconds of training", "FLOP of training (matrix products)"),
                                strict=True):
        ends = []
        for name, group in groups.items():
            is_ours, colour = name == "sapis", colours[name.split("-")[0]]
            for row in group:
                x, y = ([point[name_] for point in row["history"]] for name_ in (key, "validation_force_rmse_meV_A"))
                axis.plot(x, y, color=colour, linewidth=2.2 if is_ours else 1.3,
                          linestyle="--" if "-" in name else "-", marker="o", markersize=2.5,
                          zorder=3 if is_ours else 2)
            ends.append((name, x[-1], y[-1], colour))
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.grid(which="both", alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        if key == "cpu_seconds":  # the ends on the right are at the same heights, in the same colours
            _names_at_end(axis, ends)
    axes[0].set_ylabel("force RMSE on the validation frames, meV/Å")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _names_at_end(axis: Any, ends: list[tuple[str, float, float, Any]]) -> None:
    """Names beside the last points, pushed apart where they would lie on each other."""
    axis.figure.canvas.draw()
    to_axis = axis.transAxes.inverted()
    placed = -1.0
    for name, x, y, colour in sorted(ends, key=lambda end: end[2]):
        _, height = to_axis.transform(axis.transData.transform((x, y)))
        placed = max(height, placed + MIN_GAP)
        axis.annotate(name, (x, y), xytext=(1.02, placed), textcoords="axes fraction", color=colour, fontsize=9, va="center",
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5})
