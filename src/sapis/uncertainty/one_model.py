"""`OneModel`: a potential that makes its uncertainty from one trained model, by what its last linear maps read.

Nothing below these is touched, so all of it is made after a training, from its frames, and costs little beside an evaluation.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch

from sapis.core.errors import DataError
from sapis.data.system import System
from sapis.model.last_layer import LastLayer
from sapis.model.potential import Part, TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.potential.prediction import Prediction
from sapis.uncertainty.uncertain import Uncertain

N_TO_FIT = 5000  # frames


class OneModel(Uncertain):
    """A potential that makes its uncertainty from one model.

    Args:
        potential: the trained model.
        calibrations: of ``energy`` and ``forces``.
    """

    name: ClassVar[str]

    def __init__(self, potential: TransformerPotential, calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(calibrations)
        self.potential = potential

    @property
    def first(self) -> TransformerPotential:
        """The model."""
        return self.potential

    def posterior(self, systems: Sequence[System]) -> list[Posterior]:
        """See `Uncertain.posterior`."""
        result = []
        for part in self.potential.batches(systems):
            found = self._posteriors(part, LastLayer(self.potential, part.batch))
            result += [each.calibrated(self.calibrations, system.numbers)
                       for system, each in zip(part.systems, found, strict=True)]
        return result

    def variance_gradients(self, systems: Sequence[System]) -> list[np.ndarray]:
        """See `Uncertain.variance_gradients`."""
        found = []
        for part in self.potential.batches(systems):
            layer = LastLayer(self.potential, part.batch)
            with torch.enable_grad():
                features = layer.features.double().requires_grad_()
                (cotangents,) = torch.autograd.grad(self._energy_variances(part, features).sum(), features)
            gradient = self._energy_factor() ** 2 * layer.gradient_of_features(cotangents).double().cpu().numpy()
            found += [gradient[rows] for rows in atoms_of(part)]
        return found

    @abstractmethod
    def _posteriors(self, part: Part, layer: LastLayer) -> list[Posterior]:
        """Of a batch, not calibrated."""

    @abstractmethod
    def _energy_variances(self, part: Part, features: torch.Tensor) -> torch.Tensor:
        """Of the energy of each system, as a function of ``features`` ``(atoms, features)`` float64, eV^2, ``(systems,)``."""

    def _mean(self, part: Part, layer: LastLayer, weights: torch.Tensor) -> list[Prediction]:
        """What the model says with ``weights`` as its last ones."""
        return self.potential.predictions(part, layer.energies(weights), *layer.forces(weights))

    def settings(self) -> dict[str, Any]:
        """Everything but weights and tables, as JSON values."""
        return {"potential": self.potential.settings(), "calibrations": {
            name: found.to_json() for name, found in self.calibrations.items()}, "shapes": {
            name: list(table.shape) for name, table in self.named_buffers() if "." not in name}}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> OneModel:
        """The inverse of `settings`; weights and tables are to be loaded."""
        tables = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in settings["shapes"].items()}
        return cls(TransformerPotential.from_settings(settings["potential"]), calibrations={
            name: Calibration.from_json(found) for name, found in settings["calibrations"].items()}, **tables)

    def with_precision(self, precision: str) -> OneModel:
        """A copy that computes in ``precision``; its tables are float64 always."""
        tables = {name: table for name, table in self.named_buffers() if "." not in name}
        return type(self)(self.potential.with_precision(precision), calibrations=self.calibrations, **tables)


def atoms_of(part: Part) -> list[slice]:
    """The atoms of each system of a batch."""
    ends = np.cumsum([len(system) for system in part.systems])
    return [slice(int(end) - len(system), int(end)) for system, end in zip(part.systems, ends, strict=True)]


def sums_over_atoms(part: Part, values: torch.Tensor) -> torch.Tensor:
    """For each system, ``(systems, ...)``, of ``values`` ``(atoms, ...)``."""
    return values.new_zeros(len(part.systems), *values.shape[1:]).index_add(0, part.batch.graph, values)


def evenly(systems: Sequence[System]) -> list[System]:
    """At most `N_TO_FIT` of them: they may be a store, whose frames are read one by one."""
    return [systems[k] for k in range(0, len(systems), math.ceil(len(systems) / N_TO_FIT) or 1)]


def with_labels(systems: Sequence[System]) -> list[System]:
    """Those that have energy and forces, of `evenly`, or if these have none the first `N_TO_FIT` of all.

    Raises:
        DataError: none has.
    """
    def labelled(some: Iterable[System]) -> Iterator[System]:
        return (system for system in some if system.energy is not None and system.forces is not None)

    found = list(labelled(evenly(systems))) or list(islice(labelled(systems), N_TO_FIT))
    if not found:
        raise DataError(expected="training frames with energies and forces", received=f"{len(systems)} without",
                        where="uncertainty", todo="give labelled frames")
    return found
