"""The controller: what a path teaches, decisions that follow from the looks alone, and worlds in which the best is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.controller import Law, World, compare, controlled, oracle

from sapis.scaling.controller import MODEL_GROWS, ControllerConfig, Costs, Course, Decision, decide
from sapis.scaling.path import Look, learn
from sapis.scaling.policies import POLICIES

CONFIG = ControllerConfig()


def a_world(seed: int = 2000, **changes: float) -> World:
    law = replace(Law.drawn(seed), **{"noise": 0.0, "memory": 1.0, "price": 0.0, **changes})
    return World(law, law.costs(), seed)


def test_a_path_without_noise_tells_where_it_leads() -> None:
    world = a_world()
    decisions = controlled(world, CONFIG)
    half = len(world.looks) // 2
    course = Course.of(world.looks[:half], decisions[: half - 1])  # without what was taken back
    law = learn(course.looks, noise=CONFIG.noise)
    end = world.looks[-1]
    now = law.last
    grown = law.grown(np.array([end.n_parameters]), np.array([end.n_frames]), law.effective[:, None])
    foretold = law.loss(np.array([end.n_parameters]), np.array([end.n_frames]), grown + end.seen - now.seen)
    assert np.median(foretold) == pytest.approx(end.loss, rel=0.1)
    assert np.exp(np.log(law.now).mean()) == pytest.approx(now.loss, rel=0.01)
    assert decisions[-1].reason == "the budget is spent" and world.spent == pytest.approx(world.costs.budget)


def test_growth_keeps_the_error() -> None:
    world = a_world()
    controlled(world, CONFIG)
    law = learn(world.looks, noise=CONFIG.noise)
    larger, more = np.array([3 * law.last.n_parameters]), np.array([5 * law.last.n_frames])
    for size, price in ((np.array([law.last.n_parameters]), 0.0), (larger, np.exp(law.samples[:, 8]))):
        after = law.loss(size, more, law.grown(size, more, law.effective[:, None]))[:, 0]
        assert np.allclose(after, law.now * (1 + price), rtol=1e-6)
    before = world.truth
    world.grow(min(world.size + 1, 6), 2 * world.n_frames)
    assert world.truth == pytest.approx(before, rel=1e-9)


def test_decisions_follow_from_the_looks_alone() -> None:
    world = a_world(noise=0.02)
    decisions = controlled(world, CONFIG)
    for n in (3, 8, len(decisions) // 2, len(decisions)):
        assert decide(world.looks[:n], decisions[: n - 1], world.costs, CONFIG) == decisions[n - 1]
    sizes = [decision.size for decision in decisions]
    frames = [decision.n_frames for decision in decisions]
    falls = np.flatnonzero(np.diff(sizes) < 0) + 1
    assert all(decisions[n].action == "take_back" for n in falls) and max(np.diff(sizes)) <= 1
    assert frames == sorted(frames)
    assert max(np.diff(np.log(frames))) <= np.log(CONFIG.max_data_growth) + 1e-9


def test_votes_hold_growth_of_the_model_back() -> None:
    world = a_world()
    decisions = controlled(world, CONFIG.model_copy(update={"votes": 3}))
    grown = [n for n, decision in enumerate(decisions) if decision.action in MODEL_GROWS]
    assert grown and all(before.wish in MODEL_GROWS for n in grown for before in decisions[n - 2 : n])
    waits = [n for n, decision in enumerate(decisions) if decision.wish in MODEL_GROWS and n not in grown]
    assert waits and all(decisions[n].action in ("train", "grow_data") for n in waits)


def test_the_median_world_is_close_to_the_oracle_and_ahead_of_fixed_policies() -> None:
    found = [compare(seed, CONFIG) for seed in range(2000, 2006)]
    for kind, limit in (("regret", 0.1), ("cost_to_target", 1.3)):
        medians = {name: float(np.median([one[kind][name] for one in found])) for name in POLICIES}
        assert medians["controller"] < limit, (kind, medians)
        assert all(medians["controller"] < medians[name] for name in POLICIES[1:]), (kind, medians)
    assert all(one["regret"][name] > -0.02 for one in found for name in one["regret"])


def test_labels_that_cost_nothing_are_bought_and_labels_that_cost_too_much_are_not() -> None:
    cheap, dear = (a_world(label=label) for label in (0.01, 20_000.0))
    for world in (cheap, dear):
        controlled(world, CONFIG)
    assert cheap.n_frames > 50 * dear.n_frames and cheap.truth < dear.truth


def test_it_stops_where_nothing_is_to_be_gained_and_at_the_target() -> None:
    at_floor = a_world(floor=2.0, model=1e-3, data=1e-3, steps=0.05)
    decisions = controlled(at_floor, CONFIG)
    assert "would gain" in decisions[-1].reason and at_floor.spent < 0.8 * at_floor.costs.budget
    at_floor = a_world(floor=2.0, model=1e-3, data=1e-3, steps=0.5)
    at_floor.costs = replace(at_floor.costs, floor=2.0)
    decisions = controlled(at_floor, CONFIG.model_copy(update={"stop_below": 0.0}))
    assert "the floor 2 of the labels is reached" in decisions[-1].reason and at_floor.truth < 2.07
    law = a_world().law
    world = World(law, law.costs(target=1.5 * oracle(law)), 0)
    decisions = controlled(world, CONFIG)
    assert "the target" in decisions[-1].reason and world.truth <= 1.6 * oracle(law) and world.spent < world.costs.budget


def test_a_target_out_of_reach_is_said_and_not_chased() -> None:
    law = a_world().law
    world = World(law, law.costs(target=0.6 * oracle(law)), 0)
    decisions = controlled(world, CONFIG)
    assert sum("out of reach" in decision.reason for decision in decisions) > len(decisions) // 2
    assert world.truth < 1.15 * oracle(law)


def test_what_the_looks_say_nothing_about_stays_as_sure_as_before() -> None:
    rng = np.random.default_rng(0)
    looks = [Look(1e4, 100, 1000.0 * n, n, (1 + 3 / n) * np.exp(0.1 * rng.standard_normal()), np.nan) for n in range(1, 13)]
    spread = learn(looks, noise=0.02, n_samples=400).samples.std(axis=0)
    assert learn(looks, noise=0.02).noise > 0.03 and spread[2] == pytest.approx(0.15, rel=0.15)


def test_with_few_looks_the_gap_of_the_errors_decides() -> None:
    costs = Costs(np.array([1e4, 3e4]), np.array([1.0, 2.5]), 10.0, 1e5, 1e6)
    def looks(train: float) -> list[Look]:
        return [Look(1e4, 100, 1000.0 * n, 1000.0 * n, loss, train) for n, loss in ((1, 3.0), (2, 2.0), (3, 1.99))]

    before = [Decision("train", 0, 100, "train", np.nan, "")] * 2
    assert decide(looks(0.5), before, costs, CONFIG).action == "grow_data"
    assert decide(looks(1.9), before, costs, CONFIG).wish == "grow_model"
    before[-1] = replace(before[-1], wish="grow_model")
    assert decide(looks(1.9), before, costs, CONFIG).action == "grow_model"
    assert decide(looks(0.5)[:2], before[:1], costs, CONFIG).action == "train"


def test_a_growth_that_disappoints_is_taken_back() -> None:
    """The model was large enough: a larger one gains nothing, costs more, and has undone a part of what was learned."""
    law = replace(Law.drawn(2000), model=0.0, price=1.0, noise=0.005, label=1e9, budget=3e5, steps=3.0, floor=0.3)
    world = World(law, law.costs(), 2000)
    decisions: list[Decision] = []
    for _ in range(12):
        world.train(law.budget / 50)
        decisions.append(Decision("train", 0, world.n_frames, "train", np.nan, ""))
    decisions[-1] = Decision("grow_model", 1, world.n_frames, "grow_model", np.nan, "")
    before = world.truth, world.size
    world.grow(1, world.n_frames)
    while decisions[-1].action != "take_back" and len(decisions) < 12 + CONFIG.trial:
        world.train(law.budget / 50)
        decisions.append(decide(world.looks, decisions, world.costs, CONFIG))
    assert decisions[-1].action == "take_back" and decisions[-1].size == 0
    world.take_back()
    assert (world.truth, world.size) == before
    world.train(law.budget / 50)
    course = Course.of(world.looks, decisions)
    assert [look.n_parameters for look in course.looks] == [1e4] * 13 and course.refused == {1: world.n_frames}
    assert decide(world.looks, decisions, world.costs, CONFIG).size == 0


def test_of_two_axes_the_one_that_was_not_refused_grows() -> None:
    """Four sizes: two axes of two. The second axis was taken back: the first one, and not both, is what is left."""
    larger = ((1, 2), (3,), (3,), ())
    costs = Costs(np.array([1e4, 3e4, 2e4, 6e4]), np.array([1.0, 2.0, 1.8, 3.6]), 10.0, 1e5, 1e6, larger=larger)
    assert [costs.steps(size) for size in range(4)] == list(larger) and costs.reached(0) == {0, 1, 2, 3}
    looks = [Look(1e4, 100, n, n, 2.0, 1.9) for n in range(1, 5)]
    train, grow = (Decision(action, 0, 100, action, np.nan, "") for action in ("train", "train"))
    grow = replace(grow, action="grow_model", size=1)
    back = replace(grow, action="take_back", size=0)
    course = Course.of(looks, [train, grow, back])
    assert course.looks == [looks[0], looks[1], looks[3]] and course.sizes == [0, 0, 0] and course.refused == {1: 100}
    assert course.barred(costs) == {1, 3}
    many = Course.of([*looks[:3], replace(looks[3], n_frames=200.0)], [train, grow, back])
    assert many.barred(costs) == set()


def test_a_world_of_two_axes_is_spent_as_well_as_one_of_one() -> None:
    """Every size can be reached in one way or another: the larger of two steps that cost the same is taken."""
    law = a_world().law
    chain = World(law, law.costs(), 2000)
    controlled(chain, CONFIG)
    # The same sizes, and beside each step one of another axis that costs as much and brings half.
    n = len(chain.costs.n_parameters)
    weights = np.concatenate([chain.costs.n_parameters, chain.costs.n_parameters[:-1] * 1.5])
    per_frame = np.concatenate([chain.costs.per_frame, chain.costs.per_frame[1:]])
    larger = tuple((k + 1, n + k) for k in range(n - 1)) + ((),) * n
    world = World(law, replace(chain.costs, n_parameters=weights, per_frame=per_frame, larger=larger), 2000)
    decisions = controlled(world, CONFIG)
    assert world.size < n and any(decision.action in ("grow_model", "grow_both") for decision in decisions)
    assert world.truth < 1.05 * chain.truth
