"""A bundle's probes through a runner, each result stored as it is made, so that a killed run goes on."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Callable, Mapping, Protocol

import numpy as np

from . import tensors
from .bundle import Bundle, Component, Solver
from .errors import CannotVerify

Say = Callable[[str], None]


class Runner(Protocol):
    """One component, ready to run; ``deployed`` says whether it is the engine that the device would run."""

    name: str
    deployed: bool

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, for inputs in the types of the bindings."""

    def close(self) -> None:
        """Free what it holds."""


class Results:
    """Arrays that were computed, one file each in a folder whose name tells what computed them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def obtain(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of that name, made where it is not stored whole."""
        path = self._folder / f"{name}.npy"
        if path.exists():
            try:
                stored: np.ndarray = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError):
                path.unlink()  # a board that lost power may leave a file whose bytes were never written
            else:
                return stored
        made = make()
        whole(path, lambda partial: _save(partial, made))
        return made


def _save(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()  # numpy, given a file, loses the reason why it cannot be written
    np.save(content, array, allow_pickle=False)
    with path.open("wb") as stream:
        stream.write(content.getvalue())
        stream.flush()
        os.fsync(stream.fileno())


def whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that appears under its name only when it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        if partial.exists():
            partial.unlink()


def forced(bundle: Bundle, runner: Runner, arm: str, results: Results, say: Say) -> list[np.ndarray]:
    """Guided outputs [T, ...] of every probe at the latents that the reference f1 visited."""
    outputs = []
    for probe in range(bundle.probes):
        say(f"probe {probe + 1} of {bundle.probes}")
        outputs.append(results.obtain(f"forced-{probe:03d}", lambda: _forced(bundle, runner, arm, probe)))  # noqa: B023
    return outputs


def _forced(bundle: Bundle, runner: Runner, arm: str, probe: int) -> np.ndarray:
    inputs = bundle.inputs(probe, arm)
    rows = []
    for stratum in range(bundle.strata):
        fed = {name: values[stratum if len(values) > 1 else 0] for name, values in inputs.items()}
        rows.append(guided(bundle, runner(fed)))
    return np.stack(rows)


def free(bundle: Bundle, solver: Solver, runner: Runner, arm: str, results: Results, say: Say) -> list[np.ndarray]:
    """Final latents of every probe's own run from the same noise, accumulated in float64."""
    finals = []
    for probe in range(bundle.probes):
        say(f"free run {probe + 1} of {bundle.probes}")
        finals.append(results.obtain(f"free-{probe:03d}", lambda: _free(bundle, solver, runner, arm, probe)))  # noqa: B023
    return finals


def _free(bundle: Bundle, solver: Solver, runner: Runner, arm: str, probe: int) -> np.ndarray:
    component, described = bundle.denoiser, bundle.facts["denoiser"]
    start = bundle.start(probe).astype(np.float64)
    fixed = {name: values[0] for name, values in bundle.inputs(probe, arm).items()}
    state, outputs = start, []
    for call, timestep in enumerate(solver.timesteps):
        fed = dict(fixed)
        for tensor in component.inputs:
            if tensor.name == described["latent"]:
                scaled = (state * solver.scales[call]).astype(np.float32)
                rows = np.broadcast_to(scaled, (tensor.shape[0], *scaled.shape))
                fed[tensor.name] = tensors.from_float(rows, tensor.dtype).reshape(tensor.shape)
            elif tensor.name == described["time"]:
                times = np.full(tensor.shape, timestep, np.float32)
                fed[tensor.name] = tensors.from_float(times, tensor.dtype)
        outputs.append(guided(bundle, runner(fed)).astype(np.float64))
        weights = solver.outputs[call, : call + 1]
        state = solver.start[call] * start + sum(weight * output for weight, output in zip(weights, outputs))
    return state.astype(np.float32)


def guided(bundle: Bundle, raw: Mapping[str, np.ndarray]) -> np.ndarray:
    """The guided output of one picture, float32, from the rows that the denoiser returned."""
    component = bundle.denoiser
    (output,) = component.outputs
    values = raw[output.name]
    if tuple(values.shape) != output.shape:
        raise CannotVerify(
            f"{component.name} returned {list(values.shape)}, and the bundle says {list(output.shape)}",
            "Export the bundle again.",
        )
    rows = tensors.to_float(values, output.dtype)
    if len(rows) == 1:
        single: np.ndarray = rows[0]
        return single
    combined: np.ndarray = rows[0] + np.float32(bundle.facts["guidance"]) * (rows[1] - rows[0])
    tile = bundle.facts["tile"]
    return rescaled(combined, rows[1], tile) if tile else combined


def rescaled(guided: np.ndarray, positive: np.ndarray, tile: int) -> np.ndarray:
    """``guided`` [C, h, w] with the norm of ``positive`` over the channels of every square of that side."""
    channels, height, width = guided.shape
    shape = (channels, height // tile, tile, width // tile, tile)
    ours, theirs = (
        np.sqrt(np.square(values.reshape(shape)).sum(axis=(0, 2, 4), keepdims=True)) for values in (guided, positive)
    )
    result: np.ndarray = (guided.reshape(shape) * (theirs / ours)).reshape(guided.shape)
    return result


def once(component: Component, runner: Runner, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a component as float32."""
    raw = runner(inputs)
    return {tensor.name: tensors.to_float(raw[tensor.name], tensor.dtype) for tensor in component.outputs}
