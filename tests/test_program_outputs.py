"""Outputs of programs: written here as the programs lay them out; read for real where docs/howto/convert-data.md says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.units import Bohr, GPa, Hartree

from sapis.core.errors import DataError, FileError
from sapis.data.formats import format_of, read_systems
from sapis.data.lint import lint
from sapis.data.system import System

POSITIONS = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 1.07]])
FORCES = np.array([[0.125, -0.25, 0.5], [-0.125, 0.25, -0.5]])
KILOBAR = np.array([1.0, 2.0, 3.0, 0.4, 0.5, 0.6])  # xx yy zz xy yz zx, as VASP orders them


def loop(step: int, n_steps: int, change: float) -> str:
    """An electronic loop of VASP. Where it runs out of steps it says that it has reached its criterion, too."""
    lines = [f"----------------------------------------- Iteration {step:6d}({i:4d})  -----------\n"
             f" total energy-change (2. order) :{change * 10 ** (n_steps - i):14.7E}  (-0.1000000E-01)\n"
             for i in range(1, n_steps + 1)]
    return "".join(lines) + "------------------------ aborting loop because EDIFF is reached ---------------------\n"


def outcar(loops: list[tuple[int, float]], nelm: int = 8) -> str:
    rows = "".join(f" {' '.join(f'{x:12.5f}' for x in p)} {' '.join(f'{f:13.6f}' for f in force)}\n"
                   for p, force in zip(POSITIONS, FORCES, strict=True))
    head = (f" POTCAR:    PAW_PBE H 15Jun2001\n POTCAR:    PAW_PBE H 15Jun2001\n   ions per type =               2\n"
            "   ISPIN  =      1    spin polarized calculation?\n"
            f"   NELM   = {nelm:6d};   NELMIN=  2; NELMDL= -5     # of ELM steps\n"
            f"   EDIFF  = 0.1E-03   stopping-criterion for ELM\n   NELM   =      1;   NELMIN=  2   # of the response\n")
    step = (
        "      direct lattice vectors                 reciprocal lattice vectors\n"
        + "".join(f" {' '.join(f'{x:12.9f}' for x in row)} 0.1 0.1 0.1\n" for row in 5 * np.eye(3))
        + f"  in kB {' '.join(f'{x:11.5f}' for x in KILOBAR)}\n"
        " POSITION                                       TOTAL-FORCE (eV/Angst)\n"
        f" ------------------------------\n{rows} ------------------------------\n"
        "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ---------------------------------------------------\n"
        "  free  energy   TOTEN  =        -6.50000000 eV\n\n"
        "  energy  without entropy=       -6.40000000  energy(sigma->0) =       -6.45000000\n"
    )
    return head + "".join(loop(i + 1, *each) + step for i, each in enumerate(loops))


def vasprun(energies: list[list[float]]) -> str:
    def varray(name: str, rows: np.ndarray) -> str:
        return f'<varray name="{name}">' + "".join(f"<v>{' '.join(map(str, row))}</v>" for row in rows) + "</varray>"

    def structure(extra: str = "") -> str:
        return (f"<structure {extra}><crystal>{varray('basis', 5 * np.eye(3))}</crystal>{varray('positions', POSITIONS / 5)}"
                "</structure>")

    xx, yy, zz, xy, yz, zx = KILOBAR
    stress = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
    last = '<energy><i name="e_fr_energy">-6.5</i><i name="e_wo_entrp">-6.4</i><i name="e_0_energy">-6.45</i></energy>'
    steps = "".join(
        "<calculation>" + "".join(f'<scstep><energy><i name="e_fr_energy">{e}</i><i name="e_0_energy">{e}</i></energy></scstep>'
                                  for e in loop_energies)
        + structure() + varray("forces", FORCES) + varray("stress", stress) + last + "</calculation>"
        for loop_energies in energies)
    return ('<?xml version="1.0" encoding="ISO-8859-1"?><modeling><generator><i name="version">6.3</i></generator>'
            '<incar><i type="int" name="NELM">3</i><i name="EDIFF">1e-4</i></incar>'
            "<kpoints></kpoints><parameters><separator><i type='int' name='NELM'>1</i></separator></parameters>"
            '<atominfo><array name="atoms"><set><rc><c>H </c><c>1</c></rc><rc><c>H </c><c>1</c></rc></set></array></atominfo>'
            + structure('name="initialpos"') + steps + structure('name="finalpos"') + "</modeling>")


def assert_step(system: System) -> None:
    assert system.numbers.tolist() == [1, 1] and system.pbc.all() and np.allclose(system.positions, POSITIONS, atol=1e-5)
    assert system.forces is not None and np.allclose(system.forces, FORCES, atol=1e-6)
    assert system.energy == -6.5, "the free energy: its gradient are the forces"
    assert system.stress is not None and np.allclose(np.diag(system.stress), -KILOBAR[:3] * 0.1 * GPa, rtol=1e-4)
    assert np.allclose([system.stress[0, 1], system.stress[1, 2], system.stress[0, 2]], -KILOBAR[3:] * 0.1 * GPa, rtol=1e-4)


def test_vasp(tmp_path: Path) -> None:
    """The second ionic step ran out of electronic steps; the third needed the last one it had."""
    (tmp_path / "OUTCAR").write_text(outcar([(5, 1e-5), (8, 1e-2), (8, 1e-5)]))
    (tmp_path / "vasprun.xml").write_text(vasprun([[-6.0, -6.5], [-4.0, -5.0, -6.5], [-6.4, -6.5, -6.50001]]))
    for name in ("OUTCAR", "vasprun.xml"):
        systems = read_systems(tmp_path / name)
        assert [system.tags["converged"] for system in systems] == [True, False, True], name
        for system in systems:
            assert_step(system)
        (finding,) = [finding for finding in lint(systems) if finding.rule == "not-converged"]
        assert finding.severity == "error" and "frame 1" in f"{finding}"


ORCA = """\
                                 *****************
                                 * O   R   C   A *
                                 *****************
 Number of atoms                             ...      2
 Total Charge           Charge          ....   -1
 Multiplicity           Mult            ....    3

