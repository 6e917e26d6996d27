"""From labelled systems to a potential ready to train: elements, reference energies, scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols

from sapis.core.errors import TrainingError
from sapis.data.neighbors import edge_list
from sapis.data.reference import ReferenceEnergies, choose_reference_energies, total_reference
from sapis.data.system import System
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential

# Frames that give the mean number of neighbours: it only sets a scale.
N_FRAMES_FOR_NEIGHBORS = 50


def new_potential(train: Sequence[System], isolated: Mapping[int, float], config: ModelConfig, *, precision: str, seed: int,
                  ) -> tuple[TransformerPotential, ReferenceEnergies]:
    """An untrained potential for the elements of ``train``, and the reference energies that it holds.

    Energies of isolated atoms are used where every element has one, else least squares; to either the mean energy per atom
    that remains is added, so that the network starts at the mean.

    Raises:
        TrainingError: no frame.
    """
    if not train:
        raise TrainingError(expected="at least one training frame", received="none", where="training set",
                            todo="give more frames, or a smaller validation set")
    labelled = [system for system in train if system.energy is not None]
    references = choose_reference_energies(train, isolated) if labelled or isolated else ReferenceEnergies({}, {})
    remains = [(system.energy or 0.0) - total_reference(system, references.values) for system in labelled]
    shift = float(sum(remains) / sum(len(system) for system in labelled)) if labelled else 0.0
    elements = sorted({int(number) for system in train for number in system.numbers})
    frames = train[:: max(1, len(train) // N_FRAMES_FOR_NEIGHBORS)]
    n_neighbors = np.mean([len(edge_list(system, config.cutoff)[0]) / len(system) for system in frames])
    potential = TransformerPotential(
        config, elements=elements, reference_energies=[references.values.get(z, 0.0) + shift for z in elements],
        scale=_force_scale(train), average_neighbors=float(n_neighbors), precision=precision, seed=seed,
    )
    return potential, references


def known_potential(potential: TransformerPotential, train: Sequence[System], *, precision: str,
                    ) -> tuple[TransformerPotential, ReferenceEnergies]:
    """A copy of ``potential`` that goes on training, with its own reference energies, sizes and scales.

    Raises:
        TrainingError: elements that it does not know.
    """
    unknown = {int(number) for system in train for number in system.numbers} - set(potential.elements)
    if unknown:
        raise TrainingError(
            expected=f"elements of the model to start from: {', '.join(chemical_symbols[z] for z in potential.elements)}",
            received=", ".join(chemical_symbols[z] for z in sorted(unknown)), where="training set",
            todo="add them to the model first: `sapis grow MODEL LARGER --element SYMBOL=ENERGY`",
        )
    energies = dict(zip(potential.elements, potential.reference_energies, strict=True))
    return (potential.with_precision(precision).requires_grad_().train(),
            ReferenceEnergies(energies, dict.fromkeys(energies, "the model it started from")))


def _force_scale(train: Sequence[System]) -> float:
    """Root mean square force component, eV/Å; 1 where there are no forces (or all are zero)."""
    components = [system.forces.ravel() for system in train if system.forces is not None]
    rms = float(np.sqrt(np.mean(np.concatenate(components) ** 2))) if components else 0.0
    return rms or 1.0


def by_symbol(energies: Mapping[int, float]) -> dict[str, float]:
    """``{8: …}`` -> ``{"O": …}``."""
    return {chemical_symbols[number]: value for number, value in energies.items()}
