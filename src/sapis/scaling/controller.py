"""What to do next with a training: go on, buy frames, grow the model, both, or stop.

A decision is a function of the looks and decisions so far, so that a killed run makes the same ones again. With a few looks it
goes by the gap between the errors on training and on other frames; then by the posterior of the law (`sapis.scaling.path`):
for each size of model, number of frames and moment of growth, the error at the end of the budget (or the cost of reaching the
target), averaged over what is likely. It grows when growing now is better than never and not worse than later.

A larger model is on trial: after some looks, what it has learned is evidence about the law. As soon as the smaller one would be
better off with what is left of the budget, the growth is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from sapis.core.config import Config
from sapis.scaling.path import Look, Posterior, learn

MOST_FOR_LABELS = 0.5  # of what is left, before a law says what frames are worth
AT_FLOOR = 0.03  # above a measured floor, relative: as good as at it
REFUSED_FOR = 2.0  # times the frames, a size that was taken back is not tried again

Action = Literal["train", "grow_data", "grow_model", "grow_both", "take_back", "stop"]
MODEL_GROWS: tuple[Action, ...] = ("grow_model", "grow_both")


class ControllerConfig(Config):
    """How a controller decides."""

    looks: int = Field(50, ge=10, description="decisions over the budget: between two it trains")
    min_looks: int = Field(6, ge=3, description="from which on the law decides; before, the gap of the errors")
    votes: int = Field(2, ge=1, description="decisions in a row that must agree before the model grows")
    max_data_growth: float = Field(4.0, gt=1, description="of the number of frames in one step")
    min_gain: float = Field(0.003, ge=0, description="of the error, relative, for which growing now is worth it")
    trial: int = Field(4, ge=1, description="looks after which a growth of the model is judged, and again at each later one")
    stop_below: float = Field(0.01, ge=0, description="gain of spending as much again, relative, that is not worth it")
    gap: float = Field(1.5, gt=1, description="error on other frames over training error that asks for data, with few looks")
    noise: float = Field(0.02, gt=0, description="of an error, relative, at least")
    n_samples: int = Field(24, ge=4, description="of the posterior")
    seed: int = Field(0, ge=0, lt=2**63, description="of the samples")


@dataclass(frozen=True, eq=False)
class Costs:
    """What things cost, in one currency.

    Attributes:
        n_parameters: of the sizes of the model, ``(sizes,)``; the first is the smallest, the last the largest in everything.
        per_frame: of seeing a frame in training, for each size, ``(sizes,)``.
        label: of a new frame.
        n_available: frames at most.
        budget: of all.
        target: error at which to stop; None: the least that the budget buys.
        floor: error that was measured to be in the labels, below which no model gets.
        larger: indices of the sizes that each can grow into in one step; empty: each into the next.
        latest: part of the budget after which nothing grows any more.
    """

    n_parameters: np.ndarray
    per_frame: np.ndarray
    label: float
    n_available: float
    budget: float
    target: float | None = None
    floor: float = 0.0
    larger: tuple[tuple[int, ...], ...] = ()
    latest: float = 1.0

    def steps(self, size: int) -> tuple[int, ...]:
        """The sizes that ``size`` can grow into in one step."""
        if self.larger:
            return self.larger[size]
        return (size + 1,) if size + 1 < len(self.n_parameters) else ()

    def reached(self, size: int) -> set[int]:
        """The sizes that ``size`` can grow into in any number of steps, itself among them."""
        found, new = {size}, [size]
        while new:
            more = set(self.steps(new.pop())) - found
            found |= more
            new += sorted(more)
        return found


@dataclass(frozen=True)
class Decision:
    """What was decided, and from what.

    Attributes:
        action: what to do.
        size: index of the model's size after it; to take growth back is to go on from the look before it.
        n_frames: after it.
        wish: action that the looks so far ask for; it becomes the action when it was asked for often enough.
        foretold: error at the end of the budget, or cost of the target, if so; NaN where no law decided.
        reason: in words.
        law: the fit that decided: parameters at its mode; empty where none did.
    """

    action: Action
    size: int
    n_frames: float
    wish: Action
    foretold: float
    reason: str
    law: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Course:
    """What led to the present state: branches that were taken back are left out.

    Attributes:
        looks: of the present training.
        sizes: of the model at each of these.
        grown: number of the look after which the model last grew; None if it never did.
        refused: sizes of growths that were taken back, and the number of frames when each last was.
    """

    looks: list[Look]
    sizes: list[int]
    grown: int | None
    refused: dict[int, float]

    @classmethod
    def of(cls, looks: Sequence[Look], decisions: Sequence[Decision]) -> Course:
        """After ``looks`` and the decisions that followed all but the last of them. The first was at the first size."""
        kept: list[Look] = []
        sizes: list[int] = []
        grown: int | None = None
        refused: dict[int, float] = {}
        size = 0
        for look, decision in zip(looks[:-1], decisions, strict=True):
            kept.append(look)
            sizes.append(size)
            if decision.action == "take_back":
                assert grown is not None
                refused[size] = look.n_frames
                kept, sizes, grown = kept[: grown + 1], sizes[: grown + 1], None
            elif decision.action in MODEL_GROWS:
                grown = len(kept) - 1
            size = decision.size
        return cls([*kept, looks[-1]], [*sizes, size], grown, refused)

    def barred(self, costs: Costs) -> set[int]:
        """Sizes that are not tried again yet."""
        few = self.looks[-1].n_frames / REFUSED_FOR
        return set[int]().union(*(costs.reached(size) for size, n_frames in self.refused.items() if n_frames > few))


def decide(looks: Sequence[Look], decisions: Sequence[Decision], costs: Costs, config: ControllerConfig) -> Decision:
    """The decision after the last of ``looks``; ``decisions`` are those after the others."""
    last, course = looks[-1], Course.of(looks, decisions)
    size = course.sizes[-1]
    if last.spent >= costs.budget:
        return Decision("stop", size, last.n_frames, "stop", last.loss, "the budget is spent")
    if costs.target is not None and last.loss <= costs.target and len(looks) < config.min_looks:
        return Decision("stop", size, last.n_frames, "stop", last.loss, f"the target {costs.target:.4g} is reached")
    if len(looks) < config.min_looks:
        wish = _by_gap(course.looks, size, costs, config)
    else:
        wish = _by_law(course, costs, config)
    before = decisions[len(decisions) - config.votes + 1 :]
    agreed = len(before) == config.votes - 1 and all(decision.wish in MODEL_GROWS for decision in before)
    if wish.action not in MODEL_GROWS or agreed:
        return wish
    # What a larger model is worth can change from one look to the next; frames that were bought are never lost.
    action: Action = "train" if wish.action == "grow_model" else "grow_data"
    return replace(wish, action=action, size=size, reason=f"{wish.reason}; a larger model waits for another vote")


def _by_gap(looks: Sequence[Look], size: int, costs: Costs, config: ControllerConfig) -> Decision:
    """Rules for a start: they need no law."""
    last = looks[-1]
    flat = len(looks) > 2 and looks[-1].loss > 0.97 * looks[-2].loss
    more = min(last.n_frames * config.max_data_growth, costs.n_available)
    if costs.label:
        more = min(more, last.n_frames + MOST_FOR_LABELS * max(costs.budget - last.spent, 0.0) / costs.label)
    if flat and last.loss > config.gap * last.train_loss and more > last.n_frames:
        return Decision("grow_data", size, more, "grow_data", np.nan, "few looks; other frames are worse than known ones")
    if flat and last.loss < config.gap * last.train_loss and costs.steps(size):
        larger = min(costs.steps(size), key=lambda each: costs.per_frame[each])
        return Decision("grow_model", larger, last.n_frames, "grow_model", np.nan, "few looks; training errors are flat, too")
    return Decision("train", size, last.n_frames, "train", np.nan, "few looks; the error still falls")


def _by_law(course: Course, costs: Costs, config: ControllerConfig) -> Decision:
    law = learn(course.looks, floor=costs.floor, noise=config.noise, n_samples=config.n_samples, seed=config.seed)
    return replace(_by_plans(law, course, costs, config), law=law.mode())


def _by_plans(law: Posterior, course: Course, costs: Costs, config: ControllerConfig) -> Decision:
    looks, last, size = course.looks, course.looks[-1], course.sizes[-1]
    now = float(np.exp(np.log(law.now).mean()))  # less noisy than the last look
    if costs.target is not None and now * (1 + config.noise) <= costs.target:
        return Decision("stop", size, last.n_frames, "stop", now, f"the target {costs.target:.4g} is reached")
    if now < costs.floor * (1 + AT_FLOOR):
        return Decision("stop", size, last.n_frames, "stop", now, f"the floor {costs.floor:.4g} of the labels is reached")
    sizes = sorted(costs.reached(size) - course.barred(costs) | {size})
    # A model that fits what it learns from much better than other frames is large enough for its data.
    sizes = sizes if last.loss < config.gap * last.train_loss else [size]
    plans = _Plans(law, last, size, sizes, costs, config)
    if course.grown is not None and len(looks) - 1 - course.grown >= config.trial:
        there, here = _without_growth(course, costs, config), float(np.log(plans.losses()).mean(axis=0).min())
        if there + config.min_gain < here:
            return Decision("take_back", course.sizes[course.grown or 0], last.n_frames, "take_back", float(np.exp(there)),
                            f"error at the end {np.exp(there):.4g} of the smaller model, {np.exp(here):.4g} of this one")
    beside = ""
    if costs.target is not None:
        score = plans.costs_of(costs.target)
        score = np.where(score <= plans.left, score, np.inf)
        if np.isfinite(score).any():
            return _chosen(plans, score, is_cost=True)
        beside = f"; the target {costs.target:.4g} is out of reach"
    doubled = _Plans(law, last, size, sizes, replace(costs, budget=2 * last.spent), config)
    gain = float(np.log(now) - np.log(doubled.losses()).mean(axis=0).min())
    if gain < config.stop_below:
        return Decision("stop", size, last.n_frames, "stop", now, f"as much again as was spent would gain "
                        f"{100 * gain:.1f} %")
    found = _chosen(plans, np.log(plans.losses()).mean(axis=0), is_cost=False)
    return replace(found, reason=found.reason + beside)


def _without_growth(course: Course, costs: Costs, config: ControllerConfig) -> float:
    """Logarithm of the error at the end if the model had not grown and went on with what is left now."""
    assert course.grown is not None
    last, before, smaller = course.looks[-1], course.looks[: course.grown + 1], course.sizes[course.grown]
    law = learn(before, floor=costs.floor, noise=config.noise, n_samples=config.n_samples, seed=config.seed)
    # Frames that were bought with the growth stay: those plans that have them need not pay for them again.
    returned = replace(before[-1], spent=last.spent - costs.label * (last.n_frames - before[-1].n_frames))
    plans = _Plans(law, returned, smaller, [smaller], costs, config)
    return float(np.log(plans.losses()).mean(axis=0)[plans.n_frames > 0.99 * last.n_frames].min(initial=np.inf))


class _Plans:
    """Sizes, numbers of frames and moments of growth that are thought of; ``(cases,)`` each.

    Attributes:
        size, n_frames: after growth.
        delay: part of the rest of the budget that is spent before.
    """

    def __init__(self, law: Posterior, last: Look, size: int, sizes: list[int], costs: Costs, config: ControllerConfig) -> None:
        self.law, self.last, self.now, self.money, self.config = law, last, size, costs, config
        self.left = costs.budget - last.spent
        frames = np.unique(np.minimum(last.n_frames * np.concatenate([[1.0], config.max_data_growth ** np.arange(0.5, 9.0, 0.5)]),
                                      costs.n_available))
        chunk = costs.budget / config.looks / max(self.left, 1e-12)
        delays = np.unique(np.minimum([0.0, chunk, 2 * chunk, 4 * chunk, 0.3, 0.6], 0.95))
        delays = delays[(delays == 0) | (last.spent + delays * self.left <= costs.latest * costs.budget)]
        grid = np.meshgrid(sizes, frames, delays, indexing="ij")
        size_of, frames_of, delay_of = (axis.ravel() for axis in grid)
        stays = (size_of == size) & (frames_of == last.n_frames)
        keep = ~(stays & (delay_of > 0)) & (costs.label * (frames_of - last.n_frames) < 0.95 * self.left * (1 - delay_of))
        self.size, self.n_frames, self.delay = size_of[keep].astype(int), frames_of[keep], delay_of[keep]
        self.n_parameters = costs.n_parameters[self.size]

    def _start(self) -> np.ndarray:
        before = self.law.effective[:, None] + self.left * self.delay / self.money.per_frame[self.now]
        return self.law.grown(self.n_parameters, self.n_frames, before)

    def losses(self) -> np.ndarray:
        """At the end of the budget, ``(samples, cases)``."""
        paid = self.money.label * (self.n_frames - self.last.n_frames)
        seen = (self.left * (1 - self.delay) - paid) / self.money.per_frame[self.size]
        return self.law.loss(self.n_parameters, self.n_frames, self._start() + seen)

    def costs_of(self, target: float) -> np.ndarray:
        """Of reaching ``target``: the median over the samples, ``(cases,)``; infinite where it is out of reach."""
        law, theta = self.law, self.law.samples.T[:, :, None]
        room = (target - law.rest(self.n_parameters, self.n_frames)) / law.unit
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(room > 0, (room / np.exp(theta[5])) ** (-1 / theta[6]), np.inf) * law.origin[2]
        more = np.maximum(wanted - self._start(), 0.0) * self.money.per_frame[self.size]
        return np.asarray(np.median(more, axis=0) + self.left * self.delay
                          + self.money.label * (self.n_frames - self.last.n_frames))


def _chosen(plans: _Plans, score: np.ndarray, *, is_cost: bool) -> Decision:
    """The decision that the best plan asks for: its first step, if that is to grow, in bounds.

    Args:
        score: of each plan, the less the better: a cost, or the logarithm of an error.
    """
    last, size, costs, config = plans.last, plans.now, plans.money, plans.config
    words = "cost of the target" if is_cost else "error at the end"
    grows = (plans.size != size) | (plans.n_frames > last.n_frames)
    never, later, soon = (float(score[mask].min(initial=np.inf)) for mask in (
        ~grows, grows & (plans.delay > 0), grows & (plans.delay == 0)))
    least = min(never, later, soon)
    worth = config.min_gain * (abs(least) if is_cost else 1.0)  # of costs, or of logarithms of errors
    foretold = least if is_cost else float(np.exp(least))
    if soon > never - worth or soon > later + worth:
        return Decision("train", size, last.n_frames, "train", foretold, f"{words} {foretold:.4g}; better to go on for now")
    best = int(np.argmin(np.where(grows & (plans.delay == 0), score, np.inf)))
    larger = _first_step(plans, int(plans.size[best]), score)
    frames = min(float(plans.n_frames[best]), last.n_frames * config.max_data_growth)
    action: Action = "grow_model" if frames == last.n_frames else ("grow_both" if larger != size else "grow_data")
    return Decision(action, larger, frames, action, foretold,
                    f"{words} {foretold:.4g}, as large as {costs.n_parameters[plans.size[best]]:,.0f} weights and "
                    f"{plans.n_frames[best]:,.0f} frames")


def _first_step(plans: _Plans, wanted: int, score: np.ndarray) -> int:
    """The size to grow into first, on the way to the one that is wanted: the best of those by itself."""
    if wanted == plans.now:
        return wanted
    steps = [step for step in plans.money.steps(plans.now) if wanted in plans.money.reached(step) and step in plans.size]
    return min(steps, key=lambda step: float(score[(plans.size == step) & (plans.delay == 0)].min(initial=np.inf)))
