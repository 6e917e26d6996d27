"""Every tolerance and step of the law suite, named once, with its reason.

Errors of forces are divided by max(1 eV/Å, the largest force) and errors of stress by max(0.1 eV/Å^3, the
largest component): near a minimum a plain relative error would divide by zero. Energies are per atom in eV.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """A limit, or a step length, in each of the two precisions."""

    float64: float
    float32: float
    unit: str
    reason: str

    def at(self, precision: str) -> float:
        """The value for ``precision``; whatever is not float64 is held to float32."""
        return self.float64 if precision == "float64" else self.float32


FORCE_FLOOR = 1.0
STRESS_FLOOR = 0.1

EQUIVARIANCE = Tolerance(
    1e-10, 1e-4, "relative",
    "an exact symmetry leaves only rounding: 1e-16 (6e-8) times the ~1e3 to 1e5 operations behind a force",
)
BATCHING = Tolerance(
    1e-10, 1e-4, "relative", "a batch may sum in another order, which changes rounding and nothing else",
)
EXTENSIVITY = Tolerance(
    1e-10, 1e-4, "relative", "copies out of each other's sight share nothing; only the order of sums changes",
)
GROWTH = Tolerance(
    1e-10, 1e-4, "relative", "a grown model adds terms that are exactly zero, which changes the order of sums and nothing else",
)
POSTERIOR = Tolerance(
    1e-8, 1e-2, "relative", "a variance is a difference of nearly equal numbers, which costs half of the digits",
)
VARIANCE_GRADIENTS = Tolerance(1e-5, 5e-2, "relative", "as FORCES, of a quantity with fewer digits")
ENERGY_SUM = Tolerance(1e-10, 1e-5, "eV/atom", "one sum over atoms in two orders")
ISOLATED_FORCE = Tolerance(1e-12, 1e-6, "eV/Å", "without neighbours there is nothing to take a derivative of")

FORCE_STEP = Tolerance(
    1e-3, 2e-2, "Å", "balances the stencil's h^4 error against the rounding of the energy over h",
)
FORCES = Tolerance(
    1e-6, 1e-2, "relative",
    "float64: h^4/30 of the fifth derivative is ~1e-9 eV/Å, the rounding of a 1e4 eV energy over h likewise",
)
STRAIN_STEP = Tolerance(5e-4, 5e-3, "1", "moves an atom 5 Å away by about two FORCE_STEPs at most")
STRESS = Tolerance(1e-6, 2e-2, "relative", "as FORCES: the same stencil on the same energy")

SMOOTHNESS_STEP = Tolerance(
    3e-5, 5e-3, "Å", "one-sided: h^3 of the fifth derivative against the rounding of the force over h",
)
SMOOTHNESS = Tolerance(
    1e-6, 5e-2, "relative",
    "jump at the cutoff extrapolated from either side: 0 for twice continuously differentiable energies",
)

SPIKE_REACH = 0.15  # Å: every atom moves by up to this much to either side, as far as bonds stretch at some 1,000 K
SPIKE_STEP = Tolerance(4e-3, 4e-3, "Å", "spikes of trained models were 5 to 10 thousandths of an Å wide")
SPIKES = Tolerance(
    5e-2, 5e-2, "relative",
    "h^4 of a bond's fifth derivative is some 1e-5 of its force, and sound models stay below 1e-2; a spike has 0.1 to 10",
)

NVE_DRIFT_MEV_ATOM_PS = Tolerance(
    0.01, 0.05, "meV/atom/ps", "a smooth conservative potential has no drift; 0.01 is 1 meV/atom in 100 ps",
)
ORDER_SLOPE = 2.0  # velocity Verlet is of second order: the energy fluctuates as timestep^2
ORDER_SLOPE_DEVIATION = 0.15  # the timestep^4 term adds 0.05 at 1 fs with C-H bonds; the rest is sampling

COUNTED_FLOPS = Tolerance(
    0.05, 0.05, "relative", "sums of the weights' gradients over groups of atoms are left out",
)
LITERATURE_DIGITS = Tolerance(
    5e-4, 5e-4, "relative", "published constants have four digits: a screening length of 0.8854 Bohr radii is given as 0.46850 Å",
)

LABEL_STEP = Tolerance(2e-3, 2e-3, "Å", "self-consistent energies are converged to some 1e-8 eV: rounding of 1e-5 eV/Å")
LABEL_FORCES = Tolerance(5e-3, 5e-3, "eV/Å", "1e-4 Ha/bohr: the accuracy of gradients with a numerical integration grid")
LABEL_SYMMETRY = Tolerance(5e-3, 5e-3, "eV and eV/Å", "integration grids have an orientation; what has none obeys to rounding")
