"""One learning rate for all widths: the coordinate check, and the best rate of each width. `benchmarks.run` calls these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth import read_parts
from sapis.core.config import parse_config
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.testing.width import Sizes, average_runs, slopes
from sapis.training.config import TrainingConfig
from sapis.training.fit import new_potential
from sapis.training.loop import Training


def _config(spec: dict[str, Any], width: int) -> ModelConfig:
    """The default architecture, with heads and carried channels in proportion to ``width``."""
    return parse_config(ModelConfig, {**spec.get("model", {}), "n_channels": width}, where="model")


def coordinates(spec: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """How activations and their changes grow with the width, as exponents; a table and a figure go to ``folder``."""
    (train, _), isolated = read_parts(spec, data)
    config = parse_config(TrainingConfig, spec["training"], where="training")

    def make(width: int, seed: int) -> TransformerPotential:
        return new_potential(train, isolated, _config(spec, width), precision=config.precision, seed=seed)[0]

    runs = average_runs(make, train[: config.batch_size], config, widths=spec["widths"], seeds=spec["seeds"],
                        n_steps=spec["n_steps"])
    folder.mkdir(parents=True, exist_ok=True)
    _draw(runs, folder / "coordinates.png")
    table = {quantity: slopes(runs, quantity, spec["n_steps"]) for quantity in ("size", "change")}
    for name, slope in table["change"].items():
        print(f"{name:28s} change grows as width^{slope:+.2f}, size as width^{table['size'][name]:+.2f}", flush=True)
    changes = np.array(list(table["change"].values()))
    return {"median_exponent": float(np.median(np.abs(changes))), "largest_exponent": float(changes.max()), "exponents": table,
            "sizes": {str(width): run for width, run in runs.items()}}


def _draw(runs: dict[int, Sizes], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 6), sharex=True, layout="constrained")
    names = list(next(iter(runs.values())))
    for axis, quantity in zip(axes, ("size", "change"), strict=True):
        for number, name in enumerate(names):
            style = ("-", "--", ":")[number // 10]  # the colours are ten
            axis.loglog(list(runs), [run[name][quantity][-1] for run in runs.values()], style, marker=".", label=name)
        axis.set(xlabel="channels", ylabel=f"root mean square of the {quantity}", xticks=list(runs), xticklabels=list(runs))
        axis.xaxis.set_minor_locator(pyplot.NullLocator())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize="xx-small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def rates(spec: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """Validation loss for each width and learning rate, and how far the best rate shifts with the width."""
    (train, validation), isolated = read_parts(spec, data)
    losses: dict[str, dict[str, float]] = {}
    for width in spec["widths"]:
        losses[str(width)] = {}
        for rate in spec["rates"]:
            config = parse_config(TrainingConfig, {**spec["training"], "learning_rate": rate}, where="training")
            potential, _ = new_potential(train, isolated, _config(spec, width), precision=config.precision, seed=config.seed)
            progress = Training(potential, train, validation, config, folder / f"{width}-{rate:g}").run()
            losses[str(width)][f"{rate:g}"] = progress.best_score
            print(f"width {width}, rate {rate:g}: validation loss {progress.best_score:.6f}", flush=True)
    best = {width: _optimum(row) for width, row in losses.items()}
    base = best[str(spec["base"])]
    return {"losses": losses, "best_rates": best,
            "largest_shift": max(max(rate / base, base / rate) for rate in best.values())}


def _optimum(losses: dict[str, float]) -> float:
    """Rate at the lowest point of the parabola through the best loss and its neighbours, in logarithms of both."""
    rates, values = np.log([float(rate) for rate in losses]), np.log(list(losses.values()))
    lowest = int(np.argmin(values))
    if not 0 < lowest < len(values) - 1:
        return float(np.exp(rates[lowest]))  # at the edge: the sweep should be wider
    around = slice(lowest - 1, lowest + 2)
    a, b, _ = np.polyfit(rates[around], values[around], 2)
    return float(np.exp(-b / (2 * a)))
