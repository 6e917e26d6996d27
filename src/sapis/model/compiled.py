"""Compiled loops of `sapis.model.coupling` and `sapis.model.density`; importing this module needs numba.

Everything of a group of atoms stays in cache: rows of paths are made, mixed by BLAS and forgotten. ``t_`` stands before a
tangent and ``d_`` before a gradient; ``n`` is the number of used slots of the atom at hand, ``m`` the atoms of a group.
"""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np
from numba import njit, uint64

# Not "nnan" and "ninf": a training must see that a number is not finite.
_jit = njit(cache=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", nogil=True)

NORM_EPSILON = 1e-6

# Numbers that the rows of a group may take: they, the weights and some scratch fit the second-level cache of a core.
GROUP_SIZE = 98_304


@_jit
def _group(size_per_atom):
    return max(4, GROUP_SIZE // size_per_atom)


@_jit
def _fetch(target, source, first, m):
    """Rows of ``m`` atoms of ``(lm, atoms, channels)`` into a flat buffer ``(lm, m, channels)``."""
    channels = source.shape[2]
    for lm in range(source.shape[0]):
        for atom in range(m):
            start = uint64((lm * m + atom) * channels)
            for channel in range(channels):
                target[start + uint64(channel)] = source[lm, first + atom, channel]


@_jit
def _store(target, source, first, m):
    """The inverse of `_fetch`."""
    channels = target.shape[2]
    for lm in range(target.shape[0]):
        for atom in range(m):
            start = uint64((lm * m + atom) * channels)
            for channel in range(channels):
                target[lm, first + atom, channel] = source[start + uint64(channel)]


@_jit
def _mix(out, rows, weight, widths, m):
    """``rows_l @ weight_l`` for each degree; buffers of ``m`` atoms, flat."""
    n_out, row, column = weight.shape[1], 0, 0
    for l in range(len(widths)):
        height, width = (2 * l + 1) * m, widths[l]
        np.dot(rows[row : row + height * width].reshape(height, width), weight[column : column + width],
               out[l * l * m * n_out : (l + 1) ** 2 * m * n_out].reshape(height, n_out))
        row += height * width
        column += width


@_jit
def _mix_back(rows, out, weight, widths, m):
    """``out_l @ weight_l^T``."""
    n_out, row, column = weight.shape[1], 0, 0
    for l in range(len(widths)):
        height, width = (2 * l + 1) * m, widths[l]
        np.dot(out[l * l * m * n_out : (l + 1) ** 2 * m * n_out].reshape(height, n_out), weight[column : column + width].T,
               rows[row : row + height * width].reshape(height, width))
        row += height * width
        column += width


@_jit
def _add_mix_weight(d_weight, scratch, rows, out, widths, m):
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


@_jit
def _add_products(rows, one, other, paths, first, m):
    """Adds ``c_e one[i_e] other[j_e]`` to the rows of a group of atoms."""
    planes, starts, strides, row_of, one_of, other_of, values = paths
    atoms, width = one.shape[1], uint64(one.shape[2])
    one, other = one.reshape(-1), other.reshape(-1)
    for atom in range(m):
        for entry in range(len(values)):
            row, value = row_of[entry], values[entry]
            here = uint64(planes[row] * m + starts[row] + strides[row] * atom) * width
            left = uint64(one_of[entry] * atoms + first + atom) * width
            right = uint64(other_of[entry] * atoms + first + atom) * width
            for channel in range(width):
                rows[here + channel] += value * one[left + channel] * other[right + channel]


@_jit
def _add_products_back(d_one, d_other, rows, one, other, paths, first, m):
    """Adds the gradients of ``<rows, products>`` by both factors."""
    planes, starts, strides, row_of, one_of, other_of, values = paths
    atoms, width = one.shape[1], uint64(one.shape[2])
    d_one, d_other, one, other = d_one.reshape(-1), d_other.reshape(-1), one.reshape(-1), other.reshape(-1)
    for atom in range(m):
        for entry in range(len(values)):
            row, value = row_of[entry], values[entry]
            here = uint64(planes[row] * m + starts[row] + strides[row] * atom) * width
            left = uint64(one_of[entry] * atoms + first + atom) * width
            right = uint64(other_of[entry] * atoms + first + atom) * width
            for channel in range(width):
                change = value * rows[here + channel]
                d_one[left + channel] += change * other[right + channel]
                d_other[right + channel] += change * one[left + channel]


@_jit
def couple(out, one, other, weight, paths, widths, n_rows):
    """``out = mix(products(one, other))``."""
    atoms, channels, n_out = one.shape[1], one.shape[2], weight.shape[1]
    group = min(atoms, _group(n_rows * channels))
    rows, mixed = np.empty(n_rows * group * channels, one.dtype), np.empty(out.shape[0] * group * n_out, one.dtype)
    for first in range(0, atoms, group):
        m = min(group, atoms - first)
        rows[:] = 0
        _add_products(rows, one, other, paths, first, m)
        _mix(mixed, rows, weight, widths, m)
        _store(out, mixed, first, m)


@_jit
def couple_backward(d_one, d_other, d_weight, d_out, one, other, weight, paths, widths, n_rows, is_weight_wanted):
    """Adds the gradients of ``<d_out, out>`` to the first three arguments."""
    atoms, channels, n_out = one.shape[1], one.shape[2], weight.shape[1]
    group = min(atoms, _group(n_rows * channels))
    rows, mixed = np.empty(n_rows * group * channels, one.dtype), np.empty(d_out.shape[0] * group * n_out, one.dtype)
    scratch = np.empty(widths.max() * n_out, one.dtype)
    for first in range(0, atoms, group):
        m = min(group, atoms - first)
        _fetch(mixed, d_out, first, m)
        _mix_back(rows, mixed, weight, widths, m)
        _add_products_back(d_one, d_other, rows, one, other, paths, first, m)
        if is_weight_wanted:
            rows[:] = 0
            _add_products(rows, one, other, paths, first, m)
            _add_mix_weight(d_weight, scratch, rows, mixed, widths, m)


@_jit
def couple_double_backward(d_d_out, d_one, d_other, d_weight, d_out, one, other, weight, t_one, t_other, t_weight, paths, widths,
                           n_rows, is_weight_moved):
    """The change of ``out`` along the tangent into ``d_d_out``; adds the gradients of its product with ``d_out``."""
    atoms, channels, n_out = one.shape[1], one.shape[2], weight.shape[1]
    group = min(atoms, _group(n_rows * channels))
    rows, mixed = np.empty(n_rows * group * channels, one.dtype), np.empty(d_out.shape[0] * group * n_out, one.dtype)
    more, scratch = np.empty_like(mixed), np.empty(widths.max() * n_out, one.dtype)
    for first in range(0, atoms, group):
        m = min(group, atoms - first)
        rows[:] = 0
        _add_products(rows, t_one, other, paths, first, m)
        _add_products(rows, one, t_other, paths, first, m)
        _mix(more, rows, weight, widths, m)
        _fetch(mixed, d_out, first, m)
        _add_mix_weight(d_weight, scratch, rows, mixed, widths, m)
        _store(d_d_out, more, first, m)
        _mix_back(rows, mixed, weight, widths, m)
        _add_products_back(d_one, d_other, rows, t_one, t_other, paths, first, m)
        if is_weight_moved:
            _mix_back(rows, mixed, t_weight, widths, m)
            _add_products_back(d_one, d_other, rows, one, other, paths, first, m)
            rows[:] = 0
            _add_products(rows, one, other, paths, first, m)
            _mix(mixed, rows, t_weight, widths, m)
            _fetch(more, d_d_out, first, m)
            for place in range(d_out.shape[0] * m * n_out):
                more[place] += mixed[place]
            _store(d_d_out, more, first, m)


@_jit
def _couple_density(rows, density, atom, atoms, couplings, n_radial, channels):
    """Rows of ``atom`` from its density."""
    planes, starts, strides, sources, source_stride, firsts, source_rows, coefficients = couplings
    width = uint64(channels)
    for row in range(len(planes)):
        for radial in range(n_radial):
            here = uint64((planes[row] * atoms + starts[row] + strides[row] * atom + radial) * channels)
            for channel in range(width):
                rows[here + channel] = 0
            for entry in range(firsts[row], firsts[row + 1]):
                coefficient = coefficients[entry]
                there = uint64((sources[source_rows[entry]] + source_stride * radial) * channels)
                for channel in range(width):
                    rows[here + channel] += coefficient * density[there + channel]


@_jit
def _uncouple_density(rows, density, atom, atoms, couplings, n_radial, channels):
    """The adjoint of `_couple_density`."""
    planes, starts, strides, sources, source_stride, firsts, source_rows, coefficients = couplings
    width = uint64(channels)
    density[:] = 0
    for row in range(len(planes)):
        for radial in range(n_radial):
            here = uint64((planes[row] * atoms + starts[row] + strides[row] * atom + radial) * channels)
            for entry in range(firsts[row], firsts[row + 1]):
                coefficient = coefficients[entry]
                there = uint64((sources[source_rows[entry]] + source_stride * radial) * channels)
                for channel in range(width):
                    density[there + channel] += coefficient * rows[here + channel]


@_jit
def _gather(target, source, senders, n):
    for slot in range(n):
        sender = uint64(senders[slot])
        for channel in range(target.shape[1]):
            target[slot, channel] = source[sender, channel]


@_jit
def _scatter(target, source, senders, n):
    for slot in range(n):
        sender = uint64(senders[slot])
        for channel in range(source.shape[1]):
            target[sender, channel] += source[slot, channel]


@_jit
def _transposed(target, source, n):
    """Into a flat buffer, as ``(columns, n)``."""
    result = target[: n * source.shape[1]].reshape(source.shape[1], n)
    for column in range(source.shape[1]):
        for slot in range(n):
            result[column, slot] = source[slot, column]
    return result


@_jit
def _outer(target, one, other):
    """``(a, n)``, ``(b, n)`` -> ``(a * b, n)`` into a flat buffer."""
    n = one.shape[1]
    result = target[: one.shape[0] * other.shape[0] * n].reshape(one.shape[0] * other.shape[0], n)
    for a in range(one.shape[0]):
        for b in range(other.shape[0]):
            for slot in range(n):
                result[a * other.shape[0] + b, slot] = one[a, slot] * other[b, slot]
    return result


@_jit
def _add_outer(result, one, other):
    for a in range(one.shape[0]):
        for b in range(other.shape[0]):
            for slot in range(one.shape[1]):
                result[a * other.shape[0] + b, slot] += one[a, slot] * other[b, slot]


@_jit
def _add_inner(d_one, d_other, gradient, one, other):
    """What `_outer` hands back to its factors."""
    for a in range(one.shape[0]):
        for b in range(other.shape[0]):
            for slot in range(one.shape[1]):
                change = gradient[a * other.shape[0] + b, slot]
                d_one[a, slot] += change * other[b, slot]
                d_other[b, slot] += change * one[a, slot]


@_jit
def _add_transposed(target, source):
    """``(columns, n)`` -> adds to ``(>= n, columns)``."""
    for column in range(source.shape[0]):
        for slot in range(source.shape[1]):
            target[slot, column] += source[column, slot]


@_jit
def _add(target, source):
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] += source[row, column]


@_jit
def _times(target, one, other):
    for slot in range(len(target)):
        for channel in range(target.shape[1]):
            target[slot, channel] = one[slot, channel] * other[slot, channel]


# Products with the few columns of the heads are loops: BLAS takes several times as long for them.
@_jit
def _spread(target, weights, head_of):
    """Of each channel the weight of its head."""
    for slot in range(len(target)):
        for channel in range(target.shape[1]):
            target[slot, channel] = weights[slot, head_of[channel]]


@_jit
def _sum_heads(target, source, head_of):
    """Adds up the channels of each head."""
    target[:] = 0
    for slot in range(len(source)):
        for channel in range(source.shape[1]):
            target[slot, head_of[channel]] += source[slot, channel]


@_jit
def _add_narrow(target, rows, matrix):
    """Adds ``rows @ matrix`` for a small matrix."""
    for slot in range(len(rows)):
        for i in range(matrix.shape[0]):
            factor = rows[slot, i]
            for j in range(matrix.shape[1]):
                target[slot, j] += factor * matrix[i, j]


@_jit
def _add_narrow_weight(target, rows, other):
    """Adds ``rows^T @ other``."""
    for slot in range(len(rows)):
        for i in range(rows.shape[1]):
            factor = rows[slot, i]
            for j in range(other.shape[1]):
                target[i, j] += factor * other[slot, j]


@_jit
def _attend(logits, sigmoids, weights, key, value, product, query, keys, values, radial, bias, senders, n, key_heads, scale):
    """Logits and weights of the slots of one atom; gathers what they send."""
    _gather(key, keys, senders, n)
    _gather(value, values, senders, n)
    for slot in range(n):
        for channel in range(len(query)):
            product[slot, channel] = key[slot, channel] * query[channel]
    _sum_heads(logits[:n], product[:n], key_heads)
    _add_narrow(logits[:n], radial[:n], bias)
    for slot in range(n):
        for head in range(logits.shape[1]):
            logit = logits[slot, head]
            sigmoid = 1 / (1 + np.exp(-logit))
            sigmoids[slot, head] = sigmoid
            weights[slot, head] = scale + scale * logit * sigmoid


@_jit
def collect(out, queries, keys, values, radial, harmonics, bias, weight, couplings, widths, n_rows, senders, counts, key_heads,
            value_heads, scale):
    """``out = mix(couplings(density))``."""
    atoms, slots = senders.shape
    n_radial, n_lm, n_heads, n_values, n_keys = radial.shape[2], harmonics.shape[2], bias.shape[1], values.shape[1], keys.shape[1]
    kind = queries.dtype
    key, product = np.empty((slots, n_keys), kind), np.empty((slots, n_keys), kind)
    value, spread, sent = np.empty((slots, n_values), kind), np.empty((slots, n_values), kind), np.empty((slots, n_values), kind)
    logits, sigmoids, weights = np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind)
    basis_buffer, radial_buffer, harmonics_buffer = (np.empty(slots * n_lm * n_radial, kind), np.empty(slots * n_radial, kind),
                                                     np.empty(slots * n_lm, kind))
    density = np.empty((n_lm * n_radial, n_values), kind)
    channels = n_values // couplings[4]
    group = min(atoms, _group(n_rows * channels))
    rows, mixed = np.empty(n_rows * group * channels, kind), np.empty(out.shape[0] * group * out.shape[2], kind)
    for begin in range(0, atoms, group):
        m = min(group, atoms - begin)
        for place in range(m):
            atom = begin + place
            n = counts[atom]
            if n:
                _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias,
                        senders[atom], n, key_heads, scale)
                _spread(spread[:n], weights[:n], value_heads)
                _times(sent[:n], spread[:n], value[:n])
                basis = _outer(basis_buffer, _transposed(harmonics_buffer, harmonics[atom], n),
                               _transposed(radial_buffer, radial[atom], n))
                np.dot(basis, sent[:n], density)
            else:
                density[:] = 0
            _couple_density(rows, density.reshape(-1), place, m, couplings, n_radial, channels)
        _mix(mixed, rows, weight, widths, m)
        _store(out, mixed, begin, m)


