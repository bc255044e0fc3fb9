"""The ``qcheck`` command."""

import io
import signal
import sys
from typing import Annotated, NoReturn

import typer

from qcheck import __version__
from qcheck.cli import (
    advise,
    audit,
    cache,
    calibrate,
    card,
    catalogue,
    check,
    compare,
    doctor,
    export,
    inspect,
    nodes,
    pictures,
    probes,
    qat,
    report,
    sweep,
    terminal,
    verify,
    watch,
)
from qcheck.core.errors import UserError, of_machine, of_memory

app = typer.Typer(
    name="qcheck",
    help="Will this LoRA survive the edge? Quantize base + LoRA for a device, measure what that does to this adapter, "
    "and say what to do next.",
    epilog="Start with `qcheck demo`. Exit codes: 0 pass, 1 not pass, 2 usage or bad input, 3 inconclusive or invalid, "
    "130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("check")(check.check)
app.command("demo")(check.demo)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("card")(card.card)
app.command("nodes")(nodes.nodes)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("pictures")(pictures.pictures)
app.command("compare")(compare.compare)
app.command("audit")(audit.audit)
app.command("calibrate")(calibrate.calibrate)
app.command("advise")(advise.advise)
app.command("qat")(qat.qat)
app.command("inspect")(inspect.inspect)
app.command("watch")(watch.watch)
app.command("probes")(probes.probes)
app.command("targets")(catalogue.targets)
app.command("schemes")(catalogue.schemes)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"qcheck {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake, or what the machine refuses, is one error; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(prog_name="qcheck")  # also as `python -m qcheck`: completion is of this name
    except UserError as error:
        _refuse(error)
    except Exception as error:
        refused = of_machine(error) or of_memory(error)
        if refused is None:
            raise
        _refuse(refused)


def _terminated(*_: object) -> None:
    """A termination cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


_LONGEST = 4000  # characters of what is wrong


def _refuse(error: UserError) -> NoReturn:
    console = terminal.console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {_plain(error.what)}")
    console.print(f"[bold]fix:[/]   {_plain(error.fix)}")
    sys.stdout = io.StringIO()  # what could not be written is not tried again at exit
    sys.exit(2)


def _plain(text: str) -> str:
    """``text``, cut where a file made it endless, with its brackets escaped: those of paths are not markup."""
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…").replace("[", r"\[")
