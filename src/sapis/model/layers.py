"""The pieces of the Transformer. Node features have shape ``(lm, atoms, channels)``.

The lm axis comes first so that a degree is a contiguous block, a coupling is one product with a constant matrix,
and a per-degree linear map is one batched product (see docs/decisions/0001-feature-layout.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sapis.model.edges import EdgeList, Slots
from sapis.so3.contraction import density_couplings, entries, product_couplings
from sapis.so3.coupling import coupling_paths
from sapis.so3.harmonics import degrees, row_products

NORM_GROUP = 16


class RadialBasis(nn.Module):
    """Bessel functions under a polynomial envelope.

    ``sqrt(2/r_c) sin(k pi r/r_c)/r * f(r/r_c)`` (Gasteiger et al., arXiv 2003.03123, eqs. 7, 8 with p = 6): value, first
    and second derivative vanish at the cutoff.
    """

    frequencies: torch.Tensor

    def __init__(self, n_radial: int, cutoff: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.cutoff = cutoff
        frequencies = torch.arange(1, n_radial + 1, dtype=dtype) * (math.pi / cutoff)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """``(...)`` Å -> ``(..., radial)``."""
        waves = torch.sin(distances.unsqueeze(-1) * self.frequencies)
        return waves * (math.sqrt(2 / self.cutoff) * envelope(distances / self.cutoff) / distances).unsqueeze(-1)


def envelope(x: torch.Tensor) -> torch.Tensor:
    """1 at 0, and 0 from 1 on; there its first two derivatives vanish, too (p = 6)."""
    x = x.clamp(max=1.0)
    x3 = x * x * x
    return 1.0 + x3 * x3 * (-28.0 + x * (48.0 - 21.0 * x))


class GroupNorm(nn.Module):
    """Divides scalars by their root mean square within groups of channels, so that new groups leave old ones alone.

    ``epsilon`` under the root is of the size of the scalars: where a group passes zero, a norm turns round within a distance that
    goes with its root, and all that comes after has a spike there if that is short (docs/lab/0010-spikes.md).
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, scalars: torch.Tensor) -> torch.Tensor:
        """``(atoms, channels)`` -> the same shape."""
        group = norm_group(scalars.shape[-1])
        return grouped_norm(scalars, group, 1 / group, self.epsilon)


def norm_group(channels: int) -> int:
    """How many of ``channels`` share one norm: 16, or all where they do not fall into groups of 16."""
    return NORM_GROUP if channels % NORM_GROUP == 0 else channels


def grouped_norm(values: torch.Tensor, group: int, factor: float, epsilon: float) -> torch.Tensor:
    """``x / sqrt(factor * sum(x^2) + epsilon)`` within each group of columns of ``(atoms, channels)``."""
    groups = values.unflatten(-1, (-1, group))
    return (groups * torch.rsqrt(factor * groups.square().sum(-1, keepdim=True) + epsilon)).flatten(-2)


