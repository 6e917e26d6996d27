"""What computes the model: the same weights and numbers by any of three back-ends.

- ``compiled``: loops over used slots, for CPUs with numba (`sapis.model.program`);
- ``padded``: torch's matrix products over all slots of a batch (`sapis.model.edges.Slots`);
- ``edges``: torch's matrix products over a list of edges (`sapis.model.edges.EdgeList`), where numbers of neighbours differ much.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from sapis.core.errors import ModelError
from sapis.data.batch import Batch

BACKENDS = ("compiled", "padded", "edges")
# Slots for each edge from which on a list of edges beats padding, see docs/lab/0004-edge-list.md.
MAX_PADDING = 3.0

_forced: ContextVar[str | None] = ContextVar("the back-end that was asked for", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within this the model is computed by the back-end ``name``, to compare or to measure.

    Raises:
        ModelError: no such back-end.
    """
    if name not in BACKENDS:
        raise ModelError(expected=f"one of the back-ends {', '.join(BACKENDS)}", received=repr(name), where="backend",
                         todo="mend the name")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def backend_of(batch: Batch) -> str:
    """The back-end that computes ``batch``: the one that was asked for, or the fastest.

    Raises:
        ModelError: the compiled one was asked for, and cannot be had.
    """
    device, forced = batch.vectors.device.type, _forced.get()
    is_compilable = device == "cpu" and has_loops()
    if forced == "compiled" and not is_compilable:
        raise ModelError(expected="a CPU and numba, which the compiled loops need", received=f"device {device}", where="backend",
                         todo="move the model to the CPU and install numba, or let the back-end be chosen")
    if forced is not None or is_compilable:
        return forced or "compiled"
    return fastest(n_slots=batch.senders.numel(), n_edges=int(batch.counts.sum()))


def fastest(*, n_slots: int, n_edges: int) -> str:
    """The torch back-end for a batch with so many slots, of which so many hold an edge."""
    return "edges" if n_slots > MAX_PADDING * n_edges else "padded"


@cache
def has_loops() -> bool:
    """Whether numba is installed, which compiles the loops."""
    return importlib.util.find_spec("numba") is not None
