"""A target: what a device offers, every number with its source."""

from typing import Generic, TypeVar

from qcheck import files
from qcheck.files import Names, Value
from qcheck.scheme import Scheme, every

FOLDER = files.data_folder("targets")
T = TypeVar("T")


class Sourced(Value, Generic[T]):
    """A value and where it comes from."""

    value: T
    source: str


class Release(Value):
    """One JetPack or driver generation: its TensorRT and the newest ONNX opset that TensorRT's parser takes."""

    name: str
    tensorrt: str
    opset: int
    source: str


class Target(Value):
    """A device profile."""

    name: str
    title: str
    capability: Sourced[str]
    memory_gb: Sourced[float]
    bandwidth_gb_s: Sourced[float]
    formats: Sourced[list[str]]
    proxy: Sourced[str]
    releases: list[Release]
    notes: Names = ()

    def refuses(self, scheme: Scheme) -> str | None:
        """Why this device cannot run ``scheme``, or None if it can."""
        if "tensorrt" not in scheme.runs:
            return None  # PyTorch or ONNX Runtime decodes the format in software
        missing = sorted(scheme.formats - set(self.formats.value))
        if missing:
            offered = ", ".join(self.formats.value)
            return f"{self.title} (SM {self.capability.value}) has no {', '.join(missing)}; it offers {offered}"
        if all(release.opset < scheme.opset for release in self.releases):
            return f"{self.title}: no TensorRT release there parses opset {scheme.opset}"
        return None

    def warns(self, scheme: Scheme) -> list[str]:
        """What to know before ``scheme`` goes to this device: releases whose parser is not documented to take it."""
        if "tensorrt" not in scheme.runs:
            return []
        return [
            f"{release.name} (TensorRT {release.tensorrt}) documents opset {release.opset} at most, this file declares "
            f"{scheme.opset}: not verified there"
            for release in self.releases
            if release.opset < scheme.opset
        ]

    def runnable(self) -> list[Scheme]:
        """The shipped schemes that this device can run, whatever runs them."""
        return [scheme for scheme in every() if self.refuses(scheme) is None]

    def deployable(self) -> list[Scheme]:
        """Those of them that quantize and that TensorRT runs: what a check takes where none is named."""
        return [scheme for scheme in self.runnable() if "tensorrt" in scheme.runs and not scheme.control]


def find(name: str) -> Target:
    """The target of that name or file."""
    return files.find(Target, FOLDER, name)


def every_target() -> list[Target]:
    """All targets that ship with qcheck."""
    return [find(name) for name in files.names(FOLDER)]
