"""Settings of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sapis.core.config import Config


class TrainingConfig(Config):
    """How long and how a potential is trained."""

    epochs: int | None = Field(None, ge=1, description="passes over the training set")
    cpu_seconds: float | None = Field(None, gt=0, description="CPU seconds of this process, validation included")
    flops: float | None = Field(None, gt=0, description="arithmetic as the log counts it: contractions of training steps")
    batch_size: int = Field(2, ge=1, description="systems per step, if there is no max_atoms")
    max_atoms: int | None = Field(None, ge=1, description="atoms per step at most, of systems of about one size")
    level_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="how often frames of each level of theory are seen; 1 is once an epoch")
    workers: int = Field(0, ge=0, description="processes that search for neighbours beside the training, for large sets")
    learning_rate: float = Field(0.005, gt=0, description="after the warm-up, from which it falls")
    warmup_steps: int = Field(100, ge=0, description="in which the learning rate rises")
    cooldown: float | None = Field(
        None, gt=0, le=1, description="last part of the budget in which the learning rate falls in a line, after a fall with the "
        "root of the steps; default: half a cosine over the whole")
    optimizer: Literal["muon", "amsgrad"] = Field("muon", description="Muon is for matrices: Adam moves all else")
    weight_decay: float = Field(0.03, ge=0, description="of the matrices that Muon moves, in units of the learning rate")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of a channel to be left out of a step")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the running mean of the weights, which is the result")
    clip: float = Field(3.0, gt=1, description="largest norm of the gradient, in units of its running mean")
    energy_weight: float = Field(0.1, ge=0, description="of the squared energy error per atom count")
    force_weight: float = Field(1.0, ge=0, description="of the squared force error per component")
    stress_weight: float = Field(1.0, ge=0, description="of the squared virial error per atom count")
    validations: int = Field(30, ge=1, description="times the validation set is looked at")
    patience: int | None = Field(None, ge=1, description="validations without improvement before stopping early")
    checkpoint_seconds: float = Field(20.0, gt=0, description="wall seconds between checkpoints")
    precision: Literal["float32", "float64"] = Field("float32", description="of weights and arithmetic")
    threads: int = Field(1, ge=1, description="threads of torch")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights and of the order of frames")

    @model_validator(mode="after")
    def _learns_something(self) -> TrainingConfig:
        if self.energy_weight == self.force_weight == self.stress_weight == 0:
            raise ValueError("an energy_weight, force_weight or stress_weight above 0")
        return self
