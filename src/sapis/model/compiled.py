"""Compiled loops of `sapis.model.density`; importing this module needs numba.

Scratch arrays hold what belongs to one atom; names as in `sapis.model.density`, ``t_`` before a tangent and ``d_`` before a
gradient. ``n`` is the number of used slots of the atom at hand.
"""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np
from numba import njit, uint64

# Not "nnan" and "ninf": a training must see that a number is not finite.
_jit = njit(cache=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", nogil=True)


@_jit
def _couple(rows, density, atom, atoms, couplings, n_radial, channels):
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
def _uncouple(rows, density, atom, atoms, couplings, n_radial, channels):
    """The adjoint of `_couple`."""
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


@_jit
def _attend(logits, sigmoids, weights, key, value, product, query, keys, values, radial, bias, senders, n, key_heads, scale):
    """Logits and weights of the slots of one atom; gathers what they send."""
    _gather(key, keys, senders, n)
    _gather(value, values, senders, n)
    for slot in range(n):
        for channel in range(len(query)):
            product[slot, channel] = key[slot, channel] * query[channel]
    np.dot(product[:n], key_heads, logits[:n])
    np.dot(radial[:n], bias, weights[:n])
    for slot in range(n):
        for head in range(logits.shape[1]):
            logit = logits[slot, head] + weights[slot, head]
            sigmoid = 1 / (1 + np.exp(-logit))
            logits[slot, head], sigmoids[slot, head] = logit, sigmoid
            weights[slot, head] = scale + scale * logit * sigmoid


@_jit
def forward(rows, couplings, senders, counts, key_heads, value_heads, scale, queries, keys, values, radial, harmonics, bias):
    """Coupled rows of the density."""
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
    for atom in range(atoms):
        n = counts[atom]
        if n:
            _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias,
                    senders[atom], n, key_heads, scale)
            np.dot(weights[:n], value_heads, spread[:n])
            _times(sent[:n], spread[:n], value[:n])
            basis = _outer(basis_buffer, _transposed(harmonics_buffer, harmonics[atom], n),
                           _transposed(radial_buffer, radial[atom], n))
            np.dot(basis, sent[:n], density)
        else:
            density[:] = 0
        _couple(rows, density.reshape(-1), atom, atoms, couplings, n_radial, channels)


@_jit
def backward(d_queries, d_keys, d_values, d_radial, d_harmonics, d_bias, d_rows, couplings, senders, counts, key_heads,
             value_heads, scale, queries, keys, values, radial, harmonics, bias):
    """Adds gradients to the first six arguments, which are zero."""
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
    d_density, d_edge_radial, d_atom_bias = np.empty((n_basis, n_values), kind), np.empty((slots, n_radial), kind), np.empty_like(bias)
    heads_key, heads_value, bias_t = key_heads.T.copy(), value_heads.T.copy(), bias.T.copy()
    channels = n_values // couplings[4]
    for atom in range(atoms):
        n = counts[atom]
        if not n:
            continue
        _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias, senders[atom], n,
                key_heads, scale)
        np.dot(weights[:n], value_heads, spread[:n])
        _times(sent[:n], spread[:n], value[:n])
        harmonics_t, radial_t = _transposed(harmonics_buffer, harmonics[atom], n), _transposed(radial_buffer, radial[atom], n)
        basis = _outer(basis_buffer, harmonics_t, radial_t)
        _uncouple(d_rows, d_density.reshape(-1), atom, atoms, couplings, n_radial, channels)
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
        np.dot(sent[:n], heads_value, d_logits[:n])
        for slot in range(n):
            for head in range(n_heads):
                sigmoid = sigmoids[slot, head]
                d_logits[slot, head] *= scale * sigmoid * (1 + logits[slot, head] * (1 - sigmoid))
        np.dot(d_logits[:n], bias_t, d_edge_radial[:n])
        _add(d_radial[atom], d_edge_radial[:n])
        np.dot(radial[atom, :n].T, d_logits[:n], d_atom_bias)
        _add(d_bias, d_atom_bias)
        np.dot(d_logits[:n], heads_key, product[:n])
        for slot in range(n):
            for channel in range(n_keys):
                d_queries[atom, channel] += product[slot, channel] * key[slot, channel]
                product[slot, channel] *= queries[atom, channel]
        _scatter(d_keys, product, senders[atom], n)


