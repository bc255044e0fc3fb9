"""How an engine build ended, and the precision that was read from the engine."""

from qcheck.core.values import Value
from qcheck.result.verdict import BuildStatus


class Precision(Value):
    """The precision of an engine, as read from it.

    ``products`` counts all convolutions and matrix products of the engine. ``operands`` counts the layers that the
    scheme quantizes by "input x weight" as they are multiplied or, of a weight-only layer, by "input x stored weight".
    ``fell_back`` names the layers in other formats than the scheme asks, ``unread`` those that the engine does not
    describe. ``bytes`` is the size of the engine's constants by format, ``promised`` that of the scheme's weights.
    """

    layers: int
    products: int
    operands: dict[str, int]
    fell_back: list[str]
    unread: list[str]
    bytes: dict[str, int]
    promised: dict[str, int]

    @property
    def complete(self) -> bool:
        """Whether the engine could be read and has every quantized layer in the formats that the scheme asks."""
        return bool(self.products) and not self.fell_back and not self.unread

    def text(self) -> str:
        """One line for a person."""
        if not self.products:
            return "not read: the engine says nothing of its operations"
        counted = ", ".join(f"{count} {operands}" for operands, count in self.operands.items())
        missing = f"{len(self.unread)} of {self.layers} layers not found in the engine" if self.unread else ""
        return "; ".join(part for part in (counted, missing) if part) or f"{self.products} products"


class Build(Value):
    """One engine build. ``realised`` None means that there was no engine to read.

    ``graph`` names the case whose file was compiled: files that differ in nothing but weights are compiled once.
    """

    builder: str
    capability: str
    proxy: bool
    status: BuildStatus
    detail: str = ""
    graph: str = ""
    realised: Precision | None = None
    bytes: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
