"""The verbs of `sapis`."""

from __future__ import annotations

import typer

from sapis.cli import active, check_model, doctor, evaluate, grow, info, init, label, md, report, run, settings, train
from sapis.cli.data import data_app
from sapis.cli.scale import scale_app

app = typer.Typer(
    name="sapis", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Interatomic potentials from quantum chemistry: accurate, checked, and saying what they cost.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("init")(init.init)
app.add_typer(data_app, name="data")
app.command("label")(label.label)
app.command("train")(train.train)
app.command("grow")(grow.grow)
app.command("active")(active.active)
app.add_typer(scale_app, name="scale")
app.command("evaluate")(evaluate.evaluate)
app.command("md")(md.md)
app.command("check-model")(check_model.check_model)
app.command("info")(info.info)
app.command("report")(report.report)
app.command("settings")(settings.settings)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if show:
        from sapis.core.version import __version__

        typer.echo(__version__)
        raise typer.Exit