---------------------------------
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  H      0.100000    0.200000    0.300000
  H      0.100000    0.200000    1.070000

-------------------------   --------------------
FINAL SINGLE POINT ENERGY        -1.250000000000
-------------------------   --------------------

------------------
CARTESIAN GRADIENT
------------------

   1   H   :   -0.125000000    0.250000000   -0.500000000
   2   H   :    0.125000000   -0.250000000    0.500000000

                             ****ORCA TERMINATED NORMALLY****
"""


def test_orca(tmp_path: Path) -> None:
    (tmp_path / "orca.out").write_text(ORCA)
    (system,) = read_systems(tmp_path / "orca.out")
    assert np.allclose(system.positions, POSITIONS) and system.energy == pytest.approx(-1.25 * Hartree, rel=1e-12)
    assert system.forces is not None and np.allclose(system.forces, FORCES * Hartree / Bohr) and not system.pbc.any()
    assert (system.charge, system.spin) == (-1, 3)


CP2K = """\
 DBCSR| Multiplication driver                                               XSMM

 CP2K| version string:                                          CP2K version 2025.1
 DFT| Multiplicity                                                             3
 DFT| Charge                                                                  -2
 POISSON| Periodicity                                                        XYZ

 CELL| Vector a [angstrom]:       5.000     0.000     0.000    |a| =       5.000
 CELL| Vector b [angstrom]:       0.000     5.000     0.000    |b| =       5.000
 CELL| Vector c [angstrom]:       0.000     0.000     5.000    |c| =       5.000

  1. Atomic kind: Hup                                   Number of atoms:       1
  2. Atomic kind: Hdown                                 Number of atoms:       1

 *** SCF run converged in     9 steps ***

 MODULE QUICKSTEP:  ATOMIC COORDINATES IN angstrom

  Atom  Kind  Element       X           Y           Z          Z(eff)       Mass

       1     1 H    1    0.100000    0.200000    0.300000      1.00       1.0079
       2     2 H    1    0.100000    0.200000    1.070000      1.00       1.0079

 ENERGY| Total FORCE_EVAL ( QS ) energy [hartree]                     -1.250000000000000

 FORCES| Atomic forces [hartree/bohr]

 FORCES| Atom x y z |f|

 FORCES| 1  1.25000000E-01 -2.50000000E-01  5.00000000E-01  5.72821962E-01
 FORCES| 2 -1.25000000E-01  2.50000000E-01 -5.00000000E-01  5.72821962E-01

 STRESS TENSOR [GPa]

            X               Y               Z
  X       0.10000000      0.01000000      0.02000000
  Y       0.01000000      0.20000000      0.03000000
  Z       0.02000000      0.03000000      0.30000000

"""


def test_cp2k(tmp_path: Path) -> None:
    pytest.importorskip("dpdata", reason="dpdata is not installed")
    path = tmp_path / "run.log"
    path.write_text(CP2K)
    assert format_of(path).name == "CP2K"
    (system,) = read_systems(path)
    assert system.numbers.tolist() == [1, 1], "kinds may have any name"
    assert np.allclose(system.positions, POSITIONS) and np.allclose(system.cell, 5 * np.eye(3)) and system.pbc.all()
    assert system.energy == pytest.approx(-1.25 * Hartree, rel=1e-7)
    assert system.forces is not None and np.allclose(system.forces, FORCES * Hartree / Bohr, rtol=1e-6)
    assert system.stress is not None and np.allclose(system.stress[0], -np.array([0.1, 0.01, 0.02]) * GPa, rtol=1e-6)
    assert (system.charge, system.spin) == (-2, 3)

    path.write_text(CP2K.replace("SCF run converged in     9 steps", "SCF run NOT converged"))
    with pytest.raises(DataError, match="converged"):
        read_systems(path)
    path.write_text(CP2K[: CP2K.index(" FORCES|")])
    with pytest.raises(FileError, match="CP2K"):
        read_systems(path)
