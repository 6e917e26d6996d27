"""Embedding, dense layers, read-outs, and the geometry of edges: radial functions and harmonics."""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np

from sapis.model.compiled.mixing import jit


@jit
def embed(out, weight, species):
    """Rows of a table by species, ``(1, atoms, channels)``."""
    for atom in range(out.shape[1]):
        out[0, atom] = weight[species[atom]]


@jit
def embed_backward(d_weight, d_out, weight, species, is_weight_wanted):
    """Gradient of `embed`."""
    if is_weight_wanted:
        for atom in range(d_out.shape[1]):
            d_weight[species[atom]] += d_out[0, atom]


@jit
def scalars(out, features):
    """The first row of features."""
    out[:] = features[0]


@jit
def scalars_backward(d_features, d_out, features):
    """Gradient of `scalars`."""
    d_features[0] = d_out


@jit
def scalars_double_backward(d_d_out, d_features, d_out, features, t_features):
    """`scalars` is linear."""
    d_d_out[:] = t_features[0]


@jit
def columns(out, values):
    """``(lm, atoms, channels)`` -> ``(atoms, lm * channels)``."""
    width = values.shape[2]
    for row in range(values.shape[0]):
        for atom in range(values.shape[1]):
            for channel in range(width):
                out[atom, row * width + channel] = values[row, atom, channel]


@jit
def columns_backward(d_values, d_out, values):
    """Gradient of `columns`."""
    width = values.shape[2]
    for row in range(values.shape[0]):
        for atom in range(values.shape[1]):
            for channel in range(width):
                d_values[row, atom, channel] = d_out[atom, row * width + channel]


@jit
def columns_double_backward(d_d_out, d_values, d_out, values, t_values):
    """`columns` is linear."""
    columns(d_d_out, t_values)


@jit
def dense(out, values, weight):
    """``values @ weight^T``."""
    np.dot(values, weight.T, out)


@jit
def dense_backward(d_values, d_weight, d_out, values, weight, is_weight_wanted):
    """Gradients of `dense`."""
    np.dot(d_out, weight, d_values)
    if is_weight_wanted:
        d_weight += np.dot(d_out.T, values)


@jit
def dense_double_backward(d_d_out, d_values, d_weight, d_out, values, weight, t_values):
    """`dense` is linear in the values."""
    np.dot(t_values, weight.T, d_d_out)
    d_weight += np.dot(d_out.T, t_values)


@jit
def shift(out, values, weight):
    """``values + weight`` in each row."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            out[row, column] = values[row, column] + weight[column]


@jit
def shift_backward(d_values, d_weight, d_out, values, weight, is_weight_wanted):
    """Gradients of `shift`."""
    d_values[:] = d_out
    if is_weight_wanted:
        for row in range(d_out.shape[0]):
            for column in range(d_out.shape[1]):
                d_weight[column] += d_out[row, column]


@jit
def shift_double_backward(d_d_out, d_values, d_weight, d_out, values, weight, t_values):
    """`shift` is linear."""
    d_d_out[:] = t_values


@jit
def scale_heads(out, values, weight, head_of):
    """Each channel times the number of its head."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            out[row, column] = values[row, column] * weight[head_of[column]]


@jit
def scale_heads_backward(d_values, d_weight, d_out, values, weight, head_of, is_weight_wanted):
    """Gradients of `scale_heads`."""
    scale_heads(d_values, d_out, weight, head_of)
    if is_weight_wanted:
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                d_weight[head_of[column]] += d_out[row, column] * values[row, column]


@jit
def scale_heads_double_backward(d_d_out, d_values, d_weight, d_out, values, weight, t_values, head_of):
    """`scale_heads` is linear in the values."""
    scale_heads(d_d_out, t_values, weight, head_of)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            d_weight[head_of[column]] += d_out[row, column] * t_values[row, column]


@jit
def silu(out, values):
    """``x sigmoid(x)``."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            out[row, column] = values[row, column] / (1 + np.exp(-values[row, column]))


@jit
def silu_backward(d_values, d_out, values):
    """Gradient of `silu`."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            x = values[row, column]
            sigmoid = 1 / (1 + np.exp(-x))
            d_values[row, column] = d_out[row, column] * sigmoid * (1 + x * (1 - sigmoid))


