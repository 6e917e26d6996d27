"""`sapis data`: sets of structures: get, convert, look at, lint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapis.cli import data_generate, data_get
from sapis.cli.options import EnergyKey, ForcesKey, StressKey, VirialKey, label_keys

if TYPE_CHECKING:
    from sapis.data.convert import Summary

data_app = typer.Typer(no_args_is_help=True, help="Data sets: get, convert, look at, lint.")
data_app.command("get")(data_get.get)
data_app.add_typer(data_generate.generate_app, name="generate")


@data_app.command()
def convert(
    inputs: Annotated[list[Path], typer.Argument(help="What to read (any format), and last the output.")],
    level: Annotated[str, typer.Option(help="Level of theory of frames that do not name theirs.")] = "",
    index: Annotated[str | None, typer.Option(help="Which frames of each input, such as :1000 or ::10.")] = None,
    single: Annotated[bool, typer.Option(help="New store: positions and forces in single precision, half the space.")] = False,
    licence: Annotated[str, typer.Option(help="Licence of the data, noted in a store.")] = "",
    energy_key: EnergyKey = None, forces_key: ForcesKey = None, stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Convert IN... to OUT: a store (.store, appended to), .extxyz, .npz, .deepmd, .traj, .db. The same command goes on."""
    from sapis.core.errors import ConfigError
    from sapis.data.convert import convert as run
    from sapis.data.formats import parse_index

    if len(inputs) < 2:
        raise ConfigError(expected="one input and one output at least", received=" ".join(map(str, inputs)), where="convert",
                          todo="give `sapis data convert IN OUT`")
    *sources, output = inputs
    done = run(sources, output, keys=label_keys(energy_key, forces_key, stress_key, virial_key), level=level, is_single=single,
               licence=licence, index=parse_index(index, output) if index else None)
    typer.echo(f"read {done.n_read:,} frames, {done.n_new:,} new; {output} holds {done.n_total:,}")


@data_app.command()
def export(
    store: Annotated[Path, typer.Argument(help="A store, or any file that is read.")],
    output: Annotated[Path, typer.Argument(help="The file: .extxyz, .xyz (also .gz), .npz, .deepmd, .traj, .db.")],
    index: Annotated[str | None, typer.Option(help="Which frames, such as :1000 or ::10.")] = None,
) -> None:
    """Write frames of a store to a file of another format."""
    from sapis.core.errors import ConfigError
    from sapis.data.convert import OUTPUTS, STORE_SUFFIXES
    from sapis.data.convert import convert as run
    from sapis.data.formats import parse_index

    if output.suffix in STORE_SUFFIXES:
        raise ConfigError(expected=f"a file: {OUTPUTS}", received=str(output), where="export", todo="give its ending")
    done = run([store], output, index=parse_index(index, store) if index else None)
    typer.echo(f"wrote {done.n_total:,} frames to {output}")


@data_app.command()
def info(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders or stores.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    energy_key: EnergyKey = None, forces_key: ForcesKey = None, stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """What is in a data set: frames, elements, labels, charges, levels of theory."""
    from sapis.core.files import json_text
    from sapis.data.convert import summarise
    from sapis.data.formats import format_of, iterate_systems

    keys = label_keys(energy_key, forces_key, stress_key, virial_key)
    found = {}
    for path in paths:
        kind, summary = format_of(path).name, summarise(iterate_systems(path, keys=keys))
        found[str(path)] = {"format": kind, **summary.to_json()}
        if not as_json:
            typer.echo(f"{path} ({kind})")
            for line in _lines(summary):
                typer.echo(f"  {line}")
    if as_json:
        typer.echo(json_text(found))


@data_app.command("lint")
def lint_(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders or stores; each is looked at by itself.")],
    isolated: Annotated[Path | None, typer.Option(help="Frames of one atom each: do they fit?")] = None,
    waive: Annotated[list[str] | None, typer.Option(help="Rule whose errors are accepted; several times.")] = None,
    needs: Annotated[list[str] | None, typer.Option(help="Labels that must be there; default energy and forces.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    energy_key: EnergyKey = None, forces_key: ForcesKey = None, stress_key: StressKey = None,
    virial_key: VirialKey = None,
) -> None:
    """Faults that would spoil a training: missing labels, wrong units and signs, overlaps, duplicates. Exit code 2 for errors."""
    from dataclasses import asdict

    from sapis.core.files import json_text
    from sapis.data.formats import LabelKeys, read_systems
    from sapis.data.lint import lint, raise_on_errors
    from sapis.data.lint.sample import sampled
    from sapis.data.reference import reference_energies_from_isolated

    keys = label_keys(energy_key, forces_key, stress_key, virial_key)
    energy_key_only = LabelKeys(energy=energy_key)  # atoms alone have no forces
    atoms = reference_energies_from_isolated(read_systems(isolated, keys=energy_key_only)) if isolated else None
    found = {}
    for path in paths:
        systems, n_frames = sampled(path, keys)
        found[str(path)] = findings = lint(systems, needs=needs or ("energy", "forces"), isolated=atoms)
        if not as_json:
            looked = f", of which {len(systems):,} were looked at" if len(systems) < n_frames else ""
            typer.echo(f"{path}: {n_frames:,} frames{looked}, {len(findings)} findings")
            for finding in findings:
                typer.echo(f"  {finding.severity} [{finding.rule}] {finding.where}: {finding.message}")
    if as_json:
        typer.echo(json_text({path: [asdict(finding) for finding in findings] for path, findings in found.items()}))
    raise_on_errors([finding for findings in found.values() for finding in findings], waived=waive or ())


def _lines(summary: Summary) -> list[str]:
    elements = " ".join(f"{symbol} {count:,}" for symbol, count in summary.elements.items())
    lines = [
        f"frames      {summary.n_frames:,}, of {summary.smallest} to {summary.largest} atoms, {summary.formulas:,} compositions, "
        f"{summary.n_periodic:,} periodic",
        f"atoms       {summary.n_atoms:,}: {elements}",
        "labels      " + (", ".join(f"{name} {count:,}" for name, count in summary.n_labelled.items()) or "none"),
    ]
    if summary.n_labelled["energy"]:
        low, high = summary.energy_range
        lines.append(f"energies    {low:.3f} to {high:.3f} eV/atom")
    if summary.n_labelled["forces"]:
        lines.append(f"forces      {summary.force_rms:.3f} eV/Å (root mean square)")
    told = {
        "charges": {f"{charge:+d}": count for charge, count in sorted(summary.charges.items())},
        "spins 2S+1": {str(spin): count for spin, count in sorted(summary.spins.items())},
        "levels": {level or "none": count for level, count in sorted(summary.levels.items())},
    }
    usual = {"charges": ["+0"], "spins 2S+1": ["1"], "levels": ["none"]}
    lines += [f"{name:11} " + ", ".join(f"{value}: {count:,}" for value, count in counts.items())
              for name, counts in told.items() if list(counts) != usual[name]]
    return lines
