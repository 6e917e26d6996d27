"""The last linear maps: the same energies and forces as the whole model, with its own weights and with others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapis.data.system import System
from sapis.model.backend import BACKENDS, backend
from sapis.model.config import dial
from sapis.model.last_layer import LastLayer, last_weights
from sapis.model.potential import TransformerPotential


@pytest.fixture(scope="module", params=[False, True])
def potential(request: pytest.FixtureRequest) -> TransformerPotential:
    config = dial(16, {"preset": "nano", "n_layers": 2, "zbl": request.param})
    return TransformerPotential(config, elements=[1, 8], reference_energies=[-13.0, -2000.0],
                                scale=0.7, average_neighbors=6.0, precision="float64", seed=1)


def systems() -> list[System]:
    rng = np.random.default_rng(0)
    water = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.1]])
    cell, pbc = 4.0 * np.eye(3), np.ones(3, dtype=bool)
    return [System(numbers=np.array([8, 1, 1]), positions=water + rng.normal(0, 0.05, (3, 3))),
            System(numbers=np.array([8, 1, 1]), positions=water + rng.normal(0, 0.05, (3, 3)), cell=cell, pbc=pbc)]


def with_weights(potential: TransformerPotential, weights: torch.Tensor) -> TransformerPotential:
    """A copy with other last weights."""
    other = TransformerPotential.from_settings(potential.settings())
    other.load_state_dict(potential.state_dict())
    start = 0
    with torch.no_grad():
        for read in other.transformer.readouts:
            own = read[-1].weight  # type: ignore[index]
            own.copy_(weights[start : start + own.numel()].view_as(own))
            start += own.numel()
    return other


@pytest.mark.parametrize("name", BACKENDS)
def test_any_last_weights_give_what_a_model_with_them_gives(potential: TransformerPotential, name: str) -> None:
    torch.manual_seed(0)
    own = last_weights(potential)
    for weights in (own, own + 0.3 * torch.randn_like(own), torch.randn_like(own)):
        with backend(name):
            (part,) = potential.batches(systems())
            layer = LastLayer(potential, part.batch)
            expected = [value.detach() for value in with_weights(potential, weights)(part.batch)]
            found = layer.energies(weights), *layer.forces(weights)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert layer.features.shape == (6, len(own)) and (layer.weights == own).all()


def test_predictions_are_those_of_the_batch(potential: TransformerPotential) -> None:
    (part,) = potential.batches(systems())
    layer = LastLayer(potential, part.batch)
    found = potential.predictions(part, layer.energies(layer.weights), *layer.forces(layer.weights))
    for one, other in zip(found, potential.predict(systems()), strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-11)
    assert found[0].stress is None and found[1].stress is not None
