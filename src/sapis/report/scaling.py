"""The page of a study of scaling: what was measured, the laws, the best use of a budget, what was foretold."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sapis.core.files import write_text
from sapis.report.canvas import canvas, svg
from sapis.report.figures import BLUE, GREY, INK, ORANGE
from sapis.report.markup import Html, absent, duration, facts, figure, folded, join, number, table, tag
from sapis.report.page import document

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS = "force error on test frames (meV/Å)"
PARAMETERS = {"floor": "floor", "flops": "compute", "n_parameters": "weights", "n_frames": "frames", "frames_seen": "frames seen",
              "log_repeats": "logarithm of the number of passes after which repeating pays no more",
              "log_break": "logarithm of the compute at which the exponent changes",
              "log_exponent_ratio": "logarithm of the exponent after the break over the one before"}


def write_scaling_report(path: Path, title: str, laws: dict[str, Any]) -> None:
    """Write the record ``laws`` of a study (see `sapis.pipeline.scale.fit_study`) as one HTML file that needs nothing else."""
    write_text(path, "<!DOCTYPE html>\n" + render(title, laws))


def render(title: str, laws: dict[str, Any]) -> Html:
    """The ``<html>`` element of the page."""
    return document(title, "Study of scaling", [
        ("compute", "What compute buys", _compute(laws)), ("sizes", "Which size at which compute", _sizes(laws)),
        ("budget", "The best use of a budget", _budget(laws)), ("foretold", "What was foretold", _foretold(laws)),
        ("laws", "The laws", _laws(laws)), ("trainings", "Trainings", _trainings(laws)),
    ])


def _compute(laws: dict[str, Any]) -> Html:
    trials, law = laws["trials"], laws["allocation"]
    with canvas(9.2, 4.2) as drawing:
        ax = drawing.subplots()
        flops = [row["flops"] for row in law]
        _band(ax, flops, [row["loss"] for row in law], BLUE, "law, at the best size")
        ax.scatter([row["flops"] for row in trials], [row["loss"] for row in trials], s=14, color=GREY, linewidths=0,
                   label="trainings", zorder=3)
        for row in laws["held_out"]:
            ax.errorbar([row["flops"]], [row["foretold"]], [[max(row["foretold"] - row["low"], 0)],
                                                            [max(row["high"] - row["foretold"], 0)]],
                        fmt="_", color=ORANGE, capsize=4, zorder=4)
            ax.plot(row["flops"], row["measured"], "D", color=ORANGE, markersize=5, zorder=5,
                    label="held out, with what was foretold" if row is laws["held_out"][0] else None)
        logarithmic(ax, "FLOPs of the training", LOSS)
        ax.legend()
        picture = svg(drawing, "compute", "Error against compute")
    return figure(picture, "Each point is a training from scratch to the end of its schedule. The line is the law's error when "
                           "weights and frames are chosen best; the band holds 90 % of the laws that fit as well.") or Html("")


def _sizes(laws: dict[str, Any]) -> Html:
    """Curves of equal compute."""
    trials = laws["trials"]
    levels = sorted({row["level"] for row in trials})
    with canvas(9.2, 4.2) as drawing:
        ax = drawing.subplots()
        for place, level in enumerate(levels):
            found: dict[tuple[float, float], list[float]] = defaultdict(list)
            for row in trials:
                if row["level"] == level:
                    found[row["n_parameters"], row["n_frames"]].append(row["loss"])
            means: dict[float, float] = {}
            for (size, _), losses in found.items():
                means[size] = min(means.get(size, np.inf), float(np.exp(np.mean(np.log(losses)))))
            sizes = sorted(means)
            shade = 0.25 + 0.75 * place / max(len(levels) - 1, 1)
            ax.plot(sizes, [means[n] for n in sizes], "o-", color=BLUE, alpha=shade, markersize=4, label=f"{level:.2g} FLOPs")
            low = min(means, key=lambda n: means[n])
            ax.plot(low, means[low], "o", color="white", markeredgecolor=ORANGE, markersize=8, zorder=4)
        logarithmic(ax, "weights", LOSS)
        ax.legend(ncols=2)
        picture = svg(drawing, "sizes", "Error against the number of weights at equal compute")
    return figure(picture, "Lines of equal compute, mean of the seeds, with the number of frames that did best; the best size of "
                           "each is ringed.") or Html("")


def _budget(laws: dict[str, Any]) -> Html:
    rows = laws["allocation"]
    with canvas(9.2, 3.4) as drawing:
        flops = [row["flops"] for row in rows]
        for ax, name, words in zip(drawing.subplots(1, 2), ("n_parameters", "n_frames"), ("weights", "frames"), strict=True):
            _band(ax, flops, [row[name] for row in rows], BLUE, "")
            logarithmic(ax, "FLOPs of the training", words)
            ax.axvspan(min(row["flops"] for row in laws["trials"]), max(row["flops"] for row in laws["trials"]), color=INK,
                       alpha=0.05, linewidth=0)
        picture = svg(drawing, "budget", "Best number of weights and of frames against compute")
    return figure(picture, "What the law says is best, with 90 % intervals; the grey range was measured, all beyond is "
                           "extrapolated.") or Html("")


def _foretold(laws: dict[str, Any]) -> Html:
    parts = []
    if laws["extrapolation"]:
        head = ["Left out", "Trainings", "Foretold from", "Law", "Error", "Mean error", "In the 90 % interval"]
        parts.append(table(head, [
            (name, number(row["n_foretold"]), number(row["n_points"]), row["form"], f"{100 * row['rms_relative_error']:.1f} %",
             f"{100 * row['mean_relative_error']:+.1f} %", f"{100 * row['inside']:.0f} %")
            for name, row in laws["extrapolation"].items()]))
    if laws["held_out"]:
        head = ["Foretold before it was run", "Foretold", "90 % interval", "Measured", "Error"]
        parts.append(table(head, [
            (f"{row['flops']:.2g} FLOPs, {row['n_parameters']:,.0f} weights, {row['n_frames']:,.0f} frames",
             number(row["foretold"]), join([number(row["low"]), number(row["high"])], " to "), number(row["measured"]),
             f"{100 * row['relative_error']:+.1f} %") for row in laws["held_out"]]))
    return join(parts) if parts else absent("Too few trainings to leave any out.")


def _laws(laws: dict[str, Any]) -> Html:
    parts = []
    for kind, words in (("joint", "of weights and frames"), ("compute", "of compute, of the best training at each level")):
        for place, law in enumerate(laws[kind]):
            values = [(_parameter(name), join([number(found["value"]), " (", number(found["low"]), " to ", number(found["high"]),
                                               ")"])) for name, found in law["parameters"].items()]
            extra = [("noise", f"{100 * law['noise']:.1f} %"), ("BIC", number(law["bic"])), ("points", number(law["n_points"]))]
            if law["disagreement"] is not None:
                extra.append(("measured floor", "the data ask for less" if law["is_in_conflict"] else "goes with the data"))
            parts.append(folded(f"{words}: {law['form']}", facts([*values, *extra]), is_open=place == 0))
    note = tag("p", "Of each kind, the law that the data ask for (the least BIC) comes first. Amplitudes are logarithms, at the "
                    "geometric mean of what was measured; in brackets, 90 % intervals of a bootstrap.")
    return join([note, *parts])


def _trainings(laws: dict[str, Any]) -> Html:
    head = ["FLOPs", "Weights", "Frames", "Epochs", "Seed", "Train", "Test", "Time"]
    rows = [(f"{row['flops']:.2e}", f"{row['n_parameters']:,}", f"{row['n_frames']:,}", number(row["epochs"]), row["seed"],
             number(row["train_loss"]), number(row["loss"]), duration(row["cpu_seconds"])) for row in laws["trials"]]
    return folded(f"{len(rows)} trainings", table(head, rows, n_text=0))


def _parameter(name: str) -> str:
    for start, words in (("log_amplitude_", "amplitude of "), ("exponent_", "exponent of ")):
        if name.startswith(start):
            return words + PARAMETERS.get(name.removeprefix(start), name)
    return PARAMETERS.get(name, name)


def _band(ax: Axes, x: list[float], rows: list[dict[str, float]], colour: str, label: str) -> None:
    ax.fill_between(x, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.15, linewidth=0)
    ax.plot(x, [row["value"] for row in rows], color=colour, label=label or None)


def logarithmic(ax: Axes, x_label: str, y_label: str) -> None:
    """Both axes logarithmic, with plain numbers."""
    ax.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(_power)
        axis.set_minor_formatter(lambda value, _: _power(value) if 0.01 <= value < 1000 and f"{value:e}"[0] in "235" else "")


def _power(value: float, _: object = None) -> str:
    return f"{value:g}" if 0.01 <= value < 10_000 else f"{value:.0e}".replace("e+", "e")
