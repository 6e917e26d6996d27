"""The density of an atom's neighbours, coupled and mixed: `sapis.model.program`. Only used slots are visited."""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np
from numba import uint64

from sapis.model.compiled.mixing import add_mix_weight, fetch, group, jit, mix, mix_back, new, store


@jit
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


@jit
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


@jit
def _gather(target, source, senders, n):
    for slot in range(n):
        sender = uint64(senders[slot])
        for channel in range(target.shape[1]):
            target[slot, channel] = source[sender, channel]


@jit
def _scatter(target, source, senders, n):
    for slot in range(n):
        sender = uint64(senders[slot])
        for channel in range(source.shape[1]):
            target[sender, channel] += source[slot, channel]


@jit
def _transposed(target, source, n):
    """Into a flat buffer, as ``(columns, n)``."""
    result = target[: n * source.shape[1]].reshape(source.shape[1], n)
    for column in range(source.shape[1]):
        for slot in range(n):
            result[column, slot] = source[slot, column]
    return result


@jit
def _outer(target, one, other):
    """``(a, n)``, ``(b, n)`` -> ``(a * b, n)`` into a flat buffer."""
    n = one.shape[1]
    result = target[: one.shape[0] * other.shape[0] * n].reshape(one.shape[0] * other.shape[0], n)
    for a in range(one.shape[0]):
        for b in range(other.shape[0]):
            for slot in range(n):
                result[a * other.shape[0] + b, slot] = one[a, slot] * other[b, slot]
    return result


@jit
def _add_outer(result, one, other):
    for a in range(one.shape[0]):
        for b in range(other.shape[0]):
            for slot in range(one.shape[1]):
                result[a * other.shape[0] + b, slot] += one[a, slot] * other[b, slot]


@jit
def _add_inner(d_one, d_other, gradient, one, other):
    """What `_outer` hands back to its factors."""
    for a in range(one.shape[0]):
        for b in range(other.shape[0]):
            for slot in range(one.shape[1]):
                change = gradient[a * other.shape[0] + b, slot]
                d_one[a, slot] += change * other[b, slot]
                d_other[b, slot] += change * one[a, slot]


@jit
def _add_transposed(target, source):
    """``(columns, n)`` -> adds to ``(>= n, columns)``."""
    for column in range(source.shape[0]):
        for slot in range(source.shape[1]):
            target[slot, column] += source[column, slot]


@jit
def _add(target, source):
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] += source[row, column]


@jit
def _times(target, one, other):
    for slot in range(len(target)):
        for channel in range(target.shape[1]):
            target[slot, channel] = one[slot, channel] * other[slot, channel]


# Products with the few columns of the heads are loops: BLAS takes several times as long for them.
@jit
def _spread(target, weights, head_of):
    """Of each channel the weight of its head."""
    for slot in range(len(target)):
        for channel in range(target.shape[1]):
            target[slot, channel] = weights[slot, head_of[channel]]


@jit
def _sum_heads(target, source, head_of):
    """Adds up the channels of each head."""
    target[:] = 0
    for slot in range(len(source)):
        for channel in range(source.shape[1]):
            target[slot, head_of[channel]] += source[slot, channel]


@jit
def _add_narrow(target, rows, matrix):
    """Adds ``rows @ matrix`` for a small matrix."""
    for slot in range(len(rows)):
        for i in range(matrix.shape[0]):
            factor = rows[slot, i]
            for j in range(matrix.shape[1]):
                target[slot, j] += factor * matrix[i, j]


@jit
def _add_narrow_weight(target, rows, other):
    """Adds ``rows^T @ other``."""
    for slot in range(len(rows)):
        for i in range(rows.shape[1]):
            factor = rows[slot, i]
            for j in range(other.shape[1]):
                target[i, j] += factor * other[slot, j]


@jit
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


@jit
def collect(out, queries, keys, values, radial, harmonics, bias, weight, couplings, widths, n_rows, senders, counts, key_heads,
            value_heads, scale):
    """``out = mix(couplings(density))``."""
    atoms, slots = senders.shape
    n_radial, n_lm, n_heads, n_values, n_keys = radial.shape[2], harmonics.shape[2], bias.shape[1], values.shape[1], keys.shape[1]
    kind = queries.dtype
    key, product = new(slots, n_keys, kind), new(slots, n_keys, kind)
    value, spread, sent = new(slots, n_values, kind), new(slots, n_values, kind), new(slots, n_values, kind)
    logits, sigmoids, weights = new(slots, n_heads, kind), new(slots, n_heads, kind), new(slots, n_heads, kind)
    basis_buffer, radial_buffer, harmonics_buffer = (np.empty(slots * n_lm * n_radial, kind), np.empty(slots * n_radial, kind),
                                                     np.empty(slots * n_lm, kind))
    density = np.empty((n_lm * n_radial, n_values), kind)
    channels = n_values // couplings[4]
    size = min(atoms, group(n_rows * channels))
    rows, mixed = np.empty(n_rows * size * channels, kind), np.empty(out.shape[0] * size * out.shape[2], kind)
    for begin in range(0, atoms, size):
        m = min(size, atoms - begin)
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
        mix(mixed, rows, weight, widths, m)
        store(out, mixed, begin, m)


