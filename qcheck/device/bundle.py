"""A bundle: its digests, and what is in it.

SHA256SUMS      of every other file, in the format of ``sha256sum``
bundle.json     what was exported, what is asked, how it is judged, and what the host found
model/          ONNX of every component, with its weights
adapter/        the denoiser's inputs of the adapter, where it takes one as inputs
adapters/NNN/   of every other adapter that it takes: its own bundle.json, adapter/, probes/ and reference/
probes/NNN/     inputs of the denoiser at each stratum, in its bindings' types, and the first latents of a free run
reference/NNN/  the guided outputs of the host's arms at each stratum, and their final latents, float32
components/     inputs and reference outputs of the other components
verify.pyz      this verifier
README.txt
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from . import sums, tensors
from .errors import CannotVerify
from .facts import require
from .tensors import Tensor

NAME, SCHEMA = "bundle.json", "qcheck-bundle/1"
AGAIN = "Copy the whole bundle again, or export it again."
_MOST = 1 << 26  # bytes of bundle.json and of SHA256SUMS
_SIDES = ("inputs", "outputs")


@dataclass(frozen=True)
class Layer:
    """A quantized layer: its ONNX nodes and the formats of the scheme; ``activation`` is None where it stays wide."""

    name: str
    node: str
    dequantizer: str | None
    weight: str
    activation: str | None


@dataclass(frozen=True)
class Component:
    """One ONNX file: its ``role`` (denoiser, base, twin, encoder or decoder), its bindings, and what it should run in.

    ``base`` is the quantized base without the adapter, ``twin`` the denoiser in 16 bit, which is timed beside it. The
    nodes in ``float32`` run so whatever the rest runs in.
    """

    name: str
    role: str
    path: Path
    compute: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    float32: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """The bytes of the file and of its weights beside it."""
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*"))


@dataclass(frozen=True)
class Solver:
    """A linear solver as data: the state after call k is start[k] x0 + sum over j <= k of outputs[k, j] e_j.

    ``scales`` [calls] multiply the state before it is the denoiser's input; ``timesteps`` [calls] are its input
    of time. The first latents in a bundle have the solver's own size already.
    """

    timesteps: np.ndarray
    scales: np.ndarray
    start: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A bundle whose digests were checked; ``facts`` is the rest of bundle.json.

    ``others`` are those of the other adapters in it, whose ``folder`` lies in the ``root`` of all of them.
    """

    folder: Path
    facts: Mapping[str, Any]
    components: tuple[Component, ...]
    solver: Solver | None
    digests: Mapping[str, str]
    root: Path
    others: tuple[Bundle, ...] = ()

    def component(self, role: str) -> Component | None:
        """The first component of a role."""
        return next((one for one in self.components if one.role == role), None)

    def digest_of(self, component: Component) -> str:
        """The digest of a component's file and of its weights beside it."""
        prefix = component.path.relative_to(self.root).as_posix()
        parts = [value for name, value in sorted(self.digests.items()) if name.startswith(prefix)]
        return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()

    @property
    def identity(self) -> str:
        """What tells this bundle from every other: the digest of all digests, and its place among them."""
        place = self.folder.relative_to(self.root).as_posix().encode("ascii")
        return hashlib.sha256(sums.text(self.digests) + place).hexdigest()

    @property
    def denoiser(self) -> Component:
        """The quantized denoiser with its adapter."""
        denoiser = self.component("denoiser")
        if denoiser is None:
            raise CannotVerify(f"{self.folder / NAME} has no denoiser", AGAIN)
        return denoiser

    @property
    def probes(self) -> int:
        """The number of probes."""
        return len(self.facts["probes"])

    @property
    def strata(self) -> int:
        """The number of timesteps at which arms are compared."""
        return len(self.facts["strata"])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one picture's output, without its rows."""
        return tuple(self.facts["denoiser"]["shape"])

    def inputs(self, probe: int, arm: str) -> dict[str, np.ndarray]:
        """The denoiser's inputs [T or 1, ...] for a probe; 1 where they are equal at every stratum.

        ``arm`` is "adapted" or "base": their text encoders may differ.
        """
        described = self.facts["denoiser"]
        folder = self.folder / "probes" / f"{probe:03d}"
        inputs = dict(self._adapter)
        for tensor in self.denoiser.inputs:
            if tensor.name in inputs:
                continue
            repeats = self.strata if tensor.name in described["varying"] else 1
            own = folder / "base" / f"{tensor.name}.bin"
            place = own if arm == "base" and tensor.name in described["own_in_base"] else folder / f"{tensor.name}.bin"
            inputs[tensor.name] = tensors.read(place, tensor, repeats)
        return inputs

    @cached_property
    def _adapter(self) -> dict[str, np.ndarray]:
        """The denoiser's inputs of the adapter, [1, ...]."""
        bound = [tensor for tensor in self.denoiser.inputs if tensor.name in self.facts["denoiser"]["adapter"]]
        return {tensor.name: tensors.read(self.folder / "adapter" / f"{tensor.name}.bin", tensor) for tensor in bound}

    def start(self, probe: int) -> np.ndarray:
        """The first latents of a probe's free run, in the layout of the denoiser's output."""
        return self._single(f"probes/{probe:03d}/start.bin")

    def outputs(self, probe: int, arm: str) -> np.ndarray:
        """The host's guided outputs [T, ...] of f0, f1, q0 or q1 for a probe, float32."""
        return self._plain(f"reference/{probe:03d}/{arm}.bin", self.strata)

    def final(self, probe: int, arm: str) -> np.ndarray:
        """The final latents of the host's free run of an arm, float32."""
        return self._single(f"reference/{probe:03d}/{arm}.final.bin")

    def component_inputs(self, component: Component) -> dict[str, np.ndarray]:
        """The inputs [samples, ...] of a text encoder or the decoder."""
        folder, count = self.folder / "components" / component.name / "inputs", self.facts["component_samples"]
        return {tensor.name: tensors.read(folder / f"{tensor.name}.bin", tensor, count) for tensor in component.inputs}

    def component_outputs(self, component: Component, sample: int) -> dict[str, np.ndarray]:
        """The outputs in full precision of a text encoder or the decoder, float32, of one sample."""
        folder, count = self.folder / "components" / component.name / "outputs", self.facts["component_samples"]
        wide = [Tensor(tensor.name, "float32", tensor.shape) for tensor in component.outputs]
        return {tensor.name: tensors.read(folder / f"{tensor.name}.bin", tensor, count)[sample] for tensor in wide}

    def _single(self, name: str) -> np.ndarray:
        value: np.ndarray = self._plain(name, 1)[0]
        return value

    def _plain(self, name: str, repeats: int) -> np.ndarray:
        return tensors.read(self.folder / name, Tensor(name, "float32", self.shape), repeats)


