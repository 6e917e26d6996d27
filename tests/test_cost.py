"""What an evaluation is said to cost is what it costs: counted on torch's matrix products, and on the loops number by number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.peers.flops import MatrixProducts

from conftest import cluster, crystal, small_potential
from sapis.core.config import parse_config
from sapis.core.errors import ConfigError
from sapis.data.batch import Batch, collate, prepare
from sapis.data.system import System
from sapis.model.backend import backend
from sapis.model.config import PRESETS, ModelConfig, dial, preset
from sapis.model.cost import cost, cost_of, counted_flops, total
from sapis.model.edges import EdgeList, Slots
from sapis.model.potential import TransformerPotential
from sapis.model.products import torch_flops
from sapis.pipeline.train import TrainRequest
from sapis.testing.tolerances import COUNTED_FLOPS
from sapis.training.config import TrainingConfig
from sapis.training.loss import loss

SYSTEMS = [cluster(6), System(numbers=[8], positions=np.zeros((1, 3))), crystal(4), cluster(9, seed=2)]
ARCHITECTURES: list[dict[str, int]] = [
    {}, {"l_max": 1}, {"l_max": 3, "l_max_carried": 2}, {"order": 1}, {"order": 2}, {"n_layers": 1}, {"n_layers": 3},
    {"l_max": 0, "l_max_carried": 0}, {"n_heads": 4}, {"n_radial": 5}, {"n_channels": 24, "n_channels_carried": 8},
]


def labelled_batch(potential: TransformerPotential) -> Batch:
    random = np.random.default_rng(0)
    frames = [System(numbers=s.numbers, positions=s.positions, cell=s.cell, pbc=s.pbc, energy=0.0,
                     forces=random.normal(size=s.positions.shape)) for s in SYSTEMS]
    samples = [prepare(frame, elements=potential.elements, cutoff=potential.cutoff) for frame in frames]
    return collate(samples, cutoff=potential.cutoff, dtype=potential.dtype)


def counted(potential: TransformerPotential, batch: Batch, links: Any) -> dict[str, int]:
    """What torch's counter sees in each pass."""
    found = {}
    with MatrixProducts() as counter:
        potential.transformer(batch.species, batch.conditions, links, links.take(batch.vectors))
    found["forward"] = counter.flops
    with MatrixProducts() as counter:
        potential(batch)
    found["forces"] = counter.flops
    with MatrixProducts() as counter:
        value = loss(batch, *potential(batch, create_graph=True), TrainingConfig(epochs=1), 1.0)
        value.backward(inputs=list(potential.parameters()))
    found["training"] = counter.flops
    return found


@pytest.mark.parametrize("options", ARCHITECTURES, ids=str)
def test_matrix_products_of_torch_are_those_that_its_counter_sees(options: dict[str, int]) -> None:
    potential = small_potential(**options)
    batch = labelled_batch(potential)
    atoms, links = len(batch.species), EdgeList.of(batch)
    with backend("padded"):
        assert torch_flops(potential.transformer, n_atoms=atoms, n_edges=batch.senders.numel()) == counted(
            potential, batch, Slots.of(batch))
    n_grouped = sum(group.numel() for group in links.groups)
    with backend("edges"):
        assert torch_flops(potential.transformer, n_atoms=atoms, n_edges=len(links.senders), n_grouped=n_grouped) == counted(
            potential, batch, links)


COUNTING = """
import json, sys
import numpy as np
sys.path.insert(0, {tests!r})
import counting
print(json.dumps(counting.operations({options!r})))
"""


@pytest.mark.parametrize("options", [{}, {"l_max": 3, "l_max_carried": 2, "n_layers": 1}, {"order": 2, "n_channels": 24}],
                         ids=str)
def test_the_arithmetic_of_the_loops_is_what_numbers_that_count_find(options: dict[str, int]) -> None:
    """The loops run as plain Python on numbers that count; matrix products are counted by their shapes."""
    script = COUNTING.format(tests=str(Path(__file__).parent), options=options)
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True,
                         text=True, check=False)
    assert run.returncode == 0, run.stderr
    for name, loops in json.loads(run.stdout).items():
        for loop, (expected, found) in loops.items():
            limit = 0 if name in ("dense", "linear") else COUNTED_FLOPS.float64
            assert expected == pytest.approx(found, rel=limit), (name, loop)


