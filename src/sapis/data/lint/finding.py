"""What lint finds: its rules, its findings, and how they are counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sapis.core.errors import ConfigError, DataError
from sapis.data.system import System

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

RULES = {
    "missing-labels": "a label that training needs is absent in all frames (error) or some (warning)",
    "overlapping-atoms": "two atoms nearer than 0.4 of the sum of their covalent radii, or than 0.3 Å",
    "length-unit": "bonds whose typical length fits bohr or nm, not Å",
    "electrons": "a multiplicity that the number of electrons of a molecule cannot have",
    "zero-forces": "all forces of a frame exactly zero (error for molecules: there symmetry is no excuse)",
    "constrained-forces": "forces of some atoms exactly zero: those of fixed atoms were set to zero",
    "net-force": "forces that do not sum to zero: constraints applied, a column misread, an outer field",
    "force-outlier": "a force too large for any structure worth learning from",
    "force-unit": "forces whose typical size fits another unit than eV/Å",
    "force-gradient": "forces that are not minus the gradient of the energies: wrong sign or unit, forces of other frames",
    "energy-unit": "energies that fit all-electron totals in hartree, kcal/mol or kJ/mol",
    "energy-outlier": "an energy far from the others of the same composition",
    "energy-jump": "an energy that changes along a trajectory as no force explains: another state, another method",
    "energy-kind": "energies that do not grow with the number of atoms: per atom, or less a mean",
    "reference-energies": "energies of isolated atoms that do not fit the data: another method, valence electrons, units",
    "stress-unit": "stresses whose typical size fits kbar or GPa, not eV/Å^3",
    "stress-gradient": "stresses that are not the strain derivative of the energies: wrong sign or unit, virials",
    "not-converged": "a frame whose source says that its calculation did not converge",
    "conflicting-labels": "the same structure twice with different energies",
    "duplicate": "the same structure twice",
    "leakage": "the same structure in two of training, validation and test",
    "time-neighbors": "validation or test frames next in time to training ones of their trajectory",
    "unseen-element": "an element in validation or test that training lacks",
}


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Attributes:
        rule: a key of `RULES`.
        severity: ``error``, ``warning`` or ``note``.
        where: the frame where it is worst, and the label.
        message: how many frames and how far off.
    """

    rule: str
    severity: Severity
    where: str
    message: str


def found(rule: str, severity: Severity, systems: Sequence[System], hits: Sequence[int], message: str, key: str = "",
          ) -> list[Finding]:
    """One finding for all ``hits`` (indices of frames, worst first), none if there are none."""
    if not hits:
        return []
    tags = systems[hits[0]].tags
    place = ", ".join(f"{name} {tags[name]}" for name in ("file", "frame") if name in tags) or f"system {hits[0]}"
    count = f"{len(hits)} of {len(systems)} frames"
    return [Finding(rule, severity, f"{place}, key {key}" if key else place, f"{count}: {message}")]


def graded(rule: str, systems: Sequence[System], sizes: Mapping[int, float], warning: float, error: float, what: str,
           key: str = "") -> list[Finding]:
    """Findings for the frames whose ``sizes`` exceed a limit; ``what`` has a place for the worst size."""
    order = sorted(sizes, key=lambda i: -sizes[i])
    bad = [i for i in order if sizes[i] > error]
    doubtful = [i for i in order if warning < sizes[i] <= error]
    severities: tuple[tuple[Severity, list[int]], ...] = (("error", bad), ("warning", doubtful))
    return [finding for severity, hits in severities if hits
            for finding in found(rule, severity, systems, hits, what.format(sizes[hits[0]]), key)]


def raise_on_errors(findings: Sequence[Finding], *, waived: Collection[str] = ()) -> None:
    """Stop if any finding is an error whose rule is not ``waived``.

    Raises:
        DataError: names every such rule, its worst frame and how to waive it.
        ConfigError: ``waived`` holds a name that is not a rule.
    """
    unknown = sorted(set(waived) - set(RULES))
    if unknown:
        raise ConfigError(expected=f"rules to waive from {', '.join(RULES)}", received=", ".join(unknown),
                          where="waived lint rules", todo="mend the name")
    errors = [finding for finding in findings if finding.severity == "error" and finding.rule not in waived]
    if errors:
        raise DataError(
            expected="data without faults that spoil training",
            received="; ".join(f"[{finding.rule}] {finding.message}" for finding in errors),
            where="; ".join(dict.fromkeys(finding.where for finding in errors)),
            todo="mend or remove these frames; if they are meant to be so, waive the rule: "
                 + ", ".join(dict.fromkeys(finding.rule for finding in errors)),
        )
