"""Dropout of whole channels, as factors on weights.

A channel is dropped with all its components, so that what is left is an equivariant model of the same architecture: one whose
weights make nothing in that channel. The same channels are dropped for all atoms: a model with its channels fixed is a potential
like any other, whose energy is conserved.
"""

from __future__ import annotations

import torch

from sapis.model.potential import TransformerPotential
from sapis.model.transformer import Layer


def channel_factors(potential: TransformerPotential, rate: float, seed: int) -> dict[str, torch.Tensor]:
    """By name of the weights that make the features of a layer, what to multiply them by, in their shapes: 0 for a channel that
    is dropped, with probability ``rate``, and ``1 / (1 - rate)`` for others.
    """
    random = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(potential.transformer.layers):
        assert isinstance(layer, Layer)
        factors = (torch.rand(potential.config.n_channels, generator=random) >= rate).to(potential.dtype) / (1 - rate)
        # Rows of the linear map of torch make channels, columns of ours do.
        makers = {"update.weight": factors, "keep.weight": factors, "gate.narrow.weight": factors[:, None]}
        for name, factor in makers.items():
            weight = layer.get_parameter(name)
            found[f"transformer.layers.{number}.{name}"] = factor.to(weight.device).expand_as(weight)
    return found


def dropped(potential: TransformerPotential, rate: float, seed: int) -> TransformerPotential:
    """A copy of ``potential`` without some of its channels."""
    other = TransformerPotential.from_settings(potential.settings())
    weights = dict(potential.state_dict())
    for name, factors in channel_factors(potential, rate, seed).items():
        weights[name] = weights[name] * factors
    other.load_state_dict(weights)
    own = next(potential.parameters())
    return other.to(own.device).train(potential.training).requires_grad_(own.requires_grad)
