"""The layers' shares of a case's error on the nodes of its graph, as node data of Google's Model Explorer.

The format: https://github.com/google-ai-edge/model-explorer/wiki/2.-User-Guide#custom-node-data. A key is the name of a
node, which is the id that the ONNX adapter of Model Explorer gives it.
"""

from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcheck.core.errors import UserError
from qcheck.quantize import sites
from qcheck.result.report import Case

_GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#d7301f"})


def node_data(case: Case, folder: Path) -> dict[str, Any]:
    """Every layer's share of the error in percent, by the node that computes it in the graph that ships.

    Args:
        case: One of a report.
        folder: The report's.

    Raises:
        UserError: the case has no shares or no graph, or the graph has none of its layers.
    """
    title = f"{case.scheme} {case.order}"
    if not case.layers:
        raise UserError(f"{title}: the report has no shares by layer", "Check it again; an --artifact alone has none.")
    path = next((folder / one.path for one in case.artifact if one.path.endswith("/model.onnx")), None)
    if path is None or not path.is_file():
        raise UserError(
            f"{title}: no model.onnx in {str(folder)!r}", "Give the --out folder of a check, with its files."
        )
    names = sites.computing(ir.load(path).graph)
    results = {names[one.name]: {"value": 100 * one.share} for one in case.layers if one.name in names}
    if not results:
        raise UserError(f"{str(path)!r} has none of the layers of the report", "Give the folder as the check left it.")
    return {"results": results, "gradient": [*_GRADIENT]}
