"""Settings that determine the architecture."""

from __future__ import annotations

from pydantic import Field, model_validator

from sapis.core.config import Config

# Under the root of every norm.
NORM_EPSILON = 1e-6


# Widths at which the default learning rate was chosen (see `sapis.model.axes.rate_factors`).
BASE_WIDTHS = {"n_channels": 64, "n_channels_carried": 16, "n_heads": 8, "n_hidden_readout": 32}


class ModelConfig(Config):
    """Architecture of the equivariant Transformer (see `sapis.model.transformer`)."""

    cutoff: float = Field(5.0, gt=0, description="Å; radius of the neighbourhood of an atom")
    l_max: int = Field(2, ge=0, le=6, description="highest degree of features and of edge harmonics")
    l_max_carried: int = Field(1, ge=0, description="highest degree that neighbours send from the second layer on")
    n_channels: int = Field(BASE_WIDTHS["n_channels"], ge=1, description="channels of each degree")
    n_channels_carried: int = Field(BASE_WIDTHS["n_channels_carried"], ge=1,
                                    description="channels of what neighbours send from the second layer on")
    n_heads: int = Field(BASE_WIDTHS["n_heads"], ge=1, description="attention heads")
    n_layers: int = Field(2, ge=1, description="interaction layers")
    order: int = Field(3, ge=1, le=3, description="highest order of the many-body product")
    n_radial: int = Field(8, ge=1, description="Bessel functions")
    n_hidden_readout: int = Field(BASE_WIDTHS["n_hidden_readout"], ge=1, description="hidden width of the last read-out")

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.n_channels % self.n_heads or self.n_channels_carried % self.n_heads:
            raise ValueError("n_channels and n_channels_carried that are multiples of n_heads")
        if self.l_max_carried > self.l_max:
            raise ValueError("l_max_carried <= l_max")
        return self
