"""Figures as inline SVG, in colours that colour-blind readers can tell apart (Okabe and Ito, 2008)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sapis.report.canvas import canvas, log_if_positive, plain_log, svg
from sapis.report.markup import Html, significant
from sapis.report.story import amount, curve, dig, mapping, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#1d2733", "#8a94a3"
COLOURS = {"test": BLUE, "ood": ORANGE}
MARKERS = {"test": "o", "ood": "s"}
NAMES = {"test": "Test", "ood": "Out of distribution"}
RASTER_ABOVE = 1000  # points; as SVG elements more of them would outweigh a picture

def learning_curve(history: Any) -> Html | None:
    """Training loss, and validation errors against steps and against CPU seconds."""
    lines = rows({"history": history}, "history")
    steps, spent = [line.get("step") for line in lines], [line.get("cpu_seconds") for line in lines]
    panels = [
        ("Training loss", "loss", steps, "train_loss", "step", GREY),
        ("Validation: forces", "RMSE (meV/Å)", steps, "validation_force_rmse_meV_A", "step", BLUE),
        ("Validation: forces, by cost", "RMSE (meV/Å)", spent, "validation_force_rmse_meV_A", "CPU seconds",
         BLUE),
        ("Validation: energy", "RMSE (meV/atom)", steps, "validation_energy_rmse_meV_atom", "step", GREEN),
    ]
    curves = [(title, y_label, x_label, colour, *curve(x, [line.get(key) for line in lines]))
              for title, y_label, x, key, x_label, colour in panels]
    curves = [drawn for drawn in curves if len(drawn[4])]
    if not curves:
        return None
    n_columns = min(2, len(curves))
    n_rows = -(-len(curves) // n_columns)
    with canvas(4.6 * n_columns, 2.5 * n_rows) as figure:
        axes = np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel()
        for ax in axes[len(curves):]:
            ax.set_axis_off()
        for ax, (title, y_label, x_label, colour, x, y) in zip(axes, curves, strict=False):
            ax.plot(x, y, color=colour, marker="o" if len(x) < 40 else None, markersize=2.6)
            ax.set(title=title, xlabel=x_label, ylabel=y_label)
            log_if_positive(ax, y)
            if not title.startswith("Training"):
                _mark_best(ax, x, y, colour)
        return svg(figure, "learning", "Learning curves")


def _mark_best(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    best = int(y.argmin())
    ax.plot(x[best], y[best], "o", color="white", markeredgecolor=colour, markeredgewidth=1.5, markersize=6)
    ax.text(0.985, 0.94, f"best {significant(y[best])}", transform=ax.transAxes, ha="right", va="top",
            color=colour)


def parity(name: str, scores: dict[str, Any], kind: str) -> Html | None:
    """Predicted against reference values over the differences, for ``kind`` force or energy of one set."""
    unit, error_unit, scale, what = {
        "force": ("eV/Å", "meV/Å", 1000.0, "force components"),
        "energy": ("meV/atom", "meV/atom", 1.0, "energies"),
    }[kind]
    pair = dig(scores, "parity", kind)
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    x, y, difference = parity_points(pair, scale)
    if not len(x):
        return None
    with canvas(4.6, 5.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.15))
        colour = COLOURS.get(name, PURPLE)
        look: dict[str, Any] = {"s": 9 if len(x) < 300 else 5, "color": colour, "linewidths": 0,
                                "alpha": 0.8 if len(x) < 300 else 0.3, "rasterized": len(x) > RASTER_ABOVE}
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        pad = 0.04 * (high - low) or 1.0
        upper.plot([low - pad, high + pad], [low - pad, high + pad], color=INK, linewidth=0.8)
        upper.scatter(x, y, **look)
        upper.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), ylabel=f"predicted ({unit})",
                  title=f"{NAMES.get(name, name)}: {what}")
        lower.axhline(0, color=INK, linewidth=0.8)
        lower.scatter(x, difference, **look)
        reach = 1.08 * np.abs(difference).max() or 1.0
        lower.set(xlabel=f"reference ({unit})", ylabel=f"difference\n({error_unit})", ylim=(-reach, reach))
        figure.align_ylabels()
        upper.text(0.03, 0.96, _parity_note(scores, kind, len(x)), transform=upper.transAxes, va="top",
                   fontsize=8, linespacing=1.5)
        return svg(figure, f"parity-{kind}-{_identifier(name)}", f"Parity plot of {kind}, set {name}")


def parity_points(pair: Sequence[Any], scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference and prediction in the unit of the axes, ``scale`` times that of the record, and their difference in that."""
    reference, prediction = curve(pair[0], pair[1])
    return reference / scale, prediction / scale, prediction - reference