@_jit
def collect_backward(d_queries, d_keys, d_values, d_radial, d_harmonics, d_bias, d_weight, d_out, queries, keys, values, radial,
                     harmonics, bias, weight, couplings, widths, n_rows, senders, counts, key_heads, value_heads, scale,
                     is_weight_wanted):
    """Adds the gradients of ``<d_out, out>`` to the first seven arguments."""
    atoms, slots = senders.shape
    n_radial, n_lm, n_heads, n_values, n_keys = radial.shape[2], harmonics.shape[2], bias.shape[1], values.shape[1], keys.shape[1]
    n_basis = n_lm * n_radial
    kind = queries.dtype
    key, product = np.empty((slots, n_keys), kind), np.empty((slots, n_keys), kind)
    value, spread, sent, d_sent = (np.empty((slots, n_values), kind), np.empty((slots, n_values), kind),
                                   np.empty((slots, n_values), kind), np.empty((slots, n_values), kind))
    logits, sigmoids, weights, d_logits = (np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind),
                                           np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind))
    basis_buffer, d_basis_buffer, sent_buffer = (np.empty(slots * n_basis, kind), np.empty(slots * n_basis, kind),
                                                 np.empty(slots * n_values, kind))
    radial_buffer, harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    d_radial_buffer, d_harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    d_density = np.empty((n_basis, n_values), kind)
    bias_t = bias.T.copy()
    channels = n_values // couplings[4]
    group = min(atoms, _group(n_rows * channels))
    rows, mixed = np.empty(n_rows * group * channels, kind), np.empty(d_out.shape[0] * group * d_out.shape[2], kind)
    own_rows, density = np.empty_like(rows), np.empty((n_basis, n_values), kind)
    scratch = np.empty(widths.max() * d_out.shape[2], kind)
    for begin in range(0, atoms, group):
        m = min(group, atoms - begin)
        _fetch(mixed, d_out, begin, m)
        _mix_back(rows, mixed, weight, widths, m)
        for place in range(m):
            atom = begin + place
            n = counts[atom]
            if not n:
                if is_weight_wanted:
                    density[:] = 0
                    _couple_density(own_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
                continue
            _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias, senders[atom], n,
                    key_heads, scale)
            _spread(spread[:n], weights[:n], value_heads)
            _times(sent[:n], spread[:n], value[:n])
            harmonics_t, radial_t = _transposed(harmonics_buffer, harmonics[atom], n), _transposed(radial_buffer, radial[atom], n)
            basis = _outer(basis_buffer, harmonics_t, radial_t)
            if is_weight_wanted:
                np.dot(basis, sent[:n], density)
                _couple_density(own_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
            _uncouple_density(rows, d_density.reshape(-1), place, m, couplings, n_radial, channels)
            d_basis = d_basis_buffer[: n_basis * n].reshape(n_basis, n)
            np.dot(d_density, _transposed(sent_buffer, sent, n), d_basis)
            np.dot(basis.T, d_density, d_sent[:n])
            d_radial_t, d_harmonics_t = d_radial_buffer[: n_radial * n].reshape(n_radial, n), d_harmonics_buffer[: n_lm * n].reshape(n_lm, n)
            d_radial_t[:] = 0
            d_harmonics_t[:] = 0
            _add_inner(d_harmonics_t, d_radial_t, d_basis, harmonics_t, radial_t)
            _add_transposed(d_harmonics[atom], d_harmonics_t)
            _add_transposed(d_radial[atom], d_radial_t)
            _times(sent[:n], d_sent[:n], value[:n])
            _times(value[:n], d_sent[:n], spread[:n])
            _scatter(d_values, value, senders[atom], n)
            _sum_heads(d_logits[:n], sent[:n], value_heads)
            for slot in range(n):
                for head in range(n_heads):
                    sigmoid = sigmoids[slot, head]
                    d_logits[slot, head] *= scale * sigmoid * (1 + logits[slot, head] * (1 - sigmoid))
            _add_narrow(d_radial[atom], d_logits[:n], bias_t)
            _add_narrow_weight(d_bias, radial[atom, :n], d_logits)
            _spread(product[:n], d_logits[:n], key_heads)
            for slot in range(n):
                for channel in range(n_keys):
                    d_queries[atom, channel] += product[slot, channel] * key[slot, channel]
                    product[slot, channel] *= queries[atom, channel]
            _scatter(d_keys, product, senders[atom], n)
        if is_weight_wanted:
            _add_mix_weight(d_weight, scratch, own_rows, mixed, widths, m)


@_jit
def collect_double_backward(d_d_out, d_queries, d_keys, d_values, d_radial, d_harmonics, d_bias, d_weight, d_out, queries, keys,
                            values, radial, harmonics, bias, weight, t_queries, t_keys, t_values, t_radial, t_harmonics, t_bias,
                            t_weight, couplings, widths, n_rows, senders, counts, key_heads, value_heads, scale, is_weight_moved):
    """The change of ``out`` along the tangent into ``d_d_out``; adds the gradients of its product with ``d_out``."""
    atoms, slots = senders.shape
    n_radial, n_lm, n_heads, n_values, n_keys = radial.shape[2], harmonics.shape[2], bias.shape[1], values.shape[1], keys.shape[1]
    n_basis = n_lm * n_radial
    kind = queries.dtype
    key, t_key, product, t_product = (np.empty((slots, n_keys), kind), np.empty((slots, n_keys), kind),
                                      np.empty((slots, n_keys), kind), np.empty((slots, n_keys), kind))
    value, t_value, spread, t_spread = (np.empty((slots, n_values), kind), np.empty((slots, n_values), kind),
                                        np.empty((slots, n_values), kind), np.empty((slots, n_values), kind))
    sent, t_sent, d_sent, d_t_sent = (np.empty((slots, n_values), kind), np.empty((slots, n_values), kind),
                                      np.empty((slots, n_values), kind), np.empty((slots, n_values), kind))
    logits, t_logits, d_logits, d_t_logits = (np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind),
                                              np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind))
    sigmoids, weights, t_weights = np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind)
    first, second = np.empty((slots, n_heads), kind), np.empty((slots, n_heads), kind)
    basis_buffer, t_basis_buffer, d_basis_buffer = (np.empty(slots * n_basis, kind), np.empty(slots * n_basis, kind),
                                                    np.empty(slots * n_basis, kind))
    sent_buffer = np.empty(slots * n_values, kind)
    radial_buffer, harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    t_radial_buffer, t_harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    d_radial_buffer, d_harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    density, more, d_density = (np.empty((n_basis, n_values), kind), np.empty((n_basis, n_values), kind),
                                np.empty((n_basis, n_values), kind))
    bias_t, t_bias_t = bias.T.copy(), t_bias.T.copy()
    channels = n_values // couplings[4]
    group = min(atoms, _group(n_rows * channels))
    rows, mixed = np.empty(n_rows * group * channels, kind), np.empty(d_out.shape[0] * group * d_out.shape[2], kind)
    own_rows, moved_mixed, scratch = np.empty_like(rows), np.empty_like(mixed), np.empty(widths.max() * d_out.shape[2], kind)
    n_moved = len(rows) if is_weight_moved else 0
    still_rows, moved_rows, moved_sent = np.empty(n_moved, kind), np.empty(n_moved, kind), np.empty((slots, n_values), kind)
    for begin in range(0, atoms, group):
        m = min(group, atoms - begin)
        _fetch(mixed, d_out, begin, m)
        _mix_back(rows, mixed, weight, widths, m)
        if is_weight_moved:
            _mix_back(moved_rows, mixed, t_weight, widths, m)
        for place in range(m):
            atom = begin + place
            n = counts[atom]
            if not n:
                density[:] = 0
                _couple_density(own_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
                if is_weight_moved:
                    _couple_density(still_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
                continue
            _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias, senders[atom], n,
                    key_heads, scale)
            _spread(spread[:n], weights[:n], value_heads)
            harmonics_t, radial_t = _transposed(harmonics_buffer, harmonics[atom], n), _transposed(radial_buffer, radial[atom], n)
            basis = _outer(basis_buffer, harmonics_t, radial_t)
            # Forward along the tangent.
            _gather(t_key, t_keys, senders[atom], n)
            _gather(t_value, t_values, senders[atom], n)
            for slot in range(n):
                for channel in range(n_keys):
                    product[slot, channel] = (t_key[slot, channel] * queries[atom, channel]
                                              + key[slot, channel] * t_queries[atom, channel])
            _sum_heads(t_logits[:n], product[:n], key_heads)
            _add_narrow(t_logits[:n], t_radial[atom, :n], bias)
            _add_narrow(t_logits[:n], radial[atom, :n], t_bias)
            for slot in range(n):
                for head in range(n_heads):
                    logit, sigmoid = logits[slot, head], sigmoids[slot, head]
                    first[slot, head] = scale * sigmoid * (1 + logit * (1 - sigmoid))
                    second[slot, head] = scale * sigmoid * (1 - sigmoid) * (2 + logit * (1 - 2 * sigmoid))
                    t_weights[slot, head] = first[slot, head] * t_logits[slot, head]
            _spread(t_spread[:n], t_weights[:n], value_heads)
            for slot in range(n):
                for channel in range(n_values):
                    sent[slot, channel] = spread[slot, channel] * value[slot, channel]
                    t_sent[slot, channel] = (t_spread[slot, channel] * value[slot, channel]
                                             + spread[slot, channel] * t_value[slot, channel])
            t_harmonics_t = _transposed(t_harmonics_buffer, t_harmonics[atom], n)
            t_radial_t = _transposed(t_radial_buffer, t_radial[atom], n)
            t_basis = _outer(t_basis_buffer, t_harmonics_t, radial_t)
            _add_outer(t_basis, harmonics_t, t_radial_t)
            np.dot(t_basis, sent[:n], density)
            np.dot(basis, t_sent[:n], more)
            _add(density, more)
            _couple_density(own_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
            # And back.
            _uncouple_density(rows, d_density.reshape(-1), place, m, couplings, n_radial, channels)
            d_radial_t, d_harmonics_t = d_radial_buffer[: n_radial * n].reshape(n_radial, n), d_harmonics_buffer[: n_lm * n].reshape(n_lm, n)
            d_radial_t[:] = 0
            d_harmonics_t[:] = 0
            d_basis = d_basis_buffer[: n_basis * n].reshape(n_basis, n)
            np.dot(d_density, _transposed(sent_buffer, t_sent, n), d_basis)
            _add_inner(d_harmonics_t, d_radial_t, d_basis, harmonics_t, radial_t)
            np.dot(d_density, _transposed(sent_buffer, sent, n), d_basis)
            _add_inner(d_harmonics_t, d_radial_t, d_basis, t_harmonics_t, t_radial_t)
            _add_transposed(d_harmonics[atom], d_harmonics_t)
            _add_transposed(d_radial[atom], d_radial_t)
            np.dot(t_basis.T, d_density, d_sent[:n])
            np.dot(basis.T, d_density, d_t_sent[:n])
            if is_weight_moved:
                np.dot(basis, sent[:n], density)
                _couple_density(still_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
                _uncouple_density(moved_rows, d_density.reshape(-1), place, m, couplings, n_radial, channels)
                np.dot(d_density, _transposed(sent_buffer, sent, n), d_basis)
                d_radial_t[:] = 0
                d_harmonics_t[:] = 0
                _add_inner(d_harmonics_t, d_radial_t, d_basis, harmonics_t, radial_t)
                _add_transposed(d_harmonics[atom], d_harmonics_t)
                _add_transposed(d_radial[atom], d_radial_t)
                np.dot(basis.T, d_density, moved_sent[:n])
                _add(d_sent[:n], moved_sent[:n])
            for slot in range(n):
                for channel in range(n_values):
                    one, other = d_sent[slot, channel], d_t_sent[slot, channel]
                    sent[slot, channel] = one * value[slot, channel] + other * t_value[slot, channel]
                    t_sent[slot, channel] = other * value[slot, channel]
                    value[slot, channel] = one * spread[slot, channel] + other * t_spread[slot, channel]
            _scatter(d_values, value, senders[atom], n)
            _sum_heads(d_logits[:n], sent[:n], value_heads)
            _sum_heads(d_t_logits[:n], t_sent[:n], value_heads)
            for slot in range(n):
                for head in range(n_heads):
                    d_logits[slot, head] = (d_logits[slot, head] * first[slot, head]
                                            + d_t_logits[slot, head] * second[slot, head] * t_logits[slot, head])
                    d_t_logits[slot, head] *= first[slot, head]
            _add_narrow(d_radial[atom], d_logits[:n], bias_t)
            _add_narrow(d_radial[atom], d_t_logits[:n], t_bias_t)
            _add_narrow_weight(d_bias, radial[atom, :n], d_logits)
            _add_narrow_weight(d_bias, t_radial[atom, :n], d_t_logits)
            _spread(product[:n], d_logits[:n], key_heads)
            _spread(t_product[:n], d_t_logits[:n], key_heads)
            for slot in range(n):
                for channel in range(n_keys):
                    one, other = product[slot, channel], t_product[slot, channel]
                    d_queries[atom, channel] += one * key[slot, channel] + other * t_key[slot, channel]
                    product[slot, channel] = one * queries[atom, channel] + other * t_queries[atom, channel]
            _scatter(d_keys, product, senders[atom], n)
        _add_mix_weight(d_weight, scratch, own_rows, mixed, widths, m)
        _mix(mixed, own_rows, weight, widths, m)
        if is_weight_moved:
            _mix(moved_mixed, still_rows, t_weight, widths, m)
            for item in range(d_out.shape[0] * m * d_out.shape[2]):
                mixed[item] += moved_mixed[item]
        _store(d_d_out, mixed, begin, m)


@_jit
def _linear(out, features, weight):
    """One matrix per degree; of the features the first rows only."""
    n_degrees, n_in, n_out = weight.shape
    atoms = features.shape[1]
    flat, target = features.reshape(-1), out.reshape(-1)
    for l in range(n_degrees):
        first, last = l * l * atoms, (l + 1) ** 2 * atoms
        np.dot(flat[first * n_in : last * n_in].reshape(last - first, n_in), weight[l],
               target[first * n_out : last * n_out].reshape(last - first, n_out))


@_jit
def _linear_back(d_features, d_out, weight):
    n_degrees, n_in, n_out = weight.shape
    atoms = d_features.shape[1]
    flat, target = d_features.reshape(-1), d_out.reshape(-1)
    for l in range(n_degrees):
        first, last = l * l * atoms, (l + 1) ** 2 * atoms
        np.dot(target[first * n_out : last * n_out].reshape(last - first, n_out), weight[l].T,
               flat[first * n_in : last * n_in].reshape(last - first, n_in))


@_jit
def _linear_weight(d_weight, features, d_out):
    n_degrees, n_in, n_out = d_weight.shape
    atoms = features.shape[1]
    flat, target = features.reshape(-1), d_out.reshape(-1)
    for l in range(n_degrees):
        first, last = l * l * atoms, (l + 1) ** 2 * atoms
        np.dot(flat[first * n_in : last * n_in].reshape(last - first, n_in).T,
               target[first * n_out : last * n_out].reshape(last - first, n_out), d_weight[l])


@_jit
def linear(out, features, weight):
    """``out_l = features_l @ weight_l``."""
    _linear(out, features, weight)


@_jit
def linear_backward(d_features, d_weight, d_out, features, weight, is_weight_wanted):
    """Gradients of `linear`."""
    _linear_back(d_features, d_out, weight)
    if is_weight_wanted:
        _linear_weight(d_weight, features, d_out)


@_jit
def linear_double_backward(d_d_out, d_features, d_weight, d_out, features, weight, t_features, t_weight, is_weight_moved):
    """See the head of `sapis.model.fused`."""
    _linear(d_d_out, t_features, weight)
    _linear_weight(d_weight, t_features, d_out)
    if is_weight_moved:
        more = np.empty_like(d_d_out)
        _linear(more, features, t_weight)
        d_d_out += more
        _linear_back(d_features, d_out, t_weight)


@_jit
def norm(out, values, factor, group):
    """``y = x (factor |x|^2 + epsilon)^(-1/2)`` for each group of channels."""
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], group):
            total = values[row, start] * 0
            for channel in range(start, start + group):
                total += values[row, channel] * values[row, channel]
            inverse = 1 / np.sqrt(factor * total + NORM_EPSILON)
            for channel in range(start, start + group):
                out[row, channel] = values[row, channel] * inverse


@_jit
def norm_backward(d_values, d_out, values, factor, group):
    """``dx = r dy - factor r^3 (x . dy) x`` with ``r`` the inverse norm."""
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], group):
            total, along = values[row, start] * 0, values[row, start] * 0
            for channel in range(start, start + group):
                total += values[row, channel] * values[row, channel]
                along += values[row, channel] * d_out[row, channel]
            inverse = 1 / np.sqrt(factor * total + NORM_EPSILON)
            along *= factor * inverse * inverse * inverse
            for channel in range(start, start + group):
                d_values[row, channel] = inverse * d_out[row, channel] - along * values[row, channel]


