"""`Dropout`: one model, trained with channels left out at random, and asked without some of them (Monte Carlo dropout; Gal and
Ghahramani, ICML 2016).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sapis.core.seeds import derive_seed
from sapis.model.dropout import dropped
from sapis.model.potential import TransformerPotential
from sapis.potential.calibration import Calibration
from sapis.uncertainty.ensemble import Members


class Dropout(Members):
    """Copies of one model without some of its channels, which are the same ones for good: along a trajectory each copy, and so
    their mean, conserves its energy.

    Args:
        potential: trained with the same ``rate``.
        rate: probability of a channel to be left out.
        n_members: copies.
        seed: of which channels.
        calibrations: see `Uncertain`.
    """

    def __init__(self, potential: TransformerPotential, rate: float, n_members: int, seed: int = 0,
                 calibrations: Mapping[str, Calibration] | None = None) -> None:
        super().__init__(calibrations)
        self.potential, self.rate, self.n_members, self.seed = potential, rate, n_members, seed
        self._copies: list[TransformerPotential] = []
        self._made_of: list[tuple[int, int]] = []  # weights, by place and version

    @property
    def first(self) -> TransformerPotential:
        """The model with all channels."""
        return self.potential

    def __iter__(self) -> Iterator[TransformerPotential]:
        present = [(tensor.data_ptr(), tensor._version) for tensor in self.potential.state_dict(keep_vars=True).values()]
        if self._made_of != present:
            self._copies = [dropped(self.potential, self.rate, derive_seed(self.seed, "member", number))
                            for number in range(self.n_members)]
            self._made_of = present
        return iter(self._copies)

    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {"potential": self.potential.settings(), "rate": self.rate, "n_members": self.n_members, "seed": self.seed,
                "calibrations": {name: found.to_json() for name, found in self.calibrations.items()}}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Dropout:
        """The inverse of `settings`; the weights are random until loaded."""
        return cls(TransformerPotential.from_settings(settings["potential"]), settings["rate"], settings["n_members"],
                   settings["seed"], {name: Calibration.from_json(found) for name, found in settings["calibrations"].items()})

    def with_precision(self, precision: str) -> Dropout:
        """A copy that computes in ``precision``."""
        return Dropout(self.potential.with_precision(precision), self.rate, self.n_members, self.seed, self.calibrations)