def _parity_note(scores: dict[str, Any], kind: str, n_points: int) -> str:
    unit, key = {"force": ("meV/Å", "force_{}_meV_A"), "energy": ("meV/atom", "energy_{}_meV_atom")}[kind]
    errors = [(label, amount(scores, key.format(label.lower()))) for label in ("MAE", "RMSE")]
    lines = [f"{label} {significant(value)} {unit}" for label, value in errors if value is not None]
    return "\n".join([*lines, f"{significant(n_points)} points"])


def doubt(sets: dict[str, Any]) -> Html | None:
    """Errors of force components against stated deviations, in bins; ``sets`` of ``std`` and ``rmse``, meV/Å."""
    curves = [(name, *curve(mapping(found).get("std"), mapping(found).get("rmse"))) for name, found in sets.items()]
    curves = [(name, x, y) for name, x, y in curves if len(x) and x.min() > 0 and y.min() > 0]
    if not curves:
        return None
    with canvas(4.6, 3.6) as figure:
        ax = figure.subplots()
        ends = [min(min(x.min(), y.min()) for _, x, y in curves) / 1.2, max(max(x.max(), y.max()) for _, x, y in curves) * 1.2]
        ax.plot(ends, ends, color=INK, linewidth=0.8)
        for name, x, y in curves:
            ax.plot(x, y, MARKERS.get(name, "^"), color=COLOURS.get(name, PURPLE), markersize=4, label=NAMES.get(name, name))
        ax.set(xlabel="stated deviation of a force component (meV/Å)", ylabel="error (meV/Å)")
        for axis in (ax.xaxis, ax.yaxis):
            plain_log(axis)
        ax.legend()
        return svg(figure, "doubt", "Errors against stated deviations")


def element_errors(sets: dict[str, Any]) -> Html | None:
    """MAE (filled) and RMSE (open) of force components for each element and set."""
    errors = {name: {symbol: (amount(values, "mae"), amount(values, "rmse"))
                     for symbol, values in mapping(scores, "by_element").items()}
              for name, scores in sets.items()}
    symbols = sorted({symbol for found in errors.values() for symbol in found})
    if not symbols:
        return None
    with canvas(4.6, max(3.4, 1.3 + 0.42 * len(symbols))) as figure:
        ax = figure.subplots()
        names = [name for name in errors if errors[name]]
        for i, name in enumerate(names):
            shift = 0.18 * (i - (len(names) - 1) / 2)
            colour, marker = COLOURS.get(name, PURPLE), MARKERS.get(name, "D")
            for row, symbol in enumerate(symbols):
                mae, rmse = errors[name].get(symbol, (None, None))
                if mae is not None and rmse is not None:
                    ax.plot([mae, rmse], [row + shift] * 2, color=colour, linewidth=1.2, alpha=0.5)
                if mae is not None:
                    ax.plot(mae, row + shift, marker, color=colour, markersize=5.5)
                if rmse is not None:
                    ax.plot(rmse, row + shift, marker, color="white", markeredgecolor=colour, markersize=5.5)
            ax.plot([], [], marker, color=colour, markersize=5.5, label=NAMES.get(name, name))
        ax.set_yticks(range(len(symbols)), symbols)
        ax.set(title="Force error by element", xlabel="MAE (filled), RMSE (open), meV/Å", xlim=(0, None),
               ylim=(len(symbols) - 0.5, -0.5))
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0, labelsize=9)
        _legend(figure, len(names))
        return svg(figure, "elements", "Force error by element")


def temperature_errors(sets: dict[str, Any]) -> Html | None:
    """RMSE of forces and energies against the temperature that the structures were drawn at."""
    panels = (("force_rmse_meV_A", "force RMSE\n(meV/Å)"),
              ("energy_rmse_meV_atom", "energy RMSE\n(meV/atom)"))
    groups = {name: _by_temperature(mapping(scores, "by_temperature")) for name, scores in sets.items()}
    groups = {name: found for name, found in groups.items() if found}
    if not groups:
        return None
    with canvas(4.6, 3.4) as figure:
        axes = figure.subplots(2, 1, sharex=True)
        for ax, (key, label) in zip(axes, panels, strict=True):
            for name, found in groups.items():
                x, y = curve([kelvin for kelvin, _ in found], [amount(values, key) for _, values in found])
                ax.plot(x, y, marker=MARKERS.get(name, "D"), markersize=5, color=COLOURS.get(name, PURPLE),
                        linewidth=1.2, label=NAMES.get(name, name))
            ax.set_ylabel(label)
            ax.set_ylim(0, None)
        axes[0].set_title("Error by temperature")
        axes[1].set_xlabel("temperature of the sample (K)")
        figure.align_ylabels()
        _legend(figure, len(groups))
        return svg(figure, "temperatures", "Error by temperature")


