"""What a script needs: load a model, look at its card, use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapis.core.errors import FileError, ModelError
from sapis.core.files import hash_file
from sapis.core.version import __version__
from sapis.data.system import System
from sapis.model.potential import DTYPES, TransformerPotential
from sapis.potential.bundle import Bundle, read_bundle, write_bundle
from sapis.potential.calculator import SapisCalculator
from sapis.potential.prediction import Prediction
from sapis.uncertainty.distance import Distance
from sapis.uncertainty.dropout import Dropout
from sapis.uncertainty.ensemble import Ensemble
from sapis.uncertainty.evidential import Evidential
from sapis.uncertainty.last_layer import Laplace, Shallow
from sapis.uncertainty.one_model import OneModel
from sapis.uncertainty.uncertain import Uncertain

ARCHITECTURES: dict[str, type[TransformerPotential] | type[Ensemble] | type[Dropout] | type[OneModel]] = {
    "transformer": TransformerPotential, "ensemble": Ensemble, "dropout": Dropout,
    **{kind.name: kind for kind in (Laplace, Shallow, Distance, Evidential)}}


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        potential: what computes, in the precision asked for.
        card: where it comes from and what was measured of it.
    """

    potential: TransformerPotential | Uncertain
    card: dict[str, Any]

    @property
    def single(self) -> TransformerPotential:
        """The potential, where it must be one model.

        Raises:
            ModelError: an ensemble.
        """
        if isinstance(self.potential, Ensemble):
            raise ModelError(expected="one model", received=f"an ensemble of {len(self.potential.members)}", where="model",
                             todo="give one that was trained alone")
        return self.potential.first if isinstance(self.potential, Uncertain) else self.potential

    def calculator(self, precision: str | None = None, *, device: str = "cpu", level: str = "") -> SapisCalculator:
        """An ASE calculator.

        Args:
            precision: ``float32`` or ``float64``; default: as trained.
            device: as torch names it.
            level: level of theory, for a model of several.

        Raises:
            ModelError: a precision or a level that the model does not have.
        """
        levels = self.potential.conditions.levels
        if levels and level not in levels and (level or len(levels) > 1):
            raise ModelError(expected=f"a level of theory that the model knows: {', '.join(levels)}",
                             received=level or "none", where="level", todo="give one of them")
        potential = self.potential if precision is None else self.potential.with_precision(_known(precision))
        return SapisCalculator(potential.to(device), level=level)

    def predict(self, systems: Sequence[System]) -> list[Prediction]:
        """Energies, forces, stress of many systems, batched."""
        return self.potential.predict(systems)


def load(path: str | Path, *, precision: str | None = None) -> Model:
    """Load a model bundle. Nothing in the file is run.

    Args:
        path: a ``.sapis`` file.
        precision: ``float32`` or ``float64``; default: as trained.

    Raises:
        FileError: missing, truncated, altered or foreign file, or one that needs another version.
    """
    bundle = read_bundle(Path(path))
    kind = ARCHITECTURES.get(bundle.architecture)
    if kind is None:
        raise FileError(expected=f"one of the architectures {', '.join(ARCHITECTURES)}", received=bundle.architecture,
                        where=str(path), todo="update sapis-md")
    try:
        potential = kind.from_settings(bundle.settings)
        potential.load_state_dict(bundle.weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(
            expected=f"settings and weights of a {bundle.architecture} as sapis {__version__} builds it",
            received=" ".join(str(error).split())[:300], where=str(path),
            todo="load the model with the version of sapis-md that trained it, or train it again",
        ) from error
    potential.eval().requires_grad_(False)  # forces need no derivative by weights
    if precision is not None:
        potential = potential.with_precision(_known(precision))
    return Model(potential, bundle.card)


def calculator(path: str | Path, *, precision: str | None = None, level: str = "", uncertainty: bool = True) -> SapisCalculator:
    """The ASE calculator of a model's file: `load` and `Model.calculator` in one, for whoever takes import paths.

    Args:
        uncertainty: where the model has one; False: what its trained weights say by themselves, which is faster. An ensemble
            stays one.
    """
    model = load(path)
    if not uncertainty and not isinstance(model.potential, Ensemble):
        model = replace(model, potential=model.single)
    return model.calculator(precision, level=level)


def save(path: str | Path, potential: TransformerPotential | Uncertain, card: dict[str, Any]) -> str:
    """Write a bundle; returns the hash of the file."""
    name = next(name for name, kind in ARCHITECTURES.items() if isinstance(potential, kind))
    write_bundle(Path(path), Bundle(name, potential.settings(), dict(potential.state_dict()), card))
    return hash_file(Path(path))


def _known(precision: str) -> str:
    if precision not in DTYPES:
        raise ModelError(expected=" or ".join(DTYPES), received=repr(precision), where="precision", todo="give one of them")
    return precision