class DegreeLinear(nn.Module):
    """One matrix per degree: ``(lm, atoms, n_in)`` -> ``(lm, atoms, n_out)``."""

    def __init__(self, l_max: int, n_in: int, n_out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(l_max + 1, n_in, n_out, dtype=dtype) / math.sqrt(n_in))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(lm, atoms, n_in)`` -> ``(lm, atoms, n_out)``; degrees beyond its own are left out."""
        blocks = features[: len(self.weight) ** 2].split([2 * l + 1 for l in range(len(self.weight))])
        return torch.cat([block @ matrix for block, matrix in zip(blocks, self.weight.unbind(), strict=True)])


class Coupling(nn.Module):
    """All natural-parity products of rows of degree l1 with rows of degree l2, mixed over paths and channels.

    Each path (l1, l2, l3) is a sum of products of rows with constant coefficients; a dense map then takes all paths and
    channels of one l3 to its outcome.

    Args:
        l1_max, l2_max, l_max_out: degrees of the two factors and of the result.
        is_symmetric: both factors are the same features, so (l1, l2) and (l2, l1) are one path.
        n_radial: the products are those of a density with this many radial functions, see `Attention`.
    """

    table: torch.Tensor

    def __init__(self, l1_max: int, l2_max: int, l_max_out: int, n_in: int, n_out: int, dtype: torch.dtype, *,
                 is_symmetric: bool = False, n_radial: int | None = None) -> None:
        super().__init__()
        paths = coupling_paths(l1_max, l2_max, l_max_out, is_symmetric=is_symmetric)
        n_one, n_other = (l1_max + 1) ** 2, (l2_max + 1) ** 2
        self.paths = paths
        self.n_paths = np.bincount([l3 for _, _, l3 in paths]).tolist()
        self.widths = np.array(self.n_paths) * n_in
        self.couplings = (product_couplings(paths, n_one, n_other) if n_radial is None
                          else density_couplings(paths, n_one, n_other, n_radial))
        outcome, one, other, values = entries(paths)
        table = np.zeros((outcome.max() + 1, n_one * n_other))
        table[outcome, one * n_other + other] = values
        self.register_buffer("table", torch.as_tensor(table, dtype=dtype), persistent=False)
        # Paths that meet in one degree share its unit variance.
        spread = torch.tensor([1 / math.sqrt(n_in * self.n_paths[l3]) for _, _, l3 in paths], dtype=dtype)
        self.weight = nn.Parameter(torch.randn(len(paths), n_in, n_out, dtype=dtype) * spread[:, None, None])

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``(lm1, atoms, n_in)``, ``(lm2, atoms, n_in)`` -> ``(lm_out, atoms, n_out)``."""
        return self.mix(self.ordered((one.unsqueeze(1) * other.unsqueeze(0)).flatten(0, 1)), one.shape[1])

    def ordered(self, pairs: torch.Tensor) -> torch.Tensor:
        """``(lm1 * lm2, atoms, n_in)`` -> what `mix` takes, by matrix products."""
        rows = (self.table @ pairs.flatten(1)).view(len(self.table), *pairs.shape[1:])
        blocks = rows.split([n * (2 * l3 + 1) for l3, n in enumerate(self.n_paths)])
        return torch.cat([block.unflatten(0, (n, -1)).permute(1, 2, 0, 3).flatten()
                          for n, block in zip(self.n_paths, blocks, strict=True)])

    def mix(self, rows: torch.Tensor, atoms: int) -> torch.Tensor:
        """``(2 l + 1, atoms, paths, n_in)`` of all degrees in one buffer -> ``(lm_out, atoms, n_out)``."""
        n_in, n_out = self.weight.shape[1:]
        blocks = rows.view(-1).split([n * (2 * l3 + 1) * atoms * n_in for l3, n in enumerate(self.n_paths)])
        outcomes = [block.view(-1, n * n_in) @ weight.reshape(-1, n_out)
                    for n, block, weight in zip(self.n_paths, blocks, self.weight.split(self.n_paths), strict=True)]
        return torch.cat(outcomes).view(-1, atoms, n_out)


