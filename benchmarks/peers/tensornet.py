"""TensorNet (Simeon and De Fabritiis, NeurIPS 2023; github.com/torchmd/torchmd-net)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchmdnet.models.model import create_model

from benchmarks.peers.protocol import Frame, Peer, Problem

SETTINGS = {
    "model": "tensornet", "precision": 32, "rbf_type": "expnorm", "trainable_rbf": False, "activation": "silu",
    "cutoff_lower": 0.0, "max_num_neighbors": 128, "output_model": "Scalar", "reduce_op": "sum", "derivative": True,
    "prior_model": None, "equivariance_invariance_group": "O(3)", "check_errors": False, "static_shapes": False,
    "vector_cutoff": True, "atom_filter": -1, "output_mlp_num_layers": 0,
}


class Driver(Peer):
    """TensorNet; its neighbour search is part of the model."""

    package = "torchmd-net"

    def __init__(self, problem: Problem, *, n_channels: int = 128, n_layers: int = 2, n_radial: int = 32) -> None:
        settings = SETTINGS | {"embedding_dimension": n_channels, "num_layers": n_layers, "num_rbf": n_radial,
                               "cutoff_upper": problem.cutoff, "max_z": max(problem.elements) + 1}
        self.module = create_model(settings, mean=torch.tensor(0.0), std=torch.tensor(problem.scale))

    def prepare(self, frame: Frame) -> Any:
        return (torch.from_numpy(frame.numbers), torch.from_numpy(frame.positions).float(),
                torch.from_numpy(frame.cell).float() if frame.pbc.any() else None)

    def collate(self, items: Sequence[Any]) -> Any:
        numbers, positions, boxes = zip(*items, strict=True)
        graph = torch.cat([torch.full_like(own, k) for k, own in enumerate(numbers)])
        return torch.cat(numbers), torch.cat(positions), graph, boxes[0]

    def predict(self, batch: Any, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, positions, graph, box = batch
        # In eval mode the forces carry no graph.
        self.module.train(create_graph)
        energies, forces = self.module(numbers, positions.clone().requires_grad_(), batch=graph, box=box)
        return energies.flatten(), forces
