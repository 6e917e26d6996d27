"""The optimiser: what it does to matrices, to numbers, and across a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sapis.training.muon import ADAM_SIZE, Muon, nearest_orthogonal


def weights(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def give_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(16, 16), (64, 8), (8, 64)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).double()
    (found,) = nearest_orthogonal([matrices])
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.mT @ found @ right.mT
    assert torch.allclose(core, torch.diag_embed(core.diagonal(dim1=1, dim2=2)), atol=1e-9)
    is_large = values > 0.05 * values.amax(dim=1, keepdim=True)
    assert bool(((core.diagonal(dim1=1, dim2=2)[is_large] - 0.95).abs() < 0.3).all())
    assert torch.allclose(nearest_orthogonal([7 * matrices])[0], found, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_steps_are_those_of_torch(decay: float) -> None:
    """`torch.optim.Muon` iterates in bfloat16, hence the tolerance."""
    (ours,) = weights((24, 48))
    theirs = copy.deepcopy(ours)
    one = Muon([ours], lr=0.01, weight_decay=decay)
    other = torch.optim.Muon([theirs], lr=0.01, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    before = ours.detach().clone()
    for step in range(5):
        give_gradients([ours], step)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    moved, expected = ours.detach() - before, theirs.detach() - before
    assert float((moved - expected).norm() / expected.norm()) < 0.02


def test_its_matrix_products_are_those_that_torch_counts() -> None:
    parameters = weights((3, 16, 24), (24, 16), (8, 40), (5,))
    optimizer = Muon(parameters, lr=0.01)
    give_gradients(parameters, 0)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert optimizer.flops == counter.get_total_flops() > 0


def test_stacked_matrices_are_updated_as_if_alone() -> None:
    stacked, *alone = weights((3, 16, 24), *[(16, 24)] * 3)
    with torch.no_grad():
        for part, other in zip(stacked, alone, strict=True):
            part.copy_(other)
    one, other = Muon([stacked], lr=0.01), [Muon([weight], lr=0.01) for weight in alone]
    for step in range(3):
        give_gradients([stacked], step)
        for part, weight, chosen in zip(stacked.grad, alone, other, strict=True):
            weight.grad = part.clone()
            chosen.step()
        one.step()
    assert torch.allclose(stacked, torch.stack(list(alone)), atol=1e-6)


def test_what_is_no_matrix_gets_adam() -> None:
    shapes = (5,), (3, 40), (2, 3, 20)
    ours = weights(*shapes)
    theirs = copy.deepcopy(ours)
    one, other = Muon(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01, amsgrad=True)
    for step in range(5):
        give_gradients(ours, step)
        for weight, twin in zip(ours, theirs, strict=True):
            twin.grad = weight.grad.clone()
        one.step()
        other.step()
    for weight, twin in zip(ours, theirs, strict=True):
        assert torch.allclose(weight, twin, atol=1e-6)


def test_a_step_of_a_matrix_has_the_size_of_adams() -> None:
    (weight,) = weights((32, 128))
    before = weight.detach().clone()
    give_gradients([weight], 0)
    Muon([weight], lr=0.01).step()
    assert float((weight.detach() - before).square().mean().sqrt()) == pytest.approx(ADAM_SIZE * 0.01, rel=0.2)


def test_its_state_goes_through_a_checkpoint_to_the_bit() -> None:
    ours = weights((3, 16, 16), (16, 16), (7,), (2, 3))
    one = Muon(ours, lr=0.01)
    for step in range(2):
        give_gradients(ours, step)
        one.step()
    twins = copy.deepcopy(ours)
    other = Muon(twins, lr=0.01)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for parameters, chosen in ((ours, one), (twins, other)):
        for step in range(2, 4):
            give_gradients(parameters, step)
            chosen.step()
    assert all(torch.equal(weight, twin) for weight, twin in zip(ours, twins, strict=True))


def test_weights_without_a_gradient_stay() -> None:
    moved, still = weights((16, 16), (16, 16))
    before = still.detach().clone()
    give_gradients([moved], 0)
    Muon([moved, still], lr=0.01).step()
    assert torch.equal(still, before)


def test_a_number_that_became_a_matrix_starts_without_momentum() -> None:
    """A weight of 4 x 16 that grew to 16 x 16 brings the state of Adam."""
    (weight,) = weights((16, 16))
    one, other = Muon([weight], lr=0.01), Muon([copy.deepcopy(weight)], lr=0.01)
    one.state[weight] = {"step": torch.tensor(5.0), **{name: torch.ones_like(weight) for name in ("exp_avg", "exp_avg_sq")}}
    (twin,) = other.param_groups[0]["params"]
    for parameter, chosen in ((weight, one), (twin, other)):
        give_gradients([parameter], 0)
        chosen.step()
    assert torch.equal(weight, twin) and one.state[weight].keys() == {"step", "momentum_buffer"}
    assert float(one.state[weight]["step"]) == 6.0
