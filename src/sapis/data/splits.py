"""Splits into training, validation and test data: pure functions, the same under the same seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from sapis.core.errors import ConfigError, DataError
from sapis.core.seeds import generator
from sapis.data.store import Selection, Store
from sapis.data.system import System

TRAIN, VALIDATION, TEST, DROPPED = 0, 1, 2, 3
# Held-out blocks shorter than this many gaps would cost too many training frames at their borders.
MIN_BLOCK_GAPS = 20


@dataclass(frozen=True)
class Split:
    """Disjoint parts of a data set, each in the order of the original: lists, or of a store selections.

    Attributes:
        dropped: frames left out because they border on another part in time.
    """

    train: Sequence[System]
    validation: Sequence[System]
    test: Sequence[System]
    dropped: Sequence[System] = field(default_factory=list)


def split_in_time(
    systems: Sequence[System], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), gap: int = 1,
    n_blocks: int = 5, min_block_gaps: int = MIN_BLOCK_GAPS, seed: int = 0,
) -> Split:
    """Hold out blocks in time, so that neighbouring frames of a trajectory are never in different parts.

    Trajectories (tag ``trajectory``, which must be unique in the data) are put one after another in shuffled
    order, each in the order of ``time_fs`` or, where that is absent, as given; a frame without the tag is a
    trajectory of its own. Blocks for validation and test are then spread evenly over this line. Every
    training frame within ``gap`` frames of a held-out one of the same trajectory is dropped, and every such
    validation frame near a test one.

    Args:
        systems: at least one.
        fractions: of training, validation and test; they sum to 1. A part gets round(fraction x systems)
            frames before dropping, and from 10 systems on at least one if its fraction is not zero.
        gap: frames dropped at each border.
        n_blocks: most blocks per trajectory and held-out part; fewer where blocks would become too short.
        min_block_gaps: of how many gaps a block is at least.
        seed: of the order of trajectories and of which blocks are validation and which test.

    Raises:
        DataError: no systems, or no training frame left because of ``gap``.
        ConfigError: fractions that are negative or do not sum to 1.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
        raise ConfigError(expected="fractions that are not negative and sum to 1", received=str(fractions),
                          where="split_in_time", todo="mend the fractions")
    if not systems:
        raise DataError(expected="at least one system", received="none", where="split_in_time",
                        todo="check that the files were read")
    random = generator(seed, "split_in_time")
    trajectories = in_time(systems)
    line = [trajectories[i] for i in random.permutation(len(trajectories))]
    lengths = [_held_out(fraction, len(systems)) for fraction in fractions[1:]]
    shortest = min((length for length in lengths if length), default=0)
    n_pairs = max(1, min(n_blocks * len(line), shortest // (min_block_gaps * max(gap, 1))))
    parts = _lay_blocks(len(systems), lengths[0], lengths[1], n_pairs, random)

    part_of = np.empty(len(systems), dtype=np.int64)
    start = 0
    for members in line:
        part_of[members] = _drop_borders(parts[start:start + len(members)], gap)
        start += len(members)
    if fractions[0] > 0 and not (part_of == TRAIN).any():
        raise DataError(expected="training frames between the held-out ones", received="none left",
                        where=f"split_in_time, {len(systems)} systems, fractions {fractions}, gap {gap}",
                        todo="give more data, a smaller gap or a larger training fraction")
    return _split(systems, part_of)


def holdout_temperature(systems: Sequence[System], temperature_K: float) -> tuple[list[System], list[System]]:
    """Systems of all other temperatures (or none), and those whose tag ``temperature_K`` is this one.

    Raises:
        DataError: no system has this temperature.
    """
    tags = [system.tags.get("temperature_K") for system in systems]
    is_held = [isinstance(tag, int | float) and math.isclose(tag, temperature_K) for tag in tags]
    if not any(is_held):
        known = sorted({tag for tag in tags if isinstance(tag, int | float)})
        raise DataError(expected=f"systems at {temperature_K} K",
                        received=f"temperatures {', '.join(map(str, known)) or '(none)'}",
                        where="tag 'temperature_K'", todo="choose one of these, or tag the systems")
    rest = [system for system, held in zip(systems, is_held, strict=True) if not held]
    return rest, [system for system, held in zip(systems, is_held, strict=True) if held]


def random_split(systems: Sequence[System], n_train: int, n_validation: int, seed: int) -> Split:
    """Random frames, as some published protocols ask; for MD data it flatters the test error.

    Args:
        systems: all frames; those in neither part become the test part.

    Raises:
        DataError: fewer systems than asked for.
    """
    if min(n_train, n_validation) < 0 or n_train + n_validation > len(systems):
        raise DataError(expected=f"at least {n_train} + {n_validation} systems", received=str(len(systems)),
                        where="random_split", todo="ask for fewer, or give more data")
    part_of = np.full(len(systems), TEST)
    order = generator(seed, "random_split").permutation(len(systems))
    part_of[order[:n_train]] = TRAIN
    part_of[order[n_train:n_train + n_validation]] = VALIDATION
    return _split(systems, part_of)


def group_split(systems: Sequence[System], tag: str, n_validation: int, n_test: int, seed: int) -> Split:
    """Random groups of frames: those with one value of ``tag``, such as ``smiles``, are in one part.

    Args:
        systems: all frames; those in neither held-out part train.
        tag: frames without it are groups of their own.
        n_validation, n_test: frames of each held-out part, and as many more as its last group brings.

    Raises:
        DataError: no frame has the tag, or nothing is left to train on.
    """
    groups: dict[object, list[int]] = {}
    alone: list[list[int]] = []
    for number, system in enumerate(systems):
        value = system.tags.get(tag)
        if value is None:
            alone.append([number])
        else:
            groups.setdefault(value, []).append(number)
    if not groups:
        raise DataError(expected=f"frames with the tag {tag!r}", received="none", where="group_split",
                        todo="name a tag that the frames have; `sapis data info` shows one frame's")
    members = [*groups.values(), *alone]
    order = iter(generator(seed, "group_split").permutation(len(members)))
    part_of = np.full(len(systems), TRAIN)
    for part, wanted in ((VALIDATION, n_validation), (TEST, n_test)):
        n_frames = 0
        while n_frames < wanted and (group := next(order, None)) is not None:
            part_of[members[group]] = part
            n_frames += len(members[group])
    if not (part_of == TRAIN).any():
        raise DataError(expected=f"more than {n_validation} + {n_test} frames, in groups that leave some to train on",
                        received=f"{len(systems)} frames in {len(members)} groups", where=f"group_split by {tag!r}",
                        todo="hold out fewer, give more frames, or group by another tag")
    return _split(systems, part_of)


def nested_order(systems: Sequence[System], seed: int) -> np.ndarray:
    """A random order, ``(systems,)``, whose first frames hold every element, charge, multiplicity and level of theory at least
    once: of nested subsets the smallest lets a model know all that the largest does.
    """
    order = generator(seed, "nested_order").permutation(len(systems))
    places = np.argsort(order)
    first: dict[object, int] = {}
    for number, system in enumerate(systems):
        for kind in _kinds(system):
            if kind not in first or places[number] < places[first[kind]]:
                first[kind] = number
    ahead = sorted(set(first.values()), key=lambda number: int(places[number]))
    return np.concatenate([np.array(ahead, dtype=np.int64), order[~np.isin(order, ahead)]])


def is_of_new_kind(systems: Sequence[System], known: Sequence[System]) -> list[bool]:
    """Whether each of ``systems`` has an element, charge, multiplicity or level of theory that none of ``known`` has: a model
    that is trained on these cannot take it.
    """
    of_known = {kind for system in known for kind in _kinds(system)}
    return [not of_known.issuperset(_kinds(system)) for system in systems]


def _kinds(system: System) -> list[object]:
    return [*np.unique(system.numbers).tolist(), ("charge", system.charge), ("spin", system.spin), system.level]


def chosen(systems: Sequence[System], numbers: np.ndarray) -> Sequence[System]:
    """Some of ``systems`` by their numbers, in that order: a list, or of a store a selection."""
    if isinstance(systems, Store):
        return Selection(systems, numbers)
    if isinstance(systems, Selection):
        return Selection(systems.store, systems.indices[numbers])
    return [systems[int(number)] for number in numbers]


def _split(systems: Sequence[System], part_of: np.ndarray) -> Split:
    return Split(*(chosen(systems, np.flatnonzero(part_of == part)) for part in (TRAIN, VALIDATION, TEST, DROPPED)))


def in_time(systems: Sequence[System]) -> list[list[int]]:
    """Indices of the frames of each trajectory (tag ``trajectory``) in the order of ``time_fs`` or, where that is absent, as
    given; a frame without the tag is a trajectory of its own.
    """
    groups: dict[object, list[int]] = {}
    for i, system in enumerate(systems):
        trajectory = system.tags.get("trajectory")
        groups.setdefault(("alone", i) if trajectory is None else ("trajectory", trajectory), []).append(i)
    times = [system.tags.get("time_fs") for system in systems]
    return [sorted(group, key=lambda i: float(times[i] or 0.0))
            if all(isinstance(times[i], int | float) for i in group) else group for group in groups.values()]


def next_in_time(systems: Sequence[System], numbers: Collection[int]) -> set[int]:
    """Indices of the frames just before or after one of ``numbers`` in their trajectory, see `in_time`."""
    found = set[int]()
    for line in in_time(systems):
        for one, other in pairwise(line):
            found |= {one} if other in numbers else set()
            found |= {other} if one in numbers else set()
    return found


def _held_out(fraction: float, n_systems: int) -> int:
    length = round(fraction * n_systems)
    return max(1, length) if fraction > 0 and n_systems >= 10 else length


def _lay_blocks(
    n: int, n_validation: int, n_test: int, n_pairs: int, random: np.random.Generator,
) -> np.ndarray:
    """The part of each of ``n`` frames in a line, ``(frames,)``: one block in each of 2 ``n_pairs`` sections.

    The first block opens the line and the last one closes it, so that few blocks cost few borders.
    """
    kinds = np.concatenate([random.permutation([VALIDATION, TEST]) for _ in range(n_pairs)])
    sizes = {VALIDATION: _shares(n_validation, n_pairs), TEST: _shares(n_test, n_pairs)}
    lengths = [int(sizes[int(kind)][k // 2]) for k, kind in enumerate(kinds)]
    between = _shares(n - sum(lengths), len(lengths) - 1)
    parts = np.full(n, TRAIN)
    start = 0
    for k, (kind, length) in enumerate(zip(kinds, lengths, strict=True)):
        parts[start:start + length] = kind
        start += length + (int(between[k]) if k < len(between) else 0)
    return parts


def _shares(total: int, n: int) -> np.ndarray:
    """``total`` in ``n`` whole parts that differ by at most one."""
    return np.diff(np.arange(n + 1) * total // n)


def _drop_borders(parts: np.ndarray, gap: int) -> np.ndarray:
    """The parts of one trajectory's frames with those too near another part dropped; test frames all stay."""
    parts = parts.copy()
    held_out = (parts == VALIDATION) | (parts == TEST)
    parts[_near(held_out, gap) & (parts == TRAIN)] = DROPPED
    parts[_near(parts == TEST, gap) & (parts == VALIDATION)] = DROPPED
    return parts


def _near(mask: np.ndarray, distance: int) -> np.ndarray:
    """Where ``mask`` is true within ``distance`` frames on either side."""
    near = mask.copy()
    for step in range(1, min(distance, len(mask) - 1) + 1):
        near[step:] |= mask[:-step]
        near[:-step] |= mask[step:]
    return near
