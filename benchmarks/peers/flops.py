"""FLOPs of matrix products, counted at torch's dispatcher: the same formulas for every peer."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MatrixProducts(TorchDispatchMode):
    """Adds up FLOPs of what runs inside the ``with`` block. (torch's own counter hooks modules, which breaks force losses.)"""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of matrix products of one call of ``work``."""
    with MatrixProducts() as counter:
        work()
    return int(counter.flops)
