"""Splits: no neighbours in time across parts, sizes as asked, the same under the same seed."""

import itertools

import numpy as np
import pytest

from sapis.core.errors import ConfigError, DataError
from sapis.data.splits import Split, group_split, holdout_temperature, random_split, split_in_time
from sapis.data.system import System

Parts = dict[int, str]


def frame(number: int, **tags: str | float) -> System:
    return System([1], [[float(number), 0.0, 0.0]], tags={"number": number, **tags})


def data(lengths: list[int], n_alone: int = 0) -> list[System]:
    """Trajectories of these lengths, then frames on their own."""
    systems = [frame(0, trajectory=str(k), time_fs=0.5 * t) for k, n in enumerate(lengths) for t in range(n)]
    systems += [frame(0) for _ in range(n_alone)]
    return [system.with_tags(number=i) for i, system in enumerate(systems)]


def parts_of(split: Split) -> Parts:
    return {int(system.tags["number"]): name
            for name in ("train", "validation", "test", "dropped") for system in getattr(split, name)}


def leaks(systems: list[System], parts: Parts, gap: int) -> list[tuple[int, int]]:
    """Pairs of kept frames of one trajectory, at most ``gap`` frames apart in time, in different parts."""
    trajectories: dict[str, list[System]] = {}
    for system in systems:
        if "trajectory" in system.tags:
            trajectories.setdefault(str(system.tags["trajectory"]), []).append(system)
    pairs = []
    for members in trajectories.values():
        names = [int(s.tags["number"]) for s in sorted(members, key=lambda s: float(s.tags["time_fs"]))]
        for a, b in itertools.combinations(range(len(names)), 2):
            kinds = {parts[names[a]], parts[names[b]]}
            if b - a <= gap and len(kinds) == 2 and "dropped" not in kinds:
                pairs.append((names[a], names[b]))
    return pairs


LAYOUTS = [
    ([1000], 0), ([10], 0), ([12], 0), ([3, 3, 4], 0), ([7] * 30, 0), ([3] * 100, 0), ([500, 40, 5, 3], 20),
    ([100] * 8, 0), ([], 10), ([], 333), ([200], 200), ([10, 10], 1), ([4, 4, 4], 0),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("lengths", "n_alone", "gap"), [
    (lengths, n_alone, gap) for lengths, n_alone in LAYOUTS for gap in (0, 1, 3)
    if gap < 3 or max(lengths, default=20) >= 20
])
def test_properties(lengths: list[int], n_alone: int, gap: int, seed: int) -> None:
    systems = data(lengths, n_alone)
    n = len(systems)
    split = split_in_time(systems, gap=gap, seed=seed)
    parts = parts_of(split)
    assert len(split.train) + len(split.validation) + len(split.test) + len(split.dropped) == len(parts) == n
    assert leaks(systems, parts, gap) == []
    assert len(split.validation) == len(split.test) == max(1, round(0.1 * n))
    assert len(split.dropped) <= max(4 * gap, 0.1 * n)
    for part in (split.train, split.validation, split.test):
        numbers = [system.tags["number"] for system in part]
        assert part and numbers == sorted(numbers)
    assert parts_of(split_in_time(systems, gap=gap, seed=seed)) == parts


def test_the_leak_detector_sees_a_random_split() -> None:
    systems = data([100])
    assert len(leaks(systems, parts_of(random_split(systems, 80, 10, seed=0)), 1)) > 10


def test_another_seed_gives_another_split() -> None:
    systems = data([50] * 4, 20)
    assert len({tuple(parts_of(split_in_time(systems, seed=seed)).items()) for seed in range(5)}) == 5


def test_order_is_that_of_time_not_of_the_file() -> None:
    systems = data([300])
    shuffled = [systems[i] for i in np.random.default_rng(0).permutation(300)]
    assert leaks(systems, parts_of(split_in_time(shuffled)), 1) == []


