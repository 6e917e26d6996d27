"""The page of an active-learning run: what was asked and why, what that brought, whether the model knew its errors, the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sapis.core.files import write_text
from sapis.core.records import Record
from sapis.data.system import System
from sapis.report.canvas import canvas, log_if_positive, svg
from sapis.report.figures import BLUE, GREEN, GREY, INK, ORANGE, doubt
from sapis.report.markup import Html, absent, asset, duration, facts, figure, join, number, table, tag
from sapis.report.page import document
from sapis.report.structures import structure_view
from sapis.uncertainty.learning_curve import labels_needed

NAMES = {"candidates": "exploration", "choice": "choice", "labels": "labels", "delta": "correction of cheap labels",
         "model": "training", "control": "training of the control"}
CHEAP = {"candidates": "exploration", "labels": "labels", "train": "training"}


@dataclass(frozen=True)
class ActiveStory:
    """What the page tells.

    Attributes:
        title: of the page.
        how: facts about how it asked: names and values.
        reason: why the run stopped.
        rounds: by step (``candidates``, ``choice``, ``labels``, ``delta``, ``model``) the record of each round that had it.
        curves: of the arm ``asked``, and ``control`` if there is one, numbers of labels ``n_train`` and ``errors`` on all
            ``n_held`` frames that were held out, round by round.
        structures: that were asked for, with captions.
        breadth: records of ``candidates``, ``labels`` and ``train`` of cheap labels that came first; empty if there were none.
    """

    title: str
    how: Sequence[tuple[str, str]]
    reason: str
    rounds: Sequence[dict[str, Record]]
    curves: Mapping[str, Any]
    structures: Sequence[System]
    breadth: Mapping[str, Record] = field(default_factory=dict)


def write_active_report(path: Path, story: ActiveStory) -> None:
    """Write ``story`` as one HTML file that needs nothing else."""
    write_text(path, "<!DOCTYPE html>\n" + render(story))


def render(story: ActiveStory) -> Html:
    """The ``<html>`` element of the page."""
    scripts = [asset("3Dmol-min.js"), asset("viewer.js")] if story.structures else []
    return document(story.title, "Active learning", [
        ("learning", "What the labels brought", _learning(story)), ("asked", "What was asked", _asked(story)),
        ("doubt", "How well it knew its errors", _doubt(story)), ("forgetting", "What was forgotten", _forgetting(story)),
        ("cost", "Cost", _cost(story)), ("structures", "The least certain structures", structure_view(story.structures)),
    ], scripts=scripts)


def _models(story: ActiveStory) -> list[dict[str, Any]]:
    return [found["model"].result for found in story.rounds if "model" in found]


def _learning(story: ActiveStory) -> Html:
    models, (n, errors) = _models(story), _curve(story.curves, "asked")
    with canvas(9.2, 4.0) as drawing:
        ax = drawing.subplots()
        ax.plot(n, errors, "o-", color=INK, label="all frames held out, after learning")
        shown = [errors]
        later = [(before, model["before"]) for before, model in zip(n[:-1], models[1:], strict=True)]
        for arm, colour, words in (("random", BLUE, "new frames at random, before learning"),
                                   ("asked", ORANGE, "new frames that were asked for, before learning")):
            points = [(at, found[arm]["force_rmse_meV_A"]) for at, found in later if arm in found]
            if points:
                ax.plot(*np.array(points).T, "o--", color=colour, label=words)
                shown.append(np.array(points)[:, 1])
        ax.set(xlabel="labels that were learned from", ylabel="force error (meV/Å)")
        log_if_positive(ax, np.concatenate(shown))
        ax.legend()
        picture = svg(drawing, "learning", "Errors against the number of labels")
    stopped = facts([("stopped", story.reason), ("rounds", number(len(models) - 1))])
    caption = (f"The line is of one model of each round, on the {story.curves['n_held']} frames held out in all rounds; those of "
               "a round and before also chose the weights of its training. Frames at random come from where the model went by "
               "itself; their error is what it makes there. Where frames that were asked for have larger errors, it asked well.")
    return join([stopped, figure(picture, caption), _against_random(story.curves)])


def _against_random(curves: Mapping[str, Any]) -> Html:
    """What choosing brought, where a control says so."""
    if "control" not in curves["errors"]:
        return Html("")
    (n, errors), (n_control, at_random) = (_curve(curves, arm) for arm in ("asked", "control"))
    with canvas(9.2, 3.4) as drawing:
        ax = drawing.subplots()
        ax.plot(n, errors, "o-", color=ORANGE, label="labels that were asked for")
        ax.plot(n_control, at_random, "o-", color=BLUE, label="as many at random")
        ax.set(xlabel="labels that were learned from", ylabel="force error (meV/Å)")
        log_if_positive(ax, np.concatenate([errors, at_random]))
        ax.legend()
        picture = svg(drawing, "against-random", "Labels that were asked for against as many at random")
    needed = labels_needed(n, errors, at_random[-1])
    found = (f"{needed / n_control[-1]:.2f} times the labels" if np.isfinite(needed)
             else "not reached: choosing brought nothing on these frames")
    return join([facts([("the error of as many labels at random, with those asked for", found)]),
                 figure(picture, f"Errors of one model of each round on the {curves['n_held']} frames held out in all rounds.")])


def _curve(curves: Mapping[str, Any], arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of labels and force errors, meV/Å."""
    return (np.array(curves["n_train"][arm], dtype=float),
            np.array([each["force_rmse_meV_A"] for each in curves["errors"][arm]]))


