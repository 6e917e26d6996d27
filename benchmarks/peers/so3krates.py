"""SO3krates (Frank et al., Nat. Commun. 15, 6539, 2024; package `so3krates-torch`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from so3krates_torch.data.atomic_data import AtomicData
from so3krates_torch.data.utils import Configuration
from so3krates_torch.modules.models import So3krates
from so3krates_torch.tools import torch_geometric
from so3krates_torch.tools.utils import AtomicNumberTable

from benchmarks.peers.protocol import Frame, Peer, Problem


class Driver(Peer):
    """SO3krates without its physical terms; channels divide into heads and into degrees."""

    package = "so3krates-torch"

    def __init__(self, problem: Problem, *, n_channels: int = 132, n_layers: int = 3, l_max: int = 3, n_heads: int = 4) -> None:
        self.cutoff, self.scale = problem.cutoff, problem.scale
        self.table = AtomicNumberTable(list(range(1, 119)))  # the model indexes elements by atomic number
        self.module = So3krates(
            r_max=problem.cutoff, num_radial_basis_fn=32, degrees=list(range(1, l_max + 1)), num_features=n_channels,
            num_heads=n_heads, num_layers=n_layers, avg_num_neighbors=problem.average_neighbors, dtype="float32",
            seed=int(torch.initial_seed()) % 2**31,
        )

    def prepare(self, frame: Frame) -> Any:
        configuration = Configuration(
            atomic_numbers=frame.numbers, positions=frame.positions, properties={}, property_weights={}, cell=frame.cell,
            pbc=tuple(frame.pbc.tolist()),
        )
        return AtomicData.from_config(configuration, z_table=self.table, cutoff=self.cutoff)

    def collate(self, items: Sequence[Any]) -> Any:
        return torch_geometric.Batch.from_data_list(items).to_dict()

    def predict(self, batch: Any, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.module({**batch, "positions": batch["positions"].detach().clone()}, training=create_graph,
                             compute_force=True)
        return output["energy"] * self.scale, output["forces"] * self.scale
