"""``qcheck advise``."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.api import functions
from qcheck.api.request import CORES
from qcheck.cli import options, output, terminal
from qcheck.core.folder import beside
from qcheck.core.size import megabytes

_PLACES = "Where the report's files are here, if not where it says, nor beside it"


def advise(
    report: Annotated[Path, typer.Argument(help="The --out folder of a check, or its report.json.", metavar="REPORT")],
    base: Annotated[str | None, typer.Option(help="Its base.", metavar="DIR", rich_help_panel=_PLACES)] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", help="Its adapters; repeatable.", metavar="FILE", rich_help_panel=_PLACES),
    ] = None,
    ranges: Annotated[str | None, typer.Option(help="Its ranges.", metavar="FILE", rich_help_panel=_PLACES)] = None,
    style_pictures: Annotated[
        str | None, typer.Option(help="Its pictures of the style.", metavar="DIR", rich_help_panel=_PLACES)
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", help="Its networks; repeatable.", metavar="KIND=PATH", rich_help_panel=_PLACES),
    ] = None,
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

    Exit 0 when all have one, 1 when not. An interrupted run goes on where it was. Examples:

    `qcheck advise qcheck-out/style-20260101-120000`

    Of a report that CI made, where its files lie elsewhere here:

    `qcheck advise qcheck-out/style-20260101-120000 --base sdxl/ --lora style.safetensors`
    """
    folder = out or functions.default_out("advice")
    with output.session(not no_cache, as_json) as progress:
        advice = functions.advise(
            report,
            base=base,
            lora=lora,
            ranges=ranges,
            style_pictures=style_pictures,
            judge=judge,
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
        for title in ("measure", "artifact file", "forecast\nsurvival", "survival", "excess error", "verdict", "time"):
            table.add_column(title, overflow="fold")
        for trial in case.tried:
            table.add_row(*map(Text, _cells(trial)))
        console.print(table)
        if case.cure is not None:
            _render_cure(case.tried[case.cure], f"{case.scheme}-{case.order}-cured", out, console)
        elif advice.ran:
            console.print("[yellow]no cure passed[/]: " + (case.tried[-1].why if case.tried else "nothing fits"))
    console.print(Text(f"advice {out / 'advice.json'}"), soft_wrap=True)


def _render_cure(cure: Any, name: str, out: Path, console: Console) -> None:
    """What to do with a cure: settings to keep, a report of it in the folder ``name`` of the advice, and its export."""
    place, settings = shlex.quote(str(out)), {key: _moved(value, out) for key, value in cure.settings.items()}
    console.print(Text(f"cure: {cure.title}"), style="bold green")
    console.print(Text(f"as qcheck.toml, here:\n{tomli_w.dumps({'check': settings})}".rstrip()), soft_wrap=True)
    console.print(Text(f"check it again: cd {place} && {cure.command} --out {shlex.quote(name)}"), soft_wrap=True)
    console.print(Text(f"then audit that report: qcheck audit {shlex.quote(str(out / name))}"), soft_wrap=True)
    if cure.export:
        console.print(Text(f"next: cd {place} && {cure.export}"), soft_wrap=True)


def _moved(value: Any, folder: Path) -> Any:
    """A setting with its paths in ``folder`` as the current folder names them."""
    if isinstance(value, list):
        return [_moved(item, folder) for item in value]
    return beside(folder, value) if isinstance(value, str) else value


def _cells(trial: Any) -> tuple[str, ...]:
    """The row of a tried cure: what weights alone forecast, and what was measured, as far as they are known."""
    survivals = ("-" if value is None else f"{value:.2f}" for value in (trial.predicted_survival, trial.survival))
    excess = "-" if trial.excess_error is None else f"{trial.excess_error:+.1f} dB"
    seconds = "-" if trial.seconds is None else f"{trial.seconds:.0f} s"
    return (
        trial.title,
        _size(trial),
        *survivals,
        excess,
        trial.verdict or "not run",
        seconds,
    )


def _size(trial: Any) -> str:
    """The size of the artifact's file; before there is one, the forecast size of its tensors."""
    if trial.bytes is not None:
        return megabytes(trial.bytes)
    return "-" if trial.predicted_bytes is None else f"forecast {megabytes(trial.predicted_bytes)}"
