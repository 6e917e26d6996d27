"""Faults of single labels: absent, too large, in another unit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from sapis.data.lint.finding import Finding, Severity, found, graded
from sapis.data.lint.structures import closest_contact
from sapis.data.reference import all_electron_energy
from sapis.data.system import System

NET_FORCE_WARNING, NET_FORCE_ERROR = 0.01, 0.1  # eV/Å per atom
FORCE_WARNING, FORCE_ERROR = 30.0, 100.0  # eV/Å
SHORT_CONTACT = 0.65  # of the sum of covalent radii; there forces of a hundred eV/Å are real
FORCE_RMS_LOW, FORCE_RMS_HIGH = 0.03, 15.0  # eV/Å; 0.02 is 1 eV/Å in hartree/bohr, 23 is 1 eV/Å in kcal/mol/Å
STRESS_RMS_WARNING, STRESS_RMS_ERROR = 0.5, 2.0  # eV/Å^3; 1 eV/Å^3 is 160 GPa
OUTLIER_Z, OUTLIER_WARNING, OUTLIER_ERROR = 10.0, 0.05, 5.0  # robust z; eV per atom from the median
MIN_SAME_COMPOSITION = 5
HARTREE, UNITS_IN_HARTREE = 27.211386, {"hartree": 1.0, "kcal/mol": 627.5095, "kJ/mol": 2625.4996}
BINDING_LOW, BINDING_HIGH = -15.0, 2.0  # eV/atom; solids and molecules are bound by 0 to 9
CONVERGED_TAGS = ("converged", "scf_converged", "is_converged", "electronic_converged")
# Compositions that must differ so much in size before energies say whether they grow with it.
MIN_SIZES, SIZE_RANGE = 10, 1.5
SAME_PER_ATOM = 0.2  # relative spread of energies per atom below which they are all alike


def missing_labels(systems: Sequence[System], name: str) -> list[Finding]:
    """A label that is needed and not there."""
    # A lone atom has no forces to speak of, and stress has a meaning only in a crystal.
    exempt = {"forces": lambda system: len(system) == 1, "stress": lambda system: system.volume is None}
    concerned = [i for i, system in enumerate(systems) if not exempt.get(name, lambda system: False)(system)]
    hits = [i for i in concerned if getattr(systems[i], name) is None]
    severity: Severity = "error" if len(hits) == len(concerned) else "warning"
    return found("missing-labels", severity, systems, hits, f"no {name}", name)


def with_forces(systems: Sequence[System]) -> dict[int, np.ndarray]:
    """The forces of systems that have some to speak of."""
    return {i: system.forces for i, system in enumerate(systems)
            if system.forces is not None and len(system) > 1}


def zero_forces(systems: Sequence[System]) -> list[Finding]:
    """All forces zero, or those of some atoms."""
    labelled = with_forces(systems)
    zero = [i for i, forces in labelled.items() if not forces.any()]
    molecules = [i for i in zero if not systems[i].pbc.any()]
    crystals = [i for i in zero if systems[i].pbc.any()]
    # One atom may sit where symmetry wants no force; several of a low symmetry do not.
    some = [i for i, forces in labelled.items() if forces.any() and int((~forces.any(axis=1)).sum()) > 1]
    fixed = [i for i in some if not _is_symmetric(labelled[i])]
    symmetric = [i for i in some if _is_symmetric(labelled[i])]
    return [
        *found("zero-forces", "error", systems, molecules, "all forces are exactly zero", "forces"),
        *found("zero-forces", "warning", systems, crystals, "all forces are exactly zero (by symmetry?)", "forces"),
        *found("constrained-forces", "error", systems, fixed,
               "forces of several atoms are exactly zero: those of fixed atoms?", "forces"),
        *found("constrained-forces", "note", systems, symmetric,
               "forces of several atoms are exactly zero (by symmetry?)", "forces"),
    ]


def _is_symmetric(forces: np.ndarray) -> bool:
    """Whether forces that are not zero come in equal sizes, as symmetry makes them, or lie along axes."""
    sizes = np.linalg.norm(forces[forces.any(axis=1)], axis=1)
    is_along_axes = (forces == 0).sum(axis=1).min() >= 1
    return is_along_axes or len(np.unique(np.round(sizes, 6))) <= max(1, len(sizes) // 2)


def net_force(systems: Sequence[System]) -> list[Finding]:
    """Forces that do not sum to zero."""
    sizes = {i: float(np.linalg.norm(forces.mean(axis=0))) for i, forces in with_forces(systems).items()}
    return graded("net-force", systems, sizes, NET_FORCE_WARNING, NET_FORCE_ERROR,
                  "forces do not sum to zero (mean force up to {:.3g} eV/Å per atom)", "forces")


def force_outlier(systems: Sequence[System]) -> list[Finding]:
    """Huge forces; those that two atoms close to each other explain are no errors."""
    sizes = {i: float(np.linalg.norm(forces, axis=1).max()) for i, forces in with_forces(systems).items()}
    explained = {i for i, size in sizes.items() if size > FORCE_ERROR and closest_contact(systems[i]) < SHORT_CONTACT}
    what = "forces up to {:.4g} eV/Å"
    rest = {i: size for i, size in sizes.items() if i not in explained}
    return [
        *graded("force-outlier", systems, rest, FORCE_WARNING, FORCE_ERROR, what, "forces"),
        *graded("force-outlier", systems, {i: sizes[i] for i in explained}, FORCE_WARNING, np.inf,
                what + ", of atoms close to each other", "forces"),
    ]


def force_unit(systems: Sequence[System]) -> list[Finding]:
    """Forces of a size that fits another unit."""
    labelled = with_forces(systems)
    if not labelled:
        return []
    # The median over frames, so that a few wild frames (another rule's matter) do not decide.
    rms = float(np.median([np.sqrt(np.mean(forces**2)) for forces in labelled.values()]))
    if rms > FORCE_RMS_HIGH:
        return found("force-unit", "error", systems, list(labelled),
                     f"typical force {rms:.3g} eV/Å; are these kcal/mol/Å or kJ/mol/Å?", "forces")
    if 0 < rms < FORCE_RMS_LOW:
        return found("force-unit", "warning", systems, list(labelled),
                     f"typical force {rms:.3g} eV/Å; relaxed structures, or hartree/bohr?", "forces")
    return []


def energy_unit(systems: Sequence[System]) -> list[Finding]:
    """Energies of a size that fits another unit."""
    labelled = {i: system.energy for i, system in enumerate(systems) if system.energy is not None}
    if not labelled:
        return []
    ratios = [energy / all_electron_energy(systems[i].numbers) for i, energy in labelled.items()]
    ratio, low, high = (float(value) for value in np.quantile(ratios, (0.5, 0.1, 0.9)))
    for unit, factor in UNITS_IN_HARTREE.items():
        # Energies of valence electrons in eV are near this for some compositions and far from it for others.
        if low / factor > 0.93 and high / factor < 1.1:
            return found("energy-unit", "error", systems, list(labelled),
                         f"energies equal all-electron totals in {unit}, not in eV", "energy")
    if ratio > 1.3 * HARTREE:
        return found("energy-unit", "error", systems, list(labelled),
                     f"energies are {ratio / HARTREE:.3g} times as deep as all-electron totals in eV can be", "energy")
    return []


def energy_kind(systems: Sequence[System]) -> list[Finding]:
    """Energies that are alike for systems of very different sizes."""
    labelled = {i: system.energy for i, system in enumerate(systems) if system.energy is not None and len(system) > 1}
    sizes = np.array([len(systems[i]) for i in labelled])
    if len(labelled) < MIN_SIZES or sizes.max() < SIZE_RANGE * sizes.min():
        return []
    energies = np.array(list(labelled.values()))
    counts = np.array([np.bincount(systems[i].numbers, minlength=119) for i in labelled], dtype=float)
    counts = counts[:, counts.any(axis=0)]
    if len(labelled) < 3 * counts.shape[1]:
        return []
    total, per_atom = (_unexplained(basis, energies) for basis in (counts, counts / sizes[:, None]))
    if per_atom < total / 10:
        return found("energy-kind", "error", systems, list(labelled),
                     "energies follow the shares of the elements and not their numbers: are they per atom?", "energy")
    return []


def _unexplained(basis: np.ndarray, energies: np.ndarray) -> float:
    """Root mean square of what least squares on ``basis`` leave."""
    return float(np.sqrt(np.mean((energies - basis @ np.linalg.lstsq(basis, energies, rcond=None)[0]) ** 2)))


def energy_outlier(systems: Sequence[System]) -> list[Finding]:
    """Energies far from those of the same composition."""
    groups: dict[tuple[str, int, int, str], list[int]] = defaultdict(list)
    for i, system in enumerate(systems):
        if system.energy is not None:
            groups[system.formula, system.charge, system.spin, system.level].append(i)
    sizes: dict[int, float] = {}
    for group in groups.values():
        if len(group) < MIN_SAME_COMPOSITION:
            continue
        energies = np.array([systems[i].energy for i in group]) / len(systems[group[0]])
        deviations = np.abs(energies - np.median(energies))
        limit = OUTLIER_Z * 1.4826 * np.median(deviations)
        sizes |= {i: float(size) for i, size in zip(group, deviations, strict=True) if size > limit}
    return graded("energy-outlier", systems, sizes, OUTLIER_WARNING, OUTLIER_ERROR,
                  "energy up to {:.3g} eV/atom from the median of its composition", "energy")


def reference_energies(systems: Sequence[System], isolated: Mapping[int, float]) -> list[Finding]:
    """Isolated atoms that do not fit: a binding energy per atom that nothing has."""
    if not isolated:
        return []
    binding = {i: (system.energy - sum(isolated[int(z)] for z in system.numbers)) / len(system)
               for i, system in enumerate(systems)
               if system.energy is not None and len(system) > 1 and all(int(z) in isolated for z in system.numbers)}
    typical = float(np.median(list(binding.values()))) if binding else 0.0
    if BINDING_LOW < typical < BINDING_HIGH:
        return []
    return found("reference-energies", "error", systems, list(binding),
                 f"energies less those of isolated atoms are {typical:.4g} eV/atom: are they of the same method?", "energy")


def stress_unit(systems: Sequence[System]) -> list[Finding]:
    """Stresses of a size that fits another unit."""
    labelled = {i: system.stress for i, system in enumerate(systems) if system.stress is not None}
    if not labelled:
        return []
    rms = float(np.median([np.sqrt(np.mean(stress**2)) for stress in labelled.values()]))
    sizes = dict.fromkeys(labelled, rms)
    return graded("stress-unit", systems, sizes, STRESS_RMS_WARNING, STRESS_RMS_ERROR,
                  "typical stress {:.3g} eV/Å^3; is this kbar or GPa?", "stress")


def not_converged(systems: Sequence[System]) -> list[Finding]:
    """Frames that say so themselves."""
    hits = [i for i, system in enumerate(systems)
            for name in CONVERGED_TAGS if name in system.tags and _is_false(system.tags[name])]
    return found("not-converged", "error", systems, hits, "the calculation did not converge", "converged")


def _is_false(value: object) -> bool:
    return str(value).strip().lower() in ("false", "f", "0", "no", "0.0")
