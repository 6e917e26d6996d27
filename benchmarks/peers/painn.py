"""PaiNN (Schütt et al., ICML 2021) as in SchNetPack (github.com/atomistic-machine-learning/schnetpack)."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.data.dataloader as dataloader
from ase import Atoms

from benchmarks.peers.protocol import Frame, Peer, Problem

if not hasattr(dataloader, "T_co"):  # SchNetPack imports a name that torch no longer has
    dataloader.T_co = typing.TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]

import schnetpack
from schnetpack.interfaces.ase_interface import AtomsConverter
from schnetpack.transform import MatScipyNeighborList


class Driver(Peer):
    """PaiNN with Gaussian radial functions and a cosine cutoff."""

    package = "schnetpack"

    def __init__(self, problem: Problem, *, n_channels: int = 128, n_layers: int = 3, n_radial: int = 20) -> None:
        self.scale = problem.scale
        self.converter = AtomsConverter(neighbor_list=MatScipyNeighborList(cutoff=problem.cutoff), dtype=torch.float32)
        radial = schnetpack.nn.GaussianRBF(n_rbf=n_radial, cutoff=problem.cutoff)
        self.module = schnetpack.model.NeuralNetworkPotential(
            representation=schnetpack.representation.PaiNN(n_channels, n_layers, radial,
                                                           schnetpack.nn.CosineCutoff(problem.cutoff)),
            input_modules=[schnetpack.atomistic.PairwiseDistances()],
            output_modules=[schnetpack.atomistic.Atomwise(n_in=n_channels, output_key="energy"),
                            schnetpack.atomistic.Forces(energy_key="energy", force_key="forces")],
        )

    def prepare(self, frame: Frame) -> Any:
        return self.converter([Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)])

    def collate(self, items: Sequence[Any]) -> Any:
        return join(items)

    def predict(self, batch: Any, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        # In eval mode the forces carry no graph.
        self.module.train(create_graph)
        output = self.module({key: value.clone() for key, value in batch.items()})
        return output["energy"].flatten() * self.scale, output["forces"] * self.scale


def join(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Inputs of single frames as those of a batch: indices count on from frame to frame."""
    starts, start = [], 0
    for item in items:
        starts.append(start)
        start += int(item["_n_atoms"].sum())
    offsets = {"_idx_i": starts, "_idx_j": starts, "_idx_m": list(range(len(items)))}
    return {key: torch.cat([item[key] + offsets[key][k] if key in offsets else item[key] for k, item in enumerate(items)])
            for key in items[0]}