def _legend(figure: Figure, n_columns: int) -> None:
    """One legend under the axes, where it covers no data."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns)


def _by_temperature(found: dict[str, Any]) -> list[tuple[float, Any]]:
    pairs = []
    for key, values in found.items():
        try:
            pairs.append((float(key), values))
        except ValueError:
            continue
    return sorted(pairs, key=lambda pair: pair[0])


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "-", name)


def energy_trace(nve: Any) -> Html | None:
    """Total energy of constant-energy dynamics, with the recorded drift as a line."""
    time, energy = curve(dig(nve, "trace", "time_ps"), dig(nve, "trace", "energy_meV_atom"))
    if not len(time):
        return None
    with canvas(9.2, 2.5) as figure:
        ax = figure.subplots()
        ax.plot(time, energy, color=BLUE, linewidth=0.7, rasterized=len(time) > 4 * RASTER_ABOVE)
        drift = amount(nve, "drift_meV_atom_ps")
        if drift is not None:
            ax.plot(time, energy.mean() + drift * (time - time.mean()), color=ORANGE, linewidth=1.4,
                    label="drift")
            ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
        ax.set(title="Constant energy (NVE)", xlabel="time (ps)", ylabel="E(t) − E(0) (meV/atom)")
        ax.margins(x=0)
        return svg(figure, "nve", "Total energy over time at constant energy")


def order_plot(order: Any) -> Html | None:
    """Energy fluctuation against timestep, beside the dt² that a time-reversible integrator must show."""
    from matplotlib.ticker import NullFormatter

    steps, sizes = curve(dig(order, "timesteps_fs"), dig(order, "fluctuations_meV_atom"))
    kept = (steps > 0) & (sizes > 0)
    steps, sizes = steps[kept], sizes[kept]
    if len(steps) < 2:
        return None
    with canvas(4.6, 3.2) as figure:
        ax = figure.subplots()
        middle_step, middle_size = np.exp(np.log(steps).mean()), np.exp(np.log(sizes).mean())
        ends = np.array([steps.min() / 1.15, steps.max() * 1.15])
        ax.plot(ends, middle_size * (ends / middle_step) ** 2, color=GREY, linewidth=4, alpha=0.45,
                solid_capstyle="butt", label="slope 2 (dt²)")
        slope = amount(order, "slope")
        if slope is not None:
            ax.plot(ends, middle_size * (ends / middle_step) ** slope, color=BLUE, linewidth=1.2,
                    label=f"fitted slope {slope:.3f}")
        ax.plot(steps, sizes, "o", color=BLUE, markersize=5)
        ax.set(xscale="log", yscale="log", title="Energy fluctuation by timestep", xlabel="timestep (fs)",
               ylabel="fluctuation (meV/atom)")
        ax.set_xticks(steps, [f"{step:g}" for step in steps])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.tick_params(which="minor", length=0)
        ax.legend(loc="upper left")
        return svg(figure, "order", "Energy fluctuation against timestep on logarithmic axes")


def temperature_trace(nvt: Any) -> Html | None:
    """Temperature under a thermostat, with the target and the mean."""
    time, kelvin = curve(dig(nvt, "trace", "time_ps"), dig(nvt, "trace", "temperature_K"))
    if not len(time):
        return None
    with canvas(4.6, 3.2) as figure:
        ax = figure.subplots()
        ax.plot(time, kelvin, color=GREEN, linewidth=0.6, alpha=0.8, rasterized=len(time) > 4 * RASTER_ABOVE)
        for key, colour, line in (("target_K", INK, "-"), ("mean_K", ORANGE, "--")):
            value = amount(nvt, key)
            if value is not None:
                ax.axhline(value, color=colour, linewidth=1.2, linestyle=line,
                           label=f"{key.removesuffix('_K')} {value:.4g} K")
        ax.set(title="Constant temperature (NVT)", xlabel="time (ps)", ylabel="temperature (K)")
        ax.margins(x=0)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper right", ncols=2)
            ax.set_ylim(None, kelvin.max() + 0.15 * (np.ptp(kelvin) or 1.0))
        return svg(figure, "nvt", "Temperature over time under a thermostat")
