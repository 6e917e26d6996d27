"""Settings of a training that decides as it goes what its budget buys."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sapis.core.config import Config, defaults
from sapis.labelers.labeler import LabelerConfig
from sapis.scaling.controller import ControllerConfig
from sapis.scaling.policies import Policy
from sapis.training.config import TrainingConfig

Axis = Literal["n_layers", "l_max", "l_max_product", "l_max_carried", "order", "n_radial"]


class GrowthConfig(Config):
    """What may grow, and what all of it may cost."""

    flops: float = Field(gt=0, description="budget of training and labels together")
    label_flops: float | None = Field(
        None, ge=0, description="cost of a label: FLOPs of training that take as long; default: measured with a labeler, else 0")
    target: float | None = Field(None, gt=0, description="force error on validation frames at which to stop, meV/Å")
    floor: float = Field(0.0, ge=0, description="force error that no model goes below, meV/Å, as `sapis scale floor` measures it")
    widths: tuple[int, ...] = Field((16, 32, 48, 64, 96), min_length=1, description="channels of the sizes; the least begins")
    axes: dict[Axis, tuple[int, ...]] = Field(
        default_factory=dict, description="other sizes that can grow, beside the width: n_layers, l_max, order, …")
    n_start: int = Field(50, ge=10, description="frames at the start")
    cooldown: float = Field(0.3, gt=0, lt=1, description="last part of the budget, in which the learning rate falls")
    policy: Policy = Field("controller", description="fixed policies are for comparison")
    controller: ControllerConfig = ControllerConfig()

    @model_validator(mode="after")
    def _has_sizes(self) -> GrowthConfig:
        if not all(self.axes.values()):
            raise ValueError("at least one value of each axis")
        return self

    def sizes(self) -> list[dict[str, int]]:
        """The settings of every size: each width with each value of each axis, the least of all first."""
        ladders = {"n_channels": self.widths} | {str(axis): values for axis, values in self.axes.items()}
        return [dict(zip(ladders, values, strict=True))
                for values in itertools.product(*(sorted(set(ladder)) for ladder in ladders.values()))]


def objection_to(training: TrainingConfig) -> str:
    """Why a training that decides as it goes cannot have these settings; empty if it can."""
    if training.max_atoms is not None:
        return "training with batch_size and not max_atoms: what was seen is counted in frames"
    if any(end is not None for end in (training.epochs, training.cpu_seconds, training.flops, training.patience)):
        return "training without epochs, cpu_seconds, flops or patience: its end is decided as it goes, within a budget of FLOPs"
    return ""


class CheapConfig(Config):
    """Cheap labels first: the same decisions on them, until they are worth no more or their share of the budget is spent."""

    labeler: LabelerConfig = LabelerConfig()
    share: float = Field(0.3, gt=0, lt=1, description="of the budget, at most")
    label_flops: float | None = Field(None, ge=0, description="cost of a cheap label; default: measured")


class AutoConfig(GrowthConfig):
    """A training that decides by itself."""

    model: dict[str, Any] = Field(default_factory=dict, description="settings of the architecture that all sizes share")
    start: Path | None = Field(None, description="model to go on from, of cheaper labels for example; the least size is its own")
    to_level: str = Field("", description="with start: level of theory of the labels, if it is another than the model's")
    labeler: LabelerConfig | None = Field(None, description="method that labels the structures as they are asked for")
    cheap: CheapConfig | None = Field(None, description="with a labeler: cheap labels first, and a model of them to go on from")
    training: Annotated[TrainingConfig, defaults(validations=1)] = TrainingConfig(validations=1)
    n_validation: int = Field(200, ge=1, description="frames that validate, and by which it decides")
    n_test: int = Field(500, ge=1, description="frames of the final figures")
    group_by: str = Field("", description="tag: frames that share its value are in one part")
    workers: int | None = Field(None, ge=1, description="processes for labels; default: one a core")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")

    @model_validator(mode="after")
    def _one_place_each(self) -> AutoConfig:
        if objection := objection_to(self.training):
            raise ValueError(objection)
        if both := set(self.axes) & set(self.model):
            raise ValueError(f"{', '.join(sorted(both))} either among the axes or in the model")
        if self.start and self.model:
            raise ValueError("no settings of the model: it goes on from one that has its own")
        if self.to_level and not self.start:
            raise ValueError("start with to_level: a new model takes its level of theory from the labels")
        if self.cheap and (self.labeler is None or self.start):
            raise ValueError("cheap labels with a labeler of dear ones and without a start: they make the model to go on from")
        return self

    def on_cheap_labels(self) -> AutoConfig:
        """Settings of the training that comes first."""
        assert self.cheap is not None
        return self.model_copy(update={
            "cheap": None, "labeler": self.cheap.labeler, "flops": self.cheap.share * self.flops,
            "label_flops": self.cheap.label_flops, "target": None, "floor": 0.0})

    def on_dear_labels(self, start: Path, size: Mapping[str, int], spent: float, level: str) -> AutoConfig:
        """Settings of the training that goes on from ``start``, of that ``size``, when ``spent`` is gone."""
        def rest(axis: str, ladder: Sequence[int]) -> tuple[int, ...]:
            return (size[axis], *(value for value in ladder if value > size[axis]))

        return self.model_copy(update={
            "cheap": None, "start": start, "to_level": level, "model": {}, "flops": self.flops - spent,
            "widths": rest("n_channels", self.widths), "axes": {axis: rest(axis, ladder) for axis, ladder in self.axes.items()}})


def steps_between(sizes: Sequence[Mapping[str, int]]) -> tuple[tuple[int, ...], ...]:
    """For each of ``sizes``, which others are one step of one axis larger."""
    ladders = {axis: sorted({size[axis] for size in sizes}) for axis in sizes[0]}
    places = [[ladders[axis].index(value) for axis, value in size.items()] for size in sizes]
    return tuple(tuple(n for n, other in enumerate(places) if sorted(np.subtract(other, place)) == [0] * (len(place) - 1) + [1])
                 for place in places)
