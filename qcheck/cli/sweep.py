"""``qcheck sweep``."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.api import sweep as api
from qcheck.api.request import CORES
from qcheck.api.sweep import Ahead, Running
from qcheck.cli import config, options, terminal
from qcheck.cli.groups import Artifacts, Machine, Probes, grouped
from qcheck.cli.output import session
from qcheck.core.errors import UserError
from qcheck.judge import fleet
from qcheck.judge.fleet import Summary
from qcheck.judge.matrix import Matrix, matrix
from qcheck.report.matrix import compared
from qcheck.report.text import COLOURS
from qcheck.spec import target

_RUNNING = "Running"


@dataclass(frozen=True)
class Library:
    """The adapters, and what they are checked on."""

    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", help="Adapters: a file, a folder, a 'glob', or a JSONL file with options a line; repeatable."
        ),
    ] = None
    weight: Annotated[list[float] | None, typer.Option("--weight", help="Each adapter at each of these.")] = None
    boards: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="The boards; repeatable.", autocompletion=options.named(target.FOLDER)),
    ] = None
    with_lora: Annotated[list[str] | None, typer.Option("--with-lora", help="As for check.")] = None
    allow_unmatched: options.Unmatched = False

    def keywords(self) -> dict[str, Any]:
        """Keywords of the Python API; None where the plan has them."""
        adapters = {"lora": self.lora, "weight": self.weight, "target": self.boards, "with_lora": self.with_lora}
        return {**adapters, "allow_unmatched": self.allow_unmatched or None}


@dataclass(frozen=True)
class Workers:
    """Who checks them."""

    executor: Annotated[str, typer.Option(help=f"{' or '.join(api.EXECUTORS)}.", rich_help_panel=_RUNNING)] = "local"
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="Workers at a time. Default: 1; on Ray all.", rich_help_panel=_RUNNING
        ),
    ] = None
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of a Ray worker.", rich_help_panel=_RUNNING)] = 0.0
    shard: Annotated[
        str | None, typer.Option(help="Only part i of n: i/n, as of Slurm's arrays.", rich_help_panel=_RUNNING)
    ] = None
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Compute rows that are errors again.", rich_help_panel=_RUNNING)
    ] = False
    full: Annotated[
        bool,
        typer.Option("--full", help="Also check what a forecast from the weights decides.", rich_help_panel=_RUNNING),
    ] = False

    def running(self) -> Running:
        """How the sweep is carried out.

        Raises:
            UserError: a shard that is none.
        """
        return Running(
            self.executor,  # type: ignore[arg-type]  # checked where it is used
            self.jobs,
            self.gpus,
            _shard(self.shard),
            self.retry_errors,
            self.full,
        )


@grouped
def sweep(
    context: typer.Context,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="DIR | URL", help="Rows, pages, summary. A sweep that was stopped goes on there."
        ),
    ],
    library: Library,
    artifacts: Artifacts,
    probes: Probes,
    machine: Machine,
    workers: Workers,
    source: Annotated[
        str | None,
        typer.Argument(help="A plan in TOML, or a base. Default: the base of qcheck.toml.", metavar="PLAN.toml | BASE"),
    ] = None,
    require: Annotated[
        str, typer.Option(help="What makes exit code 0: `all` cases pass, `any`, or `none` has to.")
    ] = "all",
    rate: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="The share of wrong ones allowed among the adapters that are listed as certain."
        ),
    ] = fleet.RATE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.", rich_help_panel=_RUNNING)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines, and nothing else.")] = False,
    log: Annotated[Path | None, typer.Option("--log", help="A file of JSON lines of the stages.")] = None,
    mlflow: options.Mlflow = None,
) -> None:
    """Check many adapters, each as by `check`, and end in one ranked page.

    Work that adapters share is done once. An adapter that cannot be judged is a row, not an end. Exit code 0 when as
    many cases pass as --require says, 1 when not, 3 where none failed but rows are open or errors. Examples:

    `qcheck sweep ./sdxl --lora 'loras/*.safetensors' --scheme int8 --target jetson-agx-orin-64gb --out fleet`

    `qcheck sweep plan.toml --out fleet --dry-run`

    The best weight, or the best checkpoint, side by side:

    `qcheck sweep ./sdxl --lora style.safetensors --weight .6 --weight .8 --weight 1 --scheme int8 --out weights`
    """
    required = fleet.requirement(require)
    source = source or config.base()
    plan = source if source.endswith(".toml") else None
    given: dict[str, Any] = {**library.keywords(), "base": None if plan else source}
    given |= {"threads": max(1, CORES // (workers.jobs or 1))} if plan is None else {}
    given |= _explicit(context, artifacts, {**artifacts.keywords(), **artifacts.judging()})
    given |= _explicit(context, probes, {**probes.keywords(), **probes.sampling(), "probes": probes.probes})
    given |= _explicit(context, machine, machine.keywords())
    cache, running = not machine.no_cache, workers.running()
    if dry_run:
        _tell_ahead(api.ahead(plan, given, out, cache, running.shard), as_json)
        return
    with session(True, as_json, log) as progress:
        summary = api.sweep(
            plan, out=out, rate=rate, running=running, cache=cache, mlflow=mlflow, progress=progress, **given
        )
    if as_json:
        typer.echo("\n".join(row.model_dump_json(by_alias=True) for row in summary.rows))
    else:
        _tell(summary, out)
    raise typer.Exit(summary.exit_code(required))


def _explicit(context: typer.Context, group: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a group that the command line, or the environment, names: a plan has the others."""
    sources = {field.name: context.get_parameter_source(field.name) for field in dataclasses.fields(group)}
    named = [name for name, source in sources.items() if source is not None and source.name != _DEFAULT]
    return {name: keywords[name] for name in (_KEYWORDS.get(name, name) for name in named) if name in keywords}