@jit
def collect_backward(d_queries, d_keys, d_values, d_radial, d_harmonics, d_bias, d_weight, d_out, queries, keys, values, radial,
                     harmonics, bias, weight, couplings, widths, n_rows, senders, counts, key_heads, value_heads, scale,
                     is_weight_wanted):
    """Adds the gradients of ``<d_out, out>`` to the first seven arguments."""
    atoms, slots = senders.shape
    n_radial, n_lm, n_heads, n_values, n_keys = radial.shape[2], harmonics.shape[2], bias.shape[1], values.shape[1], keys.shape[1]
    n_basis = n_lm * n_radial
    kind = queries.dtype
    key, product = new(slots, n_keys, kind), new(slots, n_keys, kind)
    value, spread, sent, d_sent = (new(slots, n_values, kind), new(slots, n_values, kind),
                                   new(slots, n_values, kind), new(slots, n_values, kind))
    logits, sigmoids, weights, d_logits = (new(slots, n_heads, kind), new(slots, n_heads, kind),
                                           new(slots, n_heads, kind), new(slots, n_heads, kind))
    basis_buffer, d_basis_buffer, sent_buffer = (np.empty(slots * n_basis, kind), np.empty(slots * n_basis, kind),
                                                 np.empty(slots * n_values, kind))
    radial_buffer, harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    d_radial_buffer, d_harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    d_density = new(n_basis, n_values, kind)
    bias_t = bias.T.copy()
    channels = n_values // couplings[4]
    size = min(atoms, group(n_rows * channels))
    rows, mixed = np.empty(n_rows * size * channels, kind), np.empty(d_out.shape[0] * size * d_out.shape[2], kind)
    own_rows, density = np.empty_like(rows), new(n_basis, n_values, kind)
    scratch = np.empty(widths.max() * d_out.shape[2], kind)
    for begin in range(0, atoms, size):
        m = min(size, atoms - begin)
        fetch(mixed, d_out, begin, m)
        mix_back(rows, mixed, weight, widths, m)
        for place in range(m):
            atom = begin + place
            n = counts[atom]
            if not n:
                if is_weight_wanted:
                    density[:] = 0
                    _couple_density(own_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
                continue
            _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias,
                    senders[atom], n, key_heads, scale)
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
            d_radial_t = d_radial_buffer[: n_radial * n].reshape(n_radial, n)
            d_harmonics_t = d_harmonics_buffer[: n_lm * n].reshape(n_lm, n)
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
            add_mix_weight(d_weight, scratch, own_rows, mixed, widths, m)


@jit
def collect_double_backward(d_d_out, d_queries, d_keys, d_values, d_radial, d_harmonics, d_bias, d_weight, d_out, queries, keys,
                            values, radial, harmonics, bias, weight, t_queries, t_keys, t_values, t_radial, t_harmonics, t_bias,
                            couplings, widths, n_rows, senders, counts, key_heads, value_heads, scale):
    """The change of ``out`` along the tangent into ``d_d_out``; adds the gradients of its product with ``d_out``."""
    atoms, slots = senders.shape
    n_radial, n_lm, n_heads, n_values, n_keys = radial.shape[2], harmonics.shape[2], bias.shape[1], values.shape[1], keys.shape[1]
    n_basis = n_lm * n_radial
    kind = queries.dtype
    key, t_key, product, t_product = (new(slots, n_keys, kind), new(slots, n_keys, kind),
                                      new(slots, n_keys, kind), new(slots, n_keys, kind))
    value, t_value, spread, t_spread = (new(slots, n_values, kind), new(slots, n_values, kind),
                                        new(slots, n_values, kind), new(slots, n_values, kind))
    sent, t_sent, d_sent, d_t_sent = (new(slots, n_values, kind), new(slots, n_values, kind),
                                      new(slots, n_values, kind), new(slots, n_values, kind))
    logits, t_logits, d_logits, d_t_logits = (new(slots, n_heads, kind), new(slots, n_heads, kind),
                                              new(slots, n_heads, kind), new(slots, n_heads, kind))
    sigmoids, weights, t_weights = new(slots, n_heads, kind), new(slots, n_heads, kind), new(slots, n_heads, kind)
    first, second = new(slots, n_heads, kind), new(slots, n_heads, kind)
    basis_buffer, t_basis_buffer, d_basis_buffer = (np.empty(slots * n_basis, kind), np.empty(slots * n_basis, kind),
                                                    np.empty(slots * n_basis, kind))
    sent_buffer = np.empty(slots * n_values, kind)
    radial_buffer, harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    t_radial_buffer, t_harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    d_radial_buffer, d_harmonics_buffer = np.empty(slots * n_radial, kind), np.empty(slots * n_lm, kind)
    density, more, d_density = (new(n_basis, n_values, kind), new(n_basis, n_values, kind),
                                new(n_basis, n_values, kind))
    bias_t, t_bias_t = bias.T.copy(), t_bias.T.copy()
    channels = n_values // couplings[4]
    size = min(atoms, group(n_rows * channels))
    rows, mixed = np.empty(n_rows * size * channels, kind), np.empty(d_out.shape[0] * size * d_out.shape[2], kind)
    own_rows, scratch = np.empty_like(rows), np.empty(widths.max() * d_out.shape[2], kind)
    for begin in range(0, atoms, size):
        m = min(size, atoms - begin)
        fetch(mixed, d_out, begin, m)
        mix_back(rows, mixed, weight, widths, m)
        for place in range(m):
            atom = begin + place
            n = counts[atom]
            if not n:
                density[:] = 0
                _couple_density(own_rows, density.reshape(-1), place, m, couplings, n_radial, channels)
                continue
            _attend(logits, sigmoids, weights, key, value, product, queries[atom], keys, values, radial[atom], bias,
                    senders[atom], n, key_heads, scale)
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
            d_radial_t = d_radial_buffer[: n_radial * n].reshape(n_radial, n)
            d_harmonics_t = d_harmonics_buffer[: n_lm * n].reshape(n_lm, n)
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
        add_mix_weight(d_weight, scratch, own_rows, mixed, widths, m)
        mix(mixed, own_rows, weight, widths, m)
        store(d_d_out, mixed, begin, m)
