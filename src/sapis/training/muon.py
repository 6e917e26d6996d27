"""Muon: each matrix of weights moves along the orthogonal matrix nearest to the mean of its gradients.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the size of a step as in Liu et al.,
arXiv 2502.16982, so that it is that of Adam at the same learning rate. Weights that are no matrices get Adam.

`torch.optim.Muon` takes one two-dimensional weight at a time; here the last two axes of a weight are a matrix, axes before them
count matrices, and all matrices of one short side are updated together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

# A matrix with a side shorter than this is treated as numbers.
SHORTEST = 8
# Quintic Newton-Schulz iteration: p(x) = a x + b x^3 + c x^5 brings singular values to within 0.7 .. 1.2 in five rounds.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# Root mean square of Adam's steps in units of the learning rate.
ADAM_SIZE = 0.2
ADAM_BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Muon(torch.optim.Optimizer):
    """See the head of this module.

    Args:
        parameters: weights, each with a gradient at every step or at none; or groups of them, whose ``rate_factor`` says by
            how much their ``lr`` was multiplied for their width (see `sapis.model.axes.rate_factors`), and ``has_matrices``
            whether they may be matrices: the rows of a table do not belong together.
        lr: learning rate.
        momentum: decay of the mean of the gradients of matrices.
        weight_decay: matrices lose this part of themselves times the learning rate at every step. Their steps have a size of
            their own, so that without it they grow as long as they are trained.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.95,
                 weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "has_matrices": True})
        self._stacks: _Stacks | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients at hand."""
        value = closure() if closure is not None else None
        if self._stacks is None:
            self._stacks = self._stacked()
        for numbers in self._stacks.numbers:
            numbers.update()
        for matrices in self._stacks.matrices:
            directions = nearest_orthogonal([stack.direction() for stack in matrices])
            for stack, direction in zip(matrices, directions, strict=True):
                stack.update(direction)
        return value

    @property
    def flops(self) -> int:
        """Of the matrix products of the last step."""
        return 0 if self._stacks is None else sum(stack.flops for matrices in self._stacks.matrices for stack in matrices)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimiser's."""
        super().load_state_dict(state_dict)
        self._stacks = None

    def _stacked(self) -> _Stacks:
        numbers: list[_Numbers] = []
        matrices: dict[int, list[_Matrices]] = {}
        for group in self.param_groups:
            together: dict[tuple[Any, ...], list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    is_matrix = group["has_matrices"] and parameter.ndim > 1 and min(parameter.shape[-2:]) >= SHORTEST
                    # Weights that came later, by growth, have made fewer steps.
                    n_steps = float(self.state[parameter].get("step", 0))
                    together.setdefault((tuple(parameter.shape[-2:]) if is_matrix else (), n_steps), []).append(parameter)
            for (shape, _), parameters in together.items():
                if shape:
                    matrices.setdefault(min(shape), []).append(_Matrices(parameters, self.state, group, shape))
                else:
                    numbers.append(_Numbers(parameters, self.state, group))
        return _Stacks(numbers, list(matrices.values()))


class _Stack:
    """Weights updated together. What the optimiser keeps of each weight is a part of what is kept of all, by torch's names."""

    names: tuple[str, ...]

    def __init__(self, parameters: list[torch.nn.Parameter], state: dict[Any, Any], group: dict[str, Any],
                 shape: tuple[int, ...] = ()) -> None:
        self.parameters, self.group, self.shape = parameters, group, shape
        gradients = self.gradients()
        self.counts = [parameter.numel() // math.prod(shape) for parameter in parameters]
        self.steps = torch.zeros(len(parameters))
        self.kept = {name: torch.zeros_like(gradients) for name in self.names}
        self.steps.fill_(state[parameters[0]].get("step", 0))
        for name, value in self.kept.items():
            # A weight that became a matrix, by growth, has no momentum yet.
            known = [state[parameter].get(name, torch.zeros_like(parameter)) for parameter in parameters]
            torch.cat([item.reshape(-1, *shape) for item in known], out=value)
        for parameter, step, *parts in zip(parameters, self.steps, *(value.split(self.counts) for value in self.kept.values()),
                                           strict=True):
            state[parameter] = {"step": step} | {name: part.view_as(parameter) for name, part
                                                      in zip(self.names, parts, strict=True)}

    def gradients(self) -> torch.Tensor:
        """Of all weights, one after another."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.cat([gradient.reshape(-1, *self.shape) for gradient in gradients])

    def move(self, updates: torch.Tensor, factor: float) -> None:
        """Add ``factor`` times ``updates``, which are laid out as `gradients`."""
        parts = [part.view_as(parameter) for part, parameter in zip(updates.split(self.counts), self.parameters, strict=True)]
        torch._foreach_add_(list[torch.Tensor](self.parameters), parts, alpha=factor)


class _Matrices(_Stack):
    """All matrices of one shape."""

    names = ("momentum_buffer",)

    @property
    def flops(self) -> int:
        """Of the matrix products of a step."""
        short, long = sorted(self.shape)
        return sum(self.counts) * (4 * short**2 * long + (8 * ROUNDS - 6) * short**3)

    def direction(self) -> torch.Tensor:
        """Of the mean of the gradients, with Nesterov's look ahead."""
        gradients, momentum = self.gradients(), self.kept["momentum_buffer"]
        momentum.lerp_(gradients, 1 - self.group["momentum"])
        return gradients.lerp_(momentum, self.group["momentum"])

    def update(self, direction: torch.Tensor) -> None:
        """One step along orthogonal matrices."""
        self.steps += 1
        # An orthogonal step of entries of one size grows with the root of the width, a step of Adam with the width.
        factor = self.group.get("rate_factor", 1.0)
        rate = self.group["lr"] / math.sqrt(factor)
        torch._foreach_mul_(list[torch.Tensor](self.parameters), 1 - self.group["lr"] / factor * self.group["weight_decay"])
        self.move(direction, -rate * ADAM_SIZE * math.sqrt(max(self.shape)))


class _Numbers(_Stack):
    """Weights that are no matrices: Adam with AMSGrad."""

    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def update(self) -> None:
        """One step."""
        gradients, (mean, square, largest) = self.gradients(), self.kept.values()
        self.steps += 1
        corrections = [1 - beta ** float(self.steps[0]) for beta in ADAM_BETAS]
        mean.lerp_(gradients, 1 - ADAM_BETAS[0])
        square.lerp_(gradients.square_(), 1 - ADAM_BETAS[1])
        torch.maximum(largest, square, out=largest)
        self.move(mean / (largest / corrections[1]).sqrt_().add_(EPSILON), -self.group["lr"] / corrections[0])


class _Stacks(NamedTuple):
    """All weights: numbers, and lists of matrices that have their short side in common."""

    numbers: list[_Numbers]
    matrices: list[list[_Matrices]]


def nearest_orthogonal(stacks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Stacks ``(n, rows, columns)`` of one short side -> the same shapes: singular vectors kept, singular values brought near 1.

    A round is ``X <- R X`` with ``R = a + b G + c G^2`` and ``G = X X^T``. All R commute with G, so that ``G <- R G R``, and
    only products of the short side's size are needed until the last.
    """
    wide = [stack.mT if stack.shape[1] > stack.shape[2] else stack for stack in stacks]
    wide = [stack / (stack.flatten(1).norm(dim=1)[:, None, None] + EPSILON) for stack in wide]
    gram = torch.cat([stack @ stack.mT.contiguous() for stack in wide])
    product = factor = _polynomial(gram)
    for _ in range(ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    parts = product.split([len(stack) for stack in stacks])
    found = [part @ stack for part, stack in zip(parts, wide, strict=True)]
    return [item if item.shape == stack.shape else item.mT for item, stack in zip(found, stacks, strict=True)]


def _polynomial(gram: torch.Tensor) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result
