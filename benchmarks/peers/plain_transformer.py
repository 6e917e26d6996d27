"""A Transformer that knows nothing of rotations: the baseline that shows what equivariance is worth.

Attention of each atom over its neighbours within the cutoff; edge vectors are ordinary numbers among the features. Rotations and
reflections are learned from data: every training frame is seen in a random orientation each time.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.graphs import Graph, GraphPeer, forces_of
from benchmarks.peers.protocol import Problem


class Driver(GraphPeer):
    """Energies of the Transformer, forces by their gradient."""

    package = "torch"
    is_augmented = True

    def __init__(self, problem: Problem, *, n_channels: int = 96, n_heads: int = 6, n_layers: int = 4,
                 n_radial: int = 16) -> None:
        super().__init__(problem)
        self.module = Transformer(n_elements=len(problem.elements), cutoff=problem.cutoff, n_channels=n_channels,
                                  n_heads=n_heads, n_layers=n_layers, n_radial=n_radial)
        self.species = torch.zeros(max(problem.elements) + 1, dtype=torch.long)
        self.species[list(problem.elements)] = torch.arange(len(problem.elements))

    def predict(self, batch: Graph, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        positions = batch.positions.clone().requires_grad_()
        per_atom = self.module(self.species[batch.numbers], batch.senders, batch.receivers, batch.vectors(positions))
        energies = self.scale * batch.sums(per_atom)
        forces = forces_of(energies, positions, create_graph=create_graph)
        return energies, forces


class Transformer(nn.Module):
    """Pre-norm Transformer over atoms; ``(atoms,)`` energies."""

    def __init__(self, *, n_elements: int, cutoff: float, n_channels: int, n_heads: int, n_layers: int, n_radial: int) -> None:
        super().__init__()
        self.cutoff, self.n_radial = cutoff, n_radial
        self.species = nn.Embedding(n_elements, n_channels)
        self.edge = nn.Sequential(nn.Linear(n_radial + 6, n_channels), nn.SiLU(), nn.Linear(n_channels, n_channels))
        self.layers = nn.ModuleList(Layer(n_channels, n_heads) for _ in range(n_layers))
        self.readout = nn.Sequential(nn.LayerNorm(n_channels), nn.Linear(n_channels, n_channels), nn.SiLU(),
                                     nn.Linear(n_channels, 1))

    def forward(self, species: torch.Tensor, senders: torch.Tensor, receivers: torch.Tensor, vectors: torch.Tensor,
                ) -> torch.Tensor:
        """Species ``(atoms,)``, edges ``(edges,)``, edge vectors in Å ``(edges, 3)`` -> energies ``(atoms,)``."""
        distances = vectors.norm(dim=1, keepdim=True)
        x = distances / self.cutoff
        orders = math.pi * torch.arange(1, self.n_radial + 1)
        bessel = torch.sin(orders * x) / x
        edges = self.edge(torch.cat([bessel, vectors / distances, vectors], dim=1))
        envelope = smooth_envelope(x)
        hidden = self.species(species)
        for layer in self.layers:
            hidden = layer(hidden, edges, envelope, senders, receivers)
        energies: torch.Tensor = self.readout(hidden).squeeze(1)
        return energies


class Layer(nn.Module):
    """Attention over neighbours, then a feed-forward block."""

    def __init__(self, n_channels: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm, self.norm_ff = nn.LayerNorm(n_channels), nn.LayerNorm(n_channels)
        self.query = nn.Linear(n_channels, n_channels)
        self.sent = nn.Linear(n_channels, 2 * n_channels)  # key and value of the sender
        self.along = nn.Linear(n_channels, 2 * n_channels)  # and of the edge
        self.value = nn.Linear(n_channels, n_channels)
        self.out = nn.Linear(n_channels, n_channels)
        self.feed_forward = nn.Sequential(nn.Linear(n_channels, 2 * n_channels), nn.SiLU(),
                                          nn.Linear(2 * n_channels, n_channels))

    def forward(self, hidden: torch.Tensor, edges: torch.Tensor, envelope: torch.Tensor, senders: torch.Tensor,
                receivers: torch.Tensor) -> torch.Tensor:
        """Features of atoms ``(atoms, channels)`` and edges ``(edges, channels)`` -> features of atoms."""
        normed = self.norm(hidden)
        keys, values = (self.sent(normed)[senders] + self.along(edges)).chunk(2, dim=1)
        heads = (len(senders), self.n_heads, keys.shape[1] // self.n_heads)
        logits = (self.query(normed)[receivers] * keys).view(heads).sum(2) / math.sqrt(heads[2])
        messages = self.value(functional.silu(values)).view(heads)
        # Each atom also attends to nothing, with logit 0: the sum is smooth, and zero without neighbours.
        rows = receivers[:, None].expand_as(logits)
        largest = logits.new_zeros(len(hidden), self.n_heads).scatter_reduce(0, rows, logits.detach(), "amax")
        weights = envelope * torch.exp(logits - largest[receivers])
        total = torch.exp(-largest).index_add(0, receivers, weights)
        summed = messages.new_zeros(len(hidden), *messages.shape[1:]).index_add(0, receivers, weights[..., None] * messages)
        hidden = hidden + self.out((summed / total[..., None]).flatten(1))
        hidden = hidden + self.feed_forward(self.norm_ff(hidden))
        return hidden


def smooth_envelope(x: torch.Tensor) -> torch.Tensor:
    """1 at 0, and 0 from 1 on with two continuous derivatives."""
    return torch.where(x < 1, 1 - 10 * x**3 + 15 * x**4 - 6 * x**5, 0.0)
