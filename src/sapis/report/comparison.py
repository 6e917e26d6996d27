"""The page that compares studies of scaling: their laws side by side, and the compute that each needs for the same error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.files import write_text
from sapis.report.canvas import canvas, svg
from sapis.report.figures import BLUE, GREEN, GREY, INK, ORANGE
from sapis.report.markup import Html, figure, folded, join, number, table
from sapis.report.page import document
from sapis.report.scaling import LOSS, logarithmic

COLOURS = (BLUE, ORANGE, GREEN, INK, GREY)
NEVER = "never"


def write_comparison(path: Path, title: str, record: dict[str, Any]) -> None:
    """Write what `sapis.pipeline.compare.compare_studies` found as one HTML file that needs nothing else."""
    write_text(path, "<!DOCTYPE html>\n" + render(title, record))


def render(title: str, record: dict[str, Any]) -> Html:
    """The ``<html>`` element of the page."""
    first = next(iter(record["studies"]))
    return document(title, "Comparison of models", [
        ("laws", "Error against compute", _laws(record["studies"])),
        ("ratio", f"Compute for the error of {first}", _ratio(record["comparisons"], first)),
        ("figures", "In numbers", _numbers(record["comparisons"])), ("exponents", "Exponents", _exponents(record["studies"])),
    ])


def _laws(studies: dict[str, Any]) -> Html:
    with canvas(9.2, 4.4) as drawing:
        ax = drawing.subplots()
        for (name, study), colour in zip(studies.items(), COLOURS * len(studies), strict=False):
            every, curve = study["trainings"], study["curve"]
            ax.scatter(every["flops"], every["loss"], s=9, color=colour, alpha=0.35, linewidths=0)
            ax.fill_between(curve["flops"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
            ax.plot(curve["flops"], curve["loss"], color=colour, label=name)
        logarithmic(ax, "FLOPs of the training", LOSS)
        ax.legend()
        picture = svg(drawing, "laws", "Error against compute")
    return figure(picture, "Each point is a training; the lines are the laws of the best training at each level of compute, with "
                           "90 % intervals.") or Html("")


def _ratio(comparisons: dict[str, Any], first: str) -> Html:
    with canvas(9.2, 3.8) as drawing:
        ax = drawing.subplots()
        for (name, found), colour in zip(comparisons.items(), COLOURS[1:] * len(comparisons), strict=False):
            losses, (value, low, high) = np.array(found["losses"]), np.array(found["ratio"])
            top = 10 * np.max(value[np.isfinite(value)], initial=1.0)
            ax.fill_between(losses, np.minimum(low, top), np.minimum(high, top), color=colour, alpha=0.15, linewidth=0)
            inside = np.array(found["is_measured"])
            ax.plot(losses, np.where(inside & np.isfinite(value), value, np.nan), color=colour, label=name)
            ax.plot(losses, np.where(np.isfinite(value), value, np.nan), color=colour, linestyle=":")
        ax.axhline(1.0, color=GREY, linewidth=0.8)
        logarithmic(ax, LOSS, f"times the compute of {first}")
        ax.invert_xaxis()
        ax.legend()
        picture = svg(drawing, "ratio", "Compute to equal error")
    return figure(picture, "Lines where both models were measured, dots where a law is extrapolated; bands are 90 % intervals.",
                  ) or Html("")


def _numbers(comparisons: dict[str, Any]) -> Html:
    parts = []
    for name, found in comparisons.items():
        rows = [(number(loss), _times(value), join([_times(low), _times(high)], " to "), "yes" if inside else "extrapolated")
                for loss, value, low, high, inside in zip(found["losses"], *found["ratio"], found["is_measured"], strict=True)]
        parts.append(folded(name, table([LOSS.capitalize(), "Times the compute", "90 % interval", "Measured"], rows, n_text=0),
                            is_open=len(comparisons) == 1))
    return join(parts)


def _exponents(studies: dict[str, Any]) -> Html:
    rows = []
    for name, study in studies.items():
        found = study["law"]["parameters"]
        floor = found.get("floor")
        rows.append((name, study["law"]["form"], *(_interval(each) for each in (found["exponent_flops"], floor))))
    return table(["Model", "Law", "Exponent of compute", "Floor (meV/Å)"], rows, n_text=2)


def _interval(found: dict[str, float] | None) -> Html:
    if found is None:
        return Html("none")
    return join([number(found["value"]), " (", number(found["low"]), " to ", number(found["high"]), ")"])


def _times(value: float) -> Html:
    return number(value) if np.isfinite(value) else Html(NEVER)
