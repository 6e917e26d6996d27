"""``gfn2`` and ``gfn1``: tight binding through tblite."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from sapis.core.errors import MissingDependencyError
from sapis.data.system import System
from sapis.labelers.evaluation import AseLabeler, check_arguments
from sapis.labelers.labeler import Labeler, LabelerConfig

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
RESERVED = ("method", "charge", "multiplicity", "verbosity")


def build(config: LabelerConfig) -> Labeler:
    """GFN1-xTB or GFN2-xTB (Bannwarth, Ehlert and Grimme, JCTC 15, 1652, 2019), molecules and crystals (gamma point).

    Raises:
        ConfigError: an argument that tblite does not have.
        MissingDependencyError: tblite is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError:
        raise MissingDependencyError.of("tblite", extra="xtb", purpose=f"the labeler {config.name!r}") from None

    check_arguments(config, [name for name in TBLite.default_parameters if name not in RESERVED],
                    "remove it; charge and spin belong to the structure, not to the labeler")

    def calculator(system: System) -> Calculator:
        return TBLite(method=METHODS[config.name], charge=system.charge, multiplicity=system.spin,
                      verbosity=0, **config.arguments)

    method = {"name": config.name, "package": "tblite", "version": metadata.version("tblite"), "arguments": config.arguments}
    return AseLabeler(method, config.level or METHODS[config.name], calculator, _objection)


def _objection(system: System) -> str | None:
    if system.pbc.any() and not system.pbc.all():
        return ("tblite would silently treat this structure, periodic in one or two directions, as periodic "
                "in three; set pbc to True throughout and leave vacuum, or to False throughout")
    return None
