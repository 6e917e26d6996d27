"""The ground of every figure: one style, and the way from matplotlib to an inline ``<svg>``."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sapis.report.markup import Html, markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

RASTER_DPI = 200

STYLE: Any = {
    "font.size": 9.0, "axes.labelsize": 9.0, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9.0, "axes.edgecolor": "#b9c1cc", "axes.linewidth": 0.8,
    "axes.labelcolor": "#4a5563", "text.color": "#1d2733", "xtick.color": "#b9c1cc",
    "ytick.color": "#b9c1cc", "xtick.labelcolor": "#4a5563", "ytick.labelcolor": "#4a5563",
    "xtick.labelsize": 8.0, "ytick.labelsize": 8.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e8ebef",
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.0,
    "lines.linewidth": 1.5, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "sapis", "axes.unicode_minus": True,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` by ``height`` inches in the style of the page, without global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, name: str, label: str) -> Html:
    """The figure as an ``<svg>`` element: no prolog, no metadata, ids that no other figure has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=RASTER_DPI,
                   metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return Html(text.replace("<svg", f'<svg role="img" aria-label="{markup(label)}"', 1))


def log_if_positive(ax: Axes, y: np.ndarray) -> None:
    """A logarithmic axis with plain numbers, where the values span enough for one."""
    if y.min() > 0 and y.max() >= 1.5 * y.min():
        plain_log(ax.yaxis, spans_decades=y.max() > 30 * y.min())


def plain_log(axis: XAxis | YAxis, *, spans_decades: bool = False) -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax = axis.axes
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0,) if spans_decades else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)
