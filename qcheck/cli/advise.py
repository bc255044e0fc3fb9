"""``qcheck advise``."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.api import functions
from qcheck.api.request import CORES
from qcheck.cli import options, output, terminal
from qcheck.core.size import megabytes


def advise(
    report: Annotated[Path, typer.Argument(help="The --out folder of a check, or its report.json.", metavar="REPORT")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be tried, and run nothing.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Try everything, also after one has passed.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: qcheck-out/advice-TIME.")] = None,
    overwrite: options.Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print advice.json on standard output.")] = False,
    no_cache: options.NoCache = False,
    device: options.Device = "auto",
    precision: options.Precision = "float32",
    threads: options.Threads = CORES,
) -> None:
    """Find the cheapest cure of every case that does not pass: each is run and judged again, until one passes.

    Exit 0 when all have one, 1 when not. An interrupted run goes on where it was. Example:

    `qcheck advise qcheck-out/style-20260101-120000`
    """
    folder = out or functions.default_out("advice")
    with output.session(not no_cache, as_json) as progress:
        advice = functions.advise(
            report,
            out=folder,
            dry_run=dry_run,
            every=every,
            overwrite=overwrite,
            cache=not no_cache,
            device=device,
            precision=precision,
            threads=threads,
            progress=progress,
        )
    if as_json:
        typer.echo(advice.to_json(), nl=False)
    else:
        _render(advice, folder, terminal.console())
    raise typer.Exit(0 if dry_run or advice.cured else 1)


def _render(advice: Any, out: Path, console: Console) -> None:
    if not advice.cases:
        console.print("nothing to cure: every case of the report passes, or a control failed and no number counts")
    for case in advice.cases:
        table = Table(box=box.ROUNDED, title=f"{case.scheme} {case.order}: {case.verdict}")
        for title in ("measure", "artifact file", "survival", "excess error", "verdict", "time"):
            table.add_column(title, overflow="fold")
        for trial in case.tried:
            table.add_row(*map(Text, _cells(trial)))
        console.print(table)
        if case.cure is not None:
            cure = case.tried[case.cure]
            console.print(Text(f"cure: {cure.title}"), style="bold green")
            place = shlex.quote(str(out))
            console.print(Text(f"check it again: cd {place} && {cure.command}"), soft_wrap=True)
            if cure.export:
                console.print(Text(f"next: cd {place} && {cure.export}"), soft_wrap=True)
        elif advice.ran:
            console.print("[yellow]no cure passed[/]: " + (case.tried[-1].why if case.tried else "nothing fits"))
    console.print(Text(f"advice {out / 'advice.json'}"), soft_wrap=True)


def _cells(trial: Any) -> tuple[str, ...]:
    """The row of a tried cure: survival and size are measured, forecast or both, as far as they are known."""
    survival = [f"{value:.2f}" for value in (trial.predicted_survival, trial.survival) if value is not None]
    excess = "-" if trial.excess_error is None else f"{trial.excess_error:+.1f} dB"
    seconds = "-" if trial.seconds is None else f"{trial.seconds:.0f} s"
    return (
        trial.title,
        _size(trial),
        " / ".join(survival) or "-",
        excess,
        trial.verdict or "not run",
        seconds,
    )


def _size(trial: Any) -> str:
    """The size of the artifact's file; before there is one, the forecast size of its tensors."""
    if trial.bytes is not None:
        return megabytes(trial.bytes)
    return "-" if trial.predicted_bytes is None else f"forecast {megabytes(trial.predicted_bytes)}"
