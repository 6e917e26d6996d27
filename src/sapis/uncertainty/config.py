"""Settings of uncertainty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sapis.core.config import Config
from sapis.core.errors import ConfigError
from sapis.training.config import TrainingConfig

WITH_MEMBERS = ("ensemble", "dropout", "shallow")
Method = Literal["none", "distance", "laplace", "shallow", "evidential", "dropout", "ensemble"]


class UncertaintyConfig(Config):
    """How a model knows its doubt."""

    method: Method = Field("none", description="distance, laplace, shallow and evidential are made from one model in a minute, "
                           "dropout is trained for, each member of an ensemble is trained as long as the model")
    members: int | None = Field(
        None, ge=2, description="of an ensemble or of dropout, default 4, or of a shallow ensemble, default 16")
    dropout: float | None = Field(
        None, gt=0, lt=1, description="probability of a channel to be left out, with method dropout, default 0.1")

    @model_validator(mode="after")
    def _used(self) -> UncertaintyConfig:
        if self.members is not None and self.method not in WITH_MEMBERS:
            raise ValueError(f"no members with method {self.method}: only {', '.join(WITH_MEMBERS)} have some")
        if self.dropout is not None and self.method != "dropout":
            raise ValueError(f"no dropout with method {self.method}: that of a training is training: {{dropout: ...}}")
        return self

    @property
    def rate(self) -> float:
        """The probability, as asked for or as usual."""
        return self.dropout or 0.1

    @property
    def n_members(self) -> int:
        """As many as asked for, or as usual."""
        return self.members or (16 if self.method == "shallow" else 4)

    def trained_with(self, training: TrainingConfig) -> TrainingConfig:
        """``training`` as the method needs it.

        Raises:
            ConfigError: it names another dropout.
        """
        if self.method != "dropout":
            return training
        if training.dropout not in (0.0, self.rate):
            raise ConfigError(expected=f"one dropout, {self.rate:g} as of the uncertainty", received=f"{training.dropout:g}",
                              where="training: dropout", todo="leave it out there: uncertainty: {dropout: ...} is for both")
        return training.model_copy(update={"dropout": self.rate})
