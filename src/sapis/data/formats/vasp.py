"""Which ionic steps of a VASP output have converged electrons: ASE reads all of them alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

OUTCAR, VASPRUN = "vasp-out", "vasp-xml"  # the names of ASE


def convergence(path: Path, kind: str) -> Iterator[bool]:
    """For each complete ionic step, whether its electronic loop reached its criterion. That VASP says so is not enough: it does
    where the loop ran out of steps, too.

    Args:
        path: an unpacked ``OUTCAR`` or ``vasprun.xml``.
        kind: which of the two.
    """
    return _of_outcar(path) if kind == OUTCAR else _of_vasprun(path)


def _of_outcar(path: Path) -> Iterator[bool]:
    known, step, change = dict[str, float](), 0, 0.0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := _SETTING.match(line):
                known.setdefault(found[1], float(found[2]))
            elif found := _STEP.search(line):
                step = int(found[1])
            elif found := _CHANGE.match(line):
                change = float(found[1])
            elif "TOTAL-FORCE (eV/Angst)" in line:  # the end of an ionic step
                yield _is_reached(known, step, change)
                step = 0  # steps of a machine-learned force field have no loop


_SETTING = re.compile(r"\s*(NELM|EDIFF) +=\s*([-+.\dE]+)")
_STEP = re.compile(r"- Iteration +\d+\( *(\d+)\)")
_CHANGE = re.compile(r"\s*total energy-change \(2\. order\) *: *([-+.\dE]+)")


def _of_vasprun(path: Path) -> Iterator[bool]:
    known = dict[str, float]()
    try:
        for _, element in ElementTree.iterparse(path):
            name = element.get("name", "")
            if element.tag == "i" and name in ("NELM", "EDIFF"):
                known.setdefault(name, float(element.text or "nan"))
            elif element.tag == "calculation":
                energies = [float(i.text or "nan") for i in element.iterfind("scstep/energy/i[@name='e_fr_energy']")]
                yield _is_reached(known, len(energies), energies[-1] - energies[-2] if len(energies) > 1 else math.nan)
                element.clear()
    except (ElementTree.ParseError, ValueError):  # cut off: what ASE reads of it is before this
        return


def _is_reached(known: Mapping[str, float], n_steps: int, change: float) -> bool:
    """Whether an electronic loop of so many steps, the last with this change of energy, reached its criterion.

    Args:
        known: NELM, the most steps of a loop, and EDIFF, the change at which it ends, eV; the first that the file names are those
            of the ground state. Else VASP's defaults.
    """
    return n_steps < known.get("NELM", 60) or abs(change) <= known.get("EDIFF", 1e-4)