@pytest.mark.parametrize("name", ["padded", "edges"])
def test_a_training_spends_what_the_counter_sees(name: str) -> None:
    potential = small_potential()
    batch = labelled_batch(potential)
    with backend(name), MatrixProducts() as counter:
        value = loss(batch, *potential(batch, create_graph=True), TrainingConfig(epochs=1), 1.0)
        value.backward(inputs=list(potential.parameters()))
    assert counted_flops(potential.transformer)(batch, name) == counter.flops


def test_a_training_spends_what_the_parts_add_up_to() -> None:
    """Arithmetic is linear in atoms and in edges, so that a batch's follows from two small ones."""
    potential = small_potential()
    batch = labelled_batch(potential)
    atoms, edges = len(batch.species), int(batch.counts.sum())
    spent = counted_flops(potential.transformer)
    assert spent(batch, "compiled") < spent(batch, "padded")
    few, many = (total(cost(potential.transformer, n_atoms=atoms, n_neighbors=n)) for n in (edges // atoms, edges // atoms + 1))
    assert few.training.products <= spent(batch, "compiled") <= many.training.products


def test_every_weight_belongs_to_one_part() -> None:
    for options in ARCHITECTURES:
        potential = small_potential(**options)
        parts = cost(potential.transformer, n_atoms=3, n_neighbors=2)
        assert total(parts).n_parameters == potential.n_parameters
        assert all(part.forward.products <= part.forces.products <= part.training.products for part in parts)


def test_presets_grow_and_base_is_the_default() -> None:
    assert preset("base") == ModelConfig() == dial(48)
    sizes = [total(cost_of(preset(name), n_atoms=1, n_neighbors=1)).training.products for name in PRESETS]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    with pytest.raises(ConfigError, match="nano, tiny, small, base, large, xl"):
        preset("huge")


@pytest.mark.parametrize("n_channels", range(32, 289, 32))
def test_the_dial_keeps_what_a_head_sees(n_channels: int) -> None:
    config = dial(n_channels)
    assert config.n_channels == n_channels == 8 * config.n_heads == 4 * config.n_channels_carried
    assert config.model_copy(update=dial(48).model_dump()) == ModelConfig()
    with pytest.raises(ConfigError, match="multiple of 8"):
        dial(n_channels + 1)


def test_a_width_brings_what_goes_with_it() -> None:
    assert ModelConfig(n_channels=64) == dial(64)
    assert ModelConfig.model_validate({"preset": "xl", "n_channels": 64}) == dial(64).model_copy(update={"n_layers": 3})
    assert ModelConfig(n_channels=64, n_heads=4).n_heads == 4


def test_settings_may_name_a_preset() -> None:
    request = parse_config(TrainRequest, {"model": {"preset": "large", "cutoff": 6}}, where="here")
    assert request.model == preset("large").model_copy(update={"cutoff": 6.0})
    assert "preset" not in request.model_dump()["model"], "a record holds what the preset stands for"
    wrongs = (({"preset": "huge"}, "nano, tiny"), ({"preset": ["base"]}, "nano, tiny"), ({"presett": "base"}, "'preset'"))
    for wrong, said in wrongs:
        with pytest.raises(ConfigError, match=said):
            parse_config(TrainRequest, {"model": wrong}, where="here")


HEAD = ("preset", "channels", "l_max", "order", "layers", "weights", "MFLOP: energies, with forces, training step")


def preset_table() -> str:
    """The table of docs/howto/choose-a-size.md."""
    rows = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name in PRESETS:
        config, found = preset(name), total(cost_of(preset(name), n_atoms=27, n_neighbors=17))
        flops = ", ".join(f"{work.products / 27e6:.1f}" for work in (found.forward, found.forces, found.training))
        rows.append(f"| `{name}` | {config.n_channels} | {config.l_max} | {config.order} | {config.n_layers} "
                    f"| {found.n_parameters:,} | {flops} |")
    return "\n".join(rows)


def test_the_table_of_presets_is_what_they_cost() -> None:
    page = Path(__file__).parents[1] / "docs" / "howto" / "choose-a-size.md"
    assert preset_table() in page.read_text(encoding="utf-8"), f"the table should read\n{preset_table()}"
