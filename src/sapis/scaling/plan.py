"""Which trainings a study of scaling runs: a grid of compute, weights and frames that a budget pays for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from sapis.core.config import Config, defaults
from sapis.core.errors import ConfigError
from sapis.training.config import TrainingConfig

MIN_FRAMES = 20  # of a training; with fewer, chance decides
SEARCH, N_SEARCHED = 1e7, 3000  # highest levels that are tried: down to which part of the budget, and how many
MIN_STEPS = 400  # of a training; shorter ones measure the warm-up


class StudyConfig(Config):
    """What a study measures: sizes of model at levels of compute, on all frames they can see and on fractions of them."""

    model: dict[str, Any] = Field(default_factory=dict, description="settings of the architecture that all sizes share")
    widths: tuple[int, ...] = Field((8, 16, 32, 64), min_length=1, description="channels: the dial of the size")
    levels: int = Field(4, ge=1, description="of compute")
    spacing: float = Field(3.0, gt=1, description="of one level to the next")
    fractions: tuple[float, ...] = Field(
        (1.0, 0.25), min_length=1, description="of the frames that a training sees once, or of all where it sees more")
    seeds: int = Field(2, ge=1, description="trainings of each point")
    max_epochs: float = Field(1000.0, ge=1, description="times a frame is seen at most")
    flops: float | None = Field(None, gt=0, description="budget of the study, of all trainings together")
    cpu_seconds: float | None = Field(None, gt=0, description="the same, in place of flops, as predicted")
    n_validation: int = Field(200, ge=1, description="frames that validate")
    n_test: int = Field(500, ge=1, description="frames whose error the laws are of")
    group_by: str = Field("", description="tag: frames that share its value are in one part")
    training: Annotated[TrainingConfig, defaults(validations=4)] = TrainingConfig(validations=4)
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if (self.flops is None) == (self.cpu_seconds is None):
            raise ValueError("a budget: either flops or cpu_seconds")
        if any(not 0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError("fractions above 0 and up to 1")
        budgets = self.training.epochs, self.training.cpu_seconds, self.training.flops
        if self.training.max_atoms is not None:
            raise ValueError("training with batch_size and not max_atoms: a step is of as many frames for every size")
        if any(budget is not None for budget in budgets):
            raise ValueError("training settings without epochs, cpu_seconds or flops: the plan says how long each training is")
        return self


@dataclass(frozen=True)
class Size:
    """A size of the model and what training it costs.

    Attributes:
        width: channels.
        n_parameters: weights, without the embedding of elements and conditions.
        flops: of a training step, for each frame.
        cpu_seconds: the same.
    """

    width: int
    n_parameters: int
    flops: float
    cpu_seconds: float


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        width: channels.
        n_frames: different frames.
        flops: its budget.
        seed: of weights, order and which frames.
        epochs: as often it sees each frame, as predicted.
        cpu_seconds: predicted.
        is_held_out: whether laws are tested on it and not fitted to it.
    """

    width: int
    n_frames: int
    flops: float
    seed: int
    epochs: float
    cpu_seconds: float
    is_held_out: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"w{self.width:03d}-d{self.n_frames:06d}-c{self.flops:.2e}-s{self.seed}"


def plan(config: StudyConfig, sizes: Sequence[Size], n_available: int) -> list[Trial]:
    """The trainings that ``config`` asks for and its budget pays for, the cheapest first.

    Levels of compute are a factor apart and the highest follows from the budget. At each level each size sees as many frames as
    it can pay for: each once, if there are as many, and on fractions of them several times. What sees too few frames or one
    frame too often is left out.

    Raises:
        ConfigError: the budget pays for no training, or for less than the levels and sizes that were asked for need.
    """
    budget = config.flops or config.cpu_seconds or 0.0

    most = budget * max(1.0 if config.flops else size.flops / size.cpu_seconds for size in sizes)
    for top in np.geomspace(most, most / SEARCH, N_SEARCHED):
        trials = _grid(config, sizes, n_available, float(top))
        price = sum(trial.flops if config.flops else trial.cpu_seconds for trial in trials)
        is_whole = len({trial.flops for trial in trials}) == config.levels and {trial.width for trial in trials} == {
            size.width for size in sizes}
        if is_whole and price <= budget:
            break
    else:
        raise ConfigError(
            expected=f"a budget for {config.levels} levels of compute and {len(sizes)} sizes, of {MIN_STEPS} steps at least",
            received=f"{budget:g} {'FLOPs' if config.flops else 'CPU seconds'}", where="study",
            todo="raise flops or cpu_seconds, ask for fewer levels, widths or seeds, or raise max_epochs")
    return sorted(trials, key=lambda trial: (trial.flops, trial.width, trial.n_frames, trial.seed))


def trial_at(config: StudyConfig, size: Size, *, flops: float, n_frames: int, seed: int, is_held_out: bool = False) -> Trial:
    """One training at ``flops``."""
    seen = flops / size.flops
    return Trial(size.width, n_frames, flops, seed, seen / n_frames, seen * size.cpu_seconds, is_held_out)


def _grid(config: StudyConfig, sizes: Sequence[Size], n_available: int, top: float) -> list[Trial]:
    trials = []
    for level in range(config.levels):
        flops = float(f"{top / config.spacing**level:.3g}")  # numbers that one can read
        for size in sizes:
            seen = flops / size.flops
            if seen < MIN_STEPS * config.training.batch_size:
                continue
            numbers = {round(fraction * min(seen, n_available)) for fraction in config.fractions}
            trials += [trial_at(config, size, flops=flops, n_frames=number, seed=seed) for number in sorted(numbers)
                       if number >= MIN_FRAMES and seen / number <= config.max_epochs for seed in range(config.seeds)]
    return trials
