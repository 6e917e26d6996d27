"""The middle of a page: accuracy, learning, molecular dynamics and physics checks."""

from __future__ import annotations

from typing import Any

from sapis.report import figures
from sapis.report.course import course, decisions
from sapis.report.markup import (
    Html,
    absent,
    chosen,
    duration,
    facts,
    figure,
    folded,
    join,
    label,
    number,
    table,
    tag,
)
from sapis.report.overview import scalar
from sapis.report.story import Report, amount, dig, mapping, rows

SHOWN_OF_NVT = {"target_K", "mean_K", "time_ps", "is_stable", "n_uncertain", "trace"}


def accuracy(report: Report) -> Html:
    """Errors on the test set and out of distribution: table, parity plots, by element, by temperature."""
    sets = {name: scores for name, scores in mapping(report.result("test"), "sets").items()
            if isinstance(scores, dict)}
    if not sets:
        return absent("No record of a test.")
    keys = ("n", "energy_mae_meV_atom", "energy_rmse_meV_atom", "force_mae_meV_A", "force_rmse_meV_A")
    heads = ["Set", "Structures", *(join([name, tag("small", unit)]) for name, unit in (
        ("Energy MAE", "meV/atom"), ("Energy RMSE", "meV/atom"),
        ("Force MAE", "meV/Å"), ("Force RMSE", "meV/Å")))]
    body = [(set_name(name), *(number(amount(scores, key)) for key in keys)) for name, scores in sets.items()]
    parities = [figure(figures.parity(name, scores, kind), _parity_caption(name, kind))
                for name, scores in sets.items() for kind in ("force", "energy")]
    breakdown = [
        figure(figures.element_errors(sets), "Errors of force components by the element of the atom."),
        figure(figures.temperature_errors(sets), "Errors by the temperature of the sample."),
    ]
    overall = table(heads, body, class_="lead")
    return join([overall, _pairs(parities), _pairs(breakdown), _element_table(sets)])


def set_name(name: str) -> str:
    """The name of a set of structures in words."""
    return figures.NAMES.get(name, name)


def _parity_caption(name: str, kind: str) -> str:
    what = "force components" if kind == "force" else "energies per atom, relative to their mean"
    return f"{set_name(name)}, {what}: prediction against reference; below, prediction minus reference."


def _pairs(drawings: list[Html | None]) -> Html | None:
    kept = [drawing for drawing in drawings if drawing is not None]
    return tag("div", *kept, class_="pair") if kept else None


def _element_table(sets: dict[str, Any]) -> Html | None:
    body = [(set_name(name), symbol, *(number(amount(values, key)) for key in ("n", "mae", "rmse")))
            for name, scores in sets.items()
            for symbol, values in sorted(mapping(scores, "by_element").items())]
    head = ("Set", "Element", "Atoms", "Force MAE (meV/Å)", "Force RMSE (meV/Å)")
    return folded("Errors by element, as a table", table(head, body, n_text=2)) if body else None


def uncertainty(report: Report) -> Html | None:
    """How well the model knew its errors; None if it says nothing about them."""
    scored = {name: mapping(found, "uncertainty", "forces") for name, found in mapping(report.result("test"), "sets").items()}
    scored = {name: found for name, found in scored.items() if found}
    if not scored:
        return None
    keys = ("rmse", "std", "coverage_50", "coverage_90", "coverage_95", "conformal_90", "spearman", "spearman_ceiling",
            "auroc_worst_decile", "auroc_shifted")
    head = ("Set", "Error (meV/Å)", "Stated", "In the 50 % region", "90 %", "95 %", "Below the 90 % bound", "Rank correlation",
            "At best", "Finds the worst", "Tells it from home")
    note = tag("p", "Of forces, calibrated on the validation frames: the error of a component and what the model stated; the "
                    "share of forces inside the stated regions, and below the bound that 90 % of the validation frames' were "
                    "below (conformal); the rank correlation of errors and deviations and the most that it can be; the chance "
                    "that one of the worst tenth has the larger deviation, and that a force here has a larger one than a force "
                    "on the test frames.")
    sets = {name: mapping(found, "parity", "doubt") for name, found in mapping(report.result("test"), "sets").items()}
    return join([
        facts([("Method", report.result("uncertainty").get("method") or report.result("active").get("method"))]), note,
        table(head, [(set_name(name), *(number(amount(found, key)) for key in keys)) for name, found in scored.items()]),
        _pairs([figure(figures.doubt(sets), "Errors of force components against stated deviations, in bins of equally many; on "
                                            "the line the model is right about itself.")]),
    ])