class Attention(nn.Module):
    """What each atom collects from its neighbours, kept apart by head, radial function and edge harmonic.

    Un-normalised attention ``a = 1 + SiLU(s)`` with ``s = q_i . k_j + b . rho(r_ij)``: a sum, not an average, so the
    number of neighbours stays visible. The envelope enters once, through the radial basis of the density

        D_i[k, lm, lm', c] = <K>^(-1/2) sum_j rho_k(r_ij) Y_lm(u_ij) a_ij^h(c) v_j[lm', c],

    one matrix product per atom. Density and carried degrees are then coupled and mixed (`Coupling`).
    """

    head_of_channel: torch.Tensor
    value_of_head: torch.Tensor

    def __init__(self, *, l_max: int, l_max_carried: int, n_channels: int, n_carried: int, n_heads: int, n_radial: int,
                 average_neighbors: float, norm_epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_radial, self.n_per_head = n_radial, n_channels // n_heads
        self.l_max, self.n_carried = l_max, n_carried
        self.n_lm_carried = (l_max_carried + 1) ** 2
        self.scale = 1 / math.sqrt(average_neighbors)
        self.norm = GroupNorm(norm_epsilon)
        self.query = nn.Linear(n_channels, n_channels, bias=False, dtype=dtype)
        self.key = nn.Linear(n_channels, n_channels, bias=False, dtype=dtype)
        self.temperature = nn.Parameter(torch.full((n_heads,), 1.0, dtype=dtype))
        self.radial_bias = nn.Parameter(torch.randn(n_radial, n_heads, dtype=dtype) / math.sqrt(n_radial))
        self.value = DegreeLinear(l_max_carried, n_channels, n_carried, dtype)
        # Zeros and ones that spread over channels what belongs to a head. A product with them takes the place of broadcasting,
        # which is slow where the innermost axis is short (measured: a tenth of a training step).
        heads = torch.eye(n_heads, dtype=dtype)
        self.register_buffer("head_of_channel", heads.repeat_interleave(n_channels // n_heads, dim=0), persistent=False)
        spread = heads.repeat_interleave(n_carried // n_heads, dim=1).repeat(1, self.n_lm_carried)
        self.register_buffer("value_of_head", spread, persistent=False)
        self.head_of_key = np.repeat(np.arange(n_heads), n_channels // n_heads)
        self.head_of_value = np.tile(np.repeat(np.arange(n_heads), n_carried // n_heads), self.n_lm_carried)
        self.coupling = Coupling(l_max, l_max_carried, l_max, n_radial * n_carried, n_channels, dtype, n_radial=n_radial)

    def forward(self, features: torch.Tensor, edges: Edges) -> torch.Tensor:
        """``(lm, atoms, channels)`` -> ``(lm, atoms, channels)``."""
        scalars = self.norm(features[0])
        values = self.value(features).transpose(0, 1).flatten(1)
        # Unit length per head, where they are not short, so that a logit is a cosine times the head's temperature.
        keys, queries = (grouped_norm(each(scalars), self.n_per_head, 1.0, self.norm.epsilon) for each in (self.key, self.query))
        queries = queries * (self.head_of_channel @ self.temperature)
        return self.coupling.mix(self.coupling.ordered(self._density(edges, queries, keys, values)), len(values))

    def _density(self, edges: Edges, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The density by matrix products, ``(lm * lm', atoms, radial * channels)``."""
        links, sent = edges.links, edges.links.sent(torch.cat((keys, values), dim=-1))
        keys, values = sent.split((keys.shape[-1], values.shape[-1]), dim=-1)
        logits = links.match(keys, queries, self.head_of_channel) + edges.radial @ self.radial_bias
        weights = self.scale + self.scale * F.silu(logits)
        density = links.collect(edges.basis, values * (weights @ self.value_of_head))
        shape = ((self.l_max + 1) ** 2, self.n_radial, self.n_lm_carried, self.n_carried)
        return density.view(-1, *shape).permute(1, 3, 0, 2, 4).reshape(shape[0] * shape[2], len(queries), -1)


class Edges:
    """What the layers need of the edges, computed once. Shapes begin with ``(atoms, slots)`` or ``(edges,)``, by the links' form.

    Attributes:
        links: which atoms send to which.
        radial: ``(..., radial)``.
        basis: harmonics times radial functions, ``(..., lm * radial)``.
    """

    def __init__(self, links: Slots | EdgeList, radial: torch.Tensor, harmonics: torch.Tensor) -> None:
        self.links, self.radial = links, radial
        self.basis = row_products(harmonics, radial)


class Product(nn.Module):
    """Many-body product on nodes: ``A``, ``(A A)``, ``((A A) A)`` coupled to each degree, weighted by species.

    Orders 1 to 3 of the density give two- to four-body terms per layer (Drautz 2019; Batatia et al., arXiv 2206.07697).

    Args:
        l_max, l_max_product, l_max_out: highest degrees of the features, of products that enter further ones, of the result.
    """

    def __init__(self, *, l_max: int, l_max_product: int, l_max_out: int, order: int, n_channels: int, n_species: int,
                 dtype: torch.dtype) -> None:
        super().__init__()
        self.n_lm_out = (l_max_out + 1) ** 2
        found = [l_max] + [l_max_product] * (order - 2) + [l_max_out]
        self.couplings = nn.ModuleList(
            Coupling(l_one, l_max, l_product, n_channels, n_channels, dtype, is_symmetric=n == 0)
            for n, (l_one, l_product) in enumerate(pairwise(found[-order:]))
        )
        weights = torch.ones(n_species, order, l_max_out + 1, n_channels, dtype=dtype) / math.sqrt(order)
        self.order_weights = nn.Parameter(weights)

    def forward(self, features: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        """``(lm, atoms, channels)``, ``(atoms,)`` -> ``(lm_out, atoms, channels)``."""
        power = features
        result = add_weighted(features.new_zeros(self.n_lm_out, *features.shape[1:]), features, self.order_weights, species, 0)
        for n, coupling in enumerate(self.couplings, start=1):
            power = coupling(power, features)
            result = add_weighted(result, power, self.order_weights, species, n)
        return result


def add_weighted(base: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, species: torch.Tensor, order: int,
                 ) -> torch.Tensor:
    """``base`` plus ``values`` times the weights of an order, each atom with those of its species.

    Args:
        base, values: ``(lm, atoms, channels)``; rows of ``values`` that ``base`` lacks are left out, and the other way round.
        weight: ``(species, orders, degrees, channels)``.
    """
    rows = min(len(base), len(values))
    degree = torch.as_tensor(degrees(math.isqrt(rows) - 1), device=values.device)
    weighted = values[:rows] * weight[:, order].index_select(0, species).transpose(0, 1).index_select(0, degree)
    return torch.cat((base[:rows] + weighted, base[rows:]))


class Gate(nn.Module):
    """Non-linearity: scalars pass a SwiGLU, other degrees are scaled by functions of the scalars."""

    degree: torch.Tensor

    def __init__(self, *, l_max: int, n_channels: int, norm_epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.l_max, self.n_channels = l_max, n_channels
        self.norm = GroupNorm(norm_epsilon)
        self.widen = nn.Linear(n_channels, (4 + l_max) * n_channels, dtype=dtype)
        self.narrow = nn.Linear(2 * n_channels, n_channels, bias=False, dtype=dtype)
        self.register_buffer("degree", torch.as_tensor(degrees(l_max)[1:] - 1), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(lm, atoms, channels)`` -> the same shape."""
        scalars = features[0]
        wide = self.widen(self.norm(scalars))
        up, gate, rest = wide.split((2 * self.n_channels, 2 * self.n_channels, self.l_max * self.n_channels), dim=-1)
        scalars = (scalars + self.narrow(up * F.silu(gate))).unsqueeze(0)
        if self.l_max == 0:
            return scalars
        gates = 2 * torch.sigmoid(rest).view(-1, self.l_max, self.n_channels).transpose(0, 1)
        return torch.cat((scalars, features[1:] * gates.index_select(0, self.degree)), dim=0)


def readout(widths: Sequence[int], dtype: torch.dtype) -> nn.Sequential:
    """A small network of linear maps with SiLU between them, no bias at the end (an energy's zero is the reference's)."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        is_last = len(layers) // 2 == len(widths) - 2
        layers += [nn.Linear(n_in, n_out, bias=not is_last, dtype=dtype)] + ([] if is_last else [nn.SiLU()])
    return nn.Sequential(*layers)
