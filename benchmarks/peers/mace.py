"""MACE (Batatia et al., NeurIPS 2022; github.com/ACEsuit/mace)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mace  # noqa: F401  before e3nn: it lets e3nn 0.4.4 load its constants on a current torch
import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

from benchmarks.peers.protocol import Frame, Peer, Problem


class Driver(Peer):
    """ScaleShiftMACE with two interactions."""

    package = "mace-torch"

    def __init__(self, problem: Problem, *, hidden: str = "64x0e+64x1o", max_ell: int = 3, correlation: int = 3,
                 n_layers: int = 2) -> None:
        torch.set_default_dtype(torch.float32)
        self.cutoff, self.table = problem.cutoff, tools.AtomicNumberTable(list(problem.elements))
        n_elements = len(problem.elements)
        self.module = modules.ScaleShiftMACE(
            r_max=problem.cutoff, num_bessel=8, num_polynomial_cutoff=5, max_ell=max_ell,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"], num_interactions=n_layers,
            num_elements=n_elements, hidden_irreps=o3.Irreps(hidden), MLP_irreps=o3.Irreps("16x0e"),
            gate=torch.nn.functional.silu, atomic_energies=np.zeros(n_elements), avg_num_neighbors=problem.average_neighbors,
            atomic_numbers=list(problem.elements), correlation=correlation, radial_MLP=[64, 64, 64], radial_type="bessel",
            atomic_inter_scale=problem.scale, atomic_inter_shift=0.0,
        )

    def prepare(self, frame: Frame) -> Any:
        configuration = data.Configuration(
            atomic_numbers=frame.numbers, positions=frame.positions, properties={}, property_weights={}, cell=frame.cell,
            pbc=tuple(frame.pbc.tolist()),
        )
        return data.AtomicData.from_config(configuration, z_table=self.table, cutoff=self.cutoff)

    def collate(self, items: Sequence[Any]) -> Any:
        return torch_geometric.Batch.from_data_list(items).to_dict()

    def predict(self, batch: Any, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.module(dict(batch), training=create_graph, compute_force=True)
        return output["energy"], output["forces"]

    def decayed(self) -> list[torch.nn.Parameter]:
        """As MACE's own training script chooses them."""
        chosen = [parameter for name, parameter in self.module.interactions.named_parameters()
                  if "linear.weight" in name or "skip_tp_full.weight" in name]
        return chosen + list(self.module.products.parameters())
