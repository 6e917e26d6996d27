"""``openmm``: the AMBER and CHARMM force fields that come with OpenMM, for peptides, water and what else they know."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, InputError, all_changes
from ase.data import chemical_symbols
from pydantic import Field

from sapis.core.config import Config, parse_config
from sapis.core.errors import ConfigError, MissingDependencyError
from sapis.core.files import hash_file, require_file
from sapis.data.system import System
from sapis.labelers.evaluation import AseLabeler
from sapis.labelers.labeler import Labeler, LabelerConfig

KJ_MOL = units.kJ / units.mol
NM = 10.0  # Å
LONGEST_OH = 1.4  # Å; of a molecule of water that may still be called one


class OpenMMConfig(Config):
    """Arguments of the labeler ``openmm``.

    Attributes:
        forcefield: files that OpenMM finds: its own (``amber14-all.xml``, ``charmm36_2024.xml``) or paths.
        topology: a PDB file that says which atoms are bound and what residues they form, in the order of the structures' atoms;
            None where all is water.
        cutoff_A: of direct interactions in periodic cells, where the rest is by particle-mesh Ewald. Molecules have none.
        platform: ``Reference`` (float64) or ``CPU`` (quicker, mixed precision).
    """

    forcefield: tuple[str, ...] = ("amber14-all.xml", "amber14/tip3p.xml")
    topology: Path | None = None
    cutoff_A: float = Field(10.0, gt=0)
    platform: Literal["Reference", "CPU"] = "Reference"


def build(config: LabelerConfig) -> Labeler:
    """Energies and forces of a classical force field by OpenMM (Eastman et al., J. Phys. Chem. B 128, 109, 2024).

    Raises:
        ConfigError: arguments, or files of a force field, that OpenMM cannot read.
        FileError: no such topology.
        MissingDependencyError: OpenMM is not installed.
    """
    settings = parse_config(OpenMMConfig, config.arguments, where="labeler openmm: arguments")
    try:
        from openmm.app import ForceField
    except ImportError:
        raise MissingDependencyError.of("openmm", extra="openmm", purpose="the labeler 'openmm'") from None
    if settings.topology is not None:
        require_file(settings.topology)
    try:
        field = ForceField(*settings.forcefield)
    except Exception as error:  # the reader of XML raises what it likes
        raise ConfigError(expected="files of force fields that OpenMM reads", received=" ".join(str(error).split())[:300],
                          where="labeler openmm: forcefield", todo="name files of openmm/app/data, or give paths") from error
    shared = ForceFieldCalculator(field, settings)
    written = settings.model_dump(mode="json")
    if settings.topology is not None:
        written["topology"] = hash_file(settings.topology)
    written["forcefield"] = [hash_file(Path(name)) if Path(name).is_file() else name for name in settings.forcefield]
    method = {"name": "openmm", "package": "openmm", "version": metadata.version("openmm"), "arguments": written}
    level = config.level or "+".join(Path(name).stem for name in settings.forcefield)
    return AseLabeler(method, level, lambda system: shared, _objection)


def _objection(system: System) -> str | None:
    if system.pbc.any() and not system.pbc.all():
        return "OpenMM knows structures that are periodic in all directions or in none"
    return None if system.spin == 1 else "a classical force field has no spin"


class ForceFieldCalculator(Calculator):
    """ASE calculator: energy and free_energy (eV), forces (eV/Å). Depends on the structure alone; what OpenMM prepares for a set
    of atoms is kept for the next structure with the same atoms.

    Raises (on calculation):
        InputError: atoms that are not those of the topology, or that the force field has no parameters for.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, field: Any, settings: OpenMMConfig) -> None:
        super().__init__()
        self.field, self.settings = field, settings
        # What for; the context; which atom of the structure each of its atoms is; its bonds, see `_bonds`.
        self._prepared: tuple[Any, Any, np.ndarray, list[np.ndarray]] | None = None

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        held = self.atoms
        assert held is not None  # ASE's own calculate keeps a copy of atoms
        context, order, bonds = self._context(held)
        positions = held.positions[order]
        if held.pbc.all():
            context.setPeriodicBoxVectors(*(held.cell.array / NM))
            positions = _whole(positions, bonds, held.cell.array)
        context.setPositions(positions / NM)
        state = context.getState(energy=True, forces=True)
        forces = np.empty((len(held), 3))
        forces[order] = np.array(state.getForces(asNumpy=True)._value) * KJ_MOL / NM
        energy = float(state.getPotentialEnergy()._value) * KJ_MOL
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

    def _context(self, atoms: Atoms) -> tuple[Any, np.ndarray, list[np.ndarray]]:
        topology, order = self._topology(atoms)
        cell = atoms.cell.array if atoms.pbc.all() else None
        if cell is not None and not np.allclose(cell, np.tril(cell)):
            raise InputError("OpenMM wants cell vectors a along x and b in the xy plane; turn the structure")
        # Which water an atom belongs to may differ between two structures of the same atoms.
        identity = atoms.numbers.tolist(), order.tolist(), cell is None
        if self._prepared is None or self._prepared[0] != identity:
            self._prepared = identity, self._new_context(topology, cell), order, _bonds(topology, len(atoms))
        return self._prepared[1:]

    def _new_context(self, topology: Any, cell: np.ndarray | None) -> Any:
        import openmm
        from openmm import app

        if cell is not None:
            topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in cell / NM])
        try:
            system = self.field.createSystem(
                topology, nonbondedMethod=app.NoCutoff if cell is None else app.PME, constraints=None, rigidWater=False,
                nonbondedCutoff=self.settings.cutoff_A / NM, removeCMMotion=False)
        except ValueError as error:
            raise InputError(f"the force field does not fit: {error}") from error
        platform = openmm.Platform.getPlatformByName(self.settings.platform)
        return openmm.Context(system, openmm.VerletIntegrator(0.001), platform)

    def _topology(self, atoms: Atoms) -> tuple[Any, np.ndarray]:
        """OpenMM's topology, and which atom of the structure each of its atoms is."""
        if self.settings.topology is None:
            return _waters(atoms)
        from openmm.app import PDBFile

        topology = PDBFile(str(self.settings.topology)).topology
        numbers = [atom.element.atomic_number if atom.element is not None else 0 for atom in topology.atoms()]
        if numbers != atoms.numbers.tolist():
            raise InputError(f"the atoms are not those of {self.settings.topology.name}, in its order")
        return topology, np.arange(len(atoms))


