"""``qcheck inspect``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import inspection as functions
from qcheck.api.inspection import Inspecting
from qcheck.cli import options, terminal
from qcheck.cli.progress import Bars
from qcheck.core.errors import UserError, listed
from qcheck.core.progress import Silent
from qcheck.report import attribution
from qcheck.report import inspection as report
from qcheck.result.attribution import answer as answer_of_file
from qcheck.result.inspection import Inspection, Refusal, answer
from qcheck.spec import scheme


def inspect(
    loras: Annotated[
        list[str],
        typer.Argument(
            help="LoRAs: .safetensors files, folders of them, patterns, or names of the demo's. Or one ONNX file.",
            metavar="L...",
            autocompletion=options.adapters,
        ),
    ],
    base: Annotated[str | None, typer.Option(help="The base they are meant for: a pipeline folder, or `demo`.")] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="A LoRA that may be in the ONNX file; repeatable.",
            autocompletion=options.adapters,
        ),
    ] = None,
    weight: Annotated[float, typer.Option(help="How strongly the adapter is applied.")] = 1.0,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            help="Repeatable. Default: all that weights alone forecast.",
            autocompletion=options.named(scheme.FOLDER),
        ),
    ] = None,
    orders: options.Merges = None,
    ranges: options.Kept = "general",
    details: Annotated[
        bool,
        typer.Option("--details", help="Read every weight: minutes on a large base. Says what becomes of each layer."),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print everything as JSON: a document, or of several files a line for each."),
    ] = False,
) -> None:
    """Say in a word whether a LoRA does anything on this base, in each order and scheme, without running it.

    It exits 0 if the LoRA arrives in every scheme and order that is named, and in at least one of those that are
    not; 1 if it does not; 2 if a file cannot be inspected.

    `qcheck inspect style.safetensors --base sdxl/ --scheme int8 --order merge-quantize`

    Of an ONNX file, whoever quantized it, it says which of the given LoRAs are in its weights, at which weight, merged
    in which order. It exits 0 if all of them are, at --weight, and have arrived; 1 if not; 3 if that is undecided.

    `qcheck inspect model.onnx --base sdxl/ --lora style.safetensors --lora other.safetensors`
    """
    if candidates is not None or _is_file_of_weights(loras):
        _require_attribution(loras, base, candidates, bool(schemes or orders or details))
        _attribute(loras[0], str(base), candidates or [], weight, as_json)
        return
    asked = Inspecting(weight=weight, scheme=schemes, order=orders, recipe=ranges, details=details)
    bars = Silent() if as_json else Bars(terminal.console(stderr=True))
    single = len(loras) == 1 and functions.is_one(loras[0])
    answers: Iterator[Inspection | Refusal]
    if single:
        answers = iter([functions.inspect(loras[0], base, progress=bars, **asked)])
    else:
        answers = functions.inspect_each(loras, base, progress=bars, **asked)
    results = []
    for result in answers:
        results.append(result)
        if as_json:
            typer.echo(result.model_dump_json(indent=1 if single else None))
    if not as_json:
        _show(results, single)
    code = max(2 if isinstance(one, Refusal) else answer(one, bool(schemes), bool(orders)) for one in results)
    if code:
        raise typer.Exit(code)


def _is_file_of_weights(sources: Sequence[str]) -> bool:
    return any(Path(source).suffix == ".onnx" for source in sources)


def _require_attribution(
    sources: Sequence[str], base: str | None, candidates: Sequence[str] | None, forecasts: bool
) -> None:
    """Refuse an ONNX file without what it is compared with, or with what is asked of adapters alone."""
    if len(sources) > 1 or base is None or not candidates:
        raise UserError(
            f"{listed(sources)}: an ONNX file is compared with a base and with LoRAs that may be in it",
            "Give one file: qcheck inspect FILE.onnx --base B --lora L1 --lora L2.",
        )
    if forecasts:
        raise UserError(
            f"{sources[0]!r} is a file as it is: --scheme, --order and --details are of forecasts",
            "Leave them out.",
        )


def _attribute(file: str, base: str, candidates: Sequence[str], weight: float, as_json: bool) -> None:
    """Print which adapters a file holds, and exit by the answer."""
    bars = Silent() if as_json else Bars(terminal.console(stderr=True))
    result = functions.attribute(file, base, [*candidates], weight=weight, progress=bars)
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        attribution.show(result, terminal.console())
    if code := answer_of_file(result):
        raise typer.Exit(code)


def _show(results: Sequence[Inspection | Refusal], single: bool) -> None:
    console = terminal.console()
    first = results[0]
    if single and isinstance(first, Inspection):
        report.one(first, console)
    else:
        report.several(results, console)
