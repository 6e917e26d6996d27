"""`sapis grow`: a larger model file that is the same function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sapis.api import load, save
from sapis.core.errors import ModelError
from sapis.core.files import hash_file, hash_json
from sapis.core.seeds import generator
from sapis.data.conditions import Conditions
from sapis.data.reference import Energies
from sapis.data.system import System
from sapis.model.growth import grow, larger_config
from sapis.model.potential import TransformerPotential
from sapis.potential.bundle import hash_tensors
from sapis.testing.laws import Check, same_function


def grow_file(source: Path, target: Path, sizes: Mapping[str, int], *, reference_energies: Energies | None = None,
              conditions: Conditions | None = None, systems: Sequence[System] = (),
              seed: int = 0) -> tuple[TransformerPotential, Check]:
    """Grow the model of ``source`` and write it to ``target``, whose card says from what it was grown.

    Args:
        sizes: as in `sapis.model.growth.larger_config`.
        reference_energies, conditions: as in `sapis.model.growth.Growth`.
        systems: where the two models are compared, in float64; none: a crystal of the model's elements.
        seed: of the new weights that are random.

    Returns:
        The grown potential, and by how much it differs from the smaller one.

    Raises:
        SapisError: a model or a size that is not fit for it, or models that differ.
    """
    model = load(source)
    small = model.single
    large = grow(small, larger_config(small.config, sizes), reference_energies=reference_energies, conditions=conditions,
                 seed=seed)
    check = same_function(small.with_precision("float64"), large.with_precision("float64"), systems or [_crystal(small)])
    if not check.passed:
        raise ModelError(expected=f"the same energies, forces and stresses to {check.limit:g}", received=f"{check.value:.2e}",
                         where=str(source), todo="please report this: growth should not change a model")
    # What was measured of the smaller model's function holds for the larger one; how it was trained is its own history.
    origin = {"file_hash": hash_file(source), "model_hash": hash_tensors(dict(small.state_dict()), hash_json(small.settings())),
              "config": small.config.model_dump(), "elements": list(small.elements), "seed": seed, "card": model.card}
    kept = {key: value for key, value in model.card.items() if key in ("level_of_theory", "test")}
    save(target, large, {**kept, "grown_from": origin, "checks": [*model.card.get("checks", []), asdict(check)]})
    return large, check


def _crystal(potential: TransformerPotential) -> System:
    """Every element twice or more on a distorted lattice, whose atoms see each other and their images."""
    side = max(2, int(np.ceil((2 * len(potential.elements)) ** (1 / 3))))
    spacing, rng = 0.35 * potential.cutoff, generator(0, "crystal")
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    charge, spin, level = potential.conditions.first
    known = [z for z, energy in zip(potential.elements, potential.reference_energies[0], strict=True) if np.isfinite(energy)]
    return System(numbers=np.resize(known, len(grid)), charge=charge, spin=spin, level=level,
                  cell=side * spacing * np.eye(3), pbc=np.ones(3, dtype=bool),
                  positions=spacing * (grid + rng.uniform(-0.15, 0.15, grid.shape)))