@_jit
def norm_double_backward(d_d_out, d_values, d_out, values, t_values, factor, group):
    """``<t, dx>`` differentiated by dy and by x."""
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], group):
            zero = values[row, start] * 0
            total, x_d, x_t, d_t = zero, zero, zero, zero
            for channel in range(start, start + group):
                x, d, t = values[row, channel], d_out[row, channel], t_values[row, channel]
                total += x * x
                x_d += x * d
                x_t += x * t
                d_t += d * t
            inverse = 1 / np.sqrt(factor * total + NORM_EPSILON)
            cube = factor * inverse * inverse * inverse
            straight = 3 * cube * factor * inverse * inverse * x_t * x_d - cube * d_t
            for channel in range(start, start + group):
                x, d, t = values[row, channel], d_out[row, channel], t_values[row, channel]
                d_d_out[row, channel] = inverse * t - cube * x_t * x
                d_values[row, channel] = straight * x - cube * (x_d * t + x_t * d)


@_jit
def swiglu(out, wide):
    """``u SiLU(g)`` of the first two quarters and the next two of what `Gate` widens to."""
    width = out.shape[1]
    for row in range(out.shape[0]):
        for channel in range(width):
            up, gate = wide[row, channel], wide[row, width + channel]
            out[row, channel] = up * gate / (1 + np.exp(-gate))


