"""From the description of a labeler to the labeler."""

from __future__ import annotations

import difflib
from importlib import import_module

from sapis.core.errors import ConfigError
from sapis.labelers.labeler import Labeler, LabelerConfig

# Which module of `sapis.labelers.methods` builds each.
METHODS = {"gfn2": "tblite", "gfn1": "tblite", "dft": "dft", "openmm": "openmm", "potential": "ase", "emt": "ase", "lj": "ase",
           "command": "command", "ase": "ase"}


def build_labeler(config: LabelerConfig) -> Labeler:
    """The labeler that ``config`` describes.

    Raises:
        ConfigError: an unknown name, a missing ``calculator``, or an argument the method does not have.
        LabelerError: the calculator cannot be imported or built.
        MissingDependencyError: the method's package is not installed.
    """
    if config.name not in METHODS:
        near = difflib.get_close_matches(config.name.lower(), METHODS, n=1, cutoff=0.4)
        raise ConfigError(
            expected=f"one of {', '.join(METHODS)}", received=repr(config.name), where="labeler: name",
            todo=f"did you mean {near[0]!r}?" if near
            else "take 'ase' and give `calculator: package.module.Class` for a method of your own",
        )
    if (config.calculator is None) == (config.name == "ase"):
        raise ConfigError(
            expected="a `calculator` with `name: ase`, and none with any other name",
            received=f"name {config.name!r}, calculator {config.calculator!r}", where="labeler",
            todo="write, for example, name: ase and calculator: ase.calculators.emt.EMT",
        )
    labeler: Labeler = import_module(f"sapis.labelers.methods.{METHODS[config.name]}").build(config)
    return labeler
