"""From labelled systems to a potential ready to train: elements, reference energies, scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from ase.data import chemical_symbols

from sapis.core.errors import TrainingError
from sapis.data.conditions import Conditions
from sapis.data.neighbors import edge_list
from sapis.data.reference import (
    Energies,
    ReferenceEnergies,
    by_level,
    choose_reference_energies,
    fit_reference_energies,
    total_reference,
)
from sapis.data.system import System
from sapis.model.config import ModelConfig
from sapis.model.potential import TransformerPotential

# Frames that give the mean number of neighbours: it only sets a scale.
N_FRAMES_FOR_NEIGHBORS = 50
# Frames that give the reference energies of a new level of theory.
N_FRAMES_FOR_REFERENCES = 500


def new_potential(train: Sequence[System], isolated: Energies, config: ModelConfig, *, precision: str, seed: int,
                  ) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
    """An untrained potential for the elements, charges, multiplicities and levels of theory of ``train``, and the reference
    energies that it holds, by level.

    Energies of isolated atoms are used where every element has one, else least squares; to either the mean energy per atom
    that remains is added, so that the network starts at the mean.

    Raises:
        TrainingError: no frame.
        DataError: isolated atoms of another level; frames with a level of theory beside others without one.
    """
    if not train:
        raise TrainingError(expected="at least one training frame", received="none", where="training set",
                            todo="give more frames, or a smaller validation set")
    conditions = Conditions.of(train)
    elements = sorted({int(number) for system in train for number in system.numbers})
    references: dict[str, ReferenceEnergies] = {}
    rows = []
    for level, energies in by_level(isolated, conditions.levels).items():
        own = [system for system in train if system.level == level]
        references[level], shift = _references(own, energies)
        # An element that this level has not seen has no energy there; one without any energy learns from forces alone.
        seen = {int(number) for system in own for number in system.numbers}
        rows.append([references[level].values.get(z, 0.0) + shift if z in seen else math.nan for z in elements])
    frames = train[:: max(1, len(train) // N_FRAMES_FOR_NEIGHBORS)]
    n_neighbors = np.mean([len(edge_list(system, config.cutoff)[0]) / len(system) for system in frames])
    potential = TransformerPotential(
        config, elements=elements, reference_energies=rows, scale=_force_scale(train), average_neighbors=float(n_neighbors),
        precision=precision, conditions=conditions, seed=seed,
    )
    return potential, references


def _references(systems: Sequence[System], isolated: Mapping[int, float]) -> tuple[ReferenceEnergies, float]:
    """Reference energies of the systems of one level, and the mean energy per atom that remains."""
    labelled = [system for system in systems if system.energy is not None]
    if not labelled:
        return (choose_reference_energies(systems, isolated) if isolated else ReferenceEnergies({}, {})), 0.0
    references = choose_reference_energies(systems, isolated)
    remains = [(system.energy or 0.0) - total_reference(system, references.values) for system in labelled]
    return references, float(sum(remains) / sum(len(system) for system in labelled))


def known_potential(potential: TransformerPotential, train: Sequence[System], *, precision: str,
                    ) -> tuple[TransformerPotential, dict[str, ReferenceEnergies]]:
    """A copy of ``potential`` that goes on training, with its own reference energies, sizes and scales.

    Raises:
        TrainingError: elements that it does not know.
        ModelError: a charge, multiplicity or level of theory that it does not know.
    """
    unknown = {int(number) for system in train for number in system.numbers} - set(potential.elements)
    if unknown:
        raise TrainingError(
            expected=f"elements of the model to start from: {', '.join(chemical_symbols[z] for z in potential.elements)}",
            received=", ".join(chemical_symbols[z] for z in sorted(unknown)), where="training set",
            todo="add them to the model first: `sapis grow MODEL LARGER --element SYMBOL=ENERGY`",
        )
    for system in train:  # now, and not when the folder of the training exists
        potential.conditions.indices(system)
    references = {}
    for level, row in zip(potential.conditions.levels or ("",), potential.reference_energies, strict=True):
        energies = dict(zip(potential.elements, row, strict=True))
        references[level] = ReferenceEnergies(energies, dict.fromkeys(energies, "the model it started from"))
    return potential.with_precision(precision).requires_grad_().train(), references


def at_new_level(potential: TransformerPotential, train: Sequence[System], level: str) -> TransformerPotential:
    """A copy of ``potential`` for data of another level of theory, or of its own ones if ``level`` is empty, with reference
    energies estimated anew: its own, plus least squares on composition of what its energies are off by.

    A training then begins from errors of interactions and not from those of atoms, which differ by thousands of eV between two
    codes. Elements that ``train`` has no energies of are no longer known at another level.

    Args:
        potential: of one level of theory, if ``level`` names another.
        train: frames of the new level, or of no name; of its own levels where it has several.

    Raises:
        TrainingError: a potential of several levels and another one; no frame with an energy.
    """
    levels = potential.conditions.levels
    if level and len(levels) > 1:
        raise TrainingError(expected="a model of one level of theory", received=", ".join(levels),
                            where="--to-level", todo="add the level to it: `sapis grow MODEL LARGER --level NAME`")
    labelled = [system for system in train if system.energy is not None]
    if not labelled:
        raise TrainingError(expected="frames with energies, to estimate reference energies from", received="none",
                            where="training set", todo="label them, or go on at the model's own level")
    rows = []
    for own, row in zip(levels or ("",), potential.reference_energies, strict=True):
        shifts = _shifts(potential, [system for system in labelled if len(levels) < 2 or system.level == own], own)
        rows.append([energy + shifts[z] if z in shifts else None if level else energy
                     for z, energy in zip(potential.elements, row, strict=True)])
    settings = potential.settings() | {
        "reference_energies": rows,
        "conditions": (replace(potential.conditions, levels=(level,)) if level else potential.conditions).to_json(),
    }
    moved = TransformerPotential.from_settings(settings)
    moved.load_state_dict(potential.state_dict())
    return moved


def _shifts(potential: TransformerPotential, labelled: Sequence[System], level: str) -> dict[int, float]:
    """By element, what reference energies at ``level`` are off by, for energies of ``labelled``; empty without these."""
    if not labelled:
        return {}
    some = labelled[:: max(1, len(labelled) // N_FRAMES_FOR_REFERENCES)]
    known = potential.predict([replace(system, energy=None, level=level) for system in some])
    return fit_reference_energies([replace(system, energy=(system.energy or 0.0) - found.energy)
                                   for system, found in zip(some, known, strict=True)])


def _force_scale(train: Sequence[System]) -> float:
    """Root mean square force component, eV/Å; 1 where there are no forces (or all are zero)."""
    components = [system.forces.ravel() for system in train if system.forces is not None]
    rms = float(np.sqrt(np.mean(np.concatenate(components) ** 2))) if components else 0.0
    return rms or 1.0


def by_symbol(energies: Mapping[int, float], level: str = "") -> dict[str, float]:
    """``{8: …}`` -> ``{"O": …}``, or ``{"O at LEVEL": …}``."""
    return {f"{chemical_symbols[number]}{f' at {level}' if level else ''}": value for number, value in energies.items()}
