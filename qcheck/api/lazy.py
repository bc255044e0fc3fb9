"""Stages that need the host's libraries are imported only once the input is known to be good."""

import importlib
from typing import Any

from qcheck.core.errors import UserError, install


def host(module: str) -> Any:
    """The module of qcheck of that name.

    Raises:
        UserError: a library of the host extra is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "qcheck").split(".")[0] == "qcheck":
            raise
        raise UserError(
            f"this needs {error.name}, which is not installed", f"Install it, {install('host,rtx')}"
        ) from error
