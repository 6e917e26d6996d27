"""The equivariant Transformer: species and edge vectors in, per-atom energies out.

| symbol | here | shape |
|---|---|---|
| x_i^(l) | ``features`` | ``(lm, atoms, channels)`` |
| rho_k(r_ij) f(r_ij) | ``RadialBasis`` | ``(atoms, slots, radial)`` or ``(edges, radial)`` |
| Y_lm(u_ij) | ``Harmonics`` | ``(atoms, slots, lm)`` or ``(edges, lm)`` |
| a_ij^h, D_i, A_i | ``Attention`` | ``(lm, atoms, channels)`` |
| A_i^nu | ``Product`` | ``(lm, atoms, channels)`` |

Each layer: ``x <- S_Z W x + W' Product(Attention(x))``, then ``x <- Gate(x)``; the energy of an atom is the sum of a
linear read-out of each layer's scalars and a small network on the last one's. Where a model tells total charges,
multiplicities or levels of theory apart, a vector of each is added to the embedding of every atom, and each level of theory
reads the scalars with weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from sapis.data.conditions import NAMES
from sapis.model.config import BASE_WIDTHS, ModelConfig
from sapis.model.edges import EdgeList, Slots
from sapis.model.layers import Attention, DegreeLinear, Edges, Gate, Product, RadialBasis, add_weighted, readout
from sapis.so3.harmonics import Harmonics


class Layer(nn.Module):
    """Attention over neighbours, product on nodes, gate; with a residual path whose weight depends on the species."""

    def __init__(self, config: ModelConfig, *, n_species: int, average_neighbors: float, l_max_in: int, l_max_out: int,
                 dtype: torch.dtype) -> None:
        super().__init__()
        channels = config.n_channels
        self.attention = Attention(
            l_max=config.l_max, l_max_carried=l_max_in, n_channels=channels, n_carried=config.n_channels_carried,
            n_heads=config.n_heads, n_radial=config.n_radial, average_neighbors=average_neighbors,
            norm_epsilon=config.norm_epsilon, dtype=dtype,
        )
        # Products of two are a part of the outcome, too.
        l_max_product = min(max(config.l_max_product, l_max_out), config.l_max)
        self.product = Product(l_max=config.l_max, l_max_product=l_max_product, l_max_out=l_max_out, order=config.order,
                               n_channels=channels, n_species=n_species, dtype=dtype)
        self.update = DegreeLinear(l_max_out, channels, channels, dtype)
        self.keep = DegreeLinear(min(l_max_in, l_max_out), channels, channels, dtype)
        self.keep_weights = nn.Parameter(torch.ones(n_species, min(l_max_in, l_max_out) + 1, channels, dtype=dtype))
        self.gate = Gate(l_max=l_max_out, n_channels=channels, norm_epsilon=config.norm_epsilon, dtype=dtype)

    def forward(self, features: torch.Tensor, species: torch.Tensor, edges: Edges) -> torch.Tensor:
        """``(lm_in, atoms, channels)`` -> ``(lm_out, atoms, channels)``."""
        update = self.update(self.product(self.attention(features, edges), species))
        return self.gate(add_weighted(update, self.keep(features), self.keep_weights.unsqueeze(1), species, 0))


class Transformer(nn.Module):
    """Per-atom energies in the unit of the data's force scale.

    Args:
        config: architecture.
        n_species: number of elements.
        n_conditions: by name, how many total charges, multiplicities and levels of theory are told apart, where several are.
        average_neighbors: mean number of neighbours in the training set, a constant normalisation.
        dtype: of weights and arithmetic. Constant tables are computed in float64 and rounded to ``dtype`` once, so to
            change precision build a new model and load the weights.
    """

    def __init__(self, config: ModelConfig, *, n_species: int, average_neighbors: float, dtype: torch.dtype,
                 n_conditions: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.config, n_conditions = config, n_conditions or {}
        self.embedding = nn.Parameter(torch.randn(n_species, config.n_channels, dtype=dtype))
        # From zero: at first no condition changes anything.
        self.conditions = nn.ParameterDict({name: torch.zeros(n, config.n_channels, dtype=dtype)
                                            for name, n in n_conditions.items()})
        self.harmonics = Harmonics(config.l_max, dtype)
        self.radial = RadialBasis(config.n_radial, config.cutoff, dtype)
        last, l_max_features = config.n_layers - 1, min(config.l_max_carried, config.l_max)
        self.layers = nn.ModuleList(
            Layer(config, n_species=n_species, average_neighbors=average_neighbors, dtype=dtype,
                  l_max_in=0 if t == 0 else l_max_features, l_max_out=0 if t == last else l_max_features)
            for t in range(config.n_layers)
        )
        self.readouts = nn.ModuleList(
            readout([config.n_channels, config.n_hidden_readout, 1] if t == last else [config.n_channels, 1], dtype)
            for t in range(config.n_layers)
        )
        # What the steps of training do to each channel is correlated with the read-out, so that in sum it grows with the square
        # root of the width unless the read-out starts smaller (Yang et al., arXiv 2203.03466, table 8).
        for read in self.readouts:
            read.get_parameter("0.weight").data *= math.sqrt(BASE_WIDTHS["n_channels"] / config.n_channels)
        self.level_weights = (nn.Parameter(torch.ones(n_conditions["level"], config.n_layers, 1, config.n_channels, dtype=dtype))
                              if "level" in n_conditions else None)

    def forward(self, species: torch.Tensor, conditions: torch.Tensor, links: Slots | EdgeList, vectors: torch.Tensor,
                ) -> torch.Tensor:
        """Per-atom energies.

        Args:
            species: ``(atoms,)``.
            conditions: indices of charge, multiplicity and level, ``(atoms, 3)``.
            vectors: of ``links``, ``(..., 3)``.

        Returns:
            ``(atoms,)``.
        """
        features = self.last_features(species, conditions, links, vectors)
        energies = torch.zeros_like(features[0][:, 0])
        for read, part in zip(self.readouts, features, strict=True):
            assert isinstance(read, nn.Sequential)
            energies = energies + read[-1](part).squeeze(-1)
        return energies

    def last_features(self, species: torch.Tensor, conditions: torch.Tensor, links: Slots | EdgeList, vectors: torch.Tensor,
                      ) -> list[torch.Tensor]:
        """What the last linear map of each read-out reads, ``(atoms, n)`` each; arguments as of `forward`."""
        distances = vectors.square().sum(-1).sqrt()
        radial = self.radial(distances)
        harmonics = self.harmonics(vectors / distances.unsqueeze(-1))
        edges = Edges(links, radial, harmonics)
        features = self.embedding.index_select(0, species).unsqueeze(0)
        for name, table in self.conditions.items():
            features = features + table.index_select(0, conditions[:, NAMES.index(name)])
        found = []
        for t, (layer, read) in enumerate(zip(self.layers, self.readouts, strict=True)):
            features = layer(features, species, edges)
            scalars = features[:1]
            if self.level_weights is not None:
                level = conditions[:, NAMES.index("level")]
                scalars = add_weighted(torch.zeros_like(scalars), scalars, self.level_weights, level, t)
            assert isinstance(read, nn.Sequential)
            found.append(read[:-1](scalars[0]))
        return found
