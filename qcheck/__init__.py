"""qcheck: will this LoRA survive the edge?

    import qcheck

    report = qcheck.check("sd15/", lora="style.safetensors", scheme="int8", target="jetson-agx-orin-64gb")
    report.passed
    report["int8"]["effect_survival"].value

The names below are the public interface; everything else may change. They are imported when they are first used, so
that ``import qcheck`` is quick and needs no heavy library.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from qcheck.api.auditing import audit
    from qcheck.api.board import bundle, merge, verify
    from qcheck.api.functions import (
        advise,
        calibrate,
        check,
        compare,
        export,
        load_report,
        qat,
    )
    from qcheck.api.inspection import attribute, inspect, inspect_each
    from qcheck.api.pictures import pictures
    from qcheck.api.session import Session
    from qcheck.api.sweep import sweep
    from qcheck.api.watching import Watch
    from qcheck.core.errors import UserError
    from qcheck.result.report import Case, Report
    from qcheck.spec.check import CheckSpec

_PLACES = {
    "Case": "qcheck.result.report",
    "CheckSpec": "qcheck.spec.check",
    "Report": "qcheck.result.report",
    "Session": "qcheck.api.session",
    "UserError": "qcheck.core.errors",
    "attribute": "qcheck.api.inspection",
    "Watch": "qcheck.api.watching",
    "audit": "qcheck.api.auditing",
    "bundle": "qcheck.api.board",
    "inspect": "qcheck.api.inspection",
    "inspect_each": "qcheck.api.inspection",
    "merge": "qcheck.api.board",
    "pictures": "qcheck.api.pictures",
    "sweep": "qcheck.api.sweep",
    "verify": "qcheck.api.board",
}
__all__ = [
    "Case",
    "CheckSpec",
    "Report",
    "Session",
    "UserError",
    "Watch",
    "__version__",
    "advise",
    "attribute",
    "audit",
    "bundle",
    "calibrate",
    "check",
    "compare",
    "export",
    "inspect",
    "inspect_each",
    "load_report",
    "merge",
    "pictures",
    "qat",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    """The public name, imported now."""
    if name not in __all__:
        raise AttributeError(f"module 'qcheck' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES.get(name, "qcheck.api.functions")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
