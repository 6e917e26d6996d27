"""``dft``: Kohn-Sham density functional theory of molecules through PySCF."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, SCFError, all_changes
from pydantic import Field

from sapis.core.config import Config, parse_config
from sapis.core.errors import ConfigError, MissingDependencyError
from sapis.data.system import System
from sapis.labelers.evaluation import AseLabeler
from sapis.labelers.labeler import Labeler, LabelerConfig

# Elements beyond krypton have effective core potentials in the def2 basis sets (Weigend and Ahlrichs, PCCP 7, 3297, 2005).
LAST_ALL_ELECTRON = 36


class DftConfig(Config):
    """Arguments of the labeler ``dft``.

    Attributes:
        functional: as PySCF names it (``PBE``, ``wB97X``, ``r2SCAN``, ``B3LYP``).
        basis: as PySCF names it.
        dispersion: D3 with Becke-Johnson damping, D4, or none.
        is_density_fitted: the Coulomb (and exchange) integrals by density fitting: quicker, errors of some 10 µeV an atom.
        grid: level of the integration grid, 0 to 9.
        has_grid_response: the grid moves with the atoms in the forces too, so that they are the gradient to 1e-6 Ha/bohr and sum
            to zero; costs a third more. Without it errors are some 1e-4 Ha/bohr on grid 3.
        convergence_Ha: of the energy.
        max_cycles: of the self-consistent field.
        has_restarts: begin with the density of the structure before, where that has the same atoms: for trajectories. Labels
            then differ within the convergence from those computed alone.
    """

    functional: str = "PBE"
    basis: str = "def2-SVP"
    dispersion: Literal["d3bj", "d4", "none"] = "d3bj"
    is_density_fitted: bool = True
    grid: int = Field(3, ge=0, le=9)
    has_grid_response: bool = True
    convergence_Ha: float = Field(1e-9, gt=0)
    max_cycles: int = Field(100, ge=1)
    has_restarts: bool = False


def build(config: LabelerConfig) -> Labeler:
    """Energies and forces of molecules by PySCF (Sun et al., J. Chem. Phys. 153, 024109, 2020).

    Raises:
        ConfigError: an argument or a name of a functional that is not known.
        MissingDependencyError: PySCF, or for dispersion pyscf-dispersion, is not installed.
    """
    settings = parse_config(DftConfig, config.arguments, where="labeler dft: arguments")
    try:
        from pyscf.dft import libxc
        if settings.dispersion != "none":
            import pyscf.dispersion  # noqa: F401 - says now that it is missing
    except ImportError:
        package = "pyscf pyscf-dispersion"
        raise MissingDependencyError.of(package, extra="dft", purpose="the labeler 'dft'") from None
    try:
        libxc.parse_xc(settings.functional)
    except (KeyError, ValueError) as error:
        raise ConfigError(expected="a functional that PySCF knows, such as PBE, r2SCAN or wB97X", received=str(error),
                          where="labeler dft: functional", todo="mend the name; `pyscf.dft.libxc.XC_CODES` lists them") from None
    shared = KohnSham(settings)

    def calculator(system: System) -> KohnSham:
        return shared if settings.has_restarts else KohnSham(settings)

    correction = "" if settings.dispersion == "none" else f"-{settings.dispersion.upper()}"
    method = {"name": "dft", "package": "pyscf", "version": metadata.version("pyscf"), "arguments": settings.model_dump()}
    return AseLabeler(method, config.level or f"{settings.functional}{correction}/{settings.basis}", calculator, _objection)


def _objection(system: System) -> str | None:
    return "this labeler is for molecules; set pbc to False, or take a code for crystals" if system.pbc.any() else None


class KohnSham(Calculator):
    """ASE calculator: energy and free_energy (eV), forces (eV/Å). Charge and multiplicity from ``atoms.info``.

    Raises (on calculation):
        SCFError: no self-consistency within ``max_cycles``.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, settings: DftConfig) -> None:
        super().__init__()
        self.settings = settings
        self._last: tuple[Any, np.ndarray] | None = None  # what the molecule was, and its density matrix

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None,
                  system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        from pyscf import gto

        held, settings = self.atoms, self.settings
        assert held is not None  # ASE's own calculate keeps a copy of atoms
        charge, spin = int(held.info.get("charge", 0)), int(held.info.get("spin", 1))
        has_cores = settings.basis.lower().startswith("def2") and held.numbers.max() > LAST_ALL_ELECTRON
        molecule = gto.M(
            atom=[(int(z), position) for z, position in zip(held.numbers, held.positions, strict=True)], unit="Angstrom",
            basis=settings.basis, ecp=settings.basis if has_cores else {}, charge=charge, spin=spin - 1, verbose=0)
        field = self._field(molecule)
        identity = held.numbers.tolist(), charge, spin
        start = self._last[1] if settings.has_restarts and self._last is not None and self._last[0] == identity else None
        energy = field.kernel(dm0=start)
        if not field.converged:
            raise SCFError(f"the self-consistent field did not converge in {settings.max_cycles} cycles")
        self._last = identity, field.make_rdm1()
        gradient = field.nuc_grad_method()
        gradient.grid_response = settings.has_grid_response
        forces = -gradient.kernel() * units.Hartree / units.Bohr
        self.results = {"energy": energy * units.Hartree, "free_energy": energy * units.Hartree, "forces": forces}

    def _field(self, molecule: Any) -> Any:
        from pyscf import dft

        settings = self.settings
        field = dft.RKS(molecule) if molecule.spin == 0 else dft.UKS(molecule)
        field.xc = settings.functional
        if settings.is_density_fitted:
            field = field.density_fit()
        field.grids.level = settings.grid
        field.disp = None if settings.dispersion == "none" else settings.dispersion
        field.conv_tol, field.max_cycle = settings.convergence_Ha, settings.max_cycles
        return field
