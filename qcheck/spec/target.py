"""A target: the profile of a device, every number with its source."""

from typing import Annotated, Generic, TypeVar

from pydantic import BeforeValidator, Field

from qcheck.core.values import DATA, Names, Value, as_tuple, data_folder, named, names_in
from qcheck.spec.scheme import Scheme, every

FOLDER = data_folder("targets")
FORMATS = DATA / "formats"
T = TypeVar("T")


class Sourced(Value, Generic[T]):
    """A value and where it comes from."""

    value: T
    source: str


class NumberFormat(Value):
    """The properties of a number format apart from its arithmetic, which is in ``quantize.formats``.

    ``capability`` is the oldest compute capability whose tensor cores have it, where that is a limit.
    """

    name: str
    title: str
    bits: int
    capability: str | None = None
    source: str


class Peak(Value):
    """Dense tera-operations a second that the GPU alone can reach in a format: two for each multiply-accumulate."""

    format: str
    tera_ops: float
    source: str


class Release(Value):
    """One JetPack or TensorRT generation: its versions and the newest ONNX opset that its parser takes."""

    name: str
    tensorrt: str
    cuda: str
    opset: int
    source: str

    @property
    def strongly_typed(self) -> bool:
        """Whether networks there can be strongly typed, which is all that qcheck builds (TensorRT 10 and newer)."""
        return int(self.tensorrt.split(".", maxsplit=1)[0]) >= 10


class Target(Value):
    """A device profile; memory and bandwidth are absent where they depend on the card, ``proxy`` where there is none.

    ``proxy`` is the compute capability that engines are compiled for here: the device's own where the builder has it.
    """

    name: str
    title: str
    capability: Sourced[str]
    memory_gb: Sourced[float] | None = None
    bandwidth_gb_s: Sourced[float] | None = None
    formats: Sourced[list[str]]
    proxy: Sourced[str] | None = None
    peaks: Annotated[tuple[Peak, ...], BeforeValidator(as_tuple)] = ()
    releases: Annotated[list[Release], Field(min_length=1)]
    notes: Names = ()

    def refuses(self, scheme: Scheme) -> str | None:
        """Why this device cannot run ``scheme``, or None if it can."""
        if "tensorrt" not in scheme.runs:
            return None  # PyTorch or ONNX Runtime decodes the format in software
        supported = [release for release in self.releases if release.strongly_typed]
        if not supported:
            newest = self.releases[-1]
            return (
                f"{newest.name} has TensorRT {newest.tensorrt}, without strongly typed networks: there the builder, "
                "not the file, would choose the precision"
            )
        if missing := sorted(scheme.formats - set(self.formats.value)):
            return f"{' and '.join(map(self._lacks, missing))}; {self.title} is SM {self.capability.value}"
        if all(release.opset < scheme.opset for release in supported):
            return f"{self.title}: no TensorRT release there parses opset {scheme.opset}"
        return None

    def _lacks(self, name: str) -> str:
        known = number_format(name)
        if known.capability is not None and not self.reaches(known.capability):
            return f"{known.title} needs SM {known.capability}"
        return f"{known.title} is not offered there"

    def reaches(self, capability: str) -> bool:
        """Whether the device has at least that compute capability."""
        return _numbers(self.capability.value) >= _numbers(capability)

    @property
    def is_proxied(self) -> bool:
        """Whether engines compiled here are for another compute capability than the device's."""
        return self.proxy is not None and self.proxy.value != self.capability.value

    def warns(self, scheme: Scheme) -> list[str]:
        """Warnings about ``scheme`` on this device: releases whose parser is not documented to take its opset."""
        if "tensorrt" not in scheme.runs:
            return []
        return [
            f"{release.name} (TensorRT {release.tensorrt}) documents opset {release.opset} at most, this file declares "
            f"{scheme.opset}: not verified there"
            for release in self.releases
            if release.opset < scheme.opset
        ]

    def runnable(self) -> list[Scheme]:
        """The shipped schemes that this device can run, with any runtime."""
        return [scheme for scheme in every() if self.refuses(scheme) is None]

    def deployable(self) -> list[Scheme]:
        """The runnable schemes that quantize and that TensorRT runs: the default schemes of a check."""
        return [scheme for scheme in self.runnable() if "tensorrt" in scheme.runs and not scheme.control]


def find(name: str) -> Target:
    """The target of that name or file."""
    return named(Target, FOLDER, name)


def every_target() -> list[Target]:
    """All targets that ship with qcheck."""
    return [find(name) for name in names_in(FOLDER)]


def number_format(name: str) -> NumberFormat:
    """The number format of that name."""
    return named(NumberFormat, FORMATS, name)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
