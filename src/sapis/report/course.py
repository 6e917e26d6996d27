"""The course of a training that decides as it goes: its errors along the way, what was decided, and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from sapis.report.canvas import canvas, log_if_positive, svg
from sapis.report.figures import BLUE, GREY, INK, ORANGE
from sapis.report.markup import Html, figure, folded, join, number, table, tag

ACTIONS = {"train": "go on", "grow_data": "more frames", "grow_model": "a larger model", "grow_both": "both",
           "take_back": "growth taken back", "stop": "the learning rate falls"}
MARKS = {"grow_data": "o", "grow_model": "^", "grow_both": "D", "take_back": "v", "stop": "s"}


def course(result: dict[str, Any]) -> Html:
    """The errors along the way, with the decisions on them, and how sizes and frames grew."""
    events = result["events"]
    looks, actions = [event["look"] for event in events], [event["decision"]["action"] for event in events]
    spent = np.array([look["spent"] for look in looks])
    loss = np.array([look["loss"] for look in looks])
    with canvas(9.2, 5.2) as drawing:
        errors, sizes = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
        errors.plot(spent, loss, color=BLUE, label="validation frames")
        errors.plot(spent, [look["train_loss"] for look in looks], color=GREY, linewidth=1.0, label="training frames")
        for action, mark in MARKS.items():
            chosen = np.array([taken == action for taken in actions])
            if chosen.any():
                errors.plot(spent[chosen], loss[chosen], mark, color=ORANGE, markersize=7, zorder=4, label=ACTIONS[action])
        end = result["errors"]["validation"]["force_rmse_meV_A"]
        spent_at_end = result.get("flops", result["config"]["flops"])
        errors.plot([spent_at_end], [end], "*", color=INK, markersize=10, clip_on=False, zorder=5, label="end")
        errors.set_ylabel("force error (meV/Å)")
        log_if_positive(errors, loss)
        errors.legend(ncols=2)
        for name, colour, words in (("n_parameters", ORANGE, "weights"), ("n_frames", BLUE, "frames")):
            values = np.array([look[name] for look in looks])
            sizes.step(spent, values / values[0], where="post", color=colour, label=f"{words}, from {values[0]:,.0f}")
        sizes.set(xlabel="spent, labels included (FLOPs)", ylabel="times the first", yscale="log")
        sizes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        sizes.yaxis.set_minor_formatter(lambda value, _: "")
        sizes.legend()
        picture = svg(drawing, "course", "Errors, weights and frames against what was spent")
    return figure(picture, "Errors of the running mean of the weights at each look; marks are decisions. In the last part "
                           "of the budget the learning rate falls, to the star.") or Html("")


def decisions(events: list[dict[str, Any]]) -> Html:
    """What was decided from each look, and why."""
    head = ["Decision", "Why", "Spent", "Weights", "Frames", "Error", "Foretold"]

    def line(event: dict[str, Any]) -> tuple[Any, ...]:
        look, decision = event["look"], event["decision"]
        return (ACTIONS[decision["action"]], decision["reason"], number(look["spent"]), number(int(look["n_parameters"])),
                number(int(look["n_frames"])), number(look["loss"]), number(decision["foretold"]))

    changes = [line(event) for event in events if event["decision"]["action"] != "train"]
    note = tag("p", "Sizes and errors are those at the look from which it was decided; foretold is the error at the end of the "
                    "budget, where a law decided.")
    looks = folded(f"all {len(events)} looks", table(head, map(line, events), n_text=2))
    return join([note, table(head, changes, n_text=2), looks])
