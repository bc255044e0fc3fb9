"""The paths of the shipped pipeline and adapters, for the base ``demo`` and the names of its adapters."""

from pathlib import Path

from qcheck.core.errors import unknown
from qcheck.core.values import PACKAGE

NAME = "demo"
PROBES = RECIPE = "emoji"
SCHEME = "int8"
PIPELINE = PACKAGE / "demo" / "pipeline"
ADAPTERS = PACKAGE / "demo" / "adapters"


def adapters() -> list[str]:
    """Names of the shipped adapters."""
    return sorted(path.stem for path in ADAPTERS.glob("*.safetensors"))


def resolve(base: str | None, adapter: str) -> tuple[str | None, str]:
    """Paths for a base and an adapter that may be given by the demo's names.

    Raises:
        UserError: the base is the demo and the adapter is neither a file nor one of its names.
    """
    shipped = ADAPTERS / f"{adapter}.safetensors"
    path = str(shipped) if shipped.is_file() and not Path(adapter).exists() else adapter
    if base == NAME and path == adapter and not Path(adapter).suffix and not Path(adapter).exists():
        raise unknown("demo adapter", adapter, adapters())
    return str(PIPELINE) if base == NAME else base, path
