"""GotenNet (Aykent and Xia, ICLR 2025; package `gotennet`).

The package asks for compiled companions of torch-geometric; its representation needs none of them: edges come from here.
"""

from __future__ import annotations

import logging

import torch
import torch_geometric.nn  # noqa: F401  before the stand-ins: it looks for what is installed
from torch import nn

from benchmarks.peers.graphs import Graph, GraphPeer, forces_of
from benchmarks.peers.imports import stand_in, without_init
from benchmarks.peers.protocol import Problem

without_init("gotennet", "gotennet.models", "gotennet.models.components")
stand_in("gotennet.utils", get_logger=logging.getLogger)
stand_in("torch_cluster", radius_graph=None)

from gotennet.models.components.layers import CosineCutoff  # noqa: E402
from gotennet.models.representation.gotennet import GotenNet  # noqa: E402


class Driver(GraphPeer):
    """GotenNet with a read-out of two layers, as its authors use for energies."""

    package = "gotennet"

    def __init__(self, problem: Problem, *, n_channels: int = 64, n_layers: int = 3, l_max: int = 2) -> None:
        super().__init__(problem)
        representation = GotenNet(
            n_atom_basis=n_channels, n_interactions=n_layers, cutoff_fn=CosineCutoff(problem.cutoff), n_rbf=32, lmax=l_max,
            max_z=max(problem.elements) + 1, num_heads=8, sep_dir=True, sep_tensor=True,
        )
        readout = nn.Sequential(nn.Linear(n_channels, n_channels // 2), nn.SiLU(), nn.Linear(n_channels // 2, 1))
        self.module = nn.ModuleDict({"representation": representation, "readout": readout})

    def predict(self, batch: Graph, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        positions = batch.positions.clone().requires_grad_()
        own = torch.arange(len(positions))  # each atom is its own neighbour too, at distance 0
        vectors = -batch.vectors(positions)
        edges = torch.stack([torch.cat([batch.senders, own]), torch.cat([batch.receivers, own])])
        distances = torch.cat([vectors.norm(dim=1), positions.new_zeros(len(own))])
        scalars, _ = self.module["representation"](batch.numbers, edges, distances,
                                                   torch.cat([vectors, positions.new_zeros(len(own), 3)]))
        energies = self.scale * batch.sums(self.module["readout"](scalars).squeeze(1))
        forces = forces_of(energies, positions, create_graph=create_graph)
        return energies, forces
