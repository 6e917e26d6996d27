"""One learning rate for all widths: factors by fan-in, and activations that move alike in narrow and wide models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import cluster, small_potential
from sapis.data.system import System
from sapis.model.axes import rate_factors
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential
from sapis.testing.width import Sizes, average_runs, slopes
from sapis.training.config import TrainingConfig
from sapis.training.optimizer import weight_groups

WIDTHS = (32, 64, 128)
READOUTS = ("readouts.1.0", "readouts.1.2")  # start smaller in wider models, as they should


def of_width(width: int, seed: int = 0) -> TransformerPotential:
    return small_potential("float64", seed, n_channels=width, n_heads=width // 8, n_channels_carried=width // 4, l_max=1, order=2)


def frames() -> list[System]:
    systems = [cluster(6, seed=k) for k in range(4)]
    teacher = small_potential(seed=99, l_max=1, order=2)
    return [replace(system, energy=p.energy, forces=p.forces)
            for system, p in zip(systems, teacher.predict(systems), strict=True)]


def runs() -> dict[int, Sizes]:
    settings = TrainingConfig(epochs=1, learning_rate=0.005, precision="float64")
    return average_runs(of_width, frames(), settings, widths=WIDTHS, seeds=(0, 1), n_steps=3)


def test_the_default_width_has_one_rate_for_tables_and_what_may_be_matrices() -> None:
    potential = TransformerPotential(ModelConfig(l_max=1, n_layers=1), elements=[1, 8], reference_energies=[0.0, 0.0], scale=1.0,
                                     average_neighbors=5.0)
    state = torch.random.get_rng_state()
    tables, others = weight_groups(potential)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert tables["rate_factor"] == others["rate_factor"] == 1.0 and others["has_matrices"] and not tables["has_matrices"]
    kinds = {name.split(".")[-1] for name in tables["names"]}
    assert kinds == {"embedding", "temperature", "keep_weights", "bias"}
    assert sorted(tables["names"] + others["names"]) == sorted(name for name, _ in potential.named_parameters())


def test_rates_fall_with_what_grows_with_the_width() -> None:
    potential = of_width(128)
    factors = rate_factors(potential.transformer, potential.elements, potential.conditions)
    wide = {"query.weight", "key.weight", "value.weight", "coupling.weight", "update.weight", "keep.weight", "widen.weight",
            "narrow.weight"}
    for name, factor in factors.items():
        kind = ".".join(name.split(".")[-2:])
        if name == "readouts.1.2.weight":
            assert factor == 24 / 8, "its inputs are the hidden units"
        elif kind in wide or name.split(".", 2)[-1] in wide or "couplings" in name or name in ("readouts.0.0.weight",
                                                                                              "readouts.1.0.weight"):
            assert factor == 48 / 128, name
        elif name.endswith(("bias", "temperature", "order_weights", "keep_weights", "embedding")):
            assert factor == 1.0, name
    assert sorted(set(factors.values())) == [48 / 128, 1.0, 3.0]


def test_activations_move_alike_in_all_widths() -> None:
    found = runs()
    for step in (1, 3):
        change = slopes(found, "change", step)
        assert float(np.median(np.abs(list(change.values())))) < 0.15, change
        assert max(change.values()) < 0.5, change
    size = {name: slope for name, slope in slopes(found, "size", 0).items() if name not in (*READOUTS, "readouts.0.0", "energy")}
    assert max(abs(slope) for slope in size.values()) < 0.3, size


def test_equal_rates_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapis.training.optimizer.rate_factors",
                        lambda transformer, elements, conditions: {name: 1.0 for name, _ in transformer.named_parameters()})
    change = slopes(runs(), "change", 1)
    assert float(np.median(np.abs(list(change.values())))) > 0.2
