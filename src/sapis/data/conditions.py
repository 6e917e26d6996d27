"""`Conditions`: what beside elements and positions settles the energy of a system, and what a model knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sapis.core.errors import ModelError
from sapis.data.system import System

# Fields of `System`, in the order of `Conditions`.
NAMES = ("charge", "spin", "level")
_LONG = {"charge": "total charge", "spin": "multiplicity 2S+1", "level": "level of theory"}


@dataclass(frozen=True)
class Conditions:
    """The values that a model was trained on, ascending. One that has no values was not recorded, and everything passes for it.

    Attributes:
        charges: total charges, e.
        spins: multiplicities 2S+1.
        levels: levels of theory of the labels.

    Raises:
        ModelError: values that are not ascending, or not of their type.
    """

    charges: tuple[int, ...] = ()
    spins: tuple[int, ...] = ()
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for item, kind in zip(fields(self), (int, int, str), strict=True):
            values = getattr(self, item.name)
            if not all(isinstance(value, kind) for value in values) or list(values) != sorted(set(values)):
                raise ModelError(expected=f"{item.name} of type {kind.__name__} in ascending order, each once",
                                 received=str(list(values)), where="conditions of the model", todo="sort them")

    @classmethod
    def having(cls, charges: Iterable[int] = (), spins: Iterable[int] = (), levels: Iterable[str] = ()) -> Conditions:
        """Those that occur in the arguments, in whatever order and however often."""
        return cls(tuple(sorted(set(charges))), tuple(sorted(set(spins))), tuple(sorted(set(levels))))

    @classmethod
    def of(cls, systems: Sequence[System]) -> Conditions:
        """Those of ``systems``.

        Raises:
            DataError: some name their level of theory and others do not.
        """
        levels = {system.level for system in systems}
        if "" in levels and len(levels) > 1:
            unnamed = next(system for system in systems if not system.level)
            raise unnamed.error(expected=f"a level of theory, as other frames have ({', '.join(sorted(levels - {''}))})",
                                received="none", key="level_of_theory", todo="name it in every frame, or in none")
        return cls.having((system.charge for system in systems), (system.spin for system in systems), levels - {""})

    def __or__(self, other: Conditions) -> Conditions:
        """What either knows."""
        return self.having(*(mine + theirs for mine, theirs in zip(self.values, other.values, strict=True)))

    @property
    def values(self) -> tuple[tuple[Any, ...], ...]:
        """Of charge, spin and level, in this order."""
        return self.charges, self.spins, self.levels

    @property
    def told_apart(self) -> dict[str, tuple[Any, ...]]:
        """By name, the values of each condition that has several."""
        return {name: values for name, values in zip(NAMES, self.values, strict=True) if len(values) > 1}

    @property
    def sizes(self) -> dict[str, int]:
        """By name, how many values each condition has that has several."""
        return {name: len(values) for name, values in self.told_apart.items()}

    def indices(self, system: System) -> np.ndarray:
        """Positions of a system's charge, spin and level among the known ones, ``(3,)`` int64.

        Raises:
            ModelError: one that is not known; no level of theory where there are several.
        """
        return np.array([self._index(name, values, system) for name, values in zip(NAMES, self.values, strict=True)])

    def _index(self, name: str, values: tuple[Any, ...], system: System) -> int:
        value = getattr(system, name)
        if value in values:
            return values.index(value)
        if not values or (name == "level" and not value and len(values) == 1):
            return 0
        known = ", ".join(map(str, values))
        raise ModelError(
            expected=f"a {_LONG[name]} that the model knows ({known})", received=str(value) or "none",
            where=system.where,
            todo="name one of them" if name == "level" else "use a model trained with it, or set one that it knows",
        )

    @property
    def first(self) -> tuple[int, int, str]:
        """The lowest charge and multiplicity and the first level; where they are not known those of `System` itself."""
        return (*self.charges, 0)[0], (*self.spins, 1)[0], (*self.levels, "")[0]

    def to_json(self) -> dict[str, list[Any]]:
        """As JSON values."""
        return {item.name: list(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[Any]]) -> Conditions:
        """The inverse of `to_json`."""
        return cls(**{name: tuple(known) for name, known in values.items()})
