"""The first part of a page: the verdict with its key figures, and what was done."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml

from sapis.report.markup import (
    ABSENT,
    Html,
    absent,
    chosen,
    duration,
    facts,
    folded,
    join,
    label,
    number,
    table,
    tag,
)
from sapis.report.story import Report, amount, dig, mapping, rows

N_ROWS_SHOWN = 50  # of failures and findings; more would drown the page


def headline(report: Report) -> Html:
    """The verdict, six key figures, and what a reader must know before trusting them."""
    test = mapping(report.result("test"), "sets", "test")
    total = sum(amount(report.cost(step), "cpu_seconds") or 0.0 for step in report.records)
    tiles = (
        ("Force RMSE, test", amount(test, "force_rmse_meV_A"), "meV/Å"),
        ("Energy RMSE, test", amount(test, "energy_rmse_meV_atom"), "meV/atom"),
        ("NVE drift", amount(report.result("md"), "nve", "drift_meV_atom_ps"), "meV/atom/ps"),
        ("Structures labelled", amount(report.result("labels"), "n_labelled"), _requested(report)),
        ("Model size", amount(report.result("train"), "n_parameters"), "parameters"),
    )
    cells = [_tile(name, number(value), unit) for name, value, unit in tiles]
    cells.append(_tile("Cost, all steps", duration(total or None), "CPU time"))
    remarks = _remarks(report)
    return join([
        _verdict(report),
        tag("div", *cells, class_="tiles"),
        tag("ul", *(tag("li", remark) for remark in remarks), class_="remarks") if remarks else None,
    ])


def _tile(name: str, value: Html, unit: Html | str) -> Html:
    return tag("div", tag("span", name, class_="name"), tag("span", value, class_="value"),
               tag("span", unit if value != ABSENT else "not recorded", class_="unit"), class_="tile")


def _requested(report: Report) -> Html:
    n_requested = amount(report.result("labels"), "n_requested")
    return join(["of ", number(n_requested), " requested"]) if n_requested is not None else Html("")


def _verdict(report: Report) -> Html:
    checks = rows(report.result("checks"), "checks")
    failed = [check for check in checks if check.get("passed") is not True]
    if not checks:
        return _banner("unknown", "?", "Not checked", "No physics checks were recorded for this model.")
    if failed or report.result("checks").get("all_passed") is False:
        names = ", ".join(str(check.get("name", "unnamed")) for check in failed) or "see the table of checks"
        words = f"{len(failed) or 'Some'} of {len(checks)} physics checks failed"
        return _banner("failed", "✗", words, names)
    return _banner("passed", "✓", f"All {len(checks)} physics checks passed",
                   "The model obeys the laws it was tested for, within the limits listed below.")


def _banner(kind: str, sign: str, words: str, more: str) -> Html:
    return tag("div", tag("span", sign, class_="sign", aria_hidden="true"),
               tag("div", tag("strong", words), tag("p", more)), class_=f"verdict {kind}")


def _remarks(report: Report) -> list[Html | str]:
    """What went wrong or weakens the figures, in one line each."""
    remarks: list[Html | str] = []
    if dig(report.result("md"), "nvt", "is_stable") is False:
        remarks.append("The constant-temperature trajectory was not stable.")
    counts = Counter(str(finding.get("severity")) for finding in rows(report.result("data"), "findings"))
    if counts:
        named = sorted(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
        remarks.append(f"Data lint: {', '.join(named)}.")
    n_failed = len(rows(report.result("labels"), "failures"))
    if n_failed:
        remarks.append(f"{n_failed} structure{'' if n_failed == 1 else 's'} could not be labelled.")
    ood = mapping(report.result("test"), "sets", "ood")
    ratio = _ratio(amount(ood, "force_rmse_meV_A"),
                   amount(report.result("test"), "sets", "test", "force_rmse_meV_A"))
    if ratio is not None:
        remarks.append(join(["Out of distribution the force RMSE is ", number(ratio, 2),
                             " times that of the test set."]))
    return remarks


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def what_was_done(report: Report) -> Html:
    """Sampling, labelling, splits, reference energies, findings, and the recipe."""
    return join([_sampling(report), _labelling(report), _data(report), _recipe(report.recipe)])


def _sampling(report: Report) -> Html:
    found = report.result("candidates")
    if not found:
        return join([tag("h3", "Sampling"), absent("No record of how candidates were sampled.")])
    sources = [join([number(count), " ", _source_name(name)])
               for name, count in mapping(found, "by_source").items()]
    kelvins = found.get("temperatures_K")
    temperatures = [chosen(kelvin) for kelvin in kelvins] if isinstance(kelvins, list | tuple) else []
    return join([tag("h3", "Sampling"), facts([
        ("Candidates", number(found.get("n"))), ("Sources", join(sources, ", ")),
        ("Temperatures", join([join(temperatures, ", "), "\u202fK"]) if temperatures else None),
    ])])


def _source_name(name: str) -> str:
    return {"md": "from molecular dynamics", "rattle": "by random displacement"}.get(name, name)


def _labelling(report: Report) -> Html:
    found = report.result("labels")
    if not found:
        return join([tag("h3", "Labels"), absent("No record of labelling.")])
    failures = rows(found, "failures")
    method = found.get("method")
    described = method.items() if isinstance(method, dict) else [("name", method)]
    lines = [(number(failure.get("index")), str(failure.get("kind", "")).replace("_", " "),
              failure.get("reason")) for failure in failures[:N_ROWS_SHOWN]]
    return join([
        tag("h3", "Labels"),
        facts([("Requested", number(found.get("n_requested"))), ("Labelled", number(found.get("n_labelled"))),
               ("Failed", number(len(failures))),
               ("CPU time", duration(report.cost("labels").get("cpu_seconds")))]),
        facts(("Method" if key == "name" else label(key), scalar(value)) for key, value in described),
        folded(_count("Failures with reasons", len(lines), len(failures)),
               table(("Structure", "Kind", "Reason"), lines, n_text=3), is_open=len(lines) <= 5)
        if lines else None,
    ])


def _data(report: Report) -> Html:
    found = report.result("data")
    if not found:
        return join([tag("h3", "Data"), absent("No record of splits, lint or reference energies.")])
    findings = rows(found, "findings")
    order = {"error": 0, "warning": 1}
    findings.sort(key=lambda finding: order.get(str(finding.get("severity")), 2))
    lines = [(_severity(finding.get("severity")), finding.get("rule"), finding.get("where"),
              finding.get("message")) for finding in findings[:N_ROWS_SHOWN]]
    lint = (folded(_count("Lint findings", len(lines), len(findings)),
                   table(("Severity", "Rule", "Where", "Message"), lines, n_text=4), is_open=len(lines) <= 8)
            if lines else tag("p", "Data lint: no findings.", class_="note"))
    return join([tag("h3", "Data"), _splits(found), _reference_energies(found), lint])


def _severity(severity: Any) -> Html:
    return tag("span", severity, class_=f"pill {'bad' if severity == 'error' else 'soft'}")


def _splits(found: dict[str, Any]) -> Html:
    """Sizes of the splits as figures and as one bar in proportion."""
    parts = [(name, key, amount(found, f"n_{key}")) for name, key in (
        ("Train", "train"), ("Validation", "validation"), ("Test", "test"), ("Out of distribution", "ood"))]
    bar = [tag("span", class_=f"part {key}", style=f"flex-grow:{n:g}") for _, key, n in parts if n]
    names = [tag("span", tag("i", class_=f"part {key}"), f"{name} ", tag("b", number(n)))
             for name, key, n in parts if n is not None]
    kelvin = amount(found, "ood_temperature_K")
    note = join(["Out of distribution: structures sampled at ", chosen(kelvin, unit="K"),
                 ", which training never saw."])
    return join([tag("div", *bar, class_="splitbar") if bar else None, tag("p", *names, class_="splitkey"),
                 tag("p", note, class_="note") if kelvin is not None else None])


def _reference_energies(found: dict[str, Any]) -> Html | None:
    energies, source = mapping(found, "reference_energies"), found.get("reference_source")
    if not energies:
        return None
    return join([
        tag("h4", "Reference energies of the elements"),
        facts((symbol, number(value, 7, unit="eV")) for symbol, value in energies.items()),
        tag("p", "Source: ", source, class_="note") if source else None,
    ])


def _recipe(recipe: dict[str, Any]) -> Html:
    if not recipe:
        return absent("No recipe was recorded.")
    plain = json.loads(json.dumps(recipe, default=str))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return folded("Recipe, as it was run", tag("pre", text, class_="code"))


def scalar(value: Any) -> Html | str | None:
    """A value of a record in words: numbers typeset, lists joined, the rest as it is."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return chosen(value)
    if isinstance(value, list | tuple):
        return join([scalar(item) for item in value], ", ")
    if isinstance(value, dict):
        return join([join([f"{key} ", scalar(item)]) for key, item in value.items()], ", ")
    return str(value)


def _count(what: str, n_shown: int, n_all: int) -> str:
    return f"{what} ({n_all})" if n_shown == n_all else f"{what} (first {n_shown} of {n_all})"