def test_held_out_blocks_are_spread_over_a_long_trajectory() -> None:
    split = split_in_time(data([2000]), n_blocks=5)
    for part in (split.validation, split.test):
        numbers = np.array([int(system.tags["number"]) for system in part])
        assert (np.diff(numbers) > 1).sum() == 4
        assert np.diff(numbers).max() < 800


def test_every_long_trajectory_is_tested() -> None:
    split = split_in_time(data([400] * 6))
    assert {system.tags["trajectory"] for system in split.test} == set("012345")


@pytest.mark.parametrize("fractions", [(0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (0.9, 0.0, 0.1), (1.0, 0.0, 0.0),
                                       (0.0, 0.5, 0.5), (0.1, 0.2, 0.7)])
def test_other_fractions(fractions: tuple[float, float, float]) -> None:
    systems = data([150, 50])
    split = split_in_time(systems, fractions=fractions)
    sizes = [len(split.train), len(split.validation), len(split.test)]
    assert leaks(systems, parts_of(split), 1) == []
    assert all((size == 0) == (fraction == 0) for size, fraction in zip(sizes, fractions, strict=True))
    assert all(abs(size - 200 * fraction) <= 15 for size, fraction in zip(sizes, fractions, strict=True))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_few_frames_all_find_a_place(n: int) -> None:
    split = split_in_time(data([], n))
    assert split.train and len(parts_of(split)) == n


def test_bad_requests() -> None:
    with pytest.raises(DataError, match="none left"):
        split_in_time(data([12]), gap=10)
    with pytest.raises(DataError, match="at least one"):
        split_in_time([])
    for fractions in ((0.8, 0.1, 0.2), (1.2, -0.1, -0.1)):
        with pytest.raises(ConfigError, match="fractions"):
            split_in_time(data([12]), fractions=fractions)


def test_holdout_temperature() -> None:
    systems = [frame(i, temperature_K=T) for i, T in enumerate([300, 300.0, 600, 1200])] + [frame(4)]
    rest, held = holdout_temperature(systems, 300)
    assert [s.tags["number"] for s in held] == [0, 1] and [s.tags["number"] for s in rest] == [2, 3, 4]
    with pytest.raises(DataError, match=r"300, 600, 1200"):
        holdout_temperature(systems, 500)


def test_random_split() -> None:
    systems = data([], 100)
    split = random_split(systems, 70, 20, seed=3)
    assert [len(split.train), len(split.validation), len(split.test)] == [70, 20, 10]
    parts = parts_of(split)
    assert len(parts) == 100 and parts == parts_of(random_split(systems, 70, 20, seed=3))
    assert parts != parts_of(random_split(systems, 70, 20, seed=4))
    with pytest.raises(DataError, match="90 \\+ 20"):
        random_split(systems, 90, 20, seed=0)


def test_groups_stay_together() -> None:
    systems = [frame(number, smiles="C" * (1 + number % 17)) for number in range(200)]
    systems += [frame(number) for number in range(200, 230)]
    split = group_split(systems, "smiles", 30, 40, seed=1)
    parts = parts_of(split)
    assert sorted(parts) == list(range(230)) and not split.dropped
    assert 30 <= len(split.validation) < 30 + 12 and 40 <= len(split.test) < 40 + 12
    for name in {system.tags["smiles"] for system in systems[:200]}:
        assert len({parts[int(system.tags["number"])] for system in systems[:200] if system.tags["smiles"] == name}) == 1
    assert len({parts[number] for number in range(200, 230)}) > 1, "frames without the tag are on their own"
    again, other = (parts_of(group_split(systems, "smiles", 30, 40, seed=seed)) for seed in (1, 2))
    assert again == parts != other
    with pytest.raises(DataError, match="molecule"):
        group_split(systems, "molecule", 30, 40, seed=0)
    with pytest.raises(DataError, match="leave some"):
        group_split(systems[:200], "smiles", 195, 0, seed=0)
