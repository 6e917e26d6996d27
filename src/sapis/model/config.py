"""Settings that determine the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from sapis.core.config import Config, parse_config
from sapis.core.errors import ConfigError

# Channels of a head: heads are as many as the width asks for, so that what a head sees does not change with it.
CHANNELS_PER_HEAD = 8


def _sizes(n_channels: int) -> dict[str, int]:
    """What follows from the width."""
    n_heads = max(1, n_channels // CHANNELS_PER_HEAD)
    return {"n_channels": n_channels, "n_channels_carried": 2 * n_heads, "n_heads": n_heads,
            "n_hidden_readout": max(1, n_channels // 2)}


# Widths at which the default learning rate was chosen (see `sapis.model.axes.rate_factors`).
BASE_WIDTHS = _sizes(48)


class ModelConfig(Config):
    """Architecture of the equivariant Transformer (see `sapis.model.transformer`).

    The settings may name a preset, ``{preset: large, cutoff: 6}``: its values hold where no other is given. A width alone,
    ``{n_channels: 64}``, brings the heads, the channels sent and the read-out that go with it.
    """

    shorthands: ClassVar[tuple[str, ...]] = ("preset",)

    cutoff: float = Field(5.0, gt=0, description="Å; radius of the neighbourhood of an atom")
    l_max: int = Field(3, ge=0, le=6, description="highest degree of edge harmonics and of the density")
    l_max_product: int = Field(2, ge=0, description="highest degree, up to l_max, of products inside products")
    l_max_carried: int = Field(2, ge=0, description="highest degree, up to l_max, of features and of what neighbours send")
    n_channels: int = Field(BASE_WIDTHS["n_channels"], ge=1, description="channels of each degree")
    n_channels_carried: int = Field(BASE_WIDTHS["n_channels_carried"], ge=1, description="channels of what neighbours send")
    n_heads: int = Field(BASE_WIDTHS["n_heads"], ge=1, description="attention heads")
    n_layers: int = Field(2, ge=1, description="interaction layers")
    order: int = Field(3, ge=1, le=3, description="highest order of the many-body product")
    n_radial: int = Field(5, ge=1, description="Bessel functions")
    norm_epsilon: float = Field(1.0, gt=0, description="added to the mean of squares under the root of every norm")
    n_hidden_readout: int = Field(BASE_WIDTHS["n_hidden_readout"], ge=1, description="hidden width of the last read-out")
    zbl: bool = Field(False, description="add the repulsion of nuclei at close range, see `sapis.model.repulsion`")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """From the preset, and where a width is given from the width."""
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if key != "preset"}
        if "preset" not in values:
            return {**_sizes_of(given), **given}
        name = str(values["preset"])
        if name not in PRESETS:
            raise ValueError(f"a preset among {', '.join(PRESETS)}")
        return {**PRESETS[name], **_sizes_of(given), **given}

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.n_channels % self.n_heads or self.n_channels_carried % self.n_heads:
            raise ValueError("n_channels and n_channels_carried that are multiples of n_heads")
        return self


def _sizes_of(settings: dict[str, Any]) -> dict[str, int]:
    n_channels = settings.get("n_channels")
    return _sizes(n_channels) if isinstance(n_channels, int) else {}


# From a model that trains in minutes to one for large data sets and accelerators; figures in docs/howto/choose-a-size.md.
PRESETS: dict[str, dict[str, int]] = {
    "nano": {**_sizes(16), "l_max": 2, "l_max_carried": 1, "order": 2},
    "tiny": _sizes(16), "small": _sizes(32), "base": BASE_WIDTHS, "large": _sizes(96), "xl": {**_sizes(192), "n_layers": 3},
}


def preset(name: str) -> ModelConfig:
    """The architecture called ``name``; ``base`` is the default one.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(expected=f"a preset among {', '.join(PRESETS)}", received=repr(name), where="preset",
                          todo="choose one of them")
    return ModelConfig(**PRESETS[name])


def dial(n_channels: int, settings: Mapping[str, Any] | None = None) -> ModelConfig:
    """The architecture of ``settings`` (the default one) at another width, all that depends on it in proportion: for studies of
    scaling.

    Raises:
        ConfigError: a width that is no multiple of the channels of a head, or settings that make no model.
    """
    if n_channels < CHANNELS_PER_HEAD or n_channels % CHANNELS_PER_HEAD:
        raise ConfigError(expected=f"a multiple of {CHANNELS_PER_HEAD}", received=str(n_channels), where="n_channels",
                          todo="round it")
    return parse_config(ModelConfig, {**(settings or {}), "n_channels": n_channels}, where="settings of the model")
