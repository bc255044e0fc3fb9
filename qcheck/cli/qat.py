"""``qcheck qat``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.cli import options, output, resolve
from qcheck.cli.lazy import host
from qcheck.cli.progress import Bars
from qcheck.core import cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent
from qcheck.demo import library
from qcheck.report import text
from qcheck.result.report import Case, exit_code
from qcheck.spec import limits, probe, recipe, target
from qcheck.spec.check import Job

_TRAINING = "Training"


def qat(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE")],
    lora: Annotated[str, typer.Option("--lora", help="The LoRA to calibrate, a .safetensors file.")],
    new: Annotated[Path, typer.Option("--out", "-o", help="The calibrated LoRA to write, a .safetensors file.")],
    chosen: Annotated[str, typer.Option("--scheme", "-s", help="The scheme, by name or TOML file.")] = library.SCHEME,
    order: Annotated[str | None, typer.Option(help="When the adapter is merged, as for check.")] = None,
    device: options.Device = options.TARGET,
    weight: Annotated[float, typer.Option("--weight", help="How strongly the adapter is applied.")] = 1.0,
    with_lora: options.Common = None,
    allow_unmatched: options.Unmatched = False,
    learning: Annotated[
        int, typer.Option("--train-steps", min=1, help="Training steps at most.", rich_help_panel=_TRAINING)
    ] = 120,
    every: Annotated[
        int, typer.Option(min=1, help="Steps between looks, each a checkpoint.", rich_help_panel=_TRAINING)
    ] = 20,
    rate: Annotated[
        float | None,
        typer.Option(min=0.0, help="AdamW's rate at the start. Default: by the order.", rich_help_panel=_TRAINING),
    ] = None,
    own_states: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share learned at the student's own states.", rich_help_panel=_TRAINING),
    ] = 0.25,
    train_seed: Annotated[int, typer.Option(min=0, help="Of the training.", rich_help_panel=_TRAINING)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Also where the adapter is broken at full precision.")] = False,
    ranges: options.Ranges = None,
    bounds: options.Bounds = "default",
    probes: options.Probes = None,
    prompts: options.Prompts = None,
    trigger: options.Trigger = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = None,
    width: options.Width = None,
    height: options.Height = None,
    most: options.Most = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the reports before and after. Default: qcheck-out/ADAPTER-TIME.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report after on standard output.")] = False,
    build: options.Build = True,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
    batch: options.Batch = 8,
) -> None:
    """Calibrate a LoRA for the scheme it ships in: its own factors are trained, through the rounding of the artifact.

    The adapter is checked before and after, on probes that were not trained on, and always against the original file
    at full precision. An interrupted run goes on from its last checkpoint. Example:

    `qcheck qat ./my-pipeline --lora style.safetensors --scheme int4-g128 --order quantize-merge -o new.safetensors`
    """
    _require_name(new)
    chosen_target, chosen_limits = target.find(device), limits.find(bounds)
    if most is not None:
        chosen_limits = chosen_limits.at_most(most)
    sampling = {"steps": steps, "guidance": guidance, "seed": seed, "width": width, "height": height}
    judged = resolve.judged(probes, prompts, base == library.NAME, sampling, trigger)
    judged = probe.repeated(judged, chosen_limits.looks[-1])
    chosen_recipe = resolve.ranges(ranges, base == library.NAME)
    recipe.calibration(chosen_recipe, judged, trigger)
    job = Job(
        base=resolve.base(base),
        adapters=resolve.adapters(base, [lora], [weight]),
        references=(),
        common=resolve.common(base, with_lora or []),
        allow_unmatched=allow_unmatched,
        schemes=resolve.schemes([chosen], chosen_target),
        artifacts=(),
        explicit=True,
        orders=resolve.orders([order] if order else None),
        target=chosen_target,
        probes=judged,
        recipe=chosen_recipe,
        trigger=trigger,
        limits=chosen_limits,
        out=report or output.default(new.stem),
        cache=None if no_cache else cache.location(),
        threads=threads,
        batch=batch,
        build=build,
    )
    settings = host("qcheck.tasks.qat.objective").Settings(
        steps=learning, every=every, rate=rate, share=own_states, seed=train_seed
    )
    bars = Silent() if as_json else Bars(Console(stderr=True))
    with (
        output.interruptible(job.cache is not None),
        output.replaced(new, overwrite, lambda path: bool(host("qcheck.tasks.qat").calibrated(path, job))),
        output.staged(job.out, overwrite) as folder,
    ):
        done = host("qcheck.tasks.qat").calibrate(job, settings, new, folder, bars, force)
    if as_json:
        typer.echo(done.after.to_json(), nl=False)
    else:
        console = Console()
        text.render(done.after, job.out / "after", console)
        _render(done, new, console)
    raise typer.Exit(exit_code(done.after, True))


def _require_name(new: Path) -> None:
    if new.suffix != ".safetensors" or not new.absolute().parent.is_dir():
        raise UserError(f"--out {str(new)!r} is no .safetensors file in a folder that exists", "Give another --out.")


def _render(done: Any, new: Path, console: Console) -> None:
    table = Table(box=box.ROUNDED, title="fresh probes, against the original adapter at full precision")
    for title in ("", "before", "after"):
        table.add_column(title)
    before, after = done.cases
    table.add_row("verdict", before.verdict, after.verdict)
    for name, unit in (("effect_survival", ""), ("effect_to_error", " dB"), ("excess_error", " dB")):
        table.add_row(name, *(Text(_value(case, name, unit)) for case in (before, after)))
    console.print(table)
    course = done.course
    went_on = f", went on from step {course.resumed}" if course.resumed is not None else ""
    console.print(
        f"trained for {course.history[-1].step} steps{went_on}; kept is step {course.kept}, held-out prompts: "
        f"excess error {course.before.excess_error:+.1f} -> {course.after.excess_error:+.1f} dB"
    )
    console.print(f"calibrated adapter {escape(str(new))}", highlight=False, soft_wrap=True)


def _value(case: Case, name: str, unit: str) -> str:
    found = next((m for m in case.measurements if m.name == name and m.arm == "adapted"), None)
    return "-" if found is None or found.value is None else f"{found.value:.2f}{unit}"
