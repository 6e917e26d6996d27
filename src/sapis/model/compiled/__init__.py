"""Compiled loops of `sapis.model.tape`; importing this package needs numba.

In names ``t_`` stands before a tangent and ``d_`` before a gradient; ``n`` is the number of used slots of the atom at hand, ``m``
the number of atoms of a group. What the derivatives of an operation are is said at the head of `sapis.model.tape`.
"""

from sapis.model.compiled.coupling import couple, couple_backward, couple_double_backward
from sapis.model.compiled.density import collect, collect_backward, collect_double_backward
from sapis.model.compiled.pointwise import (
    gate,
    gate_backward,
    gate_double_backward,
    linear,
    linear_backward,
    linear_double_backward,
    norm,
    norm_backward,
    norm_double_backward,
    swiglu,
    swiglu_backward,
    swiglu_double_backward,
    weigh,
    weigh_backward,
    weigh_double_backward,
)
from sapis.model.compiled.simple import (
    add,
    add_backward,
    add_double_backward,
    columns,
    columns_backward,
    columns_double_backward,
    dense,
    dense_backward,
    dense_double_backward,
    embed,
    embed_backward,
    harmonics,
    harmonics_backward,
    harmonics_double_backward,
    radial,
    radial_backward,
    radial_double_backward,
    scalars,
    scalars_backward,
    scalars_double_backward,
    scale_heads,
    scale_heads_backward,
    scale_heads_double_backward,
    shift,
    shift_backward,
    shift_double_backward,
    silu,
    silu_backward,
    silu_double_backward,
)

__all__ = [
    "add", "add_backward", "add_double_backward", "collect", "collect_backward", "collect_double_backward", "columns",
    "columns_backward", "columns_double_backward", "couple", "couple_backward", "couple_double_backward", "dense",
    "dense_backward", "dense_double_backward", "embed", "embed_backward", "gate", "gate_backward", "gate_double_backward",
    "harmonics", "harmonics_backward", "harmonics_double_backward", "linear", "linear_backward", "linear_double_backward",
    "norm", "norm_backward", "norm_double_backward", "radial", "radial_backward", "radial_double_backward", "scalars",
    "scalars_backward", "scalars_double_backward", "scale_heads", "scale_heads_backward", "scale_heads_double_backward",
    "shift", "shift_backward", "shift_double_backward", "silu", "silu_backward", "silu_double_backward", "swiglu",
    "swiglu_backward", "swiglu_double_backward", "weigh", "weigh_backward", "weigh_double_backward",
]
