"""NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022; github.com/mir-group/nequip)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms
from ase.data import chemical_symbols
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state

from benchmarks.peers.protocol import Frame, Peer, Problem


class Driver(Peer):
    """NequIP, run eagerly."""

    package = "nequip"

    def __init__(self, problem: Problem, **options: Any) -> None:
        set_global_state()
        symbols = [chemical_symbols[number] for number in problem.elements]
        self.transforms = [ChemicalSpeciesToAtomTypeMapper(symbols), NeighborListTransform(r_max=problem.cutoff)]
        self.module = self.build({
            "seed": int(torch.initial_seed()) % 2**31, "model_dtype": "float32", "r_max": problem.cutoff, "type_names": symbols,
            "avg_num_neighbors": problem.average_neighbors, "per_type_energy_scales": problem.scale,
            "per_type_energy_shifts": 0.0, "compile_mode": "eager",
        }, **options)

    def build(self, common: dict[str, Any], *, l_max: int = 2, n_features: int = 32, n_layers: int = 4,
              parity: bool = False) -> torch.nn.Module:
        """The network."""
        return NequIPGNNModel(num_layers=n_layers, l_max=l_max, parity=parity, num_features=n_features, radial_mlp_depth=2,
                              radial_mlp_width=64, num_bessels=8, **common)

    def prepare(self, frame: Frame) -> Any:
        item = from_ase(Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc))
        for transform in self.transforms:
            item = transform(item)
        return item

    def collate(self, items: Sequence[Any]) -> Any:
        return AtomicDataDict.batched_from_list(items)

    def predict(self, batch: Any, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        # In eval mode the forces carry no graph.
        self.module.train(create_graph)
        output = self.module(dict(batch))
        return output[AtomicDataDict.TOTAL_ENERGY_KEY].flatten(), output[AtomicDataDict.FORCE_KEY]
