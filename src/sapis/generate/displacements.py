"""What may become of one molecule without a quantum-chemical method: vibrations, turned bonds, stretched bonds, neighbours.

The force field (MMFF94, or UFF where that lacks parameters) only says where to look; labels come later, from another method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.data import covalent_radii, vdw_radii
from scipy.spatial.transform import Rotation

from sapis.core.errors import MissingDependencyError
from sapis.data.system import System

if TYPE_CHECKING:
    from rdkit.Chem import Mol

KCAL_MOL = units.kcal / units.mol
STEP_A = 1e-3  # of the differences that give the Hessian
SOFTEST_eV_A2 = 3.0  # force constants below are taken for this: softer motions are turns, for which there is `turned`
OVERSAMPLING = 2  # times as many as wanted, of which the plausible ones are taken
CLOSEST = 0.62  # of the sum of covalent radii; nothing nearer is kept
VDW_UNKNOWN = 2.0  # Å
STRETCH = (0.85, 1.6)  # of a bond's length
LADDER = (0.85, 0.95, 1.05, 1.2, 1.45, 1.9, 2.6)  # of the distance at which van der Waals spheres touch


@dataclass(frozen=True, eq=False)
class Conformer:
    """A conformer with what the force field knows of it.

    Attributes:
        system: at a minimum of the force field.
        molecule: RDKit's, with this conformer alone.
        gradient: of the force field at positions ``(atoms, 3)``, eV/Å; None where it has no parameters.
    """

    system: System
    molecule: Mol
    gradient: Callable[[np.ndarray], np.ndarray] | None


def conformer(molecule: Mol, system: System) -> Conformer:
    """The conformer of ``molecule`` (with hydrogens) that ``system`` is."""
    from rdkit import Chem, Geometry
    from rdkit.Chem import rdForceFieldHelpers as fields

    own = Chem.Mol(molecule)
    own.RemoveAllConformers()
    shape = Chem.Conformer(own.GetNumAtoms())
    for atom, position in enumerate(system.positions):
        shape.SetAtomPosition(atom, Geometry.Point3D(*position.tolist()))
    own.AddConformer(shape)
    field: Any = None
    if own.GetNumAtoms() > 1 and fields.MMFFHasAllMoleculeParams(own):
        field = fields.MMFFGetMoleculeForceField(own, fields.MMFFGetMoleculeProperties(own), ignoreInterfragInteractions=False)
    elif own.GetNumAtoms() > 1 and fields.UFFHasAllMoleculeParams(own):
        field = fields.UFFGetMoleculeForceField(own, ignoreInterfragInteractions=False)
    if field is None:
        return Conformer(system, own, None)
    field.Initialize()

    def gradient(positions: np.ndarray) -> np.ndarray:
        return np.array(field.CalcGrad(positions.ravel().tolist())).reshape(-1, 3) * KCAL_MOL

    return Conformer(system, own, gradient)


def displaced(smiles: str, starts: list[System], n: int, temperatures_K: Sequence[float], rng: np.random.Generator,
              ) -> list[System]:
    """``n`` structures of conformers ``starts`` of a molecule, or fewer: in equal parts vibrations, turned bonds and stretched
    bonds, of the last two as many as the molecule's bonds and the room between its atoms allow.

    Raises:
        MissingDependencyError: RDKit is not installed.
    """
    try:
        from rdkit import Chem
    except ImportError:
        raise MissingDependencyError.of("rdkit", extra="smiles", purpose="vibrations and turned bonds of a SMILES") from None
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    shapes = [conformer(molecule, start) for start in starts]
    found: list[System] = []
    for number, shape in enumerate(shapes):
        share = n // len(shapes) + (number < n % len(shapes))
        for more in (turned(shape, OVERSAMPLING * (share // 3), rng), stretched(shape, OVERSAMPLING * (share // 3), rng)):
            found += [each for each in more if is_plausible(each)][: share // 3]
        n_left = share - 2 * (share // 3)
        vibrations = vibrated(shape, rng.choice(np.asarray(temperatures_K, dtype=float), OVERSAMPLING * n_left), rng)
        found += [each for each in vibrations if is_plausible(each)][:n_left]
    return [each.without_labels().with_tags(trajectory=str(each.tags["source"])) for each in found]


def vibrated(start: Conformer, temperatures_K: np.ndarray, rng: np.random.Generator) -> list[System]:
    """A thermal sample of the harmonic force field at each temperature.

    Displacements have the covariance ``kT H^-1``, with eigenvalues of the Hessian H from `SOFTEST_eV_A2` up and without
    translations and rotations: the classical canonical distribution of a harmonic well.
    """
    if start.gradient is None:
        return []
    positions = start.system.positions
    n = positions.size
    hessian = np.empty((n, n))
    for k in range(n):
        step = np.zeros_like(positions)
        step.flat[k] = STEP_A
        hessian[k] = ((start.gradient(positions + step) - start.gradient(positions - step)) / (2 * STEP_A)).ravel()
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    rigid = _rigid(positions)
    vectors -= rigid @ (rigid.T @ vectors)
    spread = vectors / np.sqrt(np.maximum(values, SOFTEST_eV_A2))
    return [replace(start.system, positions=positions + (
        spread @ rng.normal(scale=np.sqrt(units.kB * temperature), size=n)).reshape(-1, 3)).with_tags(
            source="vibration", temperature_K=float(temperature)) for temperature in temperatures_K]


def _rigid(positions: np.ndarray) -> np.ndarray:
    """An orthonormal basis of translations and rotations, ``(3 * atoms, 3 to 6)``."""
    centred = positions - positions.mean(axis=0)
    moves = [np.tile(axis, (len(positions), 1)) for axis in np.eye(3)] + [np.cross(axis, centred) for axis in np.eye(3)]
    left, sizes, _ = np.linalg.svd(np.array(moves).reshape(6, -1).T, full_matrices=False)
    basis: np.ndarray = left[:, sizes > 1e-6 * sizes[0]]
    return basis


def turned(start: Conformer, n: int, rng: np.random.Generator) -> list[System]:
    """Single bonds outside rings turned by random angles."""
    from rdkit import Chem
    from rdkit.Chem import rdMolTransforms

    pattern = Chem.MolFromSmarts("[*;!D1]-!@[*;!D1]")
    bonds = []
    for i, j in start.molecule.GetSubstructMatches(pattern):
        ends = [[a.GetIdx() for a in start.molecule.GetAtomWithIdx(one).GetNeighbors() if a.GetIdx() != other]
                for one, other in ((i, j), (j, i))]
        if all(ends):
            bonds.append((ends[0][0], i, j, ends[1][0]))
    found = []
    for _ in range(n if bonds else 0):
        own = Chem.Mol(start.molecule)
        for k in rng.choice(len(bonds), size=rng.integers(1, len(bonds) + 1), replace=False):
            first, second, third, fourth = bonds[k]
            angle = float(rng.uniform(-180, 180))
            rdMolTransforms.SetDihedralDeg(own.GetConformer(), first, second, third, fourth, angle)
        found.append(replace(start.system, positions=np.array(own.GetConformer().GetPositions())).with_tags(source="torsion"))
    return found


def stretched(start: Conformer, n: int, rng: np.random.Generator) -> list[System]:
    """One bond outside rings each, made shorter or longer with all that hangs on it."""
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in start.molecule.GetBonds() if not bond.IsInRing()]
    found = []
    for _ in range(n if bonds else 0):
        one, other = bonds[rng.integers(len(bonds))]
        side = _beyond(start.molecule, one, other)
        factor = float(rng.uniform(*STRETCH))
        positions = start.system.positions.copy()
        positions[side] += (factor - 1) * (positions[other] - positions[one])
        found.append(replace(start.system, positions=positions).with_tags(source="stretch", factor=round(factor, 4)))
    return found


def _beyond(molecule: Mol, one: int, other: int) -> list[int]:
    """Atoms on the side of ``other`` when the bond to ``one`` is cut."""
    seen, waiting = {one, other}, [other]
    while waiting:
        for neighbor in molecule.GetAtomWithIdx(waiting.pop()).GetNeighbors():
            if neighbor.GetIdx() not in seen:
                seen.add(neighbor.GetIdx())
                waiting.append(neighbor.GetIdx())
    return sorted(seen - {one})


def paired(one: System, other: System, rng: np.random.Generator, *, scale: float | None = None) -> System:
    """Two molecules in random orientation, a rung of `LADDER` (or ``scale``) apart: 1 is where van der Waals spheres touch."""
    scale = float(LADDER[rng.integers(len(LADDER))]) if scale is None else scale
    first = one.positions - one.positions.mean(axis=0)
    second = (other.positions - other.positions.mean(axis=0)) @ Rotation.random(random_state=rng).as_matrix().T
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    touch = scale * (_radii(one)[:, None] + _radii(other)[None])
    # The largest shift along the direction at which any two atoms are as near as they may be: |d + t u|^2 = r^2.
    apart = second[None] - first[:, None]
    along = apart @ direction
    inside = along**2 - (apart**2).sum(axis=2) + touch**2
    shift = float(np.max(np.where(inside > 0, -along + np.sqrt(np.maximum(inside, 0)), -np.inf), initial=0.0))
    return System(
        numbers=np.concatenate([one.numbers, other.numbers]), positions=np.concatenate([first, second + shift * direction]),
        charge=one.charge + other.charge, spin=1, tags={**one.tags, "source": "pair", "scale": scale},
    )


def _radii(system: System) -> np.ndarray:
    radii = vdw_radii[system.numbers]
    return np.where(np.isnan(radii), VDW_UNKNOWN, radii)


def is_plausible(system: System) -> bool:
    """Whether no two atoms are nearer than they come in hot matter."""
    i, j = np.triu_indices(len(system), k=1)
    distances = np.linalg.norm(system.positions[i] - system.positions[j], axis=1)
    radii = covalent_radii[system.numbers]
    return bool((distances >= CLOSEST * (radii[i] + radii[j])).all())


def spread_out(systems: list[System], n: int) -> list[System]:
    """``n`` of ``systems``, each as unlike those before it as there is: farthest-point sampling by interatomic distances.

    Systems of one molecule, in the same order of atoms; the first is kept.
    """
    if len(systems) <= n:
        return systems
    i, j = np.triu_indices(len(systems[0]), k=1)
    shapes = np.array([1 / np.linalg.norm(system.positions[i] - system.positions[j], axis=1) for system in systems])
    chosen, nearest = [0], np.full(len(systems), np.inf)
    while len(chosen) < n:
        nearest = np.minimum(nearest, np.linalg.norm(shapes - shapes[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return [systems[k] for k in sorted(chosen)]
