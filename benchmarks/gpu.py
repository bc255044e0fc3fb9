"""A check on a GPU: whether it agrees with the CPU, and what it costs beside the bare forwards it needs.

``python -m benchmarks.gpu agree [SCHEME ...]`` checks the demo on both devices, each with a cache of its own, and
prints how far every measurement moved, in units of the half of its interval on the CPU; ``--cpu FOLDER`` takes a check
that was run before instead, ``--cuda FOLDER`` keeps the other. ``python -m benchmarks.gpu keys`` shows that the CUDA
results of a cache are not found from the CPU. ``python -m benchmarks.gpu cost sd15 sdxl`` writes pipelines of those
shapes with random weights and runs the reference, calibration, alignment, sensitivity and both quantized arms on them;
it prints seconds a stage, and the seconds of the same number of rows in a plain loop with the same module in float32;
``--stored`` keeps the weights in 16 bit, as a machine does whose memory is small beside them.

Nothing is fetched. ``--device cpu`` runs the same code without a GPU.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qcheck
from benchmarks import shapes
from qcheck.api.request import check_spec
from qcheck.core.cache import Cache
from qcheck.core.progress import Advance
from qcheck.diagnose import alignment, sensitivity
from qcheck.model import parts
from qcheck.model.components import copied
from qcheck.quantize.artifact import QuantizedArm
from qcheck.result.report import Case
from qcheck.runtime.runner import Runner
from qcheck.sampling import sampler, subject
from qcheck.spec.check import CheckSpec
from qcheck.tasks import check
from qcheck.tasks import session as sessions
from qcheck.tasks.session import Session

_SCHEMES = ("int8", "fp8", "int4-g128", "int4-g32", "nvfp4", "fp16")
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"steps": 4, "max_probes": 2, "width": 64, "height": 64},
    "sd15": {"steps": 20, "max_probes": 8, "width": 512, "height": 512},
    "sdxl": {"steps": 8, "max_probes": 4, "width": 1024, "height": 1024},
}
_TARGET = "jetson-thor-t5000"  # it has every format
_BACKWARD = 2  # forwards that a backward pass counts as


class Stages:
    """Progress that keeps seconds and rows by stage."""

    def __init__(self, device: str) -> None:
        self._device, self._stage, self._call = device, "", sampler.call
        self.seconds: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    def note(self, text: str) -> None:
        """As ``Progress.note``."""
        print(f"  {text}", flush=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """As ``Progress.stage``."""
        self._stage, start = title, time.perf_counter()
        yield lambda _: None
        if self._device != "cpu":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
        self.seconds[title] += spent
        print(f"  {spent:.1f} s {title}", flush=True)

    def __call__(self, runner: Runner, inputs: Mapping[str, np.ndarray], latent: str) -> np.ndarray:
        """As ``runtime.runner.call``, counted."""
        self.rows[self._stage] += len(inputs[latent])
        return self._call(runner, inputs, latent)


def agree(schemes: list[str], device: str, threads: int | None, cpu: Path | None, cuda: Path | None) -> None:
    """Print how far verdicts and gated measurements of two devices lie from each other."""
    reports = {}
    for name, folder in (("cpu", cpu), (device, cuda)):
        if folder is not None and (folder / "report.json").exists():
            reports[name] = qcheck.load_report(folder)
            continue
        options: Any = {"scheme": schemes, "target": _TARGET, "max_probes": 8, "threads": threads}
        reports[name] = qcheck.check("demo", lora="flat", build=False, cache=False, device=name, **options)
        print(f"{name}: {json.dumps(reports[name].provenance.seconds)}", flush=True)
        if folder is not None:
            reports[name].save(folder)
    for case in reports["cpu"].cases:
        compare(case, reports[device][case.scheme, case.order])


def compare(ours: Case, theirs: Case) -> None:
    """Print both verdicts of a case, its survival, and the gated measurements that moved farthest."""
    values = {(measurement.name, measurement.arm): measurement.value for measurement in theirs.measurements}
    moves = []
    for measurement in ours.measurements:
        name = (measurement.name, measurement.arm)
        value, low, high = measurement.value, measurement.low, measurement.high
        other = values.get(name)
        if measurement.limit is None or None in (value, low, high, other):
            continue
        half = (high - low) / 2
        moves.append((abs(other - value) / half if half else float("nan"), name, value, other))
    survivals = [case["effect_survival"].value for case in (ours, theirs)]
    print(f"{ours.scheme} {ours.order}, {theirs.ran_as}: {ours.verdict} {survivals[0]:.4f} -> ", end="")
    print(f"{theirs.verdict} {survivals[1]:.4f} {'; '.join(theirs.warnings)}")
    for distance, (name, arm), value, other in sorted(moves, key=lambda move: -np.nan_to_num(move[0]))[:3]:
        print(f"    {name} {arm}: {value:.6g} -> {other:.6g}, {distance:.2g} of half its interval", flush=True)


def keys(device: str) -> None:
    """Run a reference on the device, and look for it from the CPU."""
    with tempfile.TemporaryDirectory() as name:
        store = Cache(Path(name))
        for place in (device, "cpu"):
            spec = check_spec("demo", "flat", scheme="int8", steps=2, max_probes=2, build=False, device=place)
            with sessions.opened(spec, store, Stages(place)) as session:
                known = session.sampler.known(subject.full(session.arms, "adapted"))
                print(f"reference of {session.arms.device.title} in the cache before it runs: {known}", flush=True)
                session.reference.take(2)


def stages_of(session: Session) -> None:
    """Every stage that calls the denoiser, in the order of a check, without files."""
    (scheme,), orders, count = session.spec.schemes, session.spec.orders, session.spec.bounds.looks[0]
    reference = session.reference.take(count)
    alignment.find(session.arms, session.sampler, reference["adapted"], session.watch)
    sources = replace(session.sources(scheme), twin=False)
    contents = {
        "base": lambda: contents.of_base(session.arms, scheme, sources.recipe, sources.ranges),
        "adapted": lambda: contents.of_adapted(session.arms, scheme, sources.recipe, orders[0], sources.ranges),
    }
    sensitivity.find(session.arms, sources, session.sampler, reference["adapted"], orders, session.watch)
    for side, content in contents.items():
        arm = QuantizedArm(f"{sources.key('base')} {side}", None, content)
        quantized = session.quantized(f"{scheme.name} {side}", side, arm, scheme)  # type: ignore[arg-type]
        check.trace_artifact(session, quantized, reference["adapted"])
    session.decoder.pictures(reference["adapted"], count)


def bare(session: Session, rows: int) -> float:
    """Seconds of one row in a plain loop over the adapted denoiser, ``rows`` at a time."""
    device = session.arms.device
    inputs = {
        name: torch.from_numpy(
            value if name in session.sampler.setup.family.fixed else np.resize(value, (rows, *value.shape[1:]))
        )
        for name, value in session.example.items()
    }
    with torch.no_grad(), session.arms.running("adapted") as family:
        entry = family.entry(copied(family.module, dtype=torch.float32))
        moved = {name: value.to(device.torch) for name, value in inputs.items()}
        spent = []
        for _ in range(6):
            start = time.perf_counter()
            entry(**moved)
            if not device.is_host:
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - start)
    return float(np.median(spent[1:])) / rows


def cost(name: str, device: str, threads: int | None, scheme: str) -> None:
    """Print the cost of a shape's stages beside that of their bare forwards."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = time.perf_counter()
        base = shapes.write(name, folder, device, samples=4, strata=4)
        if device != "cpu":
            torch.cuda.empty_cache()
        print(f"{name}: written in {time.perf_counter() - start:.0f} s", flush=True)
        options = dict(_SHAPES[name])
        spec: CheckSpec = check_spec(
            str(base),
            str(folder / "lora.safetensors"),
            scheme=scheme,
            recipe=str(folder / "few.toml"),
            guidance=5.0,
            build=False,
            device=device,
            threads=threads,
            **options,
        )
        stages = Stages(device)
        sampler.call = stages
        try:
            with sessions.opened(spec, Cache(folder / "cache"), stages) as session:
                stages_of(session)
                peak = session.arms.device.peak()
                rows = min(spec.execution.batch, options["max_probes"]) * 2
                row = _bare_row(session, rows)
        finally:
            sampler.call = stages._call
        points = len(sensitivity.places(session.sampler.setup.weights, options["max_probes"], sensitivity.STATES))
        passes = 2 * points * (1 + _BACKWARD * sensitivity.DRAWS)
        report(stages, row, passes, rows, peak)