@_jit
def double_backward(d_rows_d, d_queries, d_keys, d_values, d_radial, d_harmonics, d_bias, d_rows, couplings, senders, counts,
                    key_heads, value_heads, scale, queries, keys, values, radial, harmonics, bias,
                    t_queries, t_keys, t_values, t_radial, t_harmonics, t_bias):
    """The change of the rows along the tangent into ``d_rows_d``; adds gradients of its product with ``d_rows``."""
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
    edge_radial, atom_bias = np.empty((slots, n_radial), kind), np.empty_like(bias)
    heads_key, heads_value, bias_t, t_bias_t = key_heads.T.copy(), value_heads.T.copy(), bias.T.copy(), t_bias.T.copy()
    channels = n_values // couplings[4]
    for atom in range(atoms):
        n = counts[atom]
        if not n:
            density[:] = 0
            _couple(d_rows_d, density.reshape(-1), atom, atoms, couplings, n_radial, channels)
            continue
        _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias, senders[atom], n,
                key_heads, scale)
        np.dot(weights[:n], value_heads, spread[:n])
        harmonics_t, radial_t = _transposed(harmonics_buffer, harmonics[atom], n), _transposed(radial_buffer, radial[atom], n)
        basis = _outer(basis_buffer, harmonics_t, radial_t)
        # Forward along the tangent.
        _gather(t_key, t_keys, senders[atom], n)
        _gather(t_value, t_values, senders[atom], n)
        for slot in range(n):
            for channel in range(n_keys):
                product[slot, channel] = (t_key[slot, channel] * queries[atom, channel]
                                          + key[slot, channel] * t_queries[atom, channel])
        np.dot(product[:n], key_heads, t_logits[:n])
        np.dot(t_radial[atom, :n], bias, first[:n])
        np.dot(radial[atom, :n], t_bias, second[:n])
        for slot in range(n):
            for head in range(n_heads):
                logit, sigmoid = logits[slot, head], sigmoids[slot, head]
                t_logits[slot, head] += first[slot, head] + second[slot, head]
                first[slot, head] = scale * sigmoid * (1 + logit * (1 - sigmoid))
                second[slot, head] = scale * sigmoid * (1 - sigmoid) * (2 + logit * (1 - 2 * sigmoid))
                t_weights[slot, head] = first[slot, head] * t_logits[slot, head]
        np.dot(t_weights[:n], value_heads, t_spread[:n])
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
        _couple(d_rows_d, density.reshape(-1), atom, atoms, couplings, n_radial, channels)
        # And back.
        _uncouple(d_rows, d_density.reshape(-1), atom, atoms, couplings, n_radial, channels)
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
        for slot in range(n):
            for channel in range(n_values):
                one, other = d_sent[slot, channel], d_t_sent[slot, channel]
                sent[slot, channel] = one * value[slot, channel] + other * t_value[slot, channel]
                t_sent[slot, channel] = other * value[slot, channel]
                value[slot, channel] = one * spread[slot, channel] + other * t_spread[slot, channel]
        _scatter(d_values, value, senders[atom], n)
        np.dot(sent[:n], heads_value, d_logits[:n])
        np.dot(t_sent[:n], heads_value, d_t_logits[:n])
        for slot in range(n):
            for head in range(n_heads):
                d_logits[slot, head] = (d_logits[slot, head] * first[slot, head]
                                        + d_t_logits[slot, head] * second[slot, head] * t_logits[slot, head])
                d_t_logits[slot, head] *= first[slot, head]
        np.dot(d_logits[:n], bias_t, edge_radial[:n])
        _add(d_radial[atom], edge_radial[:n])
        np.dot(d_t_logits[:n], t_bias_t, edge_radial[:n])
        _add(d_radial[atom], edge_radial[:n])
        np.dot(radial[atom, :n].T, d_logits[:n], atom_bias)
        _add(d_bias, atom_bias)
        np.dot(t_radial[atom, :n].T, d_t_logits[:n], atom_bias)
        _add(d_bias, atom_bias)
        np.dot(d_logits[:n], heads_key, product[:n])
        np.dot(d_t_logits[:n], heads_key, t_product[:n])
        for slot in range(n):
            for channel in range(n_keys):
                one, other = product[slot, channel], t_product[slot, channel]
                d_queries[atom, channel] += one * key[slot, channel] + other * t_key[slot, channel]
                product[slot, channel] = one * queries[atom, channel] + other * t_queries[atom, channel]
        _scatter(d_keys, product, senders[atom], n)