@_jit
def swiglu_backward(d_wide, d_out, wide):
    """Gradients of `swiglu`."""
    width = d_out.shape[1]
    for row in range(d_out.shape[0]):
        for channel in range(width):
            up, gate, d = wide[row, channel], wide[row, width + channel], d_out[row, channel]
            sigmoid = 1 / (1 + np.exp(-gate))
            d_wide[row, channel] = d * gate * sigmoid
            d_wide[row, width + channel] = d * up * sigmoid * (1 + gate * (1 - sigmoid))


@_jit
def swiglu_double_backward(d_d_out, d_wide, d_out, wide, t_wide):
    """See the head of `sapis.model.fused`."""
    width = d_out.shape[1]
    for row in range(d_out.shape[0]):
        for channel in range(width):
            up, gate, d = wide[row, channel], wide[row, width + channel], d_out[row, channel]
            t_up, t_gate = t_wide[row, channel], t_wide[row, width + channel]
            sigmoid = 1 / (1 + np.exp(-gate))
            first = sigmoid * (1 + gate * (1 - sigmoid))
            second = sigmoid * (1 - sigmoid) * (2 + gate * (1 - 2 * sigmoid))
            d_d_out[row, channel] = t_up * gate * sigmoid + up * first * t_gate
            d_wide[row, channel] = d * first * t_gate
            d_wide[row, width + channel] = d * (first * t_up + up * second * t_gate)


