"""The report for a terminal: what a person understands in ten seconds."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.core.errors import listed
from qcheck.core.size import megabytes
from qcheck.report.next_command import next_command
from qcheck.report.numbers import ARMS, MARKS, Concluded, bounds, decided, limit, number, rest, shown
from qcheck.result.build import Build
from qcheck.result.measurement import Judged
from qcheck.result.report import Case, LayerShare, Report
from qcheck.result.verdict import Outcome
from qcheck.result.verified import Verified
from qcheck.spec import measurement, order

COLOURS: dict[Outcome, str] = {
    "PASS": "bold green",
    "NEEDS-QAT": "bold yellow",
    "FAIL-RECIPE": "bold red",
    "FAIL-ADAPTER": "bold red",
    "INCONCLUSIVE": "bold magenta",
    "INVALID": "bold magenta",
}


def order_loses(case: Case) -> bool:
    """Whether the cure of a case is another order: the adapter was merged into weights that are quantized already."""
    known = case.order in order.ORDERS  # the order of a file that someone else quantized is not known
    return case.verdict == "NEEDS-QAT" and known and order.merge(order.find(case.order)).rounds_change_alone


CURE = "the order loses it: merge before quantizing"


def build_line(build: Build) -> str:
    """How a build ended, its time and memory, and the precision of its engine."""
    if build.status == "not run":
        return f"not run: {build.detail}"
    what = f"{build.builder} for SM {build.capability}{' (proxy)' if build.proxy else ''}"
    cost = f"in {build.seconds or 0:.0f} s with {(build.peak_memory_mb or 0) / 1e3:.1f} GB"
    if build.status not in ("built", "fell back") or build.bytes is None or build.realised is None:
        return f"{build.status} ({what}): {build.detail}"
    realised = f"\nrealised: {build.realised.text()}" if build.realised.layers else ""
    fallback = f"\n{build.detail}" if build.status == "fell back" else ""
    return f"{build.status} by {what} {cost}, engine of {megabytes(build.bytes)}{realised}{fallback}"


def measurements(case: Concluded) -> Table:
    """The measurements that decide or explain a verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("measurement", "arm", "value", "95 % bounds", "limit", ""):
        left = title in ("measurement", "arm", "")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for judged in case.measurements:
        if shown(judged):
            table.add_row(*_row(judged))
    return table


def _row(judged: Judged) -> tuple[str | Text, ...]:
    word, style = MARKS.get(judged.status, ("", "dim"))
    if judged.value is None:
        return judged.name, ARMS[judged.arm], "-", "-", limit(judged), Text("not measured", style="bold magenta")
    return judged.name, ARMS[judged.arm], number(judged), bounds(judged), limit(judged), Text(word, style)


_TOP = 5


def _share_line(layer: LayerShare) -> str:
    """A layer's share of the gap, with its standard error, and which of its two roundings makes most of it."""
    part = "input" if layer.activation > layer.weight else "weight"
    return f"{100 * layer.share:.0f} % (+-{100 * layer.standard_error:.0f}) of the gap: {layer.name}, its {part}"


