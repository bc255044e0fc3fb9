"""The layers' shares of a case's error on the nodes of its graph, as node data of Google's Model Explorer.

The format: https://github.com/google-ai-edge/model-explorer/wiki/2.-User-Guide#custom-node-data. A key is the name of a
node, which is the id that the ONNX adapter of Model Explorer gives it.
"""

import json
import re
from pathlib import Path
from typing import Any

from onnx import ModelProto

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.folder import staged
from qcheck.quantize import onnx_file, sites
from qcheck.result.report import Case, Report

_GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#d7301f"})


def write(report: Report, folder: Path, out: Path) -> dict[str, int]:
    """Write the node data of every case into a new folder, all or nothing; the number of layers by the file's name.

    Args:
        report: What a check found.
        folder: Where the report lies, with its artifacts.
        out: A folder that is absent or empty.

    Raises:
        UserError: as ``node_data``; ``out`` is taken or cannot be written; a case has a name that no file may have.
    """
    data = {_file_name(case): node_data(case, folder) for case in report.cases}
    with staged(out) as partial:
        for name, one in data.items():
            files.write(partial / name, json.dumps(one, indent=1) + "\n")
    return {name: len(one["results"]) for name, one in data.items()}


def _file_name(case: Case) -> str:
    """A report is a stranger's: its names lead to no other folder."""
    name = f"{case.scheme}-{case.order}.json"
    if re.fullmatch(r"[\w.+-]{1,200}", name) is None:
        raise UserError(f"{name!r} is no name for a file", "Give a report as the check left it.")
    return name


def node_data(case: Case, folder: Path) -> dict[str, Any]:
    """Every layer's share of the error in percent, by the node that computes it in the graph that ships.

    Args:
        case: One of a report.
        folder: The report's.

    Raises:
        UserError: the case has no shares or no graph, or the graph cannot be read or has none of its layers.
    """
    title = f"{case.scheme} {case.order}"
    if not case.layers:
        raise UserError(f"{title}: the report has no shares by layer", "Check it again; an --artifact alone has none.")
    path = next((folder / one.path for one in case.artifact if one.path.endswith("/model.onnx")), None)
    if path is None or not path.is_file():
        raise UserError(
            f"{title}: no model.onnx in {str(folder)!r}", "Give the --out folder of a check, with its files."
        )
    names = sites.computing(_read(path).graph)
    results = {names[one.name]: {"value": 100 * one.share} for one in case.layers if one.name in names}
    if not results:
        raise UserError(f"{str(path)!r} has none of the layers of the report", "Give the folder as the check left it.")
    return {"results": results, "gradient": [*_GRADIENT]}


def _read(path: Path) -> ModelProto:
    """The model in a file, without its tensors outside.

    Raises:
        UserError: it cannot be read, or means harm.
    """
    try:
        return onnx_file.read(path)[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}", "Give the folder as the check left it.") from error