@_jit
def gate(out, features, wide, update, n_up):
    """Scalars plus ``update``; degree l times ``2 sigmoid`` of its columns of ``wide``, which start after ``n_up``."""
    atoms, channels = features.shape[1], features.shape[2]
    out[0] = features[0] + update
    for atom in range(atoms):
        for l in range(1, (wide.shape[1] - n_up) // channels + 1):
            for channel in range(channels):
                factor = 2 / (1 + np.exp(-wide[atom, n_up + (l - 1) * channels + channel]))
                for row in range(l * l, (l + 1) ** 2):
                    out[row, atom, channel] = features[row, atom, channel] * factor


@_jit
def gate_backward(d_features, d_wide, d_update, d_out, features, wide, update, n_up):
    """Gradients of `gate`."""
    atoms, channels = features.shape[1], features.shape[2]
    d_features[0] = d_out[0]
    d_update[:] = d_out[0]
    for atom in range(atoms):
        for l in range(1, (wide.shape[1] - n_up) // channels + 1):
            for channel in range(channels):
                column = n_up + (l - 1) * channels + channel
                sigmoid = 1 / (1 + np.exp(-wide[atom, column]))
                total = sigmoid * 0
                for row in range(l * l, (l + 1) ** 2):
                    d_features[row, atom, channel] = d_out[row, atom, channel] * 2 * sigmoid
                    total += d_out[row, atom, channel] * features[row, atom, channel]
                d_wide[atom, column] = total * 2 * sigmoid * (1 - sigmoid)


@_jit
def gate_double_backward(d_d_out, d_features, d_wide, d_update, d_out, features, wide, update, t_features, t_wide, t_update, n_up):
    """See the head of `sapis.model.fused`."""
    atoms, channels = features.shape[1], features.shape[2]
    d_d_out[0] = t_features[0] + t_update
    for atom in range(atoms):
        for l in range(1, (wide.shape[1] - n_up) // channels + 1):
            for channel in range(channels):
                column = n_up + (l - 1) * channels + channel
                sigmoid = 1 / (1 + np.exp(-wide[atom, column]))
                first = 2 * sigmoid * (1 - sigmoid)
                second, moved = first * (1 - 2 * sigmoid), t_wide[atom, column]
                total = sigmoid * 0
                for row in range(l * l, (l + 1) ** 2):
                    x, t, d = features[row, atom, channel], t_features[row, atom, channel], d_out[row, atom, channel]
                    d_d_out[row, atom, channel] = 2 * sigmoid * t + first * moved * x
                    d_features[row, atom, channel] = first * moved * d
                    total += d * (first * t + second * moved * x)
                d_wide[atom, column] = total


@_jit
def _add_weighted(out, values, weight, species, order):
    rows, l = min(out.shape[0], values.shape[0]), 0
    for row in range(rows):
        l += row == (l + 1) ** 2
        for atom in range(values.shape[1]):
            factors = weight[species[atom], order, l]
            for channel in range(values.shape[2]):
                out[row, atom, channel] += values[row, atom, channel] * factors[channel]


@_jit
def _add_weighted_weight(d_weight, d_out, values, species, order):
    rows, l = min(d_out.shape[0], values.shape[0]), 0
    for row in range(rows):
        l += row == (l + 1) ** 2
        for atom in range(values.shape[1]):
            factors = d_weight[species[atom], order, l]
            for channel in range(values.shape[2]):
                factors[channel] += d_out[row, atom, channel] * values[row, atom, channel]


@_jit
def _copy(target, source):
    for row in range(source.shape[0]):
        for atom in range(source.shape[1]):
            for channel in range(source.shape[2]):
                target[row, atom, channel] = source[row, atom, channel]


@_jit
def weigh(out, base, values, weight, species, order):
    """``base`` plus ``values`` times the weights of an order, each atom with those of its species."""
    _copy(out, base)
    _add_weighted(out, values, weight, species, order)


@_jit
def weigh_backward(d_base, d_values, d_weight, d_out, base, values, weight, species, order, is_weight_wanted):
    """Gradients of `weigh`."""
    _copy(d_base, d_out)
    _add_weighted(d_values, d_out, weight, species, order)
    if is_weight_wanted:
        _add_weighted_weight(d_weight, d_out, values, species, order)


@_jit
def weigh_double_backward(d_d_out, d_base, d_values, d_weight, d_out, base, values, weight, t_base, t_values, t_weight, species,
                          order, is_weight_moved):
    """See the head of `sapis.model.fused`."""
    _copy(d_d_out, t_base)
    _add_weighted(d_d_out, t_values, weight, species, order)
    _add_weighted_weight(d_weight, d_out, t_values, species, order)
    if is_weight_moved:
        _add_weighted(d_d_out, values, t_weight, species, order)
        _add_weighted(d_values, d_out, t_weight, species, order)
