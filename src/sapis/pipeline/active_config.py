"""Settings of an active-learning run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from sapis.core.config import Config, defaults, load_yaml, parse_config
from sapis.executors.cluster import ClusterConfig
from sapis.labelers.labeler import LabelerConfig
from sapis.model.config import ModelConfig
from sapis.pipeline.recipe import BudgetConfig, DynamicsConfig, SystemConfig
from sapis.pipeline.rounds_config import RoundsConfig
from sapis.simulate.sampling import CandidatesConfig
from sapis.training.config import TrainingConfig
from sapis.uncertainty.config import UncertaintyConfig

OF_DYNAMICS = {"temperatures_K", "candidates", "n_candidates", "displaced_fraction"}  # nothing to a pool
EPOCHS = 100  # of a training that names no end


def _ended(training: TrainingConfig) -> TrainingConfig:
    """With an end, if it names none: no label is to be bought for a training that cannot begin."""
    ends = (training.epochs, training.cpu_seconds, training.flops)
    return training if any(end is not None for end in ends) else training.model_copy(update={"epochs": EPOCHS})


class BreadthConfig(Config):
    """Cheap labels first: a `sapis run` for the same system, whose model is what the rounds begin from."""

    labeler: LabelerConfig = LabelerConfig()
    temperatures_K: list[Annotated[float, Field(gt=0)]] = Field(
        [300.0, 600.0, 1000.0], min_length=1, description="of the dynamics that samples structures")
    budget: Annotated[BudgetConfig, defaults(labels=2000)] = BudgetConfig(labels=2000)
    candidates: CandidatesConfig = CandidatesConfig()
    training: TrainingConfig = TrainingConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    delta: Annotated[TrainingConfig, AfterValidator(_ended)] | None = Field(
        None, description="training of a model of what dear labels differ from cheap ones by; corrected by it, the cheap ones "
        "are learned beside the dear ones; without an end 100 epochs")

    @model_validator(mode="after")
    def _one_place_each(self) -> BreadthConfig:
        if self.training.cpu_seconds is not None or self.training.seed != 0:
            raise ValueError("no cpu_seconds or seed under training of breadth: a recipe gives them as its budget and seed")
        return self


class ActiveRecipe(RoundsConfig):
    """A model that asks for the labels it needs."""

    title: str | None = Field(None, description="of the report; default: the SMILES or the file")
    system: SystemConfig | None = Field(None, description="what is simulated, to find candidates")
    pool: Path | None = Field(None, description="structures to choose from, in place of a system")
    output: Path = Field(description="folder of the run")
    labeler: LabelerConfig = LabelerConfig()
    data: Path | None = Field(None, description="labelled frames to begin with, in place of n_start new labels")
    validation: Path | None = Field(
        None, description="with data: others that validate, which start has not learned from; default: some of data")
    waive: list[str] = Field([], description="rules of `sapis data lint` whose errors in data are accepted")
    start: Path | None = Field(None, description="model to begin from, of cheaper labels for example; default: a new one")
    breadth: BreadthConfig | None = Field(None, description="make that model first, from cheap labels")
    to_level: str = Field("", description="with start: a name for the level of theory of the labels, another than the model's")
    n_start: int = Field(40, ge=20, description="labels before the first choice")
    temperatures_K: list[Annotated[float, Field(gt=0)]] = Field(
        [300.0, 600.0], min_length=1, description="of the dynamics that finds candidates")
    # Dynamics goes where the model will; rattling does not.
    candidates: Annotated[CandidatesConfig, defaults(rattle_fraction=0.0)] = CandidatesConfig(rattle_fraction=0.0)
    uncertainty: Annotated[UncertaintyConfig, defaults(method="distance")] = UncertaintyConfig(method="distance")
    model: ModelConfig = ModelConfig()
    training: Annotated[TrainingConfig, AfterValidator(_ended)] = TrainingConfig(epochs=EPOCHS)
    control: bool = Field(False, description="train a second model on as many labels at random, to see what choosing brings: "
                          "twice the labels and the training")
    workers: int | None = Field(None, ge=1, description="processes for labels and trajectories; default: one a core")
    cluster: ClusterConfig | None = Field(
        None, description="where labels are computed, if not on this machine; dynamics are run here, those before the first "
        "labels by their method, if there is no start and no breadth")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")

    @property
    def name(self) -> str:
        """For titles."""
        file = self.system.file if self.system else self.pool
        return self.title or (self.system and self.system.smiles) or (file.name if file else "")

    @model_validator(mode="after")
    def _consistent(self) -> ActiveRecipe:
        if (self.system is None) == (self.pool is None):
            raise ValueError("either a system or a pool")
        for given, unused in ((self.pool, OF_DYNAMICS), (self.start, {"model"}), (self.data, {"n_start"})):
            if given and (named := sorted(unused & self.model_fields_set)):
                raise ValueError(f"no {', '.join(named)} with {given}: it has no use there")
        if self.validation and not self.data:
            raise ValueError("data with validation: what is learned from first")
        self.require_bonds(self.system.smiles if self.system else None)
        if self.breadth and (self.start or self.system is None):
            raise ValueError("breadth with a system and without a start: it makes the model to begin from")
        if self.to_level and self.start is None and self.breadth is None:
            raise ValueError("start with to_level: a new model takes its level of theory from the labels")
        if self.uncertainty.method == "ensemble" and (self.start or self.breadth):
            raise ValueError("another uncertainty than ensemble with one model to begin from: all members would be alike")
        if self.control and self.breadth and self.breadth.delta:
            raise ValueError("either control or delta: the second model would go without the corrected labels")
        if self.training.seed != 0 or (self.breadth and self.breadth.delta and self.breadth.delta.seed != 0):
            raise ValueError("no seed under training or delta: a recipe gives it as seed")
        self.uncertainty.trained_with(self.training)  # raises
        if self.uncertainty.method == "none":
            raise ValueError("an uncertainty among distance, laplace, shallow, evidential, dropout and ensemble")
        return self


def read_active_recipe(path: Path) -> ActiveRecipe:
    """Read and check a recipe; paths in it are relative to its folder.

    Raises:
        ConfigError: not YAML, an unknown key (with a suggestion), a wrong value.
        FileError: missing or empty file.
    """
    recipe = parse_config(ActiveRecipe, load_yaml(path), where=str(path))
    changes: dict[str, object] = {"output": path.parent / recipe.output, "labeler": recipe.labeler.relative_to(path.parent)}
    if recipe.breadth is not None:
        changes["breadth"] = recipe.breadth.model_copy(update={"labeler": recipe.breadth.labeler.relative_to(path.parent)})
    for name in ("pool", "data", "validation", "start"):
        if (value := getattr(recipe, name)) is not None:
            changes[name] = path.parent / value
    if recipe.system is not None and recipe.system.file is not None:
        changes["system"] = recipe.system.model_copy(update={"file": path.parent / recipe.system.file})
    return recipe.model_copy(update=changes)
