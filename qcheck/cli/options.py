"""Every option that commands share, each once; ``groups`` puts them together."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from qcheck.api.request import ALL
from qcheck.cli import config
from qcheck.core.values import names_in
from qcheck.demo import library
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.order import MERGES, ORDERS

_ADAPTING, _PROBING, _QUANTIZING, _RUNNING = "Adapter and board", "Probes", "Quantization", "Output and machine"


def named(folder: Path, *more: str) -> Callable[[str], list[str]]:
    """A completion: the names of the TOML files in ``folder``, and ``more``."""
    return lambda incomplete: [name for name in (*names_in(folder), *more) if name.startswith(incomplete)]


def orders(incomplete: str) -> list[str]:
    """A completion: the orders."""
    return [name for name in ORDERS if name.startswith(incomplete)]


def adapters(incomplete: str) -> list[str]:
    """A completion: the demo's adapters, by name."""
    return [name for name in library.adapters() if name.startswith(incomplete)]


Base = Annotated[
    str,
    typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE"),
]

Loras = Annotated[
    list[str],
    typer.Option(
        "--lora",
        help="The LoRA: a .safetensors file, or a name of the demo's adapters. Repeat it to check a stack.",
        rich_help_panel=_ADAPTING,
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        help="How strongly the adapter is applied. Default: 1. With several --lora give one for each.",
        rich_help_panel=_ADAPTING,
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference-lora",
        help="The file that qcheck qat calibrated --lora from: at full precision it is what the artifact is held to. "
        "One for each --lora.",
        rich_help_panel=_ADAPTING,
    ),
]
Common = Annotated[
    list[str] | None,
    typer.Option(
        "--with-lora",
        help="A LoRA that belongs to base and adapted alike, such as a step-distillation one: FILE or FILE=WEIGHT.",
        rich_help_panel=_ADAPTING,
    ),
]
Unmatched = Annotated[
    bool,
    typer.Option(
        "--allow-unmatched",
        help="Check an adapter of which some layers are not in this base.",
        rich_help_panel=_ADAPTING,
    ),
]
Board = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="The board: a name in targets/, or a TOML file.",
        autocompletion=named(target.FOLDER),
        rich_help_panel=_ADAPTING,
    ),
]

Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        "-s",
        help="A scheme by name or TOML file; repeatable. Default: all that quantize and that TensorRT runs on the "
        f"target. `{ALL}`: those, the unquantized controls and what PyTorch or ONNX Runtime runs there, "
        f"in the orders {', '.join(MERGES)}.",
        autocompletion=named(scheme.FOLDER, ALL),
        rich_help_panel=_QUANTIZING,
    ),
]
Artifacts = Annotated[
    list[Path] | None,
    typer.Option(
        "--artifact",
        help="A denoiser that someone else quantized, LoRA included: an ONNX file, or a folder that optimum wrote; "
        "repeatable. It is judged alone unless a --scheme is named too.",
        rich_help_panel=_QUANTIZING,
    ),
]
Orders = Annotated[
    list[str] | None,
    typer.Option(
        "--order",
        help=f"When the adapter is merged: {', '.join(ORDERS)}; repeatable. Default: {ORDERS[0]}.",
        autocompletion=orders,
        rich_help_panel=_QUANTIZING,
    ),
]
Scheme = Annotated[
    str,
    typer.Option(
        "--scheme",
        "-s",
        help="A scheme by name or TOML file.",
        autocompletion=named(scheme.FOLDER),
        rich_help_panel=_QUANTIZING,
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        "--order",
        help=f"When the adapter is merged: {', '.join(ORDERS)}. Default: {ORDERS[0]}.",
        autocompletion=orders,
        rich_help_panel=_QUANTIZING,
    ),
]
Merges = Annotated[
    list[str] | None,
    typer.Option(
        "--order",
        help=f"When the adapter is merged; repeatable. Default: {', '.join(MERGES)}.",
        autocompletion=orders,
    ),
]
Kept = Annotated[
    str, typer.Option("--recipe", help="Whose kept layers are left out.", autocompletion=named(recipe.FOLDER))
]
MaxRank = Annotated[
    int | None,
    typer.Option(
        "--max-rank",
        min=1,
        help="With --order bound: the rank of the adapter's inputs. Default: the adapter's own.",
        rich_help_panel=_QUANTIZING,
    ),
]
BoundWith = Annotated[
    list[str] | None,
    typer.Option(
        "--bound-with",
        help="With --order bound: another LoRA that the same file has to take, FILE or FILE=WEIGHT; repeatable. A "
        "bundle carries it too.",
        rich_help_panel=_QUANTIZING,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="The calibration recipe, by name or TOML file.",
        autocompletion=named(recipe.FOLDER),
        rich_help_panel=_QUANTIZING,
    ),
]
RangesFile = Annotated[
    Path | None,
    typer.Option(
        "--ranges",
        help="Ranges that `qcheck calibrate` wrote, instead of calibrating now; they must fit base, LoRA and scheme.",
        rich_help_panel=_QUANTIZING,
    ),
]
Limits = Annotated[
    str,
    typer.Option(
        "--limits",
        help="The limits of the verdict, by name or TOML file.",
        autocompletion=named(limits.FOLDER),
        rich_help_panel=_QUANTIZING,
    ),
]

