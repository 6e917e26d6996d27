"""Lint for data sets: faults that training would swallow without a word and turn into a wrong model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sapis.data.lint import labels, sets, structures
from sapis.data.lint.finding import RULES, SEVERITIES, Finding, Severity, raise_on_errors
from sapis.data.lint.paths import lint_paths
from sapis.data.lint.sets import lint_splits
from sapis.data.system import System

__all__ = ["RULES", "Finding", "Severity", "lint", "lint_splits", "raise_on_errors"]

CHECKS: tuple[Callable[[Sequence[System]], list[Finding]], ...] = (
    structures.overlapping_atoms, structures.length_unit, structures.electrons, labels.zero_forces, labels.net_force,
    labels.force_outlier, labels.force_unit, labels.energy_unit, labels.energy_kind, labels.energy_outlier, labels.stress_unit,
    labels.not_converged, lint_paths, sets.duplicates,
)


def lint(systems: Sequence[System], *, needs: Sequence[str] = ("energy", "forces"), isolated: Mapping[int, float] | None = None,
         ) -> list[Finding]:
    """Faults of one data set, errors first; at most one finding per rule and severity.

    Args:
        systems: one data set, one level of theory.
        needs: labels that training will use (``energy``, ``forces``, ``stress``).
        isolated: energies of isolated atoms, eV, by atomic number, if they are known.
    """
    findings = [finding for name in needs for finding in labels.missing_labels(systems, name)]
    findings += [finding for check in CHECKS for finding in check(systems)]
    findings += labels.reference_energies(systems, isolated or {})
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
