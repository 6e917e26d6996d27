"""The controller in made-up worlds whose laws are known: ``python -m benchmarks.controller [WORLDS]``.

In each, a small model with a few frames starts to learn. Frames cost labels, training costs more for larger models. The same
budget is spent by the controller, which does not know the law, and by fixed policies: only more data, only a larger model, both
in turn, and the largest model from the start. One more, ``set beforehand``, begins with one size and spends one part of the
budget on labels at once, which were the best (in the median) of all in a hundred other worlds of the kind: what experience with
many like problems would choose. The oracle knows the law: the best of all sizes and numbers of frames, from the start or with
one growth of the model on the way. After growth an error is what it was, up to 15 % of the expected gain more or less, which
the controller does not know either.

All worlds have a law of the form that the controller fits. Their exponents lie about its prior (``near``), or are drawn from
twice as wide a range (``far``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sapis.core.files import hash_json
from sapis.core.records import Record, Stopwatch, provenance, write_record
from sapis.core.seeds import generator
from sapis.scaling.controller import ControllerConfig, Costs, Decision, decide
from sapis.scaling.path import Look
from sapis.scaling.policies import POLICIES, fixed

HERE = Path(__file__).parent
N_SIZES, FIRST_FRAMES, FIRST_WEIGHTS = 7, 100.0, 1e4
N_LOOKS = 50  # over the budget
TARGET = 1.1  # times the oracle's error: what is to be reached at least cost
BEFOREHAND = "set beforehand"
OTHER_WORLDS = range(1000, 1100)  # in which that is chosen
PARTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)  # of the budget for labels
EXPONENTS = {"near": ((0.25, 0.55), (0.25, 0.6)), "far": ((0.1, 0.9), (0.1, 0.9))}  # of weights and of frames
PATIENCE = 4.0  # budgets after which a policy that has not reached it is given up


@dataclass(frozen=True)
class Law:
    """Of a world: ``eps + A (N/N0)^-a + B (D/D0)^-b + K (S/1000)^-k``.

    Attributes:
        gap: how far the training error lies below, in units of the term of frames.
        memory: what growth takes off the terms of sizes is added to that of steps, times this.
        price: by how much of it the error rises when the model grows.
        label: cost of a frame, of which a pass through the smallest model costs 1.
        budget: in the same units.
        noise: of an error, relative.
    """

    floor: float
    model: float
    a: float
    data: float
    b: float
    steps: float
    k: float
    gap: float
    memory: float
    price: float
    label: float
    budget: float
    noise: float = 0.02

    @classmethod
    def drawn(cls, seed: int, kind: str = "near") -> Law:
        """A world of its own for each seed."""
        rng, (a, b) = generator(seed, "world"), EXPONENTS[kind]
        low = np.array([0.0, 0.3, a[0], 0.3, b[0], 1.0, 0.35, 0.8, 0.85, np.log(3.0), np.log(2e5), 0.0])
        high = np.array([0.1, 1.5, a[1], 1.5, b[1], 4.0, 0.7, 2.0, 1.15, np.log(300.0), np.log(2e6), 0.3])
        values = rng.uniform(low, high).tolist()
        return cls(*values[:9], price=values[11], label=float(np.exp(values[9])), budget=float(np.exp(values[10])))

    def costs(self, target: float | None = None, budget: float | None = None) -> Costs:
        """What things cost: a pass of a frame through the smallest model is 1."""
        factors = 2.5 ** np.arange(N_SIZES)
        return Costs(FIRST_WEIGHTS * factors, factors**0.9, self.label, 1e6, budget or self.budget, target)

    def rest(self, n: Any, d: Any) -> Any:
        """What is left after any number of steps."""
        return self.floor + self.model * (n / FIRST_WEIGHTS) ** -self.a + self.data * (d / FIRST_FRAMES) ** -self.b

    def loss(self, n: Any, d: Any, effective: Any) -> Any:
        """The error."""
        return self.rest(n, d) + self.steps * (np.maximum(effective, 1e-6) / 1000) ** -self.k

    def regrown(self, effective: Any, lost: Any) -> Any:
        """Frames that count as seen after growth that has taken ``lost`` off the other terms."""
        power = (np.maximum(effective, 1e-6) / 1000) ** -self.k + self.memory * np.maximum(lost, 0) / self.steps
        return np.where(effective > 0, 1000 * power ** (-1 / self.k), 0.0)


@dataclass
class World:
    """A training in a world."""

    law: Law
    costs: Costs
    seed: int
    size: int = 0
    n_frames: float = FIRST_FRAMES
    seen: float = 0.0
    effective: float = 0.0
    spent: float = 0.0
    looks: list[Look] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)
    before: tuple[int, float, float, float] | None = None

    @property
    def truth(self) -> float:
        """The error without noise."""
        return float(self.law.loss(self.costs.n_parameters[self.size], self.n_frames, self.effective))

    def grow(self, size: int, n_frames: float) -> None:
        """Pay for labels, and change sizes."""
        self.spent += self.costs.label * (n_frames - self.n_frames)
        if size > self.size:
            self.before = self.size, self.n_frames, self.seen, self.effective
        old, new = ((self.costs.n_parameters[s], d) for s, d in ((self.size, self.n_frames), (size, n_frames)))
        lost = self.law.rest(*old) - self.law.rest(*new)
        if size > self.size:
            lost += self.law.price * self.truth / self.law.memory
        self.effective = float(self.law.regrown(self.effective, lost))
        self.size, self.n_frames = size, n_frames

    def take_back(self) -> None:
        """The last growth of the model; what training it has cost is lost, frames that were bought with it stay."""
        assert self.before is not None
        bought = self.n_frames
        self.size, self.n_frames, self.seen, self.effective = self.before
        lost = self.law.rest(self.costs.n_parameters[self.size], self.n_frames) - self.law.rest(
            self.costs.n_parameters[self.size], bought)
        self.effective, self.n_frames = float(self.law.regrown(self.effective, lost)), bought

    def train(self, cost: float) -> None:
        """Spend on training, then look."""
        frames = max(cost, 0.0) / self.costs.per_frame[self.size]
        self.seen, self.effective, self.spent = self.seen + frames, self.effective + frames, self.spent + max(cost, 0.0)
        rng = generator(self.seed, "look", len(self.looks))
        repeated = max(0.0, 1 - self.n_frames / self.seen)
        gap = self.law.gap * self.law.data * (self.n_frames / FIRST_FRAMES) ** -self.law.b * repeated
        self.truths.append(self.truth)
        loss, train = self.truth, max(self.truth - gap, 0.05 * self.truth)
        noisy = np.array([loss, train]) * np.exp(self.law.noise * rng.standard_normal(2))
        self.looks.append(Look(float(self.costs.n_parameters[self.size]), self.n_frames, self.seen, self.spent, *noisy.tolist()))


def spend(world: World, decide_next: Callable[[list[Look], list[Decision]], Decision]) -> list[Decision]:
    """Look and decide until the budget is spent; the decisions."""
    decisions: list[Decision] = []
    chunk = world.law.budget / N_LOOKS
    while True:
        world.train(min(chunk, world.costs.budget - world.spent))
        decisions.append(decide_next(world.looks, decisions))
        if decisions[-1].action == "stop" or world.spent >= world.costs.budget * (1 - 1e-9):
            return decisions
        if decisions[-1].action == "take_back":
            world.take_back()
        elif decisions[-1].action != "train":
            world.grow(decisions[-1].size, decisions[-1].n_frames)


def controlled(world: World, config: ControllerConfig) -> list[Decision]:
    """Let the controller spend the budget; its decisions."""
    return spend(world, lambda looks, decisions: decide(looks, decisions, world.costs, config))


def follow(world: World, policy: str, config: ControllerConfig, beforehand: tuple[int, float]) -> None:
    """Let a policy spend the budget.

    Args:
        beforehand: a size, and a part of the budget for labels.
    """
    if policy == "controller":
        controlled(world, config)
    elif policy == BEFOREHAND:
        at_once(world, *beforehand)
        spend(world, lambda looks, _: Decision("train", world.size, world.n_frames, "train", np.nan, ""))
    else:
        if policy == "largest":
            world.grow(len(world.costs.n_parameters) - 1, world.n_frames)
        spend(world, lambda looks, decisions: fixed(policy, looks, decisions, world.costs))  # type: ignore[arg-type]


def at_once(world: World, size: int, part: float) -> None:
    """Begin with a size, and with the frames that a part of the budget buys."""
    world.grow(size, min(FIRST_FRAMES + part * world.law.budget / world.costs.label, world.costs.n_available))


def best_beforehand(kind: str) -> tuple[int, float]:
    """The size and the part for labels with the least median regret in the other worlds."""
    laws = [Law.drawn(seed, kind) for seed in OTHER_WORLDS]
    least = [oracle(law) for law in laws]

    def regret(size: int, part: float) -> float:
        ends = []
        for law in laws:
            world = World(law, law.costs(), 0)
            at_once(world, size, part)
            world.train(law.budget - world.spent)
            ends.append(world.truth)
        return float(np.median(np.array(ends) / least))

    return min(((size, part) for size in range(N_SIZES) for part in PARTS), key=lambda choice: regret(*choice))


def oracle(law: Law) -> float:
    """The least error that the budget can buy."""
    costs = law.costs()
    frames = np.geomspace(FIRST_FRAMES, costs.n_available, 120)[None, :, None, None]
    first, second = (np.arange(N_SIZES).reshape(shape) for shape in ((-1, 1, 1, 1), (1, 1, -1, 1)))
    part = np.linspace(0.0, 0.95, 40)[None, None, None, :]  # spent on the first size
    left = costs.budget - costs.label * (frames - FIRST_FRAMES)
    before = left * part / costs.per_frame[first]
    lost = law.rest(costs.n_parameters[first], frames) - law.rest(costs.n_parameters[second], frames)
    with np.errstate(divide="ignore"):
        lost = lost + np.where(second > first, law.price / law.memory * law.loss(costs.n_parameters[first], frames, before), 0.0)
    effective = law.regrown(before, lost) + left * (1 - part) / costs.per_frame[second]
    losses = law.loss(costs.n_parameters[second], frames, effective)
    return float(np.min(np.where((left > 0) & (second >= first), losses, np.inf)))


def compare(seed: int, config: ControllerConfig, kind: str = "near", beforehand: tuple[int, float] = (2, 0.3),
            ) -> dict[str, Any]:
    """Errors at the end of the budget, over the oracle's, and costs of the target, in budgets."""
    law = Law.drawn(seed, kind)
    least = oracle(law)
    ends, to_target = {}, {}
    patient = config.model_copy(update={"looks": round(PATIENCE * config.looks)})
    for name in (*POLICIES, BEFOREHAND):
        world = World(law, law.costs(), seed)
        follow(world, name, config, beforehand)
        ends[name] = world.truth / least - 1
        world = World(law, law.costs(TARGET * least, PATIENCE * law.budget), seed)
        follow(world, name, patient, beforehand)
        reached = np.array(world.truths) <= TARGET * least
        to_target[name] = world.looks[int(reached.argmax())].spent / law.budget if reached.any() else np.inf
    return {"regret": ends, "cost_to_target": to_target}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By policy."""
    result = {}
    for name in found[0]["regret"]:
        regret = np.array([one["regret"][name] for one in found])
        cost = np.array([one["cost_to_target"][name] for one in found])
        result[name] = {"median_regret": float(np.median(regret)), "p90_regret": float(np.quantile(regret, 0.9)),
                        "median_cost_to_target": float(np.median(cost)) if np.isfinite(np.median(cost)) else None,
                        "reached": float(np.isfinite(cost).mean()),
                        "controller_is_better": float(np.mean([one["regret"]["controller"] < one["regret"][name]
                                                               for one in found]))}
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("worlds", nargs="?", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    options = parser.parse_args()
    config = ControllerConfig(looks=N_LOOKS)
    made_by, watch = provenance(), Stopwatch()
    cases, choices = {}, {}
    for kind in EXPONENTS:
        choices[kind] = best_beforehand(kind)
        seeds = range(options.first, options.first + options.worlds)
        cases[kind] = summary([compare(seed, config, kind, choices[kind]) for seed in seeds])
        for name, row in cases[kind].items():
            print(f"{kind}, {name}: regret {row['median_regret']:.3f} (90 % below {row['p90_regret']:.3f}), target at "
                  f"{row['median_cost_to_target'] or np.inf:.3f} budgets, reached in {row['reached']:.2f}; the controller is "
                  f"better in {row['controller_is_better']:.2f}", flush=True)
    result = {"cases": cases, "n_worlds": options.worlds, "first_seed": options.first, "seed": options.first, "threads": 1,
              "beforehand": choices, "config": config.model_dump(), "worlds": [asdict(Law.drawn(seed)) for seed in range(3)]}
    write_record(HERE / "records" / "controller.json", Record("controller", hash_json(config.model_dump()), result, watch.cost(),
                                                              made_by))


if __name__ == "__main__":
    main()
