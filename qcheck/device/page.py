"""verify.txt: what a person at the board reads."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from .text import visible

_MARKS = {"pass": "ok", "fail": "FAIL", "undecided": "open"}


def text(verification: Mapping[str, Any]) -> str:
    """The page of a verification."""
    lines = [
        *_head(verification),
        "",
        *_measurements(verification["measurements"]),
        "",
        *_components(verification["components"]),
    ]
    explained = verification["explained"]
    lines += ["", "distance of the denoiser's output here, as signal over error:"]
    lines += [f"  from the host's run of the same file  {_number(explained['host_gap_db'])} dB"]
    lines += [f"  of the host's run from full precision {_number(explained['host_error_db'])} dB"]
    if verification["not_measured"]:
        lines += [
            "",
            "not measured here:",
            *(f"  {name}: {why}" for name, why in sorted(verification["not_measured"].items())),
        ]
    if verification["warnings"]:
        lines += ["", *(f"warning: {warning}" for warning in verification["warnings"])]
    whole = "\n".join(["\n".join(lines), *(text(other) for other in verification["others"])])
    return visible(whole).rstrip("\n") + "\n"


def _head(verification: Mapping[str, Any]) -> list[str]:
    asked, board = verification["asked"], verification["board"]
    release = f", {board['release']}" if board.get("release") else ""
    runner = verification["runner"]
    here = runner["name"] if runner["deployed"] else f"{runner['name']}: numerics only, not the deployed engine"
    probes = verification["probes"]
    numerics = "" if runner["deployed"] else " (numerics only)"
    return [
        f"{verification['verdict']}{numerics}  {asked['scheme']} {asked['order']} for {asked['target']}",
        *(f"  {reason}" for reason in verification["reasons"]),
        "",
        f"board   {board['model']}{release}, power mode {board.get('power_mode', 'unknown')}",
        f"runner  {here}",
        f"bundle  {asked['adapter']} on {asked['base']}, {probes} probes, guidance {asked['guidance']:g}",
        f"host    {asked['verdict']} on the same probes, by {asked['host_machine']}",
    ]


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _measurements(measurements: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in measurements:
        name = f"{one['name']} ({one['arm']})"
        interval = f"[{_number(one['low'])}, {_number(one['high'])}]"
        sides = [
            *([] if one["limit"]["low"] is None else [f">= {one['limit']['low']:g}"]),
            *([] if one["limit"]["high"] is None else [f"<= {one['limit']['high']:g}"]),
        ]
        at = f" {one['where']}" if one["where"] else ""
        value = f"{_number(one['value'])} {one['unit']}"
        lines.append(f"  {_MARKS[one['status']]:5} {name:27} {value:>14}  {interval:18} {' and '.join(sides)}{at}")
    return lines


def _components(components: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in components:
        lines.append(f"{one['name']}: {one['bytes'] / 1e6:.1f} MB of ONNX")
        build, precision, cost = one.get("build"), one.get("precision"), one["cost"]
        if build:
            reused = "used again" if build["reused"] else f"built in {build['seconds']:.0f} s"
            lines.append(f"  engine {build['engine_bytes'] / 1e6:.1f} MB, {reused}")
            lines += [f"  not at optimization level {level}: {failure}" for level, failure in build["attempts"]]
        if precision:
            lines.append(f"  precision {precision['status']}: {precision['text']}")
        latency = cost.get("latency")
        if latency:
            lines.append(
                f"  latency median {latency['median']:.3g} ms, p90 {latency['p90']:.3g}, p95 {latency['p95']:.3g} "
                f"({latency['count']} calls, drift {100 * latency['drift']:+.1f} %)"
            )
        lines += [f"  latency inconclusive: {doubt}" for doubt in cost.get("doubts", [])]
        energy = cost.get("energy")
        if energy:
            lines.append(f"  energy {energy['joules']:.3g} J a call, {energy['net_watts']:.3g} W net; indicative")
        memory = cost.get("memory")
        if memory:
            lines.append(f"  memory {memory / 1e6:.0f} MB for the engine and its activations")
        lines += [f"  {name} not measured: {why}" for name, why in sorted(cost.get("missing", {}).items())]
    return lines