@jit
def silu_double_backward(d_d_out, d_values, d_out, values, t_values):
    """See the head of `sapis.model.tape`."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            x, t = values[row, column], t_values[row, column]
            sigmoid = 1 / (1 + np.exp(-x))
            d_d_out[row, column] = t * sigmoid * (1 + x * (1 - sigmoid))
            d_values[row, column] = d_out[row, column] * t * sigmoid * (1 - sigmoid) * (2 + x * (1 - 2 * sigmoid))


@jit
def add(out, one, other):
    """Sum."""
    for row in range(one.shape[0]):
        for column in range(one.shape[1]):
            out[row, column] = one[row, column] + other[row, column]


@jit
def add_backward(d_one, d_other, d_out, one, other):
    """Gradients of `add`."""
    d_one[:] = d_out
    d_other[:] = d_out


@jit
def add_double_backward(d_d_out, d_one, d_other, d_out, one, other, t_one, t_other):
    """`add` is linear."""
    add(d_d_out, t_one, t_other)


@jit
def _wave(x, frequency, distance, cutoff):
    """``sin(k r) sqrt(2 / r_c) f(r) / r`` and its first two derivatives by r; ``x = r / r_c < 1``."""
    x5 = x * x * x * x * x
    value = 1 + x5 * x * (-28 + x * (48 - 21 * x))
    first = x5 * (-168 + x * (336 - 168 * x)) / cutoff
    second = x5 / x * (-840 + x * (2016 - 1176 * x)) / (cutoff * cutoff)
    inverse = 1 / distance
    # h = f / r
    h = value * inverse
    dh = (first - h) * inverse
    ddh = (second - 2 * dh) * inverse
    norm = np.sqrt(2 / cutoff)
    sine, cosine = norm * np.sin(frequency * distance), norm * frequency * np.cos(frequency * distance)
    return sine * h, cosine * h + sine * dh, 2 * cosine * dh + sine * (ddh - frequency * frequency * h)


@jit
def radial(out, vectors, frequencies, counts, cutoff):
    """Bessel functions under an envelope; zero in unused slots."""
    out[:] = 0
    for atom in range(vectors.shape[0]):
        for slot in range(counts[atom]):
            x, y, z = vectors[atom, slot]
            distance = np.sqrt(x * x + y * y + z * z)
            if distance < cutoff:
                for k in range(len(frequencies)):
                    out[atom, slot, k] = _wave(distance / cutoff, frequencies[k], distance, cutoff)[0]


@jit
def radial_backward(d_vectors, d_out, vectors, frequencies, counts, cutoff):
    """Gradient of `radial`."""
    for atom in range(vectors.shape[0]):
        for slot in range(counts[atom]):
            x, y, z = vectors[atom, slot]
            distance = np.sqrt(x * x + y * y + z * z)
            if distance < cutoff:
                total = x * 0
                for k in range(len(frequencies)):
                    total += d_out[atom, slot, k] * _wave(distance / cutoff, frequencies[k], distance, cutoff)[1]
                for axis in range(3):
                    d_vectors[atom, slot, axis] = total * vectors[atom, slot, axis] / distance


@jit
def radial_double_backward(d_d_out, d_vectors, d_out, vectors, t_vectors, frequencies, counts, cutoff):
    """See the head of `sapis.model.tape`."""
    d_d_out[:] = 0
    for atom in range(vectors.shape[0]):
        for slot in range(counts[atom]):
            x, y, z = vectors[atom, slot]
            distance = np.sqrt(x * x + y * y + z * z)
            if distance < cutoff:
                along = x * 0
                for axis in range(3):
                    along += vectors[atom, slot, axis] * t_vectors[atom, slot, axis]
                along /= distance
                first, second = x * 0, x * 0
                for k in range(len(frequencies)):
                    _, one, two = _wave(distance / cutoff, frequencies[k], distance, cutoff)
                    d_d_out[atom, slot, k] = one * along
                    first += d_out[atom, slot, k] * one
                    second += d_out[atom, slot, k] * two
                for axis in range(3):
                    unit = vectors[atom, slot, axis] / distance
                    across = t_vectors[atom, slot, axis] - unit * along
                    d_vectors[atom, slot, axis] = second * along * unit + first * across / distance


# Harmonics are a chain of products with degree 1: entries (outcome, factor, component of degree 1, coefficient), see `Harmonics`.
@jit
def _raise(values, firsts, outcomes, factors, components, coefficients):
    for entry in range(len(coefficients)):
        values[outcomes[entry]] += coefficients[entry] * values[factors[entry]] * firsts[components[entry]]


@jit
def _start(values, unit):
    """Degrees 0 and 1, in the order y, z, x."""
    values[:] = 0
    values[0] = 1
    if len(values) > 1:
        root = np.sqrt(values[0] * 3)
        values[1], values[2], values[3] = root * unit[1], root * unit[2], root * unit[0]


@jit
def harmonics(out, vectors, counts, outcomes, factors, components, coefficients):
    """Real harmonics of the directions; zero in unused slots."""
    out[:] = 0
    unit = np.empty(3, vectors.dtype)
    for atom in range(vectors.shape[0]):
        for slot in range(counts[atom]):
            x, y, z = vectors[atom, slot]
            distance = np.sqrt(x * x + y * y + z * z)
            unit[0], unit[1], unit[2] = x / distance, y / distance, z / distance
            values = out[atom, slot]
            _start(values, unit)
            _raise(values, values[1:4], outcomes, factors, components, coefficients)


@jit
def _lower(d_values, values, outcomes, factors, components, coefficients):
    """Takes the gradient of `_raise` down to degree 1."""
    for entry in range(len(coefficients) - 1, -1, -1):
        change = coefficients[entry] * d_values[outcomes[entry]]
        d_values[factors[entry]] += change * values[1 + components[entry]]
        d_values[1 + components[entry]] += change * values[factors[entry]]


@jit
def harmonics_backward(d_vectors, d_out, vectors, counts, outcomes, factors, components, coefficients):
    """Gradient of `harmonics`."""
    n_lm = d_out.shape[2]
    if n_lm == 1:
        return
    unit, values, d_values, d_unit = (np.empty(3, vectors.dtype), np.empty(n_lm, vectors.dtype), np.empty(n_lm, vectors.dtype),
                                      np.empty(3, vectors.dtype))
    for atom in range(vectors.shape[0]):
        for slot in range(counts[atom]):
            x, y, z = vectors[atom, slot]
            distance = np.sqrt(x * x + y * y + z * z)
            unit[0], unit[1], unit[2] = x / distance, y / distance, z / distance
            _start(values, unit)
            _raise(values, values[1:4], outcomes, factors, components, coefficients)
            for row in range(n_lm):
                d_values[row] = d_out[atom, slot, row]
            _lower(d_values, values, outcomes, factors, components, coefficients)
            root = np.sqrt(values[0] * 3)
            d_unit[0], d_unit[1], d_unit[2] = root * d_values[3], root * d_values[1], root * d_values[2]
            along = d_unit[0] * unit[0] + d_unit[1] * unit[1] + d_unit[2] * unit[2]
            for axis in range(3):
                d_vectors[atom, slot, axis] = (d_unit[axis] - unit[axis] * along) / distance


@jit
def harmonics_double_backward(d_d_out, d_vectors, d_out, vectors, t_vectors, counts, outcomes, factors, components, coefficients):
    """See the head of `sapis.model.tape`."""
    d_d_out[:] = 0
    n_lm = d_out.shape[2]
    if n_lm == 1:
        return
    kind = vectors.dtype
    unit, t_unit, d_unit, d_t_unit = np.empty(3, kind), np.empty(3, kind), np.empty(3, kind), np.empty(3, kind)
    values, t_values = np.empty(n_lm, kind), np.empty(n_lm, kind)
    d_values, d_t_values = np.empty(n_lm, kind), np.empty(n_lm, kind)
    for atom in range(vectors.shape[0]):
        for slot in range(counts[atom]):
            x, y, z = vectors[atom, slot]
            distance = np.sqrt(x * x + y * y + z * z)
            along = x * 0
            for axis in range(3):
                unit[axis] = vectors[atom, slot, axis] / distance
                along += unit[axis] * t_vectors[atom, slot, axis]
            for axis in range(3):
                t_unit[axis] = (t_vectors[atom, slot, axis] - unit[axis] * along) / distance
            _start(values, unit)
            _raise(values, values[1:4], outcomes, factors, components, coefficients)
            root = np.sqrt(values[0] * 3)
            t_values[:] = 0
            t_values[1], t_values[2], t_values[3] = root * t_unit[1], root * t_unit[2], root * t_unit[0]
            for entry in range(len(coefficients)):
                factor, component = factors[entry], 1 + components[entry]
                t_values[outcomes[entry]] += coefficients[entry] * (t_values[factor] * values[component]
                                                                    + values[factor] * t_values[component])
            for row in range(n_lm):
                d_d_out[atom, slot, row] = t_values[row]
                d_t_values[row] = d_out[atom, slot, row]
                d_values[row] = 0
            for entry in range(len(coefficients) - 1, -1, -1):
                factor, component, coefficient = factors[entry], 1 + components[entry], coefficients[entry]
                change, t_change = coefficient * d_values[outcomes[entry]], coefficient * d_t_values[outcomes[entry]]
                d_values[factor] += change * values[component] + t_change * t_values[component]
                d_values[component] += change * values[factor] + t_change * t_values[factor]
                d_t_values[factor] += t_change * values[component]
                d_t_values[component] += t_change * values[factor]
            d_unit[0], d_unit[1], d_unit[2] = root * d_values[3], root * d_values[1], root * d_values[2]
            d_t_unit[0], d_t_unit[1], d_t_unit[2] = root * d_t_values[3], root * d_t_values[1], root * d_t_values[2]
            # The tangent of a unit vector is t_unit = (t - u (u . t)) / r.
            u_d, u_dt, dt_t = x * 0, x * 0, x * 0
            for axis in range(3):
                u_d += unit[axis] * d_unit[axis]
                u_dt += unit[axis] * d_t_unit[axis]
                dt_t += d_t_unit[axis] * t_unit[axis]
            for axis in range(3):
                across = d_t_unit[axis] - unit[axis] * u_dt
                d_vectors[atom, slot, axis] = ((d_unit[axis] - unit[axis] * u_d) / distance
                                               - (across * along + t_unit[axis] * distance * u_dt) / (distance * distance)
                                               - unit[axis] * dt_t / distance)