def _bare_row(session: Session, rows: int) -> float:
    while True:
        try:
            return bare(session, rows)
        except torch.OutOfMemoryError:
            rows //= 2
        session.arms.device.release()


def report(stages: Stages, row: float, passes: int, rows: int, peak: int | None) -> None:
    """The table of one shape; ``passes`` are the forwards that sensitivity counts as."""
    total = needed = 0.0
    print(f"  bare: {1e3 * row:.1f} ms a row, {rows} rows a call; peak {(peak or 0) / 1e9:.1f} GB of torch's tensors")
    for title, seconds in stages.seconds.items():
        count = passes if title.endswith("sensitivity") else stages.rows[title]
        loop = row * count
        ratio = f"{seconds / loop:.2f} x" if loop else "no forwards"
        print(f"  {seconds:7.1f} s  {loop:7.1f} s bare  {ratio:>12}  {count:5d} rows  {title}", flush=True)
        if loop:
            total, needed = total + seconds, needed + loop
    whole = sum(stages.seconds.values())
    print(
        f"  stages with forwards {total:.1f} s, {total / needed:.2f} x their bare forwards; all {whole:.1f} s",
        flush=True,
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agree", "keys", "cost"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--stored", action="store_true", help="keep the weights in 16 bit, whatever memory there is")
    parser.add_argument("--cpu", type=Path)
    parser.add_argument("--cuda", type=Path)
    given = parser.parse_args()
    if given.stored:
        parts.SHARE = 0.0
    if given.what == "agree":
        agree(given.names or [*_SCHEMES], given.device, given.threads, given.cpu, given.cuda)
    elif given.what == "keys":
        keys(given.device)
    else:
        for name in given.names:
            cost(name, given.device, given.threads, given.scheme)


if __name__ == "__main__":
    main()
