"""FLOPs of the matrix products of torch's back-ends, in closed form: what torch's counter sees.

The repulsion of nuclei, if a model has it, is left out: a few operations for each edge.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from sapis.model.layers import Coupling, DegreeLinear
from sapis.model.transformer import Layer, Transformer


class _Product(NamedTuple):
    """A matrix product of torch, and which of its derivatives the passes need.

    Attributes:
        size: multiplications with additions.
        is_moved: which of the factors depend on positions.
        is_weighted: which of them depend on weights.
        is_energy: the result is an energy, the gradient by which is a constant.
    """

    size: float
    is_moved: tuple[bool, bool]
    is_weighted: tuple[bool, bool]
    is_energy: bool = False

    def flops(self) -> tuple[float, float, float]:
        """Of the three passes.

        The derivative by a factor is the product of the result's gradient with the other factor: once for the forces; for the
        training each of these has derivatives by what depends on weights, and the product itself too.
        """
        forces = 1 + sum(self.is_moved)
        further = sum(self.is_weighted) + sum((not self.is_energy) + self.is_weighted[1 - factor]
                                              for factor in (0, 1) if self.is_moved[factor])
        return 2 * self.size, 2 * self.size * forces, 2 * self.size * (forces + further)


def torch_flops(transformer: Transformer, *, n_atoms: int, n_edges: int, n_grouped: int | None = None) -> dict[str, float]:
    """FLOPs of torch's matrix products: exactly what its counter sees on the torch back-ends, for each pass.

    Args:
        n_atoms: atoms.
        n_edges: slots of the batch, unused ones included; of a list of edges its length.
        n_grouped: of a list of edges, the size of its groups; None for padded slots.
    """
    is_padded = n_grouped is None
    n_collected = n_edges if n_grouped is None else n_grouped
    found = [product for number, layer in enumerate(transformer.layers) if isinstance(layer, Layer)
             for product in _of_layer(layer, n_atoms, n_edges, n_collected, is_padded=is_padded, is_first=number == 0)]
    found += _of_geometry(transformer.harmonics.l_max, len(transformer.radial.frequencies), n_edges)
    for read in transformer.readouts:
        assert isinstance(read, nn.Sequential)
        linear = [part for part in read if isinstance(part, nn.Linear)]
        found += [_Product(n_atoms * part.weight.numel(), (True, False), (True, True), is_energy=part is linear[-1])
                  for part in linear]
    forward, forces, training = (sum(each) for each in zip(*(product.flops() for product in found), strict=True))
    virial = 2 * 9 * n_collected  # and in training the gradient of it by the energy's gradient
    return {"forward": forward, "forces": forces + virial, "training": training + 2 * virial}


def _of_geometry(l_max: int, n_radial: int, n_edges: int) -> list[_Product]:
    """Of harmonics and of their products with radial functions."""
    moved, n_lm = ((True, False), (False, False)), (l_max + 1) ** 2
    chain = sum((2 * l + 1 + 3) * 3 * (2 * l + 1) + 3 * (2 * l + 1) * (2 * l + 3) for l in range(1, l_max))
    return [_Product(n_edges * chain, *moved), _Product(n_edges * n_radial * n_lm * n_radial, *moved),
            _Product(n_edges * n_lm * n_lm * n_radial, (l_max > 0, False), (False, False))]


def _of_layer(layer: Layer, n_atoms: int, n_edges: int, n_collected: int, *, is_padded: bool, is_first: bool) -> list[_Product]:
    attention, both, weight = layer.attention, (True, True), (True, False)
    before = (not is_first, False)  # what the first layer begins with does not depend on positions
    (n_radial, n_heads), n_channels = attention.radial_bias.shape, len(attention.head_of_channel)
    n_values, n_basis = attention.value_of_head.shape[1], (attention.l_max + 1) ** 2 * n_radial
    found = [
        _linear(attention.value, n_atoms, before),
        _Product(n_atoms * attention.query.weight.numel(), before, both),
        _Product(n_atoms * attention.key.weight.numel(), before, both),
        _Product(n_edges * n_channels * n_heads, (not is_first, is_padded and not is_first), (True, is_padded)),
        _Product(n_edges * n_radial * n_heads, weight, (False, True)),
        _Product(n_edges * n_heads * n_values, weight, weight),
        _Product(n_collected * n_basis * n_values, both, (False, True)),
        *_of_coupling(attention.coupling, n_atoms),
    ]
    for coupling in layer.product.couplings:
        assert isinstance(coupling, Coupling)
        found += _of_coupling(coupling, n_atoms)
    found += [_linear(layer.update, n_atoms, weight), _linear(layer.keep, n_atoms, before)]
    return found + [_Product(n_atoms * part.weight.numel(), weight, both) for part in (layer.gate.widen, layer.gate.narrow)]


def _of_coupling(coupling: Coupling, n_atoms: int) -> list[_Product]:
    """Of the dense table, and of mixing."""
    n_in, n_out = coupling.weight.shape[1:]
    mixed = sum((2 * l + 1) * int(width) for l, width in enumerate(coupling.widths)) * n_out
    return [_Product(n_atoms * coupling.table.numel() * n_in, (False, True), (False, True)),
            _Product(n_atoms * mixed, (True, False), (True, True))]


def _linear(module: DegreeLinear, n_atoms: int, is_moved: tuple[bool, bool]) -> _Product:
    n_degrees, n_in, n_out = module.weight.shape
    return _Product(n_atoms * n_degrees**2 * n_in * n_out, is_moved, (True, True))