StylePictures = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Pictures of the LoRA's style, each with its caption in a .txt of the same name: how much of its benefit "
        "on them is left. At most 32 are used.",
        rich_help_panel=_QUANTIZING,
    ),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="KIND=PATH",
        help="A network of yours that looks at the pictures too: clip=DIR or dinov2=DIR, as transformers saves them, "
        "or lpips=FILE. It decides nothing. Repeatable.",
        rich_help_panel=_QUANTIZING,
    ),
]
Require = Annotated[
    str | None,
    typer.Option(
        "--require",
        help="What makes exit code 0: `all` cases pass, or `any`. Default: all where schemes are named, else any.",
        rich_help_panel=_RUNNING,
    ),
]

Probes = Annotated[
    str | None,
    typer.Option(
        help="The probe set to judge on, by name or TOML file.",
        callback=config.unless_overridden("prompts"),
        autocompletion=named(probe.FOLDER),
        rich_help_panel=_PROBING,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        callback=config.unless_overridden("probes"),
        help="A text file of prompts to judge on instead, one a line; few are repeated with other seeds. A line [name] "
        "begins a group: the adapter has to survive in each.",
        rich_help_panel=_PROBING,
    ),
]
Trigger = Annotated[
    str | None, typer.Option(help="Words that wake the adapter, put before every prompt.", rich_help_panel=_PROBING)
]
Steps = Annotated[int | None, typer.Option(min=1, help="Solver steps of a probe.", rich_help_panel=_PROBING)]
Guidance = Annotated[float | None, typer.Option(min=0.0, help="Guidance scale.", rich_help_panel=_PROBING)]
Seed = Annotated[
    str | None,
    typer.Option(
        parser=probe.draw,
        metavar="N|random",
        help="Seed of the first probe. random: draw it, and the timesteps at which arms are compared; the report says "
        "what was drawn, and random:N repeats it.",
        rich_help_panel=_PROBING,
    ),
]
Width = Annotated[int | None, typer.Option(min=8, help="Width in pixels.", rich_help_panel=_PROBING)]
Height = Annotated[int | None, typer.Option(min=8, help="Height in pixels.", rich_help_panel=_PROBING)]

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Default: qcheck-out/ADAPTER-TIME; of an export ADAPTER-SCHEME-TIME.",
        rich_help_panel=_RUNNING,
    ),
]
_BUNDLING = "Bundle for the board"
BundleFolder = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="DIR",
        help="Write a bundle that the board verifies by itself (docs/board.md); its size is said before it is written.",
        rich_help_panel=_BUNDLING,
    ),
]
BundleProbes = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Probes in the bundle. Default: as many as the verdict takes, at most 16.",
        rich_help_panel=_BUNDLING,
    ),
]
BaseArm = Annotated[
    bool,
    typer.Option(
        "--base-arm",
        help="The board also runs the quantized base, instead of taking the host's run of it: twice the file.",
        rich_help_panel=_BUNDLING,
    ),
]
Twin = Annotated[
    bool,
    typer.Option(
        "--twin/--no-twin",
        help="Also the denoiser in 16 bit: the board times it beside the quantized one.",
        rich_help_panel=_BUNDLING,
    ),
]
Pack = Annotated[bool, typer.Option("--pack", help="Also one file to send, DIR.tar.zst.", rich_help_panel=_BUNDLING)]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what an earlier run wrote at --out, once the new is whole. Nothing else is ever replaced.",
        rich_help_panel=_RUNNING,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print report.json (an export: manifest.json) on standard output, and nothing else there.",
        rich_help_panel=_RUNNING,
    ),
]
Build = Annotated[
    bool,
    typer.Option(
        "--build/--no-build",
        help="Compile with TensorRT-RTX where it is installed.",
        rich_help_panel=_RUNNING,
    ),
]
Most = Annotated[
    int | None, typer.Option("--max-probes", min=2, help="Stop adding probes here.", rich_help_panel=_PROBING)
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Neither use nor keep anything of earlier runs.", rich_help_panel=_RUNNING),
]
Device = Annotated[
    str,
    typer.Option(
        envvar="QCHECK_DEVICE",
        metavar="auto|cpu|cuda[:N]",
        help="Computes everything but files and engines; auto: the first CUDA device, if there is one.",
        rich_help_panel=_RUNNING,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="float32|tf32",
        help="Of torch's products on a GPU: tf32 is faster, and its error is measured.",
        rich_help_panel=_RUNNING,
    ),
]
Threads = Annotated[
    int, typer.Option(min=1, envvar="QCHECK_THREADS", help="Processor threads.", rich_help_panel=_RUNNING)
]
Batch = Annotated[
    int,
    typer.Option(min=1, help="Probes that run together; lower it when memory is short.", rich_help_panel=_RUNNING),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print the verdicts alone (an export: its folder), and no progress.",
        rich_help_panel=_RUNNING,
    ),
]
Log = Annotated[
    Path | None,
    typer.Option("--log", help="Append stages, warnings and errors to this file.", rich_help_panel=_RUNNING),
]
Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        metavar="URI",
        help="Log verdicts and measurements to this MLflow, a run a case.",
        rich_help_panel=_RUNNING,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar=config.VARIABLE,
        callback=config.load,
        is_eager=True,
        help=f"A file of defaults for these options. Default: {config.NAME} here or in the nearest folder above.",
        rich_help_panel=_RUNNING,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Show every option and where its value comes from; run nothing.",
        rich_help_panel=_RUNNING,
    ),
]
