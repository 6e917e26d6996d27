"""The last part of a page: cost, how to use and cite the model, provenance."""

from __future__ import annotations

from typing import Any

from sapis.report.markup import ABSENT, Html, absent, asset, facts, folded, join, label, number, table, tag
from sapis.report.overview import scalar
from sapis.report.story import Report, amount, mapping

STEPS = ("candidates", "labels", "data", "train", "test", "md", "checks")


def cost(report: Report) -> Html:
    """CPU time, wall time and FLOPs of each step, with its share of the CPU time as a bar."""
    steps = ordered_steps(report)
    if not steps:
        return absent("No records, so no costs.")
    spent = {step: amount(report.cost(step), "cpu_seconds") for step in steps}
    total = sum(seconds or 0.0 for seconds in spent.values())
    walls = [amount(report.cost(step), "wall_seconds") for step in steps]
    flops = [report.flops(step) for step in steps]
    body: list[tuple[Any, ...]] = [
        (step, _bar(spent[step], total), _real(spent[step]), _real(wall), _real(count))
        for step, wall, count in zip(steps, walls, flops, strict=True)
    ]
    body.append((tag("b", "total"), "", *(tag("b", _real(_sum(column)))
                                          for column in ([*spent.values()], walls, flops))))
    return join([
        table(("Step", "Share of CPU time", "CPU (s)", "Wall (s)", "FLOPs"), body, n_text=2, class_="cost"),
        tag("p", f"{ABSENT} stands for what was not counted.", class_="note"),
    ])


def _bar(seconds: float | None, total: float) -> Html:
    share = 100 * (seconds or 0.0) / total if total else 0.0
    drawn = tag("span", tag("i", style=f"width:{share:.1f}%"), class_="bar")
    return tag("div", drawn, tag("small", f"{share:.1f}\u202f%"), class_="share")


def _sum(values: list[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) if known else None


def _real(value: float | None) -> Html:
    """Integers too with three digits: a count of operations is no more certain than that."""
    return number(None if value is None else float(value))


def ordered_steps(report: Report) -> list[str]:
    """Names of the recorded steps in the order of the pipeline, unknown ones last."""
    known = [step for step in STEPS if step in report.records]
    return known + [step for step in report.records if step not in STEPS]


def usage(report: Report) -> Html:
    """Python that uses the model."""
    return tag("pre", report.usage, class_="code")


def citation(report: Report) -> Html:
    """How to cite the work, and the licence of the viewer inside the page."""
    cited = join([tag("pre", report.citation, class_="code"),
                  tag("p", "Please cite the method of the labels as well.", class_="note")])
    if not report.structures:
        return cited
    # The licence asks that its text goes with every copy, and this page holds one.
    source = "The 3-D view is 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322, 2015): its licence"
    return join([cited, folded(source, tag("pre", str(asset("3Dmol-LICENSE")), class_="code"))])


def provenance(report: Report) -> Html:
    """Hashes, versions and machines behind each record."""
    steps = ordered_steps(report)
    if not steps:
        return absent("No records, so no provenance.")
    origins = {step: mapping(report.records, step, "provenance") for step in steps}
    body = [(step, _hash(report.records[step], "input_hash"), origins[step].get("sapis"),
             _hash(origins[step], "commit"), origins[step].get("python")) for step in steps]
    model_hash = report.result("train").get("model_hash")
    return join([
        facts([("Model hash", tag("code", model_hash) if model_hash else None)]),
        table(("Step", "Input hash", "Sapis", "Commit", "Python"), body, n_text=5),
        *(_environment(origin, named) for origin, named in _distinct(origins)),
    ])


def _hash(found: Any, key: str) -> Html | str:
    """The first characters of a hash, the whole of it as a tooltip."""
    value = found.get(key) if isinstance(found, dict) else None
    if not value:
        return ABSENT
    text = str(value)
    short = text[:12] + ("+" if text.endswith("+") and len(text) > 12 else "")
    return tag("code", short, title=text)


def _distinct(origins: dict[str, dict[str, Any]]) -> list[tuple[dict[str, Any], list[str]]]:
    """Each different environment with the steps that ran in it."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for step, origin in origins.items():
        environment = {key: origin[key] for key in ("packages", "machine") if origin.get(key)}
        if not environment:
            continue
        for known, steps in groups:
            if known == environment:
                steps.append(step)
                break
        else:
            groups.append((environment, [step]))
    return groups


def _environment(environment: dict[str, Any], steps: list[str]) -> Html:
    machine = [(label(key), value) for key, value in mapping(environment, "machine").items()]
    pairs = [*mapping(environment, "packages").items(), *machine]
    return folded(f"Packages and machine: {', '.join(steps)}",
                  facts((name, scalar(value)) for name, value in pairs))
