"""The recipe: what the user asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from sapis.core.config import Config, load_yaml, parse_config
from sapis.labelers.labeler import LabelerConfig
from sapis.model.config import ModelConfig
from sapis.pipeline.auto_config import GrowthConfig, objection_to
from sapis.pipeline.rounds_config import RoundsConfig
from sapis.simulate.sampling import CandidatesConfig
from sapis.training.config import TrainingConfig
from sapis.uncertainty.config import UncertaintyConfig


class SystemConfig(Config):
    """What is simulated: a SMILES or a structure file."""

    smiles: str | None = Field(None, description="of a molecule")
    file: Path | None = Field(None, description="with a structure, in any format that is read here")
    charge: int | None = Field(None, description="in elementary charges; default: that of the SMILES or of the file, else 0")
    spin: int | None = Field(None, ge=1, description="multiplicity 2S+1")

    @model_validator(mode="after")
    def _one_source(self) -> SystemConfig:
        if (self.smiles is None) == (self.file is None):
            raise ValueError("exactly one of smiles and file")
        return self


class BudgetConfig(Config):
    """What may be spent."""

    labels: int = Field(500, ge=20, description="labelled structures, all splits and the hot test set together")
    cpu_seconds: float = Field(900, gt=0, description="CPU seconds of training")


class SplitConfig(Config):
    """How labelled frames are divided."""

    train: float = Field(0.8, gt=0, lt=1, description="of the labels that are not kept for the hot test")
    validation: float = Field(0.1, gt=0, lt=1, description="of the same; the rest is the test set")
    hot: float = Field(0.12, gt=0, lt=1, description="of all labels, kept for the test at the hot temperature")
    waive: list[str] = Field(default_factory=list, description="names of lint rules whose errors are accepted")

    @model_validator(mode="after")
    def _room_for_a_test(self) -> SplitConfig:
        if self.train + self.validation >= 1:
            raise ValueError("train + validation < 1, so that a test set remains")
        return self


class AskingConfig(RoundsConfig):
    """Rounds of asking after the training: labels beyond those of the budget, from where the model goes and is uncertain."""

    epochs: int = Field(30, ge=1, description="passes over all labels in each round")


class DynamicsConfig(Config):
    """The molecular dynamics that tests the model."""

    temperature_K: float = Field(300, gt=0, description="at which it begins, and is held with a thermostat")
    timestep_fs: float = Field(0.5, gt=0, description="of all of it")
    nve_ps: float = Field(2.0, gt=0, description="without a thermostat, for the drift of the energy")
    order_ps: float = Field(0.2, gt=0, description="of each run with another timestep, for how the energy error falls with it")
    nvt_ps: float = Field(2.0, gt=0, description="with a thermostat, for the temperature")


class Recipe(Config):
    """Everything that determines a run."""

    title: str | None = Field(None, description="of the report; default: the SMILES or the file")
    system: SystemConfig
    output: Path = Field(description="folder of the run")
    labeler: LabelerConfig = LabelerConfig()
    temperatures_K: list[Annotated[float, Field(gt=0)]] = Field(
        [300.0, 500.0], min_length=1, description="of the dynamics that samples structures")
    hot_temperature_K: float | None = Field(800.0, gt=0, description="sampled too, but only used as a test")
    budget: BudgetConfig = BudgetConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    auto: GrowthConfig | None = Field(None, description="decide while training how far the model grows; its budget is of FLOPs")
    active: AskingConfig | None = Field(None, description="then let the model ask for labels, round after round")
    uncertainty: UncertaintyConfig = UncertaintyConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    workers: int | None = Field(None, ge=1, description="processes for labels; default: one a core")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")

    @model_validator(mode="after")
    def _hot_is_hotter(self) -> Recipe:
        if self.hot_temperature_K is not None and self.hot_temperature_K <= max(self.temperatures_K):
            raise ValueError("hot_temperature_K above all of temperatures_K (it tests extrapolation)")
        return self

    @model_validator(mode="after")
    def _can_be_uncertain(self) -> Recipe:
        if self.active and self.uncertainty.method == "ensemble":
            raise ValueError("another uncertainty than ensemble for a model that asks: it goes on from one")
        if self.active:
            self.active.require_bonds(self.system.smiles)
        self.uncertainty.trained_with(self.training)  # raises
        if self.auto and self.uncertainty.method == "ensemble":
            raise ValueError("another uncertainty than ensemble for a model that grows: all its members would")
        return self

    @model_validator(mode="after")
    def _one_place_each(self) -> Recipe:
        if self.training.cpu_seconds is not None or self.training.seed != 0:
            raise ValueError("no cpu_seconds or seed under training: a recipe gives them as budget.cpu_seconds and seed")
        if self.auto and (objection := objection_to(self.training)):
            raise ValueError(objection)
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; paths in it are relative to the recipe's folder.

    Raises:
        ConfigError: not YAML, an unknown key (with a suggestion), a wrong value.
        FileError: missing or empty file.
    """
    recipe = parse_config(Recipe, load_yaml(path), where=str(path))
    system = recipe.system
    if system.file is not None:
        system = system.model_copy(update={"file": path.parent / system.file})
    return recipe.model_copy(update={"system": system, "output": path.parent / recipe.output,
                                     "labeler": recipe.labeler.relative_to(path.parent)})


def example_recipe(path: Path, smiles: str) -> str:
    """The commented recipe that `sapis init` writes to ``path``."""
    # JSON strings are YAML strings: quotes and colons stay what they are.
    title, output = (json.dumps(text, ensure_ascii=False) for text in (smiles, f"runs/{path.stem}"))
    groups = {"candidates": CandidatesConfig(), "model": ModelConfig(), "training": TrainingConfig(),
              "dynamics": DynamicsConfig(), "budget": BudgetConfig()}
    return EXAMPLE.format(title=title, smiles=title, output=output, **groups)


# The defaults that it states are filled in from where they are set.
EXAMPLE = """\
# A recipe for `sapis run`. Every key but `system` and `output` is optional; the values shown are the defaults
# unless a comment says otherwise. Paths are relative to this file.
title: {title}                 # of the report; default: the SMILES or the file
system:
  smiles: {smiles}             # or `file: molecule.xyz` (anything ASE reads, periodic cells included)
  # charge: 0                # default: the SMILES's formal charge
  # spin: 1                  # multiplicity 2S+1
output: {output}

labeler:
  name: gfn2                 # gfn2, gfn1, dft, openmm, potential, emt, lj, command, or `ase` for any ASE calculator:
  # name: ase
  # calculator: ase.calculators.emt.EMT
  # arguments: {{}}
temperatures_K: [300, 500]   # molecular dynamics with the labeler at these temperatures makes the candidates
hot_temperature_K: 800       # labelled too, but only used as a test of extrapolation
budget:
  labels: {budget.labels}
  cpu_seconds: {budget.cpu_seconds:g}           # of training
# candidates: {{rattle_fraction: {candidates.rattle_fraction}, decorrelation_fs: {candidates.decorrelation_fs}}}
# model: {{n_channels: {model.n_channels}, l_max: {model.l_max}, n_layers: {model.n_layers}, cutoff: {model.cutoff}}}
# training: {{batch_size: {training.batch_size}, learning_rate: {training.learning_rate}}}   # and, say, epochs: 60 to end sooner
# uncertainty, active and auto: a model that knows when it is unsure, asks for labels, grows as its data ask; see docs/howto
# dynamics: {{temperature_K: {dynamics.temperature_K}, nve_ps: {dynamics.nve_ps}}}
seed: 0
"""
