"""`Ensemble`: several models of one kind, trained from different weights, whose disagreement is the uncertainty."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from sapis.core.errors import ModelError
from sapis.data.system import System
from sapis.model.potential import TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.potential.posterior import Posterior
from sapis.uncertainty.uncertain import Uncertain


class Members(Uncertain):
    """A potential that is the mean of several models, and says how far they are apart."""

    @abstractmethod
    def __iter__(self) -> Iterator[TransformerPotential]:
        """The models."""

    def posterior(self, systems: Sequence[System]) -> list[Posterior]:
        """See `Uncertain.posterior`."""
        predicted = [member.predict(systems) for member in self]
        return [Posterior.of_members(found).calibrated(self.calibrations, system.numbers)
                for system, *found in zip(systems, *predicted, strict=True)]

    def variance_gradients(self, systems: Sequence[System]) -> list[np.ndarray]:
        """See `Uncertain.variance_gradients`: of ``sum (E_m - E)^2 / (M - 1)``."""
        found = []
        for members in zip(*(member.predict(systems) for member in self), strict=True):
            energies, forces = np.array([one.energy for one in members]), np.stack([one.forces for one in members])
            shifts = energies - energies[0]
            moved = shifts - shifts.mean()
            found.append(-2 * self._energy_factor() ** 2 / (len(members) - 1) * np.einsum("m,mia->ia", moved, forces))
        return found


class Ensemble(Members):
    """Models that were trained apart (a deep ensemble).

    Args:
        members: two or more, of the same elements, cutoff, precision, charges, multiplicities and levels of theory.
        calibrations: of ``energy`` and ``forces``, by which stated deviations are corrected; empty: as the members say.

    Raises:
        ModelError: fewer than two members, or of different kinds.
    """

    def __init__(self, members: Sequence[TransformerPotential], calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(calibrations)
        if len(members) < 2:
            raise ModelError(expected="at least two members", received=str(len(members)), where="ensemble",
                             todo="train more of them")
        first = members[0]
        for number, member in enumerate(members):
            for name in ("elements", "cutoff", "precision", "conditions"):
                own, common = getattr(member, name), getattr(first, name)
                if own != common:
                    raise ModelError(expected=f"members of one {name}: {common}", received=f"{own}",
                                     where=f"member {number} of the ensemble", todo="train all on the same data with one recipe")
        self.members = nn.ModuleList(members)

    def __iter__(self) -> Iterator[TransformerPotential]:
        return iter(self.members)  # type: ignore[arg-type]

    @property
    def first(self) -> TransformerPotential:
        """The first member."""
        return next(iter(self))

    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {"members": [member.settings() for member in self],
                "calibrations": {name: found.to_json() for name, found in self.calibrations.items()}}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Ensemble:
        """The inverse of `settings`; the weights are random until loaded."""
        return cls([TransformerPotential.from_settings(each) for each in settings["members"]],
                   {name: Calibration.from_json(found) for name, found in settings["calibrations"].items()})

    def with_precision(self, precision: str) -> Ensemble:
        """A copy that computes in ``precision``."""
        return Ensemble([member.with_precision(precision) for member in self], self.calibrations).train(self.training)
