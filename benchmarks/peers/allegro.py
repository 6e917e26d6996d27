"""Allegro (Musaelian et al., Nat. Commun. 14, 579, 2023; github.com/mir-group/allegro)."""

from __future__ import annotations

from typing import Any

import torch
from allegro.model import AllegroModel

from benchmarks.peers import nequip


class Driver(nequip.Driver):
    """Allegro, run eagerly; all but the network is NequIP's."""

    package = "nequip-allegro"

    def build(self, common: dict[str, Any], *, l_max: int = 2, n_layers: int = 2, n_scalars: int = 64,  # type: ignore[override]
              n_tensors: int = 32) -> torch.nn.Module:
        """The network."""
        return AllegroModel(
            radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8}, l_max=l_max,
            num_layers=n_layers, num_scalar_features=n_scalars, num_tensor_features=n_tensors,
            scalar_embed_mlp_hidden_layers_width=n_scalars, allegro_mlp_hidden_layers_depth=1,
            allegro_mlp_hidden_layers_width=n_scalars, readout_mlp_hidden_layers_width=n_scalars, **common,
        )
