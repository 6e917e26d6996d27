"""Rows of paths of a group of atoms, and the matrix that mixes them. They stay in cache between being made and being mixed."""

from __future__ import annotations

# mypy: ignore-errors
import os
import sys
from pathlib import Path

import numpy as np
from numba import config, njit, uint64

from sapis.core.files import hash_bytes


def _cache_folder():
    """Where numba keeps what it compiled: one folder for each state of this package, because numba looks at the file of a loop
    alone and would keep a loop that calls a changed one. None where nothing can be written.
    """
    package = Path(__file__).parent
    sources = [path.read_bytes() for path in (*sorted(package.glob("*.py")), package.parent / "config.py")]
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = home / "sapis" / f"loops-{hash_bytes(*sources)[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not any(folder.iterdir()):
        print("sapis: the model's loops are compiled for this machine (once, up to a minute for each precision)", file=sys.stderr)
    return str(folder)


_CACHE = config.CACHE_DIR or _cache_folder()


def jit(function):
    """Compile at first use, and keep."""
    kept, config.CACHE_DIR = config.CACHE_DIR, _CACHE or ""
    try:
        # Not "nnan" and "ninf": a training must see that a number is not finite.
        flags = {"reassoc", "contract", "arcp", "nsz"}
        return njit(cache=_CACHE is not None, fastmath=flags, error_model="numpy", nogil=True)(function)
    finally:
        config.CACHE_DIR = kept


# Numbers that the rows of a group may take. Few enough for the third-level cache; larger groups mean fewer additions to the
# gradient of the weights, which take as long as its making.
GROUP_SIZE = 786_432


@jit
def new(rows, columns, kind):
    """Scratch."""
    return np.empty((rows, columns), kind)


@jit
def group(size_per_atom):
    """Atoms of a group."""
    return max(4, GROUP_SIZE // size_per_atom)


@jit
def fetch(target, source, first, m):
    """Rows of ``m`` atoms of ``(lm, atoms, channels)`` into a flat buffer ``(lm, m, channels)``."""
    channels = source.shape[2]
    for lm in range(source.shape[0]):
        for atom in range(m):
            start = uint64((lm * m + atom) * channels)
            for channel in range(channels):
                target[start + uint64(channel)] = source[lm, first + atom, channel]


@jit
def store(target, source, first, m):
    """The inverse of `fetch`."""
    channels = target.shape[2]
    for lm in range(target.shape[0]):
        for atom in range(m):
            start = uint64((lm * m + atom) * channels)
            for channel in range(channels):
                target[lm, first + atom, channel] = source[start + uint64(channel)]


@jit
def mix(out, rows, weight, widths, m):
    """``rows_l @ weight_l`` for each degree; buffers of ``m`` atoms, flat."""
    n_out, row, column = weight.shape[1], 0, 0
    for l in range(len(widths)):
        height, width = (2 * l + 1) * m, widths[l]
        np.dot(rows[row : row + height * width].reshape(height, width), weight[column : column + width],
               out[l * l * m * n_out : (l + 1) ** 2 * m * n_out].reshape(height, n_out))
        row += height * width
        column += width


@jit
def mix_back(rows, out, weight, widths, m):
    """``out_l @ weight_l^T``."""
    n_out, row, column = weight.shape[1], 0, 0
    for l in range(len(widths)):
        height, width = (2 * l + 1) * m, widths[l]
        np.dot(out[l * l * m * n_out : (l + 1) ** 2 * m * n_out].reshape(height, n_out), weight[column : column + width].T,
               rows[row : row + height * width].reshape(height, width))
        row += height * width
        column += width


@jit
def add_mix_weight(d_weight, scratch, rows, out, widths, m):
    """Adds ``rows_l^T @ out_l``."""
    n_out, row, column = d_weight.shape[1], 0, 0
    for l in range(len(widths)):
        height, width = (2 * l + 1) * m, widths[l]
        part = scratch[: width * n_out].reshape(width, n_out)
        np.dot(rows[row : row + height * width].reshape(height, width).T,
               out[l * l * m * n_out : (l + 1) ** 2 * m * n_out].reshape(height, n_out), part)
        for i in range(width):
            for j in range(n_out):
                d_weight[column + i, j] += part[i, j]
        row += height * width
        column += width
