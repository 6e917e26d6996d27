"""EquiformerV3 (Liao et al.; package `equiformer-v3`), energies with forces by their gradient.

The package asks for a CUDA build of an older torch and for fairchem; its model needs neither. What it takes from them (a registry
of names, a decorator, a neighbour search) has stand-ins here; the model's own files run as they are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch_geometric.utils

from benchmarks.peers.graphs import Graph, GraphPeer
from benchmarks.peers.imports import stand_in, without_init
from benchmarks.peers.protocol import Problem


def _unchanged(*_: Any) -> Any:
    return lambda decorated: decorated


stand_in("fairchem.core.common.registry", registry=SimpleNamespace(register_model=_unchanged))
stand_in("fairchem.core.common.utils", conditional_grad=_unchanged)
stand_in("fairchem.core.models.base", GraphModelMixin=object)
stand_in("torch_scatter", scatter=torch_geometric.utils.scatter)
without_init("equiformer_v3")

from equiformer_v3.experimental.models.equiformer_v3.equiformer_v3 import EquiformerV3_OC  # noqa: E402


class _OnGraphs(EquiformerV3_OC):  # type: ignore[misc]
    """Takes its edges from the batch."""

    def generate_graph(self, data: Any, **_: Any) -> Any:
        vectors = -data.graph.vectors(data.pos)  # theirs point from the sender (first row) to the receiver
        edges = torch.stack([data.graph.senders, data.graph.receivers])
        return edges, vectors.norm(dim=1), vectors, None, None, None


class Driver(GraphPeer):
    """EquiformerV3 with the settings of its gradient-force configurations, made small."""

    package = "equiformer-v3"

    def __init__(self, problem: Problem, *, n_channels: int = 64, n_layers: int = 2, l_max: int = 2, n_heads: int = 4) -> None:
        super().__init__(problem)
        self.module = _OnGraphs(
            use_pbc=False, regress_forces=True, direct_prediction=False, max_radius=problem.cutoff, num_radial_basis=32,
            max_num_elements=max(problem.elements) + 1, num_layers=n_layers, num_channels=n_channels,
            attn_hidden_channels=32, num_heads=n_heads, attn_alpha_channels=32, attn_value_channels=16,
            ffn_hidden_channels=2 * n_channels, norm_type="merge_layer_norm", lmax=l_max, mmax=l_max,
            attn_grid_resolution_list=[3 * l_max + 2] * 2, ffn_grid_resolution_list=[3 * l_max + 2] * 2,
            edge_channels=n_channels, use_envelope=True, use_gate_force_head=False, attn_weights_drop=0.0, drop_path_rate=0.0,
            avg_num_nodes=1.0, avg_degree=problem.average_neighbors,
        )

    def predict(self, batch: Graph, *, create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        self.module.train(create_graph)  # in eval mode the forces carry no graph
        data = SimpleNamespace(graph=batch, natoms=range(batch.n_graphs), pos=batch.positions.clone(), batch=batch.graph,
                               atomic_numbers=batch.numbers)
        output = self.module(data)
        return output["energy"] * self.scale, output["forces"] * self.scale