_DEFAULT = "DEFAULT"  # click's word for an option that nobody gave
_KEYWORDS = {"schemes": "scheme", "orders": "order", "artifacts": "artifact"}


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text!r} is no part", "Give i/n, with i from 1 to n: 1/4.")
    return int(match[1]), int(match[2])


def _tell_ahead(ahead: Ahead, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(ahead)))
        return
    console = terminal.console(highlight=False, soft_wrap=True)
    for what in ahead.unreadable:
        console.print(Text(f"cannot be read, and will be an error: {what}"))
    calls = " to ".join(dict.fromkeys(f"{count:,}" for count in ahead.calls))
    console.print(f"{ahead.cases} cases of {ahead.adapters} adapters, {ahead.cases - ahead.missing} of them there")
    console.print(f"{calls} denoiser calls, less what the cache and the base's free runs save")
    if ahead.seconds is None:
        console.print("hours and disk are not known: no row of this sweep tells what a case takes")
    else:
        console.print(f"about {ahead.seconds / 3600:.1f} h of one worker, by the {ahead.measured} rows that are there")
        console.print(f"about {ahead.bytes / 1e9:.2f} GB of pages")


def _colour(status: str) -> str:
    return next((colour for verdict, colour in COLOURS.items() if verdict == status), "bold red")


def _side_by_side(adapters: Matrix, console: Console) -> None:
    titles, lines = compared(adapters)
    shown = Table(*map(escape, titles), box=box.SIMPLE_HEAD, pad_edge=False)
    for line in lines:
        shown.add_row(*map(Text, line))
    console.print(shown)
    console.print(Text(f"survival beside the verdict; * the surest pass of its line\n{adapters.advice()}"))


def _tell(summary: Summary, out: str) -> None:
    console = terminal.console(highlight=False, soft_wrap=True)
    for name, count in summary.counts.most_common():
        console.print(Text(f"{count:6} {name}", _colour(name)))
    console.print(summary.error_control())
    if (adapters := matrix(summary.rows)) is not None:
        _side_by_side(adapters, console)
    console.print(Text(f"page     {out}/summary.html\nrows     {out}/index.jsonl"))
    if summary.counts["error"]:
        first = next(row for row in summary.rows if row.error is not None)
        console.print(
            Text(f"errors   {summary.counts['error']}, first {first.title}: {first.error}\n         {first.fix}")
        )
