"""`sapis scale`: studies of scaling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sapis.core.config import C
    from sapis.scaling.fit import Floor

scale_app = typer.Typer(no_args_is_help=True, help="Scaling laws on your own data: plan, run, fit, foretell.")

Folder = Annotated[Path, typer.Argument(help="Of the study.")]
FloorMean = Annotated[float | None, typer.Option("--floor", help="Force error that no model can go below, meV/Å; default: what "
                                                                 "`sapis scale floor` has measured, if it has.")]
FloorStd = Annotated[float | None, typer.Option("--floor-std", help="Its standard deviation; default a tenth of it.")]


@scale_app.command()
def plan(
    data: Annotated[Path, typer.Argument(help="Labelled frames: a store, or any format.")],
    folder: Annotated[Path, typer.Argument(help="Of the study; made.")],
    cpu_seconds: Annotated[float | None, typer.Option(help="Budget of all trainings together.")] = None,
    flops: Annotated[float | None, typer.Option(help="The same as arithmetic, in place of CPU seconds.")] = None,
    isolated: Annotated[Path | None, typer.Option(help="File of isolated atoms; a store has them itself.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with all settings: widths, levels, fractions, model, …")] = None,
) -> None:
    """A grid of trainings over compute, weights and frames that the budget pays for, with what each will cost."""
    from collections import defaultdict

    from sapis.pipeline.scale import plan_study
    from sapis.scaling.plan import StudyConfig

    settings = _settings(StudyConfig, config, "plan", cpu_seconds=cpu_seconds, flops=flops)
    study = plan_study(data, folder, settings, isolated=isolated)
    for size in study.sizes:
        typer.echo(f"{size.width} channels: {size.n_parameters:,} weights, {size.flops / 1e6:,.0f} MFLOP and "
                   f"{1e3 * size.cpu_seconds:.1f} CPU-ms a frame")
    groups = defaultdict[float, list[int]](list)
    for trial in study.trials:
        groups[trial.flops].append(trial.width)
    for level, widths in sorted(groups.items()):
        typer.echo(f"{level:.2e} FLOPs: {len(widths)} trainings, of {', '.join(map(str, sorted(set(widths))))} channels")
    typer.echo(f"{len(study.trials)} trainings, {sum(trial.flops for trial in study.trials) / 1e12:.2f} TFLOP, "
               f"{sum(trial.cpu_seconds for trial in study.trials):,.0f} CPU-s")


@scale_app.command()
def run(
    folder: Folder,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML of a cluster: what `sapis label` takes under `cluster`.")] = None,
) -> None:
    """Run the trainings of a study. The same command goes on where it was stopped."""
    from sapis.core.config import load_yaml, parse_config
    from sapis.executors.cluster import ClusterConfig, ClusterExecutor
    from sapis.executors.executor import Executor, LocalExecutor
    from sapis.pipeline.scale import run_study

    executor: Executor = LocalExecutor(workers)
    if cluster:
        # A training is a job of its own, unless the file says otherwise.
        executor = ClusterExecutor(parse_config(ClusterConfig, {"tasks_per_job": 1, **load_yaml(cluster)}, where=str(cluster)))
    records, failures = run_study(folder.resolve(), executor)
    typer.echo(f"{len(records)} trainings done, {len(failures)} failed")
    for name, failure in failures.items():
        typer.echo(f"{name}: {failure.kind}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


@scale_app.command()
def floor(
    folder: Folder,
    config: Annotated[Path, typer.Option(help="YAML as of `sapis label`: the method of the labels, with tighter settings.")],
    frames: Annotated[int, typer.Option(min=2, help="Test frames to label anew.")] = 50,
) -> None:
    """Measure the force error that no model of a study can go below: noise of the labels, and atoms out of sight."""
    from sapis.pipeline.floor import FLOOR, measure_floor
    from sapis.pipeline.label import read_request

    found = measure_floor(folder, read_request(config), n_frames=frames)
    typer.echo(f"noise of the labels: {found.noise:.3g} meV/Å ({found.n_frames} frames)")
    typer.echo(f"atoms out of sight: {found.blindness:.3g} meV/Å ({found.n_blind} frames have such)")
    typer.echo(f"floor: {found.mean:.3g} ± {found.std:.2g} meV/Å; noted in {folder / FLOOR}, which `sapis scale fit` takes")


@scale_app.command()
def fit(folder: Folder, floor: FloorMean = None, floor_std: FloorStd = None) -> None:
    """Fit scaling laws to the trainings that are finished: exponents, intervals, the best use of a budget, figures."""
    from sapis.pipeline.scale import LAWS, REPORT, fit_study

    laws, found = fit_study(folder, floor=_floor(folder, floor, floor_std))
    for law in (laws.joint[0], *laws.compute[:1]):
        typer.echo(f"{law.form.name} ({len(law.points)} trainings, noise {100 * law.noise:.1f} %):")
        for name, (value, low, high) in law.intervals.items():
            typer.echo(f"  {name} {value:.3g} ({low:.3g} to {high:.3g})")
        if law.disagreement is not None and law.is_in_conflict:
            typer.echo(f"  the data ask for errors below the measured floor, by {-law.disagreement:.1f} standard deviations")
    for name, row in found["extrapolation"].items():
        typer.echo(f"{name}: {row['n_foretold']} trainings foretold from {row['n_points']} smaller ones, off by "
                   f"{100 * row['rms_relative_error']:.1f} % ({100 * row['mean_relative_error']:+.1f} % in the mean)")
    for row in found["held_out"]:
        typer.echo(f"held out, {row['flops']:.2e} FLOPs: foretold {row['foretold']:.3g} ({row['low']:.3g} to {row['high']:.3g}), "
                   f"measured {row['measured']:.3g} ({100 * row['relative_error']:+.1f} %)")
    typer.echo(f"{folder / LAWS}, {folder / REPORT}")


@scale_app.command()
def foretell(
    folder: Folder,
    factor: Annotated[float, typer.Option(help="Times the largest compute of the study.")] = 4.0,
    floor: FloorMean = None, floor_std: FloorStd = None,
) -> None:
    """Foretell the error of a larger training, before it is run, and add it to the study: `run` makes it, `fit` compares."""
    from sapis.pipeline.scale import PREDICTIONS
    from sapis.pipeline.scale import foretell as foretell_trial

    trial, entry = foretell_trial(folder, factor=factor, floor=_floor(folder, floor, floor_std))
    typer.echo(f"{trial.flops:.2e} FLOPs, {trial.width} channels, {trial.n_frames:,} frames, about {trial.cpu_seconds:,.0f} "
               f"CPU-s: {entry['foretold']:.3g} meV/Å ({entry['low']:.3g} to {entry['high']:.3g})")
    typer.echo(f"noted in {folder / PREDICTIONS}; `sapis scale run {folder}` makes it")


@scale_app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Of studies on the same frames; the first is what others compare with.")],
    output: Annotated[Path, typer.Option(help="What is written, with the endings .html and .json.")] = Path("comparison"),
) -> None:
    """How much more compute other models need for the error of the first."""
    import numpy as np

    from sapis.pipeline.compare import compare_studies

    for name, found in compare_studies(folders, output):
        typer.echo(f"{name}: times the compute of {folders[0].name} for the same force error on test frames")
        for loss, needed, inside in zip(found.losses, found.ratio.T, found.is_measured, strict=True):
            value, low, high = (f"{each:.3g}" if np.isfinite(each) else "never" for each in needed)
            typer.echo(f"  {loss:7.1f} meV/Å: {value} ({low} to {high}){'' if inside else ', extrapolated'}")
    typer.echo(f"{output.with_suffix('.html')}, {output.with_suffix('.json')}")


@scale_app.command()
def auto(
    data: Annotated[Path, typer.Argument(help="Frames, labelled if the settings name no labeler; labels count when used.")],
    folder: Annotated[Path, typer.Argument(help="Of the run; made, or gone on with.")],
    flops: Annotated[float | None, typer.Option(help="Budget of training and labels together.")] = None,
    label_flops: Annotated[float | None, typer.Option(help="Cost of a label: FLOPs of training that take as long.")] = None,
    target: Annotated[float | None, typer.Option(help="Force error on validation frames at which to stop, meV/Å.")] = None,
    isolated: Annotated[Path | None, typer.Option(help="File of isolated atoms; a store has them itself.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with all settings.")] = None,
) -> None:
    """One training that decides as it goes what its budget buys: steps, frames or a larger model. The same command goes on."""
    from sapis.pipeline.auto import MODEL
    from sapis.pipeline.auto import auto as run_auto
    from sapis.pipeline.auto_config import AutoConfig

    settings = _settings(AutoConfig, config, "auto", flops=flops, label_flops=label_flops, target=target)
    record = run_auto(data, folder, settings, isolated=isolated)
    for event in record.result["events"]:
        if event["decision"]["action"] != "train":
            look = event["look"]
            typer.echo(f"{look['spent']:.2e} FLOPs, {look['loss']:.1f} meV/Å: {event['decision']['action'].replace('_', ' ')}: "
                       f"{event['decision']['reason']}")
    errors = record.result["errors"]["test"]
    size = ", ".join(f"{axis} {value}" for axis, value in record.result["size"].items())
    typer.echo(f"{size}, {record.result['n_frames']:,} frames, {record.cost['flops']:.2e} FLOPs: test "
               f"force RMSE {errors['force_rmse_meV_A']:.1f} meV/Å")
    typer.echo(f"model: {folder / MODEL}")


def _settings(kind: type[C], config: Path | None, verb: str, **options: float | None) -> C:
    """Those of the file, with the options that were given in their place."""
    from sapis.core.config import load_yaml, parse_config

    given = {name: value for name, value in options.items() if value is not None}
    return parse_config(kind, {**(load_yaml(config) if config else {}), **given}, where=str(config or f"sapis scale {verb}"))


def _floor(folder: Path, mean: float | None, std: float | None) -> Floor | None:
    from sapis.core.errors import ConfigError
    from sapis.pipeline.floor import known_floor
    from sapis.scaling.fit import Floor

    if mean is None:
        if std is not None:
            raise ConfigError(expected="--floor with --floor-std", received="no floor", where="--floor-std", todo="give both")
        return known_floor(folder)
    if mean < 0 or (std is not None and std <= 0):
        raise ConfigError(expected="a floor of 0 or more, with a deviation above 0", received=f"{mean:g}, {std}", where="--floor",
                          todo="mend the numbers; for no floor at all leave both out")
    return Floor(mean, std or max(0.1 * mean, 1e-3))
