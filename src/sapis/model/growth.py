"""A larger potential that starts as the same function as a smaller one (Net2Net, Chen et al., arXiv 1511.05641).

Each weight of the larger model holds the smaller one's at the same labels (see `sapis.model.axes`). New entries are zero where
they read something new into an outcome that the smaller model has, so that nothing there changes, and random as in a new model
where they make something new, so that all of them learn: an entry that is zero reads what is not.

| axis | what is new |
|---|---|
| channels, heads | whole heads; whole groups of a norm, so that the statistics of the others stay |
| degrees, order, radial functions, hidden units | paths, products, functions and units, each read with weight zero |
| layers | at the end; each hands its scalars on (kept by the unit matrix, updates of zero) to the last read-out |
| elements | rows copied from the most similar element |
| charges, multiplicities, levels of theory | rows of zeros in what is added to the embedding, of ones in what weighs a read-out |
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch

from sapis.core.config import parse_config
from sapis.core.errors import ModelError
from sapis.core.seeds import derive_seed
from sapis.data.conditions import Conditions
from sapis.data.reference import Energies, by_level
from sapis.data.system import chemical_symbols
from sapis.model.axes import Axes, Axis, weight_axes
from sapis.model.config import ModelConfig
from sapis.model.layers import norm_group
from sapis.model.potential import TransformerPotential
from sapis.model.transformer import Layer, Transformer

# What can grow. All other settings are part of the function: another cutoff is another model.
SIZES = ("l_max", "l_max_product", "l_max_carried", "n_channels", "n_channels_carried", "n_heads", "n_layers", "order",
         "n_radial", "n_hidden_readout")
NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)


def larger_config(config: ModelConfig, sizes: Mapping[str, int]) -> ModelConfig:
    """``config`` with larger ``sizes``; heads and what they carry grow with the channels unless they are given too.

    Raises:
        ConfigError: sizes that make no model.
    """
    wanted = dict(sizes)
    n_channels = wanted.get("n_channels", config.n_channels)
    n_heads = wanted.setdefault("n_heads", n_channels * config.n_heads // config.n_channels)
    wanted.setdefault("n_channels_carried", config.n_channels_carried // config.n_heads * n_heads)
    return parse_config(ModelConfig, {**config.model_dump(), **wanted}, where="sizes of the larger model")


def grow(potential: TransformerPotential, config: ModelConfig, *, reference_energies: Energies | None = None,
         conditions: Conditions | None = None, seed: int = 0) -> TransformerPotential:
    """A potential of the larger ``config`` with the energies, forces and stresses of ``potential``, to rounding.

    Arguments and errors are those of `Growth`.
    """
    return Growth(potential, config, reference_energies=reference_energies, conditions=conditions, seed=seed).potential()


class Growth:
    """What a smaller potential becomes in a larger one: its weights, and whatever belongs to them entry by entry.

    Args:
        small: the potential that grows; it is left as it is.
        config: no size smaller than that of ``small``; see `larger_config`.
        reference_energies: E0 in eV of each new element; of several levels of theory by level, ``{"PBE": {16: -10821.5}}``.
        conditions: what the larger model knows as well.
        seed: of the new weights that are random.

    Raises:
        ModelError: what cannot be the same function: a smaller size, another cutoff, another number of channels in a head or in
            a group of a norm; a reference energy that ``small`` has; a new level of theory beside one without a name.
        DataError: reference energies at a level that is not known.
    """

    def __init__(self, small: TransformerPotential, config: ModelConfig, *,
                 reference_energies: Energies | None = None, conditions: Conditions | None = None, seed: int = 0) -> None:
        _require_growth(small.config, config)
        conditions = _all_conditions(small.conditions, conditions or Conditions())
        elements, energies = _all_energies(small, reference_energies or {}, conditions.levels)
        self.small, self.seed = small, seed
        self.settings = {
            **small.settings(), "config": config.model_dump(), "elements": elements, "reference_energies": energies.tolist(),
            "conditions": conditions.to_json(),
        }
        large = self._new()
        _hand_on(large.transformer, small.config.n_layers)
        self.fresh = {name: weight.detach() for name, weight in large.named_parameters()}
        old = weight_axes(small.transformer, small.elements, small.conditions)
        self.places: dict[str, Place] = {}
        for name, axes in weight_axes(large.transformer, large.elements, large.conditions).items():
            origin = _origin(name, small.config.n_layers, config.n_layers)
            if origin in old:
                self.places[f"transformer.{name}"] = Place(f"transformer.{origin}", old[origin], axes)

    def potential(self) -> TransformerPotential:
        """The larger potential, on the device and in the mode of the smaller one."""
        large, weight = self._new(), next(self.small.parameters())
        large.load_state_dict(self.weights(dict(self.small.named_parameters())))
        return large.to(weight.device).train(self.small.training).requires_grad_(weight.requires_grad)

    def weights(self, old: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All weights of the larger potential, by name, from those of the smaller one (or from their running mean)."""
        return {name: self.places[name].grown(old[self.places[name].origin], fresh) if name in self.places else fresh.clone()
                for name, fresh in self.fresh.items()}

    def _new(self) -> TransformerPotential:
        seed = derive_seed(self.seed, "growth", ModelConfig(**self.settings["config"]).model_dump_json())
        return TransformerPotential.from_settings(self.settings, seed=seed)


