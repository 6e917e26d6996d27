"""Embedding, dense layers, read-outs, and the geometry of edges: radial functions and harmonics."""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np

from sapis.model.compiled.mixing import jit, new


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
# Those of an atom's neighbours are worked out together as rows ``(lm, slots)``, so that the inner loops are vectors.
@jit
def _directions(unit, distances, vectors, n):
    for slot in range(n):
        x, y, z = vectors[slot, 0], vectors[slot, 1], vectors[slot, 2]
        distance = np.sqrt(x * x + y * y + z * z)
        distances[slot] = distance
        unit[0, slot], unit[1, slot], unit[2, slot] = x / distance, y / distance, z / distance


@jit
def _harmonics(values, unit, n, outcomes, factors, components, coefficients):
    """Degrees 0 and 1, in the order y, z, x, and from them the others."""
    values[:] = 0
    values[0, :n] = 1
    if len(values) == 1:
        return
    root = _root(values)
    for slot in range(n):
        values[1, slot], values[2, slot], values[3, slot] = root * unit[1, slot], root * unit[2, slot], root * unit[0, slot]
    for entry in range(len(coefficients)):
        outcome, factor, component, coefficient = outcomes[entry], factors[entry], 1 + components[entry], coefficients[entry]
        for slot in range(n):
            values[outcome, slot] += coefficient * values[factor, slot] * values[component, slot]


@jit
def _root(values):
    """The square root of 3, in the precision of ``values``."""
    return np.sqrt(values.dtype.type(3))


@jit
def harmonics(out, vectors, counts, outcomes, factors, components, coefficients):
    """Real harmonics of the directions; zero in unused slots."""
    out[:] = 0
    slots, kind = vectors.shape[1], vectors.dtype
    unit, distances, values = new(3, slots, kind), np.empty(slots, kind), new(out.shape[2], slots, kind)
    for atom in range(vectors.shape[0]):
        n = counts[atom]
        _directions(unit, distances, vectors[atom], n)
        _harmonics(values, unit, n, outcomes, factors, components, coefficients)
        for row in range(len(values)):
            for slot in range(n):
                out[atom, slot, row] = values[row, slot]


@jit
def harmonics_backward(d_vectors, d_out, vectors, counts, outcomes, factors, components, coefficients):
    """Gradient of `harmonics`."""
    n_lm, slots, kind = d_out.shape[2], vectors.shape[1], vectors.dtype
    if n_lm == 1:
        return
    unit, distances = new(3, slots, kind), np.empty(slots, kind)
    values, d_values = new(n_lm, slots, kind), new(n_lm, slots, kind)
    root = _root(values)
    for atom in range(vectors.shape[0]):
        n = counts[atom]
        _directions(unit, distances, vectors[atom], n)
        _harmonics(values, unit, n, outcomes, factors, components, coefficients)
        for row in range(n_lm):
            for slot in range(n):
                d_values[row, slot] = d_out[atom, slot, row]
        for entry in range(len(coefficients) - 1, -1, -1):
            outcome, factor, component, coefficient = outcomes[entry], factors[entry], 1 + components[entry], coefficients[entry]
            for slot in range(n):
                change = coefficient * d_values[outcome, slot]
                d_values[factor, slot] += change * values[component, slot]
                d_values[component, slot] += change * values[factor, slot]
        for slot in range(n):
            dx, dy, dz = root * d_values[3, slot], root * d_values[1, slot], root * d_values[2, slot]
            x, y, z, distance = unit[0, slot], unit[1, slot], unit[2, slot], distances[slot]
            along = dx * x + dy * y + dz * z
            d_vectors[atom, slot, 0] = (dx - x * along) / distance
            d_vectors[atom, slot, 1] = (dy - y * along) / distance
            d_vectors[atom, slot, 2] = (dz - z * along) / distance


@jit
def harmonics_double_backward(d_d_out, d_vectors, d_out, vectors, t_vectors, counts, outcomes, factors, components, coefficients):
    """See the head of `sapis.model.tape`."""
    d_d_out[:] = 0
    n_lm, slots, kind = d_out.shape[2], vectors.shape[1], vectors.dtype
    if n_lm == 1:
        return
    unit, t_unit, distances, along = new(3, slots, kind), new(3, slots, kind), np.empty(slots, kind), np.empty(slots, kind)
    values, t_values, d_values, d_t_values = (new(n_lm, slots, kind), new(n_lm, slots, kind),
                                              new(n_lm, slots, kind), new(n_lm, slots, kind))
    root = _root(values)
    for atom in range(vectors.shape[0]):
        n = counts[atom]
        _directions(unit, distances, vectors[atom], n)
        for slot in range(n):
            along[slot] = (unit[0, slot] * t_vectors[atom, slot, 0] + unit[1, slot] * t_vectors[atom, slot, 1]
                           + unit[2, slot] * t_vectors[atom, slot, 2])
            for axis in range(3):
                t_unit[axis, slot] = (t_vectors[atom, slot, axis] - unit[axis, slot] * along[slot]) / distances[slot]
        _harmonics(values, unit, n, outcomes, factors, components, coefficients)
        t_values[:] = 0
        for slot in range(n):
            t_values[1, slot], t_values[2, slot], t_values[3, slot] = (root * t_unit[1, slot], root * t_unit[2, slot],
                                                                       root * t_unit[0, slot])
        for entry in range(len(coefficients)):
            outcome, factor, component, coefficient = outcomes[entry], factors[entry], 1 + components[entry], coefficients[entry]
            for slot in range(n):
                t_values[outcome, slot] += coefficient * (t_values[factor, slot] * values[component, slot]
                                                          + values[factor, slot] * t_values[component, slot])
        for row in range(n_lm):
            for slot in range(n):
                d_d_out[atom, slot, row] = t_values[row, slot]
                d_t_values[row, slot] = d_out[atom, slot, row]
                d_values[row, slot] = 0
        for entry in range(len(coefficients) - 1, -1, -1):
            outcome, factor, component, coefficient = outcomes[entry], factors[entry], 1 + components[entry], coefficients[entry]
            for slot in range(n):
                change, t_change = coefficient * d_values[outcome, slot], coefficient * d_t_values[outcome, slot]
                d_values[factor, slot] += change * values[component, slot] + t_change * t_values[component, slot]
                d_values[component, slot] += change * values[factor, slot] + t_change * t_values[factor, slot]
                d_t_values[factor, slot] += t_change * values[component, slot]
                d_t_values[component, slot] += t_change * values[factor, slot]
        # The tangent of a unit vector is t_unit = (t - u (u . t)) / r.
        for slot in range(n):
            distance, u_d, u_dt, dt_t = distances[slot], root * 0, root * 0, root * 0
            for axis in range(3):
                row = 1 + (axis + 2) % 3  # of x, y, z among y, z, x
                u_d += unit[axis, slot] * root * d_values[row, slot]
                u_dt += unit[axis, slot] * root * d_t_values[row, slot]
                dt_t += root * d_t_values[row, slot] * t_unit[axis, slot]
            for axis in range(3):
                row = 1 + (axis + 2) % 3
                across = root * d_t_values[row, slot] - unit[axis, slot] * u_dt
                straight = root * d_values[row, slot] - unit[axis, slot] * (u_d + dt_t) - t_unit[axis, slot] * u_dt
                d_vectors[atom, slot, axis] = straight / distance - across * along[slot] / (distance * distance)
