"""What the axes of each weight mean: the one place that knows, for growth and for learning rates.

An entry of a weight is found by its labels (a path, a radial function, a channel), not by its position, so that the weights of
a larger model hold those of a smaller one by name. Each axis also says whether an entry takes part in what comes *out* of the
weight or only in what goes *in*: rows that read something are added up, rows that make something stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from sapis.data.conditions import Conditions
from sapis.model.config import BASE_WIDTHS
from sapis.model.layers import Attention, Coupling, Gate, Product
from sapis.model.transformer import Layer, Transformer


class Axis(NamedTuple):
    """An axis of a weight, or the part of one: a dimension of radial functions times channels has two.

    Attributes:
        labels: of the entries, each once.
        outcomes: what each entry makes; None where the axis is summed over. Entries of a path (l1, l2, l3) are summed over all
            that make the same l3.
        is_species: labels are atomic numbers. Each atom uses one entry.
    """

    labels: tuple[Hashable, ...]
    outcomes: tuple[Hashable, ...] | None = None
    is_species: bool = False


Axes = tuple[Axis, ...]


def weight_axes(transformer: Transformer, elements: Sequence[int], conditions: Conditions) -> dict[str, Axes]:
    """The axes of every parameter of ``transformer``, by its name, in their order.

    The lengths of the axes multiply to the parameter's shape: ``parameter.view([len(axis.labels) for axis in axes])``.

    Args:
        elements: atomic numbers, one for each species.
        conditions: the values that the model tells apart.
    """
    species = Axis(tuple(elements), is_species=True)
    channels = range(transformer.config.n_channels)
    found: dict[str, Axes] = {"embedding": (species, _makes(channels))}
    for name, values in conditions.told_apart.items():
        found[f"conditions.{name}"] = (_makes(values), _makes(channels))
    if transformer.level_weights is not None:
        layers = [*range(len(transformer.layers) - 1), "last"]
        found["level_weights"] = (_makes(conditions.levels), _makes(layers), _makes([0]), _makes(channels))
    for t, layer in enumerate(transformer.layers):
        assert isinstance(layer, Layer)
        found |= _within(f"layers.{t}", _layer(layer, species, channels))
    for t, read in enumerate(transformer.readouts):
        assert isinstance(read, nn.Sequential)
        found |= _within(f"readouts.{t}", _readout(read, channels))
    return {name: found[name] for name, _ in transformer.named_parameters()}


def _layer(layer: Layer, species: Axis, channels: range) -> dict[str, Axes]:
    degrees, kept = range(len(layer.update.weight)), range(len(layer.keep.weight))
    return {
        **_within("attention", _attention(layer.attention, channels)),
        **_within("product", _product(layer.product, species, channels)),
        "update.weight": (_makes(degrees), _reads(channels), _makes(channels)),
        "keep.weight": (_makes(kept), _reads(channels), _makes(channels)),
        "keep_weights": (species, _makes(kept), _makes(channels)),
        **_within("gate", _gate(layer.gate, channels)),
    }


def _attention(module: Attention, channels: range) -> dict[str, Axes]:
    heads, radial = range(len(module.temperature)), range(module.n_radial)
    of_heads = tuple(product(heads, range(module.n_per_head)))
    carried = tuple(product(heads, range(module.n_carried // len(heads))))
    return {
        "query.weight": (_makes(of_heads), _reads(channels)),
        "key.weight": (_makes(of_heads), _reads(channels)),
        "temperature": (_makes(heads),),
        "radial_bias": (_reads(radial), _makes(heads)),
        "value.weight": (_makes(range(len(module.value.weight))), _reads(channels), _makes(carried)),
        "coupling.weight": (_paths(module.coupling), _reads(radial), _reads(carried), _makes(channels)),
    }


def _product(module: Product, species: Axis, channels: range) -> dict[str, Axes]:
    _, orders, degrees, _ = module.order_weights.shape
    found: dict[str, Axes] = {"order_weights": (species, _reads(range(orders)), _makes(range(degrees)), _makes(channels))}
    for n, coupling in enumerate(module.couplings):
        assert isinstance(coupling, Coupling)
        found[f"couplings.{n}.weight"] = (_paths(coupling), _reads(channels), _makes(channels))
    return found


def _gate(module: Gate, channels: range) -> dict[str, Axes]:
    hidden = range(2 * module.n_channels)
    degrees = range(1, module.l_max + 1)
    wide = [*product(["up"], hidden), *product(["gate"], hidden), *product(degrees, channels)]
    return {
        "widen.weight": (_makes(wide), _reads(channels)), "widen.bias": (_makes(wide),),
        "narrow.weight": (_makes(channels), _reads(hidden)),
    }


def _readout(module: nn.Sequential, channels: range) -> dict[str, Axes]:
    found: dict[str, Axes] = {}
    inputs = channels
    for n, part in enumerate(module):
        if isinstance(part, nn.Linear):
            found[f"{n}.weight"] = (_makes(range(part.out_features)), _reads(inputs))
            if part.bias is not None:
                found[f"{n}.bias"] = (_makes(range(part.out_features)),)
            inputs = range(part.out_features)
    return found


def _paths(coupling: Coupling) -> Axis:
    return Axis(tuple(coupling.paths), tuple(l3 for _, _, l3 in coupling.paths))


def _reads(labels: Iterable[Hashable]) -> Axis:
    return Axis(tuple(labels))


def _makes(labels: Iterable[Hashable]) -> Axis:
    labels = tuple(labels)
    return Axis(labels, labels)


def _within(prefix: str, axes: dict[str, Axes]) -> dict[str, Axes]:
    return {f"{prefix}.{name}": value for name, value in axes.items()}


def rate_factors(transformer: Transformer, elements: Sequence[int], conditions: Conditions) -> dict[str, float]:
    """By which factor each weight's learning rate should differ from that of the default width, so that one rate fits all widths.

    Adam moves every entry alike, and the moves of entries that read correlated inputs add up: the outcome's change grows with
    the number that it reads. So the rate falls with the fan-in, and only with it: embeddings, biases and what weighs orders,
    species and radial functions read no more in a wider model (Yang et al., arXiv 2203.03466, table 8).
    """
    base = transformer.config.model_copy(update=BASE_WIDTHS)
    with torch.random.fork_rng(devices=[]):  # only its shapes are wanted
        narrow = Transformer(base, n_species=len(elements), average_neighbors=1.0, dtype=torch.float32,
                             n_conditions=conditions.sizes)
    base_fan_in = {name: _fan_in(axes) for name, axes in weight_axes(narrow, elements, conditions).items()}
    return {name: base_fan_in[name] / _fan_in(axes) for name, axes in weight_axes(transformer, elements, conditions).items()}


def reads(transformer: Transformer, elements: Sequence[int], conditions: Conditions) -> dict[str, bool]:
    """Whether each weight adds up what it reads, so that it is a matrix; others are tables, of which each atom uses a row."""
    return {name: any(axis.outcomes is None and not axis.is_species for axis in axes)
            for name, axes in weight_axes(transformer, elements, conditions).items()}


def _fan_in(axes: Axes) -> int:
    return math.prod(len(axis.labels) for axis in axes if axis.outcomes is None and not axis.is_species)