def _waters(atoms: Atoms) -> tuple[Any, np.ndarray]:
    """Molecules of water: each oxygen with the two hydrogens that are nearest to it."""
    from openmm.app import Element, Topology

    oxygens, hydrogens = (np.flatnonzero(atoms.numbers == z) for z in (8, 1))
    if len(oxygens) + len(hydrogens) != len(atoms) or len(hydrogens) != 2 * len(oxygens):
        raise InputError("without `topology` everything has to be water; give a PDB file for anything else")
    topology, order = Topology(), []
    chain = topology.addChain()
    for oxygen in oxygens:
        distances = atoms.get_distances(oxygen, hydrogens, mic=bool(atoms.pbc.any()))
        nearest = np.argsort(distances, kind="stable")[:2]
        if distances[nearest].max() > LONGEST_OH:
            raise InputError(f"atom {oxygen} ({chemical_symbols[8]}) has no two hydrogens within {LONGEST_OH} Å")
        members = [oxygen, *np.sort(hydrogens[nearest])]
        residue = topology.addResidue("HOH", chain)
        added = [topology.addAtom(name, Element.getByAtomicNumber(int(atoms.numbers[k])), residue)
                 for name, k in zip(("O", "H1", "H2"), members, strict=True)]
        for hydrogen in added[1:]:
            topology.addBond(added[0], hydrogen)
        order += members
    if len(set(order)) != len(order):
        raise InputError("a hydrogen is nearest to two oxygens: not molecules of water")
    return topology, np.array(order)


def _bonds(topology: Any, n_atoms: int) -> list[np.ndarray]:
    """Trees of bonds over all molecules: for each distance from the root, ``(bonds, 2)`` pairs of a known atom and a new one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    pairs = np.array([[one.index, other.index] for one, other in topology.bonds()]).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(n_atoms, n_atoms)).tocsr()
    _, molecule = connected_components(graph, directed=False)
    depth, levels = np.zeros(n_atoms, dtype=int), list[list[tuple[int, int]]]()
    for root in np.unique(molecule, return_index=True)[1]:
        reached, parents = breadth_first_order(graph, root, directed=False)
        for atom in reached[1:]:
            depth[atom] = depth[parents[atom]] + 1
            if depth[atom] > len(levels):
                levels.append([])
            levels[depth[atom] - 1].append((parents[atom], atom))
    return [np.array(level) for level in levels]


def _whole(positions: np.ndarray, bonds: list[np.ndarray], cell: np.ndarray) -> np.ndarray:
    """Positions with molecules that cross the cell's border put together: OpenMM takes bonds as they are."""
    positions = positions.copy()
    for level in bonds:
        across = (positions[level[:, 1]] - positions[level[:, 0]]) @ np.linalg.inv(cell)
        positions[level[:, 1]] -= np.round(across) @ cell
    return positions