def read(folder: Path) -> Bundle:
    """Check the digests of a bundle, then read it.

    Raises:
        CannotVerify: no bundle, changed, missing or added bytes, or another schema.
    """
    digests = check(folder)
    others = sorted(path.parent for path in folder.glob(f"adapters/*/{NAME}"))
    return replace(_read(folder, folder, digests), others=tuple(_read(other, folder, digests) for other in others))


def _read(folder: Path, root: Path, digests: Mapping[str, str]) -> Bundle:
    """The bundle of one adapter in ``folder``, whose files of components lie below ``root``."""
    try:
        return _parse(folder, root, json.loads(_content(folder / NAME).decode("utf-8")), digests)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{folder / NAME} is no {SCHEMA} as this verifier reads it: {type(error).__name__} {error}"
        raise CannotVerify(problem, AGAIN) from error


def _parse(folder: Path, root: Path, facts: Mapping[str, Any], digests: Mapping[str, str]) -> Bundle:
    if facts.get("schema") != SCHEMA:
        raise CannotVerify(
            f"{folder / NAME} is of the schema {facts.get('schema')!r}, and this verifier reads {SCHEMA!r}",
            "Run the verify.pyz that lies in the bundle, or the qcheck that exported it.",
        )
    require(facts)
    components = tuple(_component(root, one) for one in facts["components"])
    solver = facts["solver"]
    if solver is not None:
        solver = Solver(*(np.array(solver[name], np.float64) for name in ("timesteps", "scales", "start", "outputs")))
    return Bundle(folder, facts, components, solver, digests, root)


_PLAIN = re.compile(r"\w[\w.\-]*")


def _component(folder: Path, one: Mapping[str, Any]) -> Component:
    names = [one["name"], *one["file"].split("/"), *(tensor["name"] for side in _SIDES for tensor in one[side])]
    odd = [name for name in names if not _PLAIN.fullmatch(name)]
    if odd:
        raise CannotVerify(f"{folder / NAME} names {odd[0]!r}, which is no plain name of a file", AGAIN)
    inputs, outputs = (tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in one[side]) for side in _SIDES)
    layers = tuple(Layer(**layer) for layer in one["layers"])
    path, float32 = folder / one["file"], frozenset(one["float32"])
    return Component(one["name"], one["role"], path, one["compute"], inputs, outputs, layers, float32)


def check(folder: Path) -> dict[str, str]:
    """Compare every file with its digest; the digests by name.

    Raises:
        CannotVerify: it is no bundle, or a file is changed or missing.
    """
    try:
        content = _content(folder / sums.NAME)
    except OSError as error:
        if folder.is_file():
            raise CannotVerify(f"{folder} is a file", "Unpack it first: tar --zstd -xf FILE.") from error
        problem = f"{folder} is no bundle: it has no {sums.NAME}" if folder.is_dir() else f"{folder} does not exist"
        raise CannotVerify(problem, "Give the folder of a bundle.") from error
    known = sums.parsed(content)
    if known is None or NAME not in known or sums.text(known) != content:
        raise CannotVerify(f"{folder / sums.NAME} was changed", AGAIN)
    require_plain(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {sums.NAME}
    if added := sorted(there - set(known)):
        raise CannotVerify(f"{folder / added[0]} is not of this bundle: {sums.NAME} has no digest of it", AGAIN)
    for name, expected in sorted(known.items()):
        try:
            actual = sums.digest(folder / name)
        except OSError as error:
            raise CannotVerify(f"{folder / name} cannot be read: {error.strerror}", AGAIN) from error
        if actual != expected:
            raise CannotVerify(f"{folder / name} was changed: its SHA-256 is {actual}, not {expected}", AGAIN)
    return known


def require_plain(folder: Path, fix: str = AGAIN) -> None:
    """Refuse links, which would be read or written elsewhere, and pipes and devices, which may never end.

    Raises:
        CannotVerify: there is one below ``folder``.
    """
    for place, folders, names in os.walk(str(folder)):
        for path in (Path(place, name) for name in (*folders, *names)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise CannotVerify(f"{path} is a link, a pipe or a device, and files alone are expected there", fix)


def _content(path: Path) -> bytes:
    """The content of a regular file of at most ``_MOST`` bytes."""
    if path.exists() and not path.is_file():
        raise CannotVerify(f"{path} is no file", AGAIN)
    with path.open("rb") as stream:
        content = stream.read(_MOST + 1)
    if len(content) > _MOST:
        raise CannotVerify(f"{path} has more than {_MOST} bytes", AGAIN)
    return content
