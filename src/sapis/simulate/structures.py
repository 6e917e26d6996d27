"""Starting structures: conformers of a SMILES, or what a file holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sapis.core.errors import ConfigError, DataError, MissingDependencyError
from sapis.core.seeds import derive_seed
from sapis.data.system import System

if TYPE_CHECKING:
    from rdkit.Chem import Mol

EMBEDDINGS_PER_CONFORMER = 5  # fewer above 40 atoms, where a duplicate is unlikely and each takes seconds
MAX_ATOMS = 300  # distance geometry takes minutes beyond
OPTIMISATION_STEPS = 500
# Ethanol's rotamers differ by 0.2 Å in this measure, two optimisations of the same one by less than 0.01 Å.
SAME_CONFORMER_A = 0.1


def load_structure(
    smiles: str | None = None,
    file: Path | None = None,
    charge: int | None = None,
    spin: int | None = None,
    *,
    n_conformers: int = 4,
    seed: int = 0,
) -> list[System]:
    """Starting structures from a SMILES or from a file (exactly one of the two).

    A SMILES gives up to ``n_conformers`` distinct conformers by ETKDG (Riniker and Landrum, JCIM 55, 2562,
    2015), optimised with MMFF94, or UFF where that lacks parameters, lowest energy first. A file gives its
    frames.

    Args:
        smiles: of one or more molecules.
        file: in any format ASE reads; periodic structures allowed.
        charge: total charge, e; default the SMILES's formal charge, or the file's.
        spin: multiplicity 2S+1; default from the SMILES's radical electrons or from the file, and where that
            does not fit the number of electrons, the lowest that does.
        n_conformers: at most so many conformers.
        seed: of the embedding.

    Raises:
        ConfigError: not exactly one source, a SMILES that is not one, or an impossible multiplicity.
        DataError, FileError: no structure could be made, or the file cannot be read.
        MissingDependencyError: RDKit is not installed.
    """
    if (smiles is None) == (file is None):
        received = "neither" if smiles is None else "both"
        raise ConfigError(expected="either a SMILES or a file", received=received, where="structure",
                          todo="give `smiles: CCO` or `file: molecule.xyz`")
    if smiles is not None:
        systems = _conformers(smiles, n_conformers, seed)
    else:
        from sapis.data.formats import read_systems

        systems = [system.without_labels() for system in read_systems(Path(file or ""))]
    return [_with_electrons(system, charge, spin) for system in systems]


def _with_electrons(system: System, charge: int | None, spin: int | None) -> System:
    total = system.charge if charge is None else charge
    n_electrons = int(system.numbers.sum()) - total
    multiplicity = system.spin if spin is None else spin
    is_possible = 1 <= multiplicity <= n_electrons + 1 and (n_electrons - multiplicity) % 2 == 1
    if not is_possible:
        if spin is not None or n_electrons < 0:
            raise ConfigError(
                expected=f"a multiplicity that {n_electrons} electrons can have "
                         f"({'2, 4, …' if n_electrons % 2 else '1, 3, …'})",
                received=str(multiplicity), where=f"structure {system.formula}: spin",
                todo="mend `spin` (2S+1: 1 singlet, 2 doublet, 3 triplet) or `charge`",
            )
        multiplicity = 1 + n_electrons % 2
    return replace(system, charge=total, spin=multiplicity)


def _conformers(smiles: str, n_conformers: int, seed: int) -> list[System]:
    molecule = _parse(smiles)
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom

    with rdBase.BlockLogs():
        molecule = Chem.AddHs(molecule)
        if molecule.GetNumAtoms() > MAX_ATOMS:
            raise DataError(
                expected=f"a SMILES of at most {MAX_ATOMS} atoms", received=f"{molecule.GetNumAtoms()} atoms",
                where=f"SMILES {smiles!r:.100}", todo="give a structure file instead",
            )
        settings: Any = rdDistGeom.ETKDGv3()
        settings.randomSeed = derive_seed(seed, "conformers") % 2**31
        n_embedded = n_conformers * max(1, min(EMBEDDINGS_PER_CONFORMER, 200 // molecule.GetNumAtoms()))
        found = list(rdDistGeom.EmbedMultipleConfs(molecule, n_embedded, settings))
        if not found:
            settings.useRandomCoords = True
            found = list(rdDistGeom.EmbedMultipleConfs(molecule, n_embedded, settings))
        if not found:
            raise DataError(
                expected="a molecule that RDKit can place in space",
                received=f"no coordinates for {molecule.GetNumAtoms()} atoms",
                where=f"SMILES {smiles!r:.100}",
                todo="check ring strain and stereo marks, or give a structure file instead",
            )
        energies = _optimise(molecule, smiles)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    positions = [np.array(molecule.GetConformer(number).GetPositions()) for number in found]
    chosen = _distinct([positions[i] for i in np.argsort(energies, kind="stable")], numbers)[:n_conformers]
    spin = 1 + sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    charge = Chem.GetFormalCharge(molecule)
    return [System(numbers=numbers, positions=centred, charge=charge, spin=spin, tags={"conformer": rank})
            for rank, centred in enumerate(each - each.mean(axis=0) for each in chosen)]


def _parse(smiles: str) -> Mol:
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise MissingDependencyError.of("rdkit", extra="smiles", purpose="structures from a SMILES") from None

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raw = Chem.MolFromSmiles(smiles, sanitize=False)
            problems = [] if raw is None else [each.Message() for each in Chem.DetectChemistryProblems(raw)]
            raise _bad_smiles(smiles, problems[0] if problems else "text that does not parse")
    if molecule.GetNumAtoms() == 0:
        raise _bad_smiles(smiles, "no atoms")
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise _bad_smiles(smiles, "a wildcard atom")
    return molecule


def _bad_smiles(smiles: str, received: str) -> ConfigError:
    return ConfigError(
        expected="the SMILES of a molecule, such as CCO", received=received,
        where=f"structure: smiles {smiles!r:.100}", todo="mend the SMILES, or give a structure file",
    )


def _optimise(molecule: Mol, smiles: str) -> np.ndarray:
    """Optimise every conformer in place; energies in kcal/mol, zero where there is nothing to optimise."""
    from rdkit.Chem import rdForceFieldHelpers as fields

    # Fragments of one SMILES must feel each other, or they would be left on top of one another.
    options: dict[str, Any] = {"maxIters": OPTIMISATION_STEPS, "ignoreInterfragInteractions": False}
    if molecule.GetNumAtoms() == 1:
        return np.zeros(1)
    if fields.MMFFHasAllMoleculeParams(molecule):
        results = fields.MMFFOptimizeMoleculeConfs(molecule, **options)
    elif fields.UFFHasAllMoleculeParams(molecule):
        results = fields.UFFOptimizeMoleculeConfs(molecule, **options)
    else:
        raise DataError(
            expected="elements and bonds that MMFF94 or UFF knows", received="at least one they do not",
            where=f"SMILES {smiles!r:.100}", todo="give a structure file instead of a SMILES",
        )
    return np.array([energy for _, energy in results])


def _distinct(candidates: list[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
    """The first of each group of conformers that are the same structure.

    Two are compared by the root-mean-square difference of their sorted interatomic distances, per pair of
    elements: blind to rotation, to mirror images and to which of three equal hydrogens is which.
    """
    if len(numbers) == 1:
        return candidates[:1]
    i, j = np.triu_indices(len(numbers), k=1)
    pair = np.minimum(numbers[i], numbers[j]) * 1000 + np.maximum(numbers[i], numbers[j])

    kept: list[np.ndarray] = []
    prints: list[np.ndarray] = []
    for positions in candidates:
        distances = np.linalg.norm(positions[i] - positions[j], axis=1)
        print_ = distances[np.lexsort((distances, pair))]
        if all(np.sqrt(np.mean((print_ - other) ** 2)) > SAME_CONFORMER_A for other in prints):
            kept.append(positions)
            prints.append(print_)
    return kept
