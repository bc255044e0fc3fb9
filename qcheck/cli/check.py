"""``qcheck check`` and ``qcheck demo``."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qcheck import limits, probe, recipe, scheme, target
from qcheck.cli import output
from qcheck.cli.lazy import host
from qcheck.cli.progress import Bars
from qcheck.demo import library
from qcheck.errors import UserError
from qcheck.job import Job
from qcheck.probe import ProbeSet
from qcheck.progress import Silent
from qcheck.report import text
from qcheck.report.model import Report, exit_code
from qcheck.scheme import ORDERS, Scheme
from qcheck.target import Target

_PROBING, _QUANTIZING, _RUNNING = "Probes", "Quantization", "Output and machine"
_CORES = os.cpu_count() or 1
_TARGET = "jetson-agx-orin-64gb"

Lora = Annotated[str, typer.Option("--lora", help="The LoRA: a .safetensors file, or a name of the demo's adapters.")]
Weight = Annotated[float, typer.Option(help="How strongly the adapter is applied.")]
Device = Annotated[str, typer.Option("--target", "-t", help="The device: a name in targets/, or a TOML file.")]

Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        "-s",
        help="A scheme by name or TOML file; repeatable. Default: all the target can run.",
        rich_help_panel=_QUANTIZING,
    ),
]
Orders = Annotated[
    list[str] | None,
    typer.Option(
        "--order",
        help=f"When the adapter is merged: {', '.join(ORDERS)}; repeatable. Default: {ORDERS[0]}.",
        rich_help_panel=_QUANTIZING,
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option("--recipe", help="The calibration recipe, by name or TOML file.", rich_help_panel=_QUANTIZING),
]
Bounds = Annotated[
    str,
    typer.Option("--limits", help="The limits of the verdict, by name or TOML file.", rich_help_panel=_QUANTIZING),
]

Probes = Annotated[
    str | None, typer.Option(help="The probe set to judge on, by name or TOML file.", rich_help_panel=_PROBING)
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="A text file of prompts to judge on instead, one a line; few are repeated with other seeds.",
        rich_help_panel=_PROBING,
    ),
]
Trigger = Annotated[
    str | None, typer.Option(help="Words that wake the adapter, put before every prompt.", rich_help_panel=_PROBING)
]
Steps = Annotated[int | None, typer.Option(min=1, help="Solver steps of a probe.", rich_help_panel=_PROBING)]
Guidance = Annotated[float | None, typer.Option(min=0.0, help="Guidance scale.", rich_help_panel=_PROBING)]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the first probe.", rich_help_panel=_PROBING)]
Width = Annotated[int | None, typer.Option(min=8, help="Width in pixels.", rich_help_panel=_PROBING)]
Height = Annotated[int | None, typer.Option(min=8, help="Height in pixels.", rich_help_panel=_PROBING)]

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Default: qcheck-out/ADAPTER-TIME.", rich_help_panel=_RUNNING),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print report.json on standard output, and nothing else there.", rich_help_panel=_RUNNING
    ),
]
Build = Annotated[
    bool,
    typer.Option(
        "--build/--no-build", help="Compile with TensorRT-RTX where it is installed.", rich_help_panel=_RUNNING
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Processor threads.", rich_help_panel=_RUNNING)]
Batch = Annotated[
    int,
    typer.Option(min=1, help="Probes that run together; lower it when memory is short.", rich_help_panel=_RUNNING),
]


def check(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE")],
    lora: Lora,
    weight: Weight = 1.0,
    device: Device = _TARGET,
    schemes: Schemes = None,
    orders: Orders = None,
    ranges: Ranges = None,
    bounds: Bounds = "default",
    probes: Probes = None,
    prompts: Prompts = None,
    trigger: Trigger = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    width: Width = None,
    height: Height = None,
    out: Out = None,
    as_json: Json = False,
    build: Build = True,
    threads: Threads = _CORES,
    batch: Batch = 8,
) -> None:
    """Check one LoRA on one base for a device.

    Writes real ONNX artifacts, compiles them where TensorRT-RTX is installed, runs matched probes against the
    full-precision reference and ends in a verdict. Example:

    `qcheck check ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb`
    """
    demo_base = base == library.NAME
    base_path, lora_path = library.resolve(base, lora)
    chosen_target, chosen_limits = target.find(device), limits.find(bounds)
    if probes and prompts:
        raise UserError(f"both --probes {probes} and --prompts {prompts} are given", "Give one of them.")
    judged = probe.find(probes or (library.PROBES if demo_base else "general"))
    judged = probe.from_text(prompts, judged) if prompts else judged
    sampling = {"steps": steps, "guidance": guidance, "seed": seed, "width": width, "height": height}
    judged = judged.model_copy(update={key: value for key, value in sampling.items() if value is not None})
    judged = probe.triggered(probe.repeated(judged, chosen_limits.probes), trigger)
    chosen_recipe = recipe.find(ranges or (library.RECIPE if demo_base else "general"))
    recipe.calibration(chosen_recipe, judged, trigger)
    used = _schemes(schemes, chosen_target)
    used_orders = tuple(dict.fromkeys(scheme.order(name) for name in orders or ORDERS[:1]))
    job = Job(
        base=base_path,
        adapter=lora_path,
        weight=weight,
        schemes=used,
        explicit=bool(schemes),
        orders=used_orders,
        target=chosen_target,
        probes=judged,
        recipe=chosen_recipe,
        trigger=trigger,
        limits=chosen_limits,
        out=out or output.default(lora),
        threads=threads,
        batch=batch,
        build=build,
        arguments={
            "base": base,
            "lora": lora,
            "weight": weight,
            "scheme": [named.name for named in used],
            "order": [*used_orders],
            "target": device,
            "probes": judged.name,
            "trigger": trigger,
            "recipe": chosen_recipe.name,
            "limits": bounds,
            "build": build,
            "threads": threads,
            "batch": batch,
            **_sampling(judged),
        },
    )
    _run(job, as_json)


def demo(
    lora: Annotated[str, typer.Argument(help="One of the shipped adapters.", metavar="ADAPTER")] = "flat",
    device: Device = _TARGET,
    schemes: Schemes = None,
    orders: Orders = None,
    out: Out = None,
    as_json: Json = False,
    build: Build = True,
    threads: Threads = _CORES,
) -> None:
    """The same on the small trained pipeline and an adapter that ship with qcheck."""
    chosen = schemes or [library.SCHEME]
    check(library.NAME, lora, 1.0, device, chosen, orders, out=out, as_json=as_json, build=build, threads=threads)


def _schemes(named: list[str] | None, device: Target) -> tuple[Scheme, ...]:
    """The schemes to run.

    Raises:
        UserError: one of them is unknown or cannot run on the device.
    """
    runnable = device.runnable()
    if not named and not runnable:
        raise UserError(
            f"{device.name!r} can run no scheme that ships with qcheck", "Give a --scheme file of your own."
        )
    if not named:
        return tuple(runnable)
    if len({Path(name).stem for name in named}) != len(named):
        raise UserError(
            f"a scheme is named twice: {', '.join(named)}", "Name each once; files need names of their own."
        )
    for found in map(scheme.find, named):
        if reason := device.refuses(found):
            offered = ", ".join(s.name for s in runnable) or "none that ship with qcheck"
            raise UserError(
                f"scheme {found.name!r} cannot run on {device.name!r}: {reason}", f"Schemes it can run: {offered}."
            )
    return tuple(map(scheme.find, named))


def _sampling(judged: ProbeSet) -> dict[str, str | float | int | bool | list[str] | None]:
    return {key: getattr(judged, key) for key in ("steps", "guidance", "seed", "width", "height")}


def _run(job: Job, as_json: bool) -> None:
    errors = Console(stderr=True)
    with output.staged(job.out) as folder:
        report: Report = host("qcheck.pipeline").check(job, folder, Silent() if as_json else Bars(errors))
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        text.render(report, job.out, Console())
    raise typer.Exit(exit_code(report, job.explicit))
