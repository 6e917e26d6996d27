"""Which atoms send to which, in two forms: padded slots, and a list of edges.

Both answer the same questions, with tensors over edges of shape ``(atoms, slots, n)`` or ``(edges, n)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sapis.data.batch import Batch


class _Gather(torch.autograd.Function):
    """Features of the senders. Its derivative gathers over reverse edges, so no pass of any order scatters."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, senders: torch.Tensor, reverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(senders, reverse)
        return values.index_select(0, senders.reshape(-1)).view(*senders.shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return sum_from_reverse(gradient, *ctx.saved_tensors), None, None


class _SumFromReverse(torch.autograd.Function):
    """For each atom the sum over edges that it sends: the adjoint of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, senders: torch.Tensor, reverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(senders, reverse)
        return values.flatten(0, 1).index_select(0, reverse.reshape(-1)).view(values.shape).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gather(gradient, *ctx.saved_tensors), None, None


def gather(values: torch.Tensor, senders: torch.Tensor, reverse: torch.Tensor) -> torch.Tensor:
    """``(atoms, n)`` -> ``(atoms, slots, n)``: the values of each slot's sender."""
    return _Gather.apply(values, senders, reverse)


def sum_from_reverse(values: torch.Tensor, senders: torch.Tensor, reverse: torch.Tensor) -> torch.Tensor:
    """``(atoms, slots, n)`` -> ``(atoms, n)``: for each atom the sum over the edges it sends."""
    return _SumFromReverse.apply(values, senders, reverse)


class Slots(NamedTuple):
    """A common number of slots for each atom; attributes as in `Batch`."""

    senders: torch.Tensor
    reverse: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> Slots:
        """Those of a batch."""
        return cls(batch.senders, batch.reverse)

    def take(self, vectors: torch.Tensor) -> torch.Tensor:
        """From ``(atoms, slots, n)`` of a batch."""
        return vectors

    def sent(self, values: torch.Tensor) -> torch.Tensor:
        """``(atoms, n)`` -> over edges: the values of the sender."""
        return gather(values, self.senders, self.reverse)

    def received(self, values: torch.Tensor) -> torch.Tensor:
        """``(atoms, n)`` -> over edges: the values of the receiver."""
        return values.unsqueeze(1).expand(*self.senders.shape, -1)

    def match(self, keys: torch.Tensor, queries: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Products of ``keys`` with ``queries (atoms, channels)`` of the receivers, summed by ``heads (channels, heads)``."""
        return torch.bmm(keys, queries.unsqueeze(-1) * heads)

    def collect(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """For each atom the sum of outer products over the edges it receives, ``(atoms, n_one, n_other)``."""
        return torch.bmm(one.transpose(1, 2), other)

    def forces(self, gradient: torch.Tensor) -> torch.Tensor:
        """From the energy's gradient by edge vectors: ``F_i = sum_j (g_ij - g_ji)``, ``(atoms, 3)``."""
        return gradient.sum(1) - sum_from_reverse(gradient, self.senders, self.reverse)


class EdgeList(NamedTuple):
    """Used slots only, ordered by receiver.

    Attributes:
        receivers, senders: ``(edges,)``.
        used: which slots of the batch they are, ``(atoms, slots)``.
        groups: edges of atoms with similar counts of neighbours, each ``(atoms of the group, most neighbours)``; the number of
            edges stands where an atom has fewer. The products of a group are one batched matrix product, and at most half of it
            is padding.
        places: of each atom in the groups, one after another.
    """

    receivers: torch.Tensor
    senders: torch.Tensor
    used: torch.Tensor
    groups: list[torch.Tensor]
    places: torch.Tensor

    @classmethod
    def of(cls, batch: Batch) -> EdgeList:
        """Those of a batch."""
        counts, slots = batch.counts, torch.arange(batch.senders.shape[1], device=batch.senders.device)
        used = slots < counts.unsqueeze(1)
        order, sizes, starts = [], counts.clamp(min=1).log2().ceil(), (counts.cumsum(0) - counts).unsqueeze(1)
        groups = []
        for size in sizes.unique():
            atoms = (sizes == size).nonzero().squeeze(1)
            width = int(counts[atoms].max())
            order.append(atoms)
            groups.append(torch.where(used[atoms, :width], starts[atoms] + slots[:width], int(counts.sum())))
        return cls(used.nonzero()[:, 0], batch.senders[used], used, groups, torch.cat(order).argsort())

    def take(self, vectors: torch.Tensor) -> torch.Tensor:
        """From ``(atoms, slots, n)`` of a batch."""
        return vectors[self.used]

    def sent(self, values: torch.Tensor) -> torch.Tensor:
        """As `Slots.sent`."""
        return values.index_select(0, self.senders)

    def received(self, values: torch.Tensor) -> torch.Tensor:
        """As `Slots.received`."""
        return values.index_select(0, self.receivers)

    def match(self, keys: torch.Tensor, queries: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """As `Slots.match`."""
        return (keys * self.received(queries)) @ heads

    def collect(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """As `Slots.collect`."""
        one, other = (torch.cat((item, item.new_zeros(1, item.shape[1]))) for item in (one, other))
        sums = [torch.bmm(one.index_select(0, group.flatten()).unflatten(0, group.shape).transpose(1, 2),
                          other.index_select(0, group.flatten()).unflatten(0, group.shape)) for group in self.groups]
        return torch.cat(sums).index_select(0, self.places)

    def forces(self, gradient: torch.Tensor) -> torch.Tensor:
        """As `Slots.forces`."""
        zeros = gradient.new_zeros(len(self.places), 3)
        return zeros.index_add(0, self.receivers, gradient).index_add(0, self.senders, -gradient)
