"""What the rounds of a run have made so far: files, records and labelled frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sapis.api import load
from sapis.core.records import Record
from sapis.core.version import __version__
from sapis.data.formats import read_systems
from sapis.data.system import System
from sapis.pipeline.active_config import ActiveRecipe
from sapis.pipeline.workspace import Step, Workspace
from sapis.uncertainty.uncertain import Uncertain

MODEL = "model.sapis"


class Past:
    """The past of a run.

    Attributes:
        recipe: of the run.
        work: its folder.
        rounds: records of the steps of each round, by their names.
        labels, models: of these, those of labels and of trainings.
    """

    def __init__(self, recipe: ActiveRecipe, work: Workspace) -> None:
        self.recipe, self.work = recipe, work
        self.rounds: list[dict[str, Record]] = []
        self.labels: list[Record] = []
        self.models: list[Record] = []

    def path(self, number: int, name: str) -> Path:
        """A file of a round."""
        return self.work.path(f"round-{number:02d}/{name}")

    def step(self, number: int, name: str, inputs: dict[str, Any], file: str, run: Step) -> Record:
        """Run a step of a round, which leaves ``file``, or take its record; see `Workspace.step`."""
        self.path(number, "").mkdir(parents=True, exist_ok=True)
        title = f"round-{number:02d}"
        record = self.work.step(f"{title}-{name}", {"version": __version__} | inputs, [f"{title}/{file}"], run)
        if number == len(self.rounds):
            self.rounds.append({})
        self.rounds[number][name] = record
        return record

    def settings(self, *names: str) -> dict[str, Any]:
        """Those of the recipe, as inputs of a step; of the labeler its limits: what it computes is told by its method."""
        found = self.recipe.model_dump(mode="json", include=set(names))
        return found | ({"labeler": self.recipe.labeler.limits()} if "labeler" in names else {})

    def so_far(self, name: str) -> list[System]:
        """The frames of all rounds with labels: ``chosen`` or ``labelled``."""
        return [system for number in range(len(self.labels)) for system in read_systems(self.path(number, f"{name}.extxyz"))]

    def known(self, arm: str) -> list[System]:
        """All labelled frames of an arm so far."""
        return [system for number in range(len(self.labels)) for system in self.labelled(number, arm)]

    def labelled(self, number: int, arm: str) -> list[System]:
        """Those of a round."""
        return [system for system in read_systems(self.path(number, "labelled.extxyz")) if system.tags["arm"] == arm]

    def present(self, number: int) -> Uncertain:
        """The model of a round."""
        potential = load(self.path(number, MODEL)).potential
        assert isinstance(potential, Uncertain)
        return potential
