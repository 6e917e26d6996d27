"""Linear maps of blocks of rows: one autograd node for all degrees, without splits and joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Blocks(NamedTuple):
    """Sizes of the blocks of one map ``out_b = rows_b @ weight_b``.

    Attributes:
        heights: rows of each block.
        n_in: columns of each block of rows.
        n_out: columns of every outcome.
    """

    heights: tuple[int, ...]
    n_in: tuple[int, ...]
    n_out: int

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """A flat buffer as blocks ``(height, n_in)``."""
        parts = rows.view(-1).split([height * width for height, width in zip(self.heights, self.n_in, strict=True)])
        return [part.view(-1, width) for part, width in zip(parts, self.n_in, strict=True)]

    def split_weight(self, weight: torch.Tensor) -> Sequence[torch.Tensor]:
        """``(sum of n_in, n_out)`` as blocks ``(n_in, n_out)``."""
        return weight.view(-1, self.n_out).split(self.n_in)

    def split_out(self, out: torch.Tensor) -> Sequence[torch.Tensor]:
        """``(sum of heights, n_out)`` as blocks ``(height, n_out)``."""
        return out.view(-1, self.n_out).split(self.heights)


def map_blocks(rows: torch.Tensor, weight: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """Contiguous ``rows`` (blocks one after another) and ``weight`` -> ``(sum of heights, n_out)``; any number of derivatives."""
    return _MapBlocks.apply(rows, weight, blocks)


class _MapBlocks(torch.autograd.Function):
    """``Y = X W``. The derivatives, ``G W^T`` and ``X^T G``, have derivatives that are these three again."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.blocks = blocks
        out = rows.new_empty(sum(blocks.heights), blocks.n_out)
        for target, block, matrix in zip(blocks.split_out(out), blocks.split(rows), blocks.split_weight(weight), strict=True):
            torch.mm(block, matrix, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        by_rows = _MapBack.apply(gradient, weight, ctx.blocks).view(rows.shape) if ctx.needs_input_grad[0] else None
        by_weight = _MapWeight.apply(rows, gradient, ctx.blocks).view(weight.shape) if ctx.needs_input_grad[1] else None
        return by_rows, by_weight, None


class _MapBack(torch.autograd.Function):
    """``G W^T``, flat."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, weight: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.blocks = blocks
        rows = gradient.new_empty(sum(height * width for height, width in zip(blocks.heights, blocks.n_in, strict=True)))
        for target, block, matrix in zip(blocks.split(rows), blocks.split_out(gradient), blocks.split_weight(weight), strict=True):
            torch.mm(block, matrix.T, out=target)
        return rows

    @staticmethod
    def backward(ctx: Any, change: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        gradient, weight = ctx.saved_tensors
        change = change.contiguous()
        by_gradient = _MapBlocks.apply(change, weight, ctx.blocks).view(gradient.shape) if ctx.needs_input_grad[0] else None
        by_weight = _MapWeight.apply(change, gradient, ctx.blocks).view(weight.shape) if ctx.needs_input_grad[1] else None
        return by_gradient, by_weight, None


class _MapWeight(torch.autograd.Function):
    """``X^T G``, ``(sum of n_in, n_out)``."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, gradient: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        ctx.save_for_backward(rows, gradient)
        ctx.blocks = blocks
        weight = rows.new_empty(sum(blocks.n_in), blocks.n_out)
        for target, block, other in zip(blocks.split_weight(weight), blocks.split(rows), blocks.split_out(gradient), strict=True):
            torch.mm(block.T, other, out=target)
        return weight

    @staticmethod
    def backward(ctx: Any, change: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        rows, gradient = ctx.saved_tensors
        change = change.contiguous()
        by_rows = _MapBack.apply(gradient, change, ctx.blocks).view(rows.shape) if ctx.needs_input_grad[0] else None
        by_gradient = _MapBlocks.apply(rows, change, ctx.blocks).view(gradient.shape) if ctx.needs_input_grad[1] else None
        return by_rows, by_gradient, None
