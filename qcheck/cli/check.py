"""``qcheck check`` and ``qcheck demo``."""

from collections.abc import Sequence
from typing import Annotated

import typer

from qcheck.api import functions
from qcheck.api.lazy import host
from qcheck.api.request import ALL, check_spec
from qcheck.cli import bundling, config, options, output, terminal
from qcheck.cli.groups import Adapters, Artifacts, Bundle, Machine, Output, Probes, grouped, of
from qcheck.cli.log import LOGGER
from qcheck.core.errors import UserError
from qcheck.core.folder import require_free
from qcheck.demo import library
from qcheck.report import text
from qcheck.result.report import exit_code
from qcheck.spec import scheme
from qcheck.spec.check import CheckSpec

_TRACKING = "qcheck.report.tracking"


@grouped
def check(
    context: typer.Context,
    base: options.Base,
    adapters: Adapters,
    artifacts: Artifacts,
    probes: Probes,
    bundle: Bundle,
    output: Output,
    machine: Machine,
    require: options.Require = None,
    configured: options.Config = None,
    print_config: options.PrintConfig = False,
    mlflow: options.Mlflow = None,
) -> None:
    """Check one LoRA, or a stack of them, on one base for a device.

    Writes real ONNX artifacts, compiles them where TensorRT-RTX is installed, runs matched probes against the
    full-precision reference and ends in a verdict. An interrupted run goes on where it was.

    A `qcheck.toml` in this folder or above it can hold BASE, the LoRA and every option (docs/config.md). Example:

    `qcheck check ./my-pipeline --lora style.safetensors --scheme int8 --target jetson-agx-orin-64gb`
    """
    spec = _spec(base, adapters, artifacts, probes, machine, require)
    if print_config:
        config.show(config.settings(context, spec, machine.no_cache), output.as_json)
    else:
        _run(spec, output, machine, bundle, mlflow)


@grouped
def demo(
    bundle: Bundle,
    output: Output,
    machine: Machine,
    lora: Annotated[
        str,
        typer.Argument(help="One of the shipped adapters.", metavar="ADAPTER", autocompletion=options.adapters),
    ] = "flat",
    target: options.Board = Adapters.target,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            help=f"As for check, repeatable. Default: {library.SCHEME}.",
            autocompletion=options.named(scheme.FOLDER, ALL),
        ),
    ] = None,
    orders: options.Orders = None,
    most: options.Most = None,
) -> None:
    """The same on the small trained pipeline and an adapter that ship with qcheck.

    `qcheck demo` shows one that passes, `qcheck demo faint --scheme int4-g128 --order quantize-merge` one that is lost.
    """
    adapters = Adapters(lora=[lora], target=target)
    artifacts = Artifacts(schemes=schemes or [library.SCHEME], orders=orders)
    _run(_spec(library.NAME, adapters, artifacts, Probes(max_probes=most), machine), output, machine, bundle)


def _spec(
    base: str,
    adapters: Adapters,
    artifacts: Artifacts,
    probes: Probes,
    machine: Machine,
    require: str | None = None,
) -> CheckSpec:
    return check_spec(
        base,
        [*adapters.lora],
        **adapters.keywords(),
        **artifacts.keywords(),
        **artifacts.judging(require),
        **probes.sampling(),
        probes=probes.probes,
        **probes.keywords(),
        **machine.keywords(),
    )


def parse(words: Sequence[str]) -> CheckSpec:
    """The request of a command line, from the words after ``qcheck check``. Nothing is run.

    Raises:
        UserError: as for the command.
    """
    command = typer.main.get_command(_parser)
    with command.make_context("check", list(words)) as context:
        values = context.params
        groups = (of(Adapters, values), of(Artifacts, values), of(Probes, values), of(Machine, values))
        return _spec(values["base"], *groups, values["require"])


_parser = typer.Typer()
_parser.command("check")(check)


def _run(spec: CheckSpec, destination: Output, machine: Machine, bundle: Bundle, mlflow: str | None = None) -> None:
    content, tracker = bundle.content(), None if mlflow is None else host(_TRACKING).Tracker(mlflow)
    if bundle.bundle is not None and len(spec.schemes) * len(spec.orders) != 1:
        cases = len(spec.schemes) * len(spec.orders)
        named = ", ".join(scheme.name for scheme in spec.schemes)
        raise UserError(
            f"--bundle holds one case, and the request has {cases} ({named})", "Name one --scheme and one --order."
        )
    if bundle.bundle is not None:
        require_free(bundle.bundle.resolve(), destination.overwrite, "--bundle")
    out, cache = destination.folder(spec.adapters[0].source), not machine.no_cache
    if bundle.bundle is not None and bundle.bundle.resolve() == out.resolve():
        raise UserError(f"--bundle and --out are both {str(out)!r}", "Give the bundle a folder of its own.")
    with output.session(cache, destination.silent, destination.log) as progress:
        report = functions.run(spec, out=out, overwrite=destination.overwrite, cache=cache, progress=progress)
        for case in report.cases:
            LOGGER.info("%s %s: %s", case.scheme, case.order, case.verdict)
    if tracker is not None:
        tracker.log(*host(_TRACKING).of_report(report, out))
    bundled = None
    if bundle.bundle is not None:
        bundled = bundling.written(spec, bundle.bundle, content, destination, cache)
    if destination.as_json:
        typer.echo(report.to_json(), nl=False)
    elif destination.quiet:
        text.brief(report, terminal.console())
    else:
        text.render(report, out, terminal.console())
        if bundled is not None and bundle.bundle is not None:
            bundling.tell(bundled, bundle.bundle, bundle.pack, terminal.console(), str(out))
    raise typer.Exit(exit_code(report))