def _comparison(report: Report) -> Table:
    """All cases side by side: a few measurements of the adapted arm, marked where outside their limit."""
    columns = {
        definition.column: name for name, definition in measurement.every().items() if definition.column is not None
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scheme", no_wrap=True)
    table.add_column("order", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for case in report.cases:
        by_key = {(m.name, m.arm): m for m in case.measurements}
        cells = [_cell(by_key.get((name, "adapted"))) for name in columns.values()]
        table.add_row(case.scheme, case.order, *cells, Text(case.verdict, COLOURS[case.verdict]))
    return table


def _cell(judged: Judged | None) -> Text:
    if judged is None or judged.value is None:
        return Text("-")
    _, style = MARKS.get(judged.status, ("", ""))
    mark = {"fail": "*", "undecided": "?"}.get(judged.status, "")
    return Text(f"{judged.value:.2f}{mark}", style if mark else "")


def artifact_bytes(case: Case) -> int | None:
    """Size of the file for the device."""
    return case.artifact[0].bytes if case.artifact else None


def _summary(report: Report) -> Table:
    table = Table(box=box.ROUNDED)
    for title in ("scheme", "order", "denoiser -> artifact", "build", "verdict"):
        table.add_column(title, overflow="fold")
    for case in report.cases:
        size = " -> ".join(megabytes(size) for size in (case.full_precision_bytes, artifact_bytes(case)) if size)
        builds = "\n".join(build_line(build) for build in case.builds) or "-"
        layers = f"\n{case.quantized_layers} quantized, {len(case.kept_layers)} in {case.compute}"
        known = case.artifact and case.quantized_layers is not None
        cells = (case.scheme, case.order, f"{size or '-'}{layers if known else ''}", builds)
        cure = f"\n{CURE}" if order_loses(case) else ""
        table.add_row(*map(Text, cells), Text(f"{case.verdict}{cure}", COLOURS[case.verdict]))
    return table


_WHERE = {"both": " in both arms", "reference": " as the reference"}


def _setup(report: Report) -> str:
    adapters = " + ".join(
        f"{Path(adapter.source).name} at weight {adapter.weight:g}{_WHERE.get(adapter.arms or '', '')}"
        for adapter in report.adapters
    )
    counts = sorted({case.probes_used for case in report.cases})
    probes = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    description = (
        f"{adapters} on {Path(report.base.source).name}, {probes} probes x {report.probes.steps} steps at guidance "
        f"{report.probes.guidance:g}, for {report.target}; effect {100 * report.effect_size:.1f} % of the output"
    )
    if report.spec.probes.drawn:
        compared = ", ".join(f"{timestep:g}" for timestep in report.probes.timesteps)
        description += f"\ndrawn: seed {report.probes.seed}, timesteps {compared}; "
        description += f"--seed {report.spec.probes.seed_option} repeats them"
    decoded_schemes = dict.fromkeys(case.scheme for case in report.cases if case.ran_as == "decoded twin")
    if decoded_schemes:
        description += (
            f"\nONNX Runtime has no kernels for {', '.join(decoded_schemes)}: the numbers come from the values that "
            "the artifact's codes stand for"
        )
    if report.unmatched:
        description += (
            f"\n{len(report.unmatched)} layers of the file are not in this base and were left out, as "
            f"--allow-unmatched asks: {', '.join(report.unmatched[:3])}{', ...' if len(report.unmatched) > 3 else ''}"
        )
    if report.idle:
        description += (
            f"\n{len(report.idle)} layers of the file are idle, as their factors are zero: "
            f"{', '.join(report.idle[:3])}{', ...' if len(report.idle) > 3 else ''}"
        )
    return description


def brief(report: Report, console: Console) -> None:
    """Print one line for each case: its verdict, scheme and order."""
    for case in report.cases:
        cure = f": {CURE}" if order_loses(case) else ""
        console.print(Text.assemble((case.outcome, COLOURS[case.outcome]), f" {case.scheme} {case.order}{cure}"))


def _answer(case: Case) -> Text:
    """The verdict of a case, and what to do next in words."""
    return Text.assemble((case.verdict, COLOURS[case.verdict]), f"  {case.scheme} {case.order}: {case.next}")


def _verdict(report: Report) -> Text:
    """The verdict of one case, or how many of several pass, in a line."""
    if len(report.cases) == 1:
        (case,) = report.cases
        return Text.assemble((case.outcome, COLOURS[case.outcome]), f" {case.scheme} {case.order}")
    passed = [f"{case.scheme} {case.order}" for case in report.cases if case.outcome == "PASS"]
    return Text(f"{len(passed)} of {len(report.cases)} pass{': ' if passed else ''}{listed(passed)}")


def _conclude(case: Case, report: Report, console: Console) -> None:
    """Print a case's verdict and all that it rests on."""
    console.print(_answer(case))
    for reason in case.reasons:
        console.print(Text(f"  because {reason}"))
    if deciding := decided(case):
        console.print(Text(f"  {deciding}"))
    for group in case.groups:
        console.print(Text(f"  {group.text()}"))
    if case.trust is not None:
        console.print(Text(f"  {case.trust.text()}"))
    for layer in case.layers[: _TOP if len(report.cases) == 1 else 1]:
        console.print(Text(f"  {_share_line(layer)}"))
    if case.estimate is not None:
        console.print(Text(f"  estimate for {report.target}: {case.estimate.text()}"))
    if case.board is not None:
        _board(case.board, console)
    for warning in case.warnings:
        console.print(Text.assemble(("  warning ", "yellow"), warning))


def boards(report: Report, console: Console) -> None:
    """Print what boards said of their own engines, beside what the host forecast."""
    for case in report.cases:
        if case.board is not None:
            console.print(Text(f"{case.scheme}, {case.order}", style="bold"))
            _board(case.board, console)


BOARD_COLOURS = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold magenta"}


def _board(board: Verified, console: Console) -> None:
    console.print(Text.assemble("  ", (board.verdict, BOARD_COLOURS[board.verdict]), f" on {board.title}"))
    for reason in board.reasons:
        console.print(Text(f"    because {reason}"))
    for line in board_lines(board):
        console.print(Text(f"    {line}"))
    for warning in board.warnings:
        console.print(Text.assemble(("    warning ", "yellow"), warning))


def board_measurement(judged: Judged) -> str:
    """A measurement of a board in one line."""
    limits = f"limit {judged.limit.text()}" if judged.limit is not None else "no limit"
    at = f" at {judged.where}" if judged.where else ""
    value = "-" if judged.value is None else measurement.beside(judged.value, judged.limit, ".3g")
    return f"{judged.name} ({judged.arm}) {value}{at}, {limits}: {judged.status}"


def board_lines(board: Verified) -> list[str]:
    """Precision, latency, memory and energy that a board measured, beside the host's forecasts."""
    cost, precision = board.denoiser.cost, board.denoiser.precision
    lines = [board_measurement(judged) for judged in board.measurements]
    lines += [f"not measured there: {name} ({why})" for name, why in board.not_measured.items()]
    lines += [] if precision is None else [f"precision {precision.status}: {precision.text}"]
    if cost.latency is not None:
        lines.append(f"latency median {cost.latency.median:.3g} ms a call, p90 {cost.latency.p90:.3g} ms")
    if board.image_ms is not None:
        lines.append(f"a picture takes {board.image_ms:.3g} ms, computed from its parts")
    if cost.energy is not None:
        lines.append(f"energy {cost.energy.joules:.3g} J a call, {cost.energy.net_watts:.3g} W net; indicative")
    for name, forecast, measured, error in board.forecasts():
        lines.append(f"{name}: {measured}, forecast {forecast}{f' ({error})' if error else ''}")
    lines += [f"latency inconclusive: {doubt}" for doubt in cost.doubts]
    return lines + [f"not measured: {name} ({why})" for name, why in cost.missing.items()]


def render(report: Report, folder: Path, console: Console) -> None:
    """Print the report, with the verdict before and after all else; ``folder`` is where its files are."""
    console.print()
    if len(report.cases) > 1:
        console.print(_comparison(report))
        console.print(
            Text(
                "survival 1: the whole adapter; excess over the base's own error and SQNR at the worst timestep in dB\n"
                "* outside its limit, ? open: the interval straddles it; every bound and limit is in report.json"
            )
        )
    for case in report.cases if len(report.cases) == 1 else ():
        console.print(_answer(case))
        console.print(measurements(case))
        console.print(Text(f"reported in report.json, without a limit: {rest(case)}\n"))
    console.print(Text(_setup(report)))
    console.print(_summary(report))
    for case in report.cases:
        _conclude(case, report, console)
    console.print(Text(f"limits: {report.limits_grounds}"))
    missing = ", ".join(item.name for item in report.not_measured)
    console.print(Text(f"not measured: {missing} (why: report.json)"))
    console.print(
        f"report   {folder / 'report.html'}\ndata     {folder / 'report.json'}\npictures {folder / 'contact.png'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(Text.assemble("verdict  ", _verdict(report)))
    if (follows := next_command(report, folder)) is not None:
        console.print(Text(f"next     {follows}"), soft_wrap=True)
