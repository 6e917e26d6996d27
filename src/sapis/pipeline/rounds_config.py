"""Settings of rounds of asking and learning."""

from __future__ import annotations

from pydantic import Field, model_validator

from sapis.core.config import Config
from sapis.uncertainty.select import Strategy
from sapis.uncertainty.stopping import StopRules


class RoundsConfig(Config):
    """How a model asks for labels, and until when."""

    rounds: int = Field(5, ge=1, description="choices, at most")
    n_per_round: int = Field(20, ge=2, description="labels of each")
    random_fraction: float = Field(
        0.2, gt=0, lt=1, description="of the labels of a round, chosen at random: they validate, and say what choice is worth")
    strategy: Strategy = Field("largest and diverse", description="random, largest, diverse, largest and diverse, or information")
    n_candidates: int = Field(400, ge=10, description="structures to choose from in each round")
    displaced_fraction: float = Field(
        0.0, ge=0, lt=1, description="of the candidates of a SMILES: vibrations, turned bonds and stretched bonds, no dynamics")
    energy_window_eV_atom: float | None = Field(
        None, gt=0, description="candidates that the model puts higher than this above the lowest label of their composition are "
        "left out")
    stop: StopRules = StopRules()
    later_learning_rate: float | None = Field(
        None, gt=0, description="of trainings that go on from a model: all rounds but the first, and that one with a start, "
        "too; default: that of the training")

    @property
    def n_asked(self) -> int:
        """Labels of a round that are asked for, and learned from."""
        return self.n_per_round - max(1, round(self.random_fraction * self.n_per_round))

    @model_validator(mode="after")
    def _asks_for_some(self) -> RoundsConfig:
        if self.n_asked < 1:
            raise ValueError("n_per_round and random_fraction that leave a frame to ask for")
        return self

    def require_bonds(self, smiles: str | None) -> None:
        """Raises ValueError for displaced structures of what is given without its bonds."""
        if self.displaced_fraction and not smiles:
            raise ValueError("displaced_fraction with a system that is given as a SMILES: bonds are not known otherwise")
