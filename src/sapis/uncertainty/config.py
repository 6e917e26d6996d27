"""Settings of uncertainty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sapis.core.config import Config
from sapis.training.config import TrainingConfig

Method = Literal["none", "distance", "laplace", "shallow", "evidential", "dropout", "ensemble"]


class UncertaintyConfig(Config):
    """How a model knows its doubt."""

    method: Method = Field("none", description="distance, laplace, shallow and evidential are made from one model in a minute, "
                           "dropout is trained for, each member of an ensemble is trained as long as the model")
    members: int | None = Field(
        None, ge=2, description="of an ensemble or of dropout, default 4, or of a shallow ensemble, default 16")
    dropout: float = Field(0.1, gt=0, lt=1, description="probability of a channel to be left out, with method dropout")

    @property
    def n_members(self) -> int:
        """As many as asked for, or as usual."""
        return self.members or (16 if self.method == "shallow" else 4)

    def trained_with(self, training: TrainingConfig) -> TrainingConfig:
        """``training`` as the method needs it."""
        return training.model_copy(update={"dropout": self.dropout}) if self.method == "dropout" else training
