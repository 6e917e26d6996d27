"""The page of a training that decides as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sapis.core.files import write_text
from sapis.core.records import Record
from sapis.report.course import course, decisions
from sapis.report.markup import Html, duration, facts, join, number
from sapis.report.page import document


def write_auto_report(path: Path, title: str, record: Record) -> None:
    """Write the record of `sapis.pipeline.auto.auto` as one HTML file that needs nothing else."""
    write_text(path, "<!DOCTYPE html>\n" + render(title, record))


def render(title: str, record: Record) -> Html:
    """The ``<html>`` element of the page."""
    return document(title, "Training that decides", [
        ("course", "The course", course(record.result)), ("outcome", "What came of it", _outcome(record)),
        ("decisions", "Decisions", decisions(record.result["events"])),
    ])


def _outcome(record: Record) -> Html:
    result, errors = record.result, record.result["errors"]
    return facts([
        ("policy", result["config"]["policy"]), *_before(result.get("cheap")),
        ("force error, test frames", number(errors["test"]["force_rmse_meV_A"], unit="meV/Å")),
        ("energy error, test frames", number(errors["test"]["energy_rmse_meV_atom"], unit="meV/atom")),
        ("weights", number(result["n_parameters"])), ("frames", number(result["n_frames"])),
        ("spent on labels", number(result["label_flops"], unit="FLOPs")),
        ("spent on growth that was taken back", number(result["lost_flops"], unit="FLOPs") if result["lost_flops"] else None),
        ("spent in all", number(record.cost["flops"], unit="FLOPs")),
        ("CPU time of the training", duration(record.cost["cpu_seconds"])),
    ])


def _before(cheap: dict[str, Any] | None) -> list[tuple[str, Html]]:
    """Of the training on cheap labels, if there was one."""
    if cheap is None:
        return []
    return [("first, on cheap labels", join([
        cheap["labeler"], ": ", number(cheap["n_frames"]), " frames, ", number(cheap["flops"], unit="FLOPs"), ", ",
        number(cheap["n_parameters"]), " weights, ", number(cheap["test_force_rmse_meV_A"], unit="meV/Å"),
        " on test frames with such labels"]))]
