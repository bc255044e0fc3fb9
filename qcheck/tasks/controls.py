"""The controls of a scheme: whether export, compute type and simulation leave the reference as it is."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qcheck.core.digest import digest_of
from qcheck.device.arithmetic import decibels
from qcheck.measure import control
from qcheck.measure.control import Control
from qcheck.measure.sample import EXACT
from qcheck.model.device import CPU
from qcheck.quantize.artifact import TWIN
from qcheck.result.manifest import model_files
from qcheck.runtime.ort_runner import COMPUTES
from qcheck.runtime.runner import MismatchError
from qcheck.sampling import subject
from qcheck.sampling.setup import Subject, forwards
from qcheck.sampling.store import Trace
from qcheck.spec.scheme import Scheme
from qcheck.tasks.decide import Instrument
from qcheck.tasks.session import Session


def run(session: Session, scheme: Scheme) -> tuple[np.ndarray, Instrument]:
    """The floor [T] of all errors, which is that of f1 in the compute type, and what measurements are held against."""
    noise = _control(session, scheme.compute)
    floor = np.nan_to_num(noise, nan=0.0, posinf=0.0)
    return floor, yardsticks(session, [_export_control(session), _everywhere(session, "compute_control", noise)])


def yardsticks(session: Session, controls: Sequence[Control] = ()) -> Instrument:
    """Changes of known size to the reference, beside the ``controls`` of a scheme."""
    return Instrument(controls, session.yardsticks.weakened, session.yardsticks.another_seed)


def _everywhere(session: Session, name: str, noise: np.ndarray) -> Control:
    setup = session.sampler.setup
    return Control(name, noise, tuple(range(len(setup.strata))), setup.timesteps())


def _export_control(session: Session) -> Control:
    """The exported reference against the reference: at all states, or at one where the file runs on the processor."""
    if session.runs_files:
        return _everywhere(session, "export_control", _control(session, TWIN))
    place, error = at_one_state(session, session.exported("adapted", TWIN, CPU))
    return Control("export_control", error, (place,), (session.sampler.setup.timesteps()[place],))


def at_one_state(session: Session, arm: Subject, against: Trace | None = None) -> tuple[int, np.ndarray]:
    """Relative error power [1] of an arm at the first probe's middle stratum, and the index of that.

    The error is against f1, or the trace ``against`` of another arm at f1's states.
    """
    f1 = session.reference.take(session.spec.bounds.looks[0])["adapted"]
    setup = session.sampler.setup
    place = len(setup.strata) // 2
    one = replace(session.sampler.take(1), setup=replace(setup, strata=(setup.strata[place],)))
    here = slice(place, place + 1)
    with session.watch.stage(f"{arm.name} on the CPU, one state", 1) as advance, arm.open() as runner:
        outputs = one.outputs(runner, arm.side, [f1.states()[0][here]], advance)
    return place, control.noise(outputs, [(against or f1).outputs()[0][here]])


def _control(session: Session, compute: str) -> np.ndarray:
    """Relative error power [T] of f1 in ``compute`` on the first look's probes."""
    sampler = session.sampler.take(session.spec.bounds.looks[0])
    f1 = session.reference.take(len(sampler.probes))["adapted"]
    calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
    with session.watch.stage(f"control: reference in {compute}", calls) as advance:
        trace = sampler.forced(session.computing("adapted", compute), f1, advance)
    return control.noise(trace.outputs(), f1.outputs())


_MARGIN = 15.0  # dB by which the reference's own error has to lie under the error that is judged


def precision_warnings(session: Session, q1: Trace) -> Iterator[str]:
    """The error of a TF32 reference, where it is too close to that of q1, whose outputs ``q1`` holds, in words."""
    floor, setup = reference_floor(session), session.sampler.setup
    if floor is None:
        return
    judged = control.noise(q1.outputs()[:1], session.reference.take(len(q1.paths))["adapted"].outputs()[:1])
    margins = np.minimum(decibels(judged, floor), EXACT)
    worst = int(np.argmin(margins))
    if not margins[worst] >= _MARGIN:
        yield (
            f"the TF32 reference's own error lies only {margins[worst]:.0f} dB under the error that is judged, at "
            f"timestep {setup.timesteps()[worst]:g} (at least {_MARGIN:.0f}): check again with --precision float32"
        )


def reference_floor(session: Session) -> np.ndarray | None:
    """Relative error power [T] of f1 in TF32 at the states of the first probe; None where f1 is in float32."""
    if not session.arms.device.tf32:
        return None
    sampler = session.sampler.take(1)
    f1 = session.reference.take(session.spec.bounds.looks[0])["adapted"]
    f1 = replace(f1, paths=f1.paths[:1])
    calls = forwards(sampler.setup, 0, 1, 1)
    with session.watch.stage("control: reference in float32", calls) as advance:
        exact = sampler.forced(subject.exact(session.arms, "adapted"), f1, advance)
    return control.noise(f1.outputs(), exact.outputs())


# Least agreement of a simulation with its file, dB. Where inputs are quantized, float16 arithmetic moves some of them
# to the neighbouring code: 21 and 19 dB were left of the demo's int8 and fp8, 59 of int4-g128 (docs/gpu.md).
_AGREEMENT = 10.0


def simulation_warnings(session: Session, scheme: Scheme, title: str, file: Path | None, trace: Trace) -> Iterator[str]:
    """The agreement of a simulated q1, whose outputs ``trace`` holds, with its ``file``, in words.

    Nothing for an arm that is not simulated.

    Raises:
        MismatchError: they differ by more than codes beside each other explain: a bug.
    """
    if session.runs_files or file is None:
        return
    place = session.arms.device.title
    if scheme.decoded or scheme.compute not in COMPUTES:
        yield f"simulated on {place}; ONNX Runtime cannot run its file here to compare"
        return
    arm = session.stored(f"{title}: file of q1", "adapted", file, digest_of(*model_files(file)), CPU)
    _, error = at_one_state(session, arm, trace)
    agreement = float(decibels(np.ones(1), error)[0])
    if not agreement >= _AGREEMENT:
        raise MismatchError(f"the simulation of {title} and its file agree to {agreement:.1f} dB only")
    yield f"simulated on {place}; its file, run on the CPU, agrees to {agreement:.0f} dB at one state"