def learning(report: Report) -> Html:
    """Size and length of training, and its curves."""
    found = report.result("train")
    if not found:
        return absent("No record of training.")
    config = mapping(found, "config")
    return join([
        facts([("Parameters", number(found.get("n_parameters"))), ("Steps", number(found.get("n_steps"))),
               ("Epochs", number(found.get("n_epochs"))),
               ("CPU time", duration(report.cost("train").get("cpu_seconds"))),
               ("FLOPs", number(report.flops("train")))]),
        figure(figures.learning_curve(found.get("history")),
               "Training loss and validation errors, by step and by CPU time; circles mark the best.")
        or absent("No history of training was recorded."),
        _asked(report.result("active")),
        *((course(found["growth"]), decisions(found["growth"]["events"])) if "growth" in found else ()),
        folded("Training settings", facts((label(key), scalar(value)) for key, value in config.items()))
        if config else None,
    ])


def _asked(found: dict[str, Any]) -> Html | None:
    """What came of rounds of asking after the training."""
    if not found:
        return None
    errors = [amount(held, "force_rmse_meV_A") for held in found.get("held", [])]
    course = ", ".join(f"{error:.3g}" for error in errors if error is not None)
    return join([tag("p", "Then the model asked for labels where it was uncertain; the page active/report.html tells of it."),
                 facts([("Rounds", number(found.get("n_rounds"))), ("Labels", number(found.get("n_labels"))),
                        ("Force error on frames held out, round by round (meV/Å)", course), ("Stopped", found.get("reason"))])])


def dynamics(report: Report) -> Html:
    """Energy conservation, integrator order, and stability under a thermostat."""
    found = report.result("md")
    if not found:
        return absent("No record of molecular dynamics.")
    return join([_nve(mapping(found, "nve")), _pairs([
        figure(figures.order_plot(found.get("order")), _order_caption(found)),
        figure(figures.temperature_trace(found.get("nvt")), "Instantaneous temperature under a thermostat."),
    ]), _nvt(mapping(found, "nvt"))])


def _nve(nve: dict[str, Any]) -> Html:
    if not nve:
        return absent("No constant-energy trajectory was recorded.")
    drift = join([number(nve.get("drift_meV_atom_ps")), " ± ", number(nve.get("drift_standard_error"), 2),
                  "\u202fmeV/atom/ps"])
    return join([
        figure(figures.energy_trace(nve), "Total energy at constant energy; the line is the fitted drift."),
        facts([("Drift", drift), ("Fluctuation", number(nve.get("fluctuation_meV_atom"), unit="meV/atom")),
               ("Length", chosen(nve.get("time_ps"), unit="ps")),
               ("Timestep", chosen(nve.get("timestep_fs"), unit="fs")),
               ("Start", chosen(nve.get("temperature_K"), unit="K")), ("Atoms", number(nve.get("n_atoms"))),
               ("Precision", nve.get("precision"))]),
    ])


def _order_caption(found: dict[str, Any]) -> Html:
    slope = dig(found, "order", "slope")
    return join(["Energy fluctuation against timestep, logarithmic. Forces that are the gradient of one "
                 "smooth energy give a slope of 2; here it is ", number(slope), "."])


def _nvt(nvt: dict[str, Any]) -> Html:
    if not nvt:
        return absent("No constant-temperature trajectory was recorded.")
    judged = nvt.get("is_stable")
    words = "stable" if judged is True else "not stable" if judged is False else "not judged"
    more = [(label(key), scalar(value)) for key, value in nvt.items()
            if key not in SHOWN_OF_NVT and isinstance(value, int | float | str)]
    return facts([("Under a thermostat", words), ("Target", chosen(nvt.get("target_K"), unit="K")),
                  ("Mean", number(nvt.get("mean_K"), 4, unit="K")),
                  ("Length", chosen(nvt.get("time_ps"), unit="ps")), *more])


def checks(report: Report) -> Html:
    """Each physics check with its value, limit and outcome."""
    found = rows(report.result("checks"), "checks")
    if not found:
        return absent("No record of physics checks.")
    body = [(_outcome(check.get("passed")),
             join([tag("b", check.get("name")), tag("small", check.get("what"))]),
             number(check.get("value")), chosen(check.get("limit")), check.get("unit")) for check in found]
    return table(("Outcome", "Check", "Value", "Limit", "Unit"), body, n_text=2, class_="checks")


def _outcome(passed: Any) -> Html:
    if passed is True:
        return tag("span", "✓ pass", class_="pill good")
    return tag("span", "✗ fail" if passed is False else "? unknown", class_="pill bad")
