"""Named random streams: the same seed and the same name give the same numbers, whatever ran before."""

from __future__ import annotations

import numpy as np

from sapis.core.files import hash_bytes


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under ``seed``."""
    return int(hash_bytes(str(seed).encode(), *(str(name).encode() for name in names))[:16], 16) >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream called ``names`` under ``seed``."""
    return np.random.default_rng(derive_seed(seed, *names))
