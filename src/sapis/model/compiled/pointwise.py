"""Linear maps of degrees, norms, gates and weights of species."""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np

from sapis.model.compiled.mixing import jit


@jit
def _linear(out, features, weight):
    """One matrix per degree; of the features the first rows only."""
    n_degrees, n_in, n_out = weight.shape
    atoms = features.shape[1]
    flat, target = features.reshape(-1), out.reshape(-1)
    for l in range(n_degrees):
        first, last = l * l * atoms, (l + 1) ** 2 * atoms
        np.dot(flat[first * n_in : last * n_in].reshape(last - first, n_in), weight[l],
               target[first * n_out : last * n_out].reshape(last - first, n_out))


@jit
def _linear_back(d_features, d_out, weight):
    n_degrees, n_in, n_out = weight.shape
    atoms = d_features.shape[1]
    flat, target = d_features.reshape(-1), d_out.reshape(-1)
    for l in range(n_degrees):
        first, last = l * l * atoms, (l + 1) ** 2 * atoms
        np.dot(target[first * n_out : last * n_out].reshape(last - first, n_out), weight[l].T,
               flat[first * n_in : last * n_in].reshape(last - first, n_in))


@jit
def _linear_weight(d_weight, features, d_out):
    n_degrees, n_in, n_out = d_weight.shape
    atoms = features.shape[1]
    flat, target = features.reshape(-1), d_out.reshape(-1)
    for l in range(n_degrees):
        first, last = l * l * atoms, (l + 1) ** 2 * atoms
        d_weight[l] += np.dot(flat[first * n_in : last * n_in].reshape(last - first, n_in).T,
                              target[first * n_out : last * n_out].reshape(last - first, n_out))


@jit
def linear(out, features, weight):
    """``out_l = features_l @ weight_l``."""
    _linear(out, features, weight)


@jit
def linear_backward(d_features, d_weight, d_out, features, weight, is_weight_wanted):
    """Gradients of `linear`."""
    _linear_back(d_features, d_out, weight)
    if is_weight_wanted:
        _linear_weight(d_weight, features, d_out)


@jit
def linear_double_backward(d_d_out, d_features, d_weight, d_out, features, weight, t_features):
    """See the head of `sapis.model.tape`."""
    _linear(d_d_out, t_features, weight)
    _linear_weight(d_weight, t_features, d_out)


@jit
def norm(out, values, factor, group, epsilon):
    """``y = x (factor |x|^2 + epsilon)^(-1/2)`` for each group of channels."""
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], group):
            total = values[row, start] * 0
            for channel in range(start, start + group):
                total += values[row, channel] * values[row, channel]
            inverse = 1 / np.sqrt(factor * total + epsilon)
            for channel in range(start, start + group):
                out[row, channel] = values[row, channel] * inverse


@jit
def norm_backward(d_values, d_out, values, factor, group, epsilon):
    """``dx = r dy - factor r^3 (x . dy) x`` with ``r`` the inverse norm."""
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], group):
            total, along = values[row, start] * 0, values[row, start] * 0
            for channel in range(start, start + group):
                total += values[row, channel] * values[row, channel]
                along += values[row, channel] * d_out[row, channel]
            inverse = 1 / np.sqrt(factor * total + epsilon)
            along *= factor * inverse * inverse * inverse
            for channel in range(start, start + group):
                d_values[row, channel] = inverse * d_out[row, channel] - along * values[row, channel]


@jit
def norm_double_backward(d_d_out, d_values, d_out, values, t_values, factor, group, epsilon):
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
            inverse = 1 / np.sqrt(factor * total + epsilon)
            cube = factor * inverse * inverse * inverse
            straight = 3 * cube * factor * inverse * inverse * x_t * x_d - cube * d_t
            for channel in range(start, start + group):
                x, d, t = values[row, channel], d_out[row, channel], t_values[row, channel]
                d_d_out[row, channel] = inverse * t - cube * x_t * x
                d_values[row, channel] = straight * x - cube * (x_d * t + x_t * d)


@jit
def swiglu(out, wide):
    """``u SiLU(g)`` of the first two quarters and the next two of what `Gate` widens to."""
    width = out.shape[1]
    for row in range(out.shape[0]):
        for channel in range(width):
            up, gate = wide[row, channel], wide[row, width + channel]
            out[row, channel] = up * gate / (1 + np.exp(-gate))


@jit
def swiglu_backward(d_wide, d_out, wide):
    """Gradients of `swiglu`."""
    width = d_out.shape[1]
    for row in range(d_out.shape[0]):
        for channel in range(width):
            up, gate, d = wide[row, channel], wide[row, width + channel], d_out[row, channel]
            sigmoid = 1 / (1 + np.exp(-gate))
            d_wide[row, channel] = d * gate * sigmoid
            d_wide[row, width + channel] = d * up * sigmoid * (1 + gate * (1 - sigmoid))


@jit
def swiglu_double_backward(d_d_out, d_wide, d_out, wide, t_wide):
    """See the head of `sapis.model.tape`."""
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


@jit
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


@jit
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


@jit
def gate_double_backward(d_d_out, d_features, d_wide, d_update, d_out, features, wide, update, t_features, t_wide, t_update,
                         n_up):
    """See the head of `sapis.model.tape`."""
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


@jit
def _add_weighted(out, values, weight, species, order):
    rows, l = min(out.shape[0], values.shape[0]), 0
    for row in range(rows):
        l += row == (l + 1) ** 2
        for atom in range(values.shape[1]):
            factors = weight[species[atom], order, l]
            for channel in range(values.shape[2]):
                out[row, atom, channel] += values[row, atom, channel] * factors[channel]


@jit
def _add_weighted_weight(d_weight, d_out, values, species, order):
    rows, l = min(d_out.shape[0], values.shape[0]), 0
    for row in range(rows):
        l += row == (l + 1) ** 2
        for atom in range(values.shape[1]):
            factors = d_weight[species[atom], order, l]
            for channel in range(values.shape[2]):
                factors[channel] += d_out[row, atom, channel] * values[row, atom, channel]


@jit
def _copy(target, source):
    for row in range(source.shape[0]):
        for atom in range(source.shape[1]):
            for channel in range(source.shape[2]):
                target[row, atom, channel] = source[row, atom, channel]


@jit
def weigh(out, base, values, weight, species, order):
    """``base`` plus ``values`` times the weights of an order, each atom with those of its species."""
    _copy(out, base)
    _add_weighted(out, values, weight, species, order)


@jit
def weigh_backward(d_base, d_values, d_weight, d_out, base, values, weight, species, order, is_weight_wanted):
    """Gradients of `weigh`."""
    _copy(d_base, d_out)
    _add_weighted(d_values, d_out, weight, species, order)
    if is_weight_wanted:
        _add_weighted_weight(d_weight, d_out, values, species, order)


@jit
def weigh_double_backward(d_d_out, d_base, d_values, d_weight, d_out, base, values, weight, t_base, t_values, species, order):
    """See the head of `sapis.model.tape`."""
    _copy(d_d_out, t_base)
    _add_weighted(d_d_out, t_values, weight, species, order)
    _add_weighted_weight(d_weight, d_out, t_values, species, order)
