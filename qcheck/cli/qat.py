"""``qcheck qat``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.api import functions
from qcheck.api.lazy import host
from qcheck.cli import options, terminal
from qcheck.cli.groups import Adapters, Artifact, Machine, Probes, grouped
from qcheck.cli.output import session
from qcheck.report import text
from qcheck.result.report import Case, exit_code
from qcheck.spec import command

if TYPE_CHECKING:
    from qcheck.tasks.qat import Calibration

_TRAINING = "Training"


@dataclass(frozen=True)
class Training:
    """How the adapter is trained."""

    learning: Annotated[
        int, typer.Option("--train-steps", min=1, help="Training steps at most.", rich_help_panel=_TRAINING)
    ] = 120
    every: Annotated[
        int, typer.Option(min=1, help="Steps between looks, each a checkpoint.", rich_help_panel=_TRAINING)
    ] = 20
    rate: Annotated[
        float | None,
        typer.Option(min=0.0, help="AdamW's rate at the start. Default: by the order.", rich_help_panel=_TRAINING),
    ] = None
    own_states: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share learned at the student's own states.", rich_help_panel=_TRAINING),
    ] = 0.25
    train_seed: Annotated[int, typer.Option(min=0, help="Of the training.", rich_help_panel=_TRAINING)] = 0
    force: Annotated[bool, typer.Option("--force", help="Also where the adapter is broken at full precision.")] = False


@grouped
def qat(
    base: options.Base,
    adapters: Adapters,
    artifact: Artifact,
    training: Training,
    probes: Probes,
    machine: Machine,
    new: Annotated[Path, typer.Option("--out", "-o", help="The calibrated LoRA to write, a .safetensors file.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder for the reports before and after. Default: qcheck-out/NEW-TIME.")
    ] = None,
    limits: options.Limits = "default",
    overwrite: options.Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report after on standard output.")] = False,
) -> None:
    """Calibrate a LoRA for the scheme it ships in: its own factors are trained, through the rounding of the artifact.

    The adapter is checked before and after, on probes that were not trained on, and always against the original file
    at full precision. An interrupted run goes on from its last checkpoint. Example:

    `qcheck qat ./my-pipeline --lora style.safetensors --scheme int4-g128 --order quantize-merge -o new.safetensors`
    """
    folder = report or functions.default_out(new.stem)
    settings = host("qcheck.training.objective").Settings(
        steps=training.learning,
        every=training.every,
        rate=training.rate,
        share=training.own_states,
        seed=training.train_seed,
    )
    with session(not machine.no_cache, as_json) as progress:
        calibration = functions.qat(
            base,
            [*adapters.lora],
            out=new,
            settings=settings,
            force=training.force,
            report=folder,
            overwrite=overwrite,
            cache=not machine.no_cache,
            progress=progress,
            limits=limits,
            **adapters.keywords(),
            **artifact.keywords(),
            **probes.sampling(),
            probes=probes.probes,
            **probes.keywords(),
            **machine.keywords(),
        )
    if as_json:
        typer.echo(calibration.after.to_json(), nl=False)
    else:
        console = terminal.console()
        text.render(calibration.after, folder / "after", console)
        _render(calibration, new, folder, console)
    raise typer.Exit(exit_code(calibration.after))


def _render(calibration: "Calibration", new: Path, folder: Path, console: Console) -> None:
    table = Table(box=box.ROUNDED, title="fresh probes, against the original adapter at full precision")
    for title in ("", "before", "after"):
        table.add_column(title)
    before, after = calibration.cases
    table.add_row("verdict", before.verdict, after.verdict)
    for name, unit in (("effect_survival", ""), ("effect_to_error", " dB"), ("excess_error", " dB")):
        table.add_row(name, *(Text(_value(case, name, unit)) for case in (before, after)))
    console.print(table)
    training = calibration.training
    went_on = f", went on from step {training.resumed}" if training.resumed is not None else ""
    console.print(
        f"trained for {training.history[-1].step} steps{went_on}; kept is step {training.kept}, held-out prompts: "
        f"excess error {training.before.excess_error:+.1f} -> {training.after.excess_error:+.1f} dB"
    )
    console.print(f"calibrated adapter {escape(str(new))}", highlight=False, soft_wrap=True)
    again = command.line(command.words(calibration.after.spec, folder / "after"))
    console.print(Text(f"check it again: {again}"), soft_wrap=True)


def _value(case: Case, name: str, unit: str) -> str:
    measurement = next((m for m in case.measurements if m.name == name and m.arm == "adapted"), None)
    return "-" if measurement is None or measurement.value is None else f"{measurement.value:.2f}{unit}"
