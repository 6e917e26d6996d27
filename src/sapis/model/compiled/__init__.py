"""Compiled loops of `sapis.model.fused`; importing this package needs numba.

In names ``t_`` stands before a tangent and ``d_`` before a gradient; ``n`` is the number of used slots of the atom at hand, ``m``
the number of atoms of a group. What the derivatives of an operation are is said at the head of `sapis.model.fused`.
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

__all__ = [
    "collect", "collect_backward", "collect_double_backward", "couple", "couple_backward", "couple_double_backward", "gate",
    "gate_backward", "gate_double_backward", "linear", "linear_backward", "linear_double_backward", "norm", "norm_backward",
    "norm_double_backward", "swiglu", "swiglu_backward", "swiglu_double_backward", "weigh", "weigh_backward",
    "weigh_double_backward",
]
