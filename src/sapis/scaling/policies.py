"""Policies by name. Fixed ones are what the controller is compared with: each grows its thing whenever the error is flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sapis.scaling.controller import Action, Costs, Decision
from sapis.scaling.path import Look

FixedPolicy = Literal["data", "model", "in turn", "largest"]
Policy = Literal["controller"] | FixedPolicy
POLICIES: tuple[Policy, ...] = ("controller", "data", "model", "in turn", "largest")

# What grows, in turn. "largest" begins with the largest model.
ORDERS: dict[FixedPolicy, tuple[Action, ...]] = {
    "data": ("grow_data",), "model": ("grow_model",), "in turn": ("grow_data", "grow_model"), "largest": ("grow_data",)}
FLAT, N_FLAT = 0.02, 4  # the error is flat if so many looks gain less than this part of it
MOST_FOR_LABELS = 0.5  # of what is left of the budget


def fixed(policy: FixedPolicy, looks: Sequence[Look], decisions: Sequence[Decision], costs: Costs) -> Decision:
    """The decision after the last of ``looks``; ``decisions`` are those after the others.

    Frames double, the model grows by the cheapest step; what cannot grow lets the next in turn grow.
    """
    last = looks[-1]
    size = decisions[-1].size if decisions else (len(costs.n_parameters) - 1 if policy == "largest" else 0)
    stay = Decision("train", size, last.n_frames, "train", np.nan, "the error still falls")
    if last.spent >= costs.budget:
        return Decision("stop", size, last.n_frames, "stop", last.loss, "the budget is spent")
    grown = [n for n, decision in enumerate(decisions) if decision.action != "train"]
    n_since = len(looks) - (grown[-1] + 1 if grown else 0)
    if n_since < N_FLAT or looks[-N_FLAT].loss / last.loss - 1 > FLAT:
        return stay
    frames = min(2 * last.n_frames, costs.n_available)
    is_paid = costs.label * (frames - last.n_frames) < MOST_FOR_LABELS * (costs.budget - last.spent)
    order = ORDERS[policy]
    first = len(grown) % len(order)
    for action in order[first:] + order[:first]:
        if action == "grow_data" and is_paid and frames > last.n_frames:
            return Decision(action, size, frames, action, np.nan, "the error is flat")
        if action == "grow_model" and costs.steps(size):
            larger = min(costs.steps(size), key=lambda each: costs.per_frame[each])
            return Decision(action, larger, last.n_frames, action, np.nan, "the error is flat")
    return Decision("train", size, last.n_frames, "train", np.nan, "the error is flat, and there is no more to grow")