class Place:
    """Where the entries of one weight go.

    Args:
        origin: name of the smaller weight.
        old, new: axes of the smaller and of the larger weight.

    Attributes:
        is_same: the weight does not change.

    Raises:
        ModelError: an entry of the smaller weight that the larger one has no place for.
    """

    def __init__(self, origin: str, old: Axes, new: Axes) -> None:
        self.origin, self.is_same = origin, old == new
        self.old_shape, self.new_shape = ([len(axis.labels) for axis in axes] for axes in (old, new))
        pairs = [_positions(before, after, origin) for before, after in zip(old, new, strict=True)]
        self.sources = np.ix_(*(source for source, _ in pairs))
        self.targets = np.ix_(*(target for _, target in pairs))
        self.made = np.ix_(*(_made(before, after) for before, after in zip(old, new, strict=True)))

    def grown(self, old: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        """The larger weight: ``fresh``, but zero where it would add to an old outcome, and ``old`` in its places."""
        base = fresh.clone().view(self.new_shape)
        base[self.made] = 0.0
        return self.placed(old, base.view(fresh.shape))

    def placed(self, old: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """``base`` with the entries of ``old`` in their places."""
        result = base.clone().view(self.new_shape)
        result[self.targets] = old.detach().cpu().view(self.old_shape)[self.sources]
        return result.view(base.shape)


def _positions(old: Axis, new: Axis, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the old axis and where the new axis have what both have; a new element has what the one most like it has."""
    if missing := [label for label in old.labels if label not in set(new.labels)]:
        raise ModelError(
            expected=f"a place for every entry of {name}", received=f"none for {missing[0]}", where="sizes of the larger model",
            todo="choose larger ones",
        )
    position: dict[Hashable, int] = {label: place for place, label in enumerate(old.labels)}
    sources = np.array([position.get(_most_similar(label, old.labels) if new.is_species else label, -1) for label in new.labels])
    targets = np.flatnonzero(sources >= 0)
    return sources[targets], targets


def _made(old: Axis, new: Axis) -> np.ndarray:
    """Which entries of the new axis take part in what the old one makes."""
    if old.outcomes is None or new.outcomes is None:
        return np.arange(len(new.labels))
    return np.flatnonzero([outcome in set(old.outcomes) for outcome in new.outcomes])


def _origin(name: str, n_old: int, n_new: int) -> str | None:
    """The name in a model of ``n_old`` layers of a weight of one of ``n_new``: the last read-out stays the last one."""
    kind, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    if kind != "readouts" or int(number) < n_old - 1:
        return name
    return f"readouts.{n_old - 1}.{part}" if int(number) == n_new - 1 else None


@torch.no_grad()
def _hand_on(transformer: Transformer, n_old: int) -> None:
    """Make layers from ``n_old`` on keep what they get, and new read-outs (all but the last) say nothing."""
    for layer in transformer.layers[n_old:]:
        assert isinstance(layer, Layer)
        layer.update.weight.zero_()
        layer.keep.weight.copy_(torch.eye(layer.keep.weight.shape[-1]))
        layer.gate.narrow.weight.zero_()
    for read in transformer.readouts[n_old - 1 : -1]:
        for weight in read.parameters():
            weight.zero_()


def _most_similar(number: Hashable, known: Sequence[Hashable]) -> Hashable:
    """The element of ``known`` that is nearest in group, then in period, then in number."""
    assert isinstance(number, int)

    def distance(other: Hashable) -> tuple[int, ...]:
        assert isinstance(other, int)
        return (*(abs(a - b) for a, b in zip(_group_and_period(number), _group_and_period(other), strict=True)),
                abs(number - other))

    return min(known, key=distance)


def _group_and_period(number: int) -> tuple[int, int]:
    """Group 1 to 18 (3 for lanthanides and actinides) and period of an element."""
    period = int(np.searchsorted(NOBLE_GASES, number))
    column, columns = number - NOBLE_GASES[period - 1], NOBLE_GASES[period] - NOBLE_GASES[period - 1]
    if column <= 2 and number != 2:
        return column, period
    return max(3, column - columns + 18), period


def _require_growth(old: ModelConfig, new: ModelConfig) -> None:
    def refuse(expected: str, received: str, todo: str) -> None:
        raise ModelError(expected=expected, received=received, where="growth of a model", todo=todo)

    for name, before in old.model_dump().items():
        after = getattr(new, name)
        if name not in SIZES and after != before:
            refuse(f"{name} = {before}, as in the smaller model", str(after), "keep it: it is part of the function")
        if name in SIZES and after < before:
            refuse(f"{name} >= {before}, as in the smaller model", str(after), "models only grow")
    heads, channels = (old.n_heads, new.n_heads), (old.n_channels, new.n_channels)
    if channels[0] * heads[1] != channels[1] * heads[0]:
        refuse(f"{channels[0] // heads[0]} channels a head, as in the smaller model", f"{channels[1] / heads[1]:g}",
               "grow n_heads and n_channels together: a head compares all of its channels at once")
    if old.n_channels_carried * heads[1] > new.n_channels_carried * heads[0]:
        refuse(f"n_channels_carried >= {old.n_channels_carried // heads[0] * heads[1]}, as many a head as in the smaller model",
               str(new.n_channels_carried), "grow it with the heads")
    if channels[0] != channels[1] and norm_group(channels[0]) != norm_group(channels[1]):
        refuse(f"groups of {norm_group(channels[0])} channels that are normalised together, as in the smaller model",
               f"{norm_group(channels[1])} at n_channels = {channels[1]}",
               "grow from a multiple of 16 channels to another; other widths have one norm for all channels")


def _all_conditions(old: Conditions, new: Conditions) -> Conditions:
    """What either knows, where the old ones are known."""
    for values, more, name in zip(old.values, new.values, ("charges", "spins", "levels"), strict=True):
        if more and not values:
            raise ModelError(expected=f"a smaller model that knows its {name}", received="one that does not say them",
                             where="growth of a model", todo="train a model on data that name them")
    return old | new


def _all_energies(small: TransformerPotential, new: Energies, levels: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Old and new elements, and the reference energies, eV, ``(levels, elements)``; NaN where there is none."""
    by_name = by_level(new, levels)
    levels, old_levels = list(by_name), small.conditions.levels or ("",)
    given = {number for energies in by_name.values() for number in energies}
    if unfit := sorted(number for number in given if not 0 < number <= NOBLE_GASES[-1]):
        raise ModelError(expected=f"atomic numbers from 1 to {NOBLE_GASES[-1]}", received=str(unfit[0]),
                         where="reference energies", todo="mend the number")
    elements = sorted({*small.elements, *given})
    table = np.full((len(levels), len(elements)), np.nan)
    table[np.ix_(np.array([levels.index(level) for level in old_levels]), np.searchsorted(elements, small.elements))] = (
        small.reference_energies)
    for level, energies in by_name.items():
        for number, energy in energies.items():
            place = levels.index(level), elements.index(number)
            if not np.isnan(table[place]):
                raise ModelError(expected="reference energies of new elements or levels", where="reference energies",
                                 received=f"one of {chemical_symbols[number]}{f' at {level}' if level else ''}",
                                 todo="leave it out: the model keeps the one it has")
            table[place] = energy
    return elements, table
