"""``qcheck check`` and ``qcheck demo``."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qcheck import limits, probe, recipe, scheme, target
from qcheck.cli import output
from qcheck.cli.progress import Bars
from qcheck.demo import library
from qcheck.errors import UserError
from qcheck.job import Job
from qcheck.progress import Silent
from qcheck.report import text
from qcheck.report.model import exit_code
from qcheck.scheme import Order

Lora = Annotated[str, typer.Option("--lora", help="The LoRA: a .safetensors file, or a name of the demo's adapters.")]
Weight = Annotated[float, typer.Option(help="How strongly the adapter is applied.")]
Schemes = Annotated[
    list[str] | None,
    typer.Option("--scheme", "-s", help="A scheme by name or TOML file; repeatable. Default: all the target can run."),
]
Orders = Annotated[
    list[Order] | None,
    typer.Option("--order", help="When the adapter is merged; repeatable. Default: merge-quantize."),
]
Device = Annotated[str, typer.Option("--target", "-t", help="The device: a name in targets/, or a TOML file.")]
Probes = Annotated[str | None, typer.Option(help="The probe set to judge on, by name or TOML file.")]
Ranges = Annotated[str | None, typer.Option("--recipe", help="The calibration recipe, by name or TOML file.")]
Bounds = Annotated[str, typer.Option("--limits", help="The limits of the verdict, by name or TOML file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Default: qcheck-out/ADAPTER-TIME.")]
Json = Annotated[bool, typer.Option("--json", help="Print report.json on standard output, and nothing else there.")]
Build = Annotated[bool, typer.Option("--build/--no-build", help="Compile with TensorRT-RTX where it is installed.")]
Threads = Annotated[int, typer.Option(min=1, help="Processor threads.")]
Batch = Annotated[int, typer.Option(min=1, help="Probes that run together; lower it when memory is short.")]

_CORES = os.cpu_count() or 1
_TARGET = "jetson-agx-orin-64gb"


def check(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE")],
    lora: Lora,
    weight: Weight = 1.0,
    schemes: Schemes = None,
    orders: Orders = None,
    device: Device = _TARGET,
    probes: Probes = None,
    ranges: Ranges = None,
    bounds: Bounds = "default",
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
    judged = probe.find(probes or (library.PROBES if demo_base else "general"))
    chosen_target, chosen_limits = target.find(device), limits.find(bounds)
    used = tuple(scheme.find(name) for name in schemes) if schemes else tuple(chosen_target.runnable())
    for named in used:
        if reason := chosen_target.refuses(named):
            raise UserError(
                f"scheme {named.name!r} cannot run on {chosen_target.name!r}: {reason}", _other(chosen_target)
            )
    if len(judged.prompts) < chosen_limits.probes:
        raise UserError(
            f"probe set {judged.name!r} has {len(judged.prompts)} prompts; the limits ask for {chosen_limits.probes}",
            "Add prompts, or lower `probes` in a limits file of your own (--limits).",
        )
    judged = judged.model_copy(update={"prompts": judged.prompts[: chosen_limits.probes]})
    chosen_recipe = recipe.find(ranges or (library.RECIPE if demo_base else "general"))
    recipe.calibration(chosen_recipe, judged)
    job = Job(
        base=base_path,
        adapter=lora_path,
        weight=weight,
        schemes=used,
        explicit=bool(schemes),
        orders=tuple(orders or ("merge-quantize",)),
        target=chosen_target,
        probes=judged,
        recipe=chosen_recipe,
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
            "order": [*(orders or ("merge-quantize",))],
            "target": device,
            "probes": judged.name,
            "recipe": chosen_recipe.name,
            "limits": bounds,
            "build": build,
            "threads": threads,
            "batch": batch,
        },
    )
    _run(job, as_json)


def demo(
    lora: Annotated[str, typer.Argument(help="One of the shipped adapters.", metavar="ADAPTER")] = "flat",
    schemes: Schemes = None,
    orders: Orders = None,
    device: Device = _TARGET,
    out: Out = None,
    as_json: Json = False,
    build: Build = True,
    threads: Threads = _CORES,
) -> None:
    """The same on the small trained pipeline and an adapter that ship with qcheck."""
    chosen = schemes or [library.SCHEME]
    check(library.NAME, lora, 1.0, chosen, orders, device, out=out, as_json=as_json, build=build, threads=threads)


def _other(device: target.Target) -> str:
    runnable = ", ".join(found.name for found in device.runnable())
    return f"Schemes it can run: {runnable or 'none that ship with qcheck'}."


def _run(job: Job, as_json: bool) -> None:
    errors = Console(stderr=True)
    with output.staged(job.out) as folder:
        from qcheck.pipeline import check as run  # heavy: only once the input is known to be good

        report = run(job, folder, Silent() if as_json else Bars(errors))
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        text.render(report, job.out, Console())
    raise typer.Exit(exit_code(report, job.explicit))