def _asked(story: ActiveStory) -> Html:
    rows = []
    for k, found in enumerate(story.rounds):
        if "choice" in found and "labels" in found:
            choice, labels = found["choice"].result, found["labels"].result
            rows.append((k, number(choice["n_candidates"]), number(sum(choice["left_out"].values())),
                         number(choice["n_asked"]), number(choice["n_random"]),
                         number(choice["uncertainty_all_eV_A"] or None), number(choice["uncertainty_asked_eV_A"] or None),
                         number(len(labels["failures"]))))
    head = ["Round", "Candidates", "Left out", "Asked", "At random", "Uncertainty of all (eV/Å)", "Of those asked",
            "Failed labels"]
    left_out = {k: [f"{n} for {why}" for why, n in found["choice"].result["left_out"].items() if n]
                for k, found in enumerate(story.rounds) if "choice" in found}
    notes = [f"round {k}, left out: {', '.join(reasons)}" for k, reasons in left_out.items() if reasons]
    notes += [f"round {k}, structure {each['number']}: {each['kind']}: {each['reason']}"
              for k, found in enumerate(story.rounds) if "labels" in found for each in found["labels"].result["failures"]]
    notes += [f"round {k}, cheap label of a structure with a dear one: {each['kind']}: {each['reason']}"
              for k, found in enumerate(story.rounds) if "delta" in found for each in found["delta"].result["failures"]]
    notes += [f"round {k}, trajectory {name}: {ending}" for k, found in enumerate(story.rounds)
              if "candidates" in found for name, ending in found["candidates"].result["endings"].items()]
    return join([facts(story.how), table(head, rows, n_text=0), *(tag("p", note, class_="note") for note in notes)])


def _doubt(story: ActiveStory) -> Html:
    rows = []
    for k, model in enumerate(_models(story)):
        scored = model["before"].get("random", {}).get("uncertainty", {}).get("forces")
        if scored:
            rows.append((k, number(scored["n"]), number(scored["rmse"]), number(scored["std"]), number(scored["coverage_90"]),
                         number(scored["spearman"]), number(scored["spearman_ceiling"]), number(scored["auroc_worst_decile"])))
    if not rows:
        return absent("No round came after the first, or the labels of all frames at random failed.")
    head = ["Round", "Forces", "Error (meV/Å)", "Stated", "In the 90 % region", "Rank correlation", "At best", "Finds the worst"]
    note = tag("p", "On frames at random, by the model before it learned from them: the error of a force component, what the "
                    "model stated, how many forces lay inside the 90 % region, the rank correlation of error and deviation, the "
                    "most that it can be, and the chance that one of the worst tenth has the larger deviation.")
    last = [model["before"]["random"]["doubt"] for model in _models(story) if "random" in model["before"]][-1]
    picture = figure(doubt({"new frames at random": last}),
                     "The last of these rounds: errors of force components against stated deviations.")
    return join([note, table(head, rows, n_text=0), tag("div", picture, class_="pair")])


def _forgetting(story: ActiveStory) -> Html:
    models = [(k, model) for k, model in enumerate(_models(story)) if "old" in model["before"]]
    if not models:
        return absent("No round came after the first.")
    with canvas(9.2, 2.8) as drawing:
        ax = drawing.subplots()
        x = np.array([k for k, _ in models], dtype=float)
        for shift, when, colour in ((-0.16, "before", GREY), (0.16, "after", GREEN)):
            ax.bar(x + shift, [model[when]["old"]["force_rmse_meV_A"] for _, model in models], 0.3, color=colour,
                   label=f"{when} the round's training")
        ax.set(xlabel="round", ylabel="force error (meV/Å)", xticks=x)
        ax.legend()
        picture = svg(drawing, "forgetting", "Errors on frames held out in earlier rounds")
    return figure(picture, "Errors on frames of earlier rounds that no training has learned from.") or Html("")


def _cost(story: ActiveStory) -> Html:
    lines = [_line(f"cheap {words}", [story.breadth[step]]) for step, words in CHEAP.items() if step in story.breadth]
    lines += [_line(words, steps) for step, words in NAMES.items()
              if (steps := [found[step] for found in story.rounds if step in found])]
    counts = [("labels", number(sum(found["labels"].result["n_labelled"] for found in story.rounds if "labels" in found)))]
    if "labels" in story.breadth:
        counts.insert(0, ("cheap labels", number(story.breadth["labels"].result["n_labelled"])))
    return join([facts(counts), table(["Step", "CPU time", "Wall time", "FLOPs"], lines)])


def _line(words: str, records: Sequence[Record]) -> tuple[str, ...]:
    costs = [record.cost for record in records]
    return (words, *(duration(sum(cost[key] for cost in costs)) for key in ("cpu_seconds", "wall_seconds")),
            number(sum(cost.get("flops", 0.0) for cost in costs) or None))
