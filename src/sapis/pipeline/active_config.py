"""Settings of an active-learning run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from sapis.core.config import Config, load_yaml, parse_config
from sapis.executors.cluster import ClusterConfig
from sapis.labelers.labeler import LabelerConfig
from sapis.model.config import ModelConfig
from sapis.pipeline.recipe import BudgetConfig, DynamicsConfig, SystemConfig
from sapis.simulate.sampling import CandidatesConfig
from sapis.training.config import TrainingConfig
from sapis.uncertainty.config import UncertaintyConfig
from sapis.uncertainty.select import Strategy
from sapis.uncertainty.stopping import StopRules


class BreadthConfig(Config):
    """Cheap labels first: a `sapis run` for the same system, whose model is what the rounds begin from."""

    labeler: LabelerConfig = LabelerConfig()
    temperatures_K: list[Annotated[float, Field(gt=0)]] = Field([300.0, 600.0, 1000.0], min_length=1)
    budget: BudgetConfig = BudgetConfig(labels=2000)
    candidates: CandidatesConfig = CandidatesConfig()
    training: TrainingConfig = TrainingConfig()
    dynamics: DynamicsConfig = DynamicsConfig()


class ActiveRecipe(Config):
    """A model that asks for the labels it needs."""

    title: str | None = None
    system: SystemConfig | None = Field(None, description="what is simulated, to find candidates")
    pool: Path | None = Field(None, description="structures to choose from, in place of a system")
    output: Path = Field(description="folder of the run")
    labeler: LabelerConfig = LabelerConfig()
    start: Path | None = Field(None, description="model to begin from, of cheaper labels for example; default: a new one")
    breadth: BreadthConfig | None = Field(None, description="make that model first, from cheap labels")
    to_level: str = Field("", description="with start: a name for the level of theory of the labels, another than the model's")
    n_start: int = Field(40, ge=20, description="labels before the first choice")
    rounds: int = Field(5, ge=1, description="choices, at most")
    n_per_round: int = Field(20, ge=2, description="labels of each")
    random_fraction: float = Field(
        0.2, gt=0, lt=1, description="of the labels of a round, chosen at random: they validate, and say what choice is worth")
    strategy: Strategy = Field("largest and diverse", description="random, largest, diverse, largest and diverse, or information")
    n_candidates: int = Field(400, ge=10, description="structures to choose from in each round")
    temperatures_K: list[Annotated[float, Field(gt=0)]] = Field([300.0, 600.0], min_length=1)
    candidates: CandidatesConfig = CandidatesConfig(rattle_fraction=0.0)
    displaced_fraction: float = Field(
        0.0, ge=0, lt=1, description="of the candidates of a SMILES: vibrations, turned bonds and stretched bonds, no dynamics")
    energy_window_eV_atom: float | None = Field(
        None, gt=0, description="candidates that the model puts higher than this above the lowest label of their composition are "
        "left out")
    stop: StopRules = StopRules()
    uncertainty: UncertaintyConfig = UncertaintyConfig(method="distance")
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig(epochs=100)
    later_learning_rate: float | None = Field(
        None, gt=0, description="of all rounds but the first; default: that of the training")
    workers: int | None = Field(None, ge=1, description="processes for labels and trajectories; default: one a core")
    cluster: ClusterConfig | None = Field(None, description="where labels are computed, if not on this machine")
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _consistent(self) -> ActiveRecipe:
        if (self.system is None) == (self.pool is None):
            raise ValueError("either a system or a pool")
        if self.breadth and (self.start or self.system is None):
            raise ValueError("breadth with a system and without a start: it makes the model to begin from")
        if self.to_level and self.start is None and self.breadth is None:
            raise ValueError("start with to_level: a new model takes its level of theory from the labels")
        if self.displaced_fraction and not (self.system and self.system.smiles):
            raise ValueError("displaced_fraction with a system that is given as a SMILES: bonds are not known otherwise")
        if self.uncertainty.method == "ensemble" and (self.start or self.breadth):
            raise ValueError("another uncertainty than ensemble with one model to begin from: all members would be alike")
        if self.training.seed != 0:
            raise ValueError("no seed under training: a recipe gives it as seed")
        if self.n_per_round - max(1, round(self.random_fraction * self.n_per_round)) < 1:
            raise ValueError("n_per_round and random_fraction that leave a frame to ask for")
        if self.uncertainty.method in ("none", "dropout"):
            raise ValueError("an uncertainty among distance, laplace, shallow, evidential and ensemble")
        return self


def read_active_recipe(path: Path) -> ActiveRecipe:
    """Read and check a recipe; paths in it are relative to its folder.

    Raises:
        ConfigError: not YAML, an unknown key (with a suggestion), a wrong value.
        FileError: missing or empty file.
    """
    recipe = parse_config(ActiveRecipe, load_yaml(path), where=str(path))
    changes: dict[str, object] = {"output": path.parent / recipe.output}
    for name in ("pool", "start"):
        if (value := getattr(recipe, name)) is not None:
            changes[name] = path.parent / value
    if recipe.system is not None and recipe.system.file is not None:
        changes["system"] = recipe.system.model_copy(update={"file": path.parent / recipe.system.file})
    return recipe.model_copy(update=changes)
