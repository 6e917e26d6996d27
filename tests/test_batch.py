"""Batches hold each system as it is alone, and their padding is nothing at all."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from conftest import ELEMENTS, cluster, crystal, small_potential
from sapis.core.errors import ModelError
from sapis.data.batch import Batch, collate, prepare, species_indices
from sapis.data.neighbors import PADDING_DISTANCE
from sapis.data.system import System
from sapis.model.backend import backend

CUTOFF = 3.5
LONE = System(numbers=[8], positions=np.zeros((1, 3)))
SYSTEMS = [cluster(6), LONE, crystal(4), cluster(9, seed=2)]


def batch_of(systems: list[System], dtype: torch.dtype = torch.float64, **options: int) -> Batch:
    samples = [prepare(system, elements=ELEMENTS, cutoff=CUTOFF) for system in systems]
    return collate(samples, cutoff=CUTOFF, dtype=dtype, **options)


def is_used(batch: Batch) -> torch.Tensor:
    return batch.vectors.norm(dim=-1) < CUTOFF


def test_a_batch_joins_systems_of_any_size() -> None:
    batch = batch_of(SYSTEMS)
    assert batch.n_graphs == len(SYSTEMS)
    assert batch.n_atoms.tolist() == [len(system) for system in SYSTEMS]
    assert batch.graph.tolist() == [k for k, system in enumerate(SYSTEMS) for _ in range(len(system))]
    assert batch.species.tolist() == [ELEMENTS.index(z) for system in SYSTEMS for z in system.numbers]
    edges_alone = sum(int(is_used(batch_of([system])).sum()) for system in SYSTEMS)
    assert int(is_used(batch).sum()) == edges_alone > 0


def test_each_system_keeps_its_edges() -> None:
    batch, start = batch_of(SYSTEMS), 0
    for system in SYSTEMS:
        alone, rows = batch_of([system]), slice(start, start + len(system))
        slots = alone.senders.shape[1]
        assert torch.equal(batch.vectors[rows, :slots], alone.vectors)
        assert torch.equal(batch.senders[rows, :slots] - start, alone.senders)
        start += len(system)


def test_edges_stay_within_their_system() -> None:
    batch = batch_of(SYSTEMS)
    assert torch.equal(batch.graph[batch.senders], batch.graph[:, None].expand_as(batch.senders))


@pytest.mark.parametrize("slot_multiple", [1, 8])
def test_the_reverse_index_stays_an_involution(slot_multiple: int) -> None:
    batch = batch_of(SYSTEMS, slot_multiple=slot_multiple)
    reverse, used = batch.reverse.flatten(), is_used(batch).flatten()
    here = torch.arange(len(reverse))
    assert batch.senders.shape[1] % slot_multiple == 0
    assert torch.equal(reverse[reverse], here)
    assert torch.equal(reverse[~used], here[~used])
    receivers = here // batch.senders.shape[1]
    assert torch.equal(batch.senders.flatten()[reverse], receivers)
    flat = batch.vectors.flatten(0, 1)
    torch.testing.assert_close(flat[reverse[used]], -flat[used], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_padding_changes_nothing_but_rounding(dtype: torch.dtype) -> None:
    """Energies, forces and virials with 0 and with many more unused slots."""
    potential = small_potential("float64" if dtype == torch.float64 else "float32")
    tight, loose = (potential(batch_of(SYSTEMS, dtype, slot_multiple=n)) for n in (1, 64))
    limit = 1e-11 if dtype == torch.float64 else 1e-4
    for one, other in zip(tight, loose, strict=True):
        torch.testing.assert_close(one, other, atol=limit, rtol=limit)


def test_unused_slots_have_exactly_no_influence() -> None:
    """The gradient by an unused slot's vector is exactly zero, and so is the change when it points elsewhere."""
    potential, batch = small_potential(), batch_of(SYSTEMS)
    vectors = batch.vectors.clone().requires_grad_()
    energies = potential.atom_energies(batch, vectors)
    (slope,) = torch.autograd.grad(energies.sum(), vectors)
    unused = ~is_used(batch)
    assert unused.any() and slope[~unused].abs().min() > 0
    assert torch.equal(slope[unused], torch.zeros_like(slope[unused]))
    elsewhere = batch.vectors.clone()
    elsewhere[unused] = torch.tensor([0.3, -5.0, 7.0], dtype=torch.float64)
    assert torch.equal(potential.atom_energies(batch, elsewhere), energies)


def test_padding_within_the_cutoff_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two tests above can fail: with padding at half the cutoff the same energies differ."""
    potential = small_potential()
    with backend("padded"):
        before = potential(batch_of(SYSTEMS))[0]
        monkeypatch.setattr("sapis.data.batch.PADDING_DISTANCE", 0.5)
        assert (potential(batch_of(SYSTEMS, slot_multiple=64))[0] - before).abs().max() > 1e-3


def test_labels_that_exist_are_kept_and_the_others_are_nan() -> None:
    rng = np.random.default_rng(0)
    stress = rng.normal(size=(3, 3))
    labelled = replace(SYSTEMS[2], energy=-5.0, forces=rng.normal(size=(4, 3)), stress=stress + stress.T)
    samples = [prepare(SYSTEMS[0], elements=ELEMENTS, cutoff=CUTOFF),
               prepare(labelled, elements=ELEMENTS, cutoff=CUTOFF)]
    batch = collate(samples, cutoff=CUTOFF, dtype=torch.float32)
    assert batch.energies.dtype == torch.float64 and batch.forces.dtype == torch.float32
    assert batch.energies[0].isnan() and batch.energies[1] == -5.0
    assert batch.forces[:6].isnan().all()
    np.testing.assert_allclose(batch.forces[6:], labelled.forces, rtol=1e-6)
    assert batch.stresses[0].isnan().all() and batch.stresses.shape == (2, 3, 3)
    np.testing.assert_allclose(batch.stresses[1], labelled.stress, rtol=1e-6)
    assert batch.volumes[0].isnan()
    assert float(batch.volumes[1]) == pytest.approx(labelled.volume, rel=1e-6)


def test_large_energies_keep_their_digits_in_float32() -> None:
    system = replace(cluster(6), energy=-123456.789012)
    sample = prepare(system, elements=ELEMENTS, cutoff=CUTOFF)
    batch = collate([sample], cutoff=CUTOFF, dtype=torch.float32)
    assert float(batch.energies[0]) == -123456.789012


def test_unknown_elements_are_named_with_the_known_ones() -> None:
    system = System(numbers=[1, 26, 79], positions=np.eye(3) * 2, tags={"file": "alloy.xyz", "frame": 3})
    with pytest.raises(ModelError) as caught:
        species_indices(system, ELEMENTS)
    message = str(caught.value)
    for word in ("Fe", "Au", "H, C, O", "alloy.xyz", "frame 3"):
        assert word in message


def test_to_moves_every_tensor() -> None:
    batch = batch_of(SYSTEMS[:1]).to("meta")
    assert all(getattr(batch, item.name).device.type == "meta" for item in fields(batch))


def test_padding_lies_beyond_the_cutoff() -> None:
    assert PADDING_DISTANCE > 1
    assert is_used(batch_of([LONE], slot_multiple=4)).sum() == 0
