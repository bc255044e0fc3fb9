"""``qcheck inspect`` as functions: of one adapter, of many, or of a file that may hold some."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from qcheck.api.keywords import Files, Named, Orders, Schemes
from qcheck.api.lazy import host
from qcheck.api.request import many
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.demo import library
from qcheck.result.attribution import Attribution
from qcheck.result.inspection import Inspection, Refusal
from qcheck.spec import order as orders
from qcheck.spec import recipe as recipes
from qcheck.spec import scheme as schemes
from qcheck.spec.order import MERGES
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme


class Inspecting(TypedDict, total=False):
    """Keywords of an inspection.

    ``weight``: how strongly the adapter is applied, 1 by default. ``scheme``: one or several, by default all that can
    be forecast. ``order``: when the adapter is merged, one or several, by default all that store other weights.
    ``recipe``: whose unquantized layers are left out. ``details``: read every weight and say what becomes of each
    layer.
    """

    weight: float
    scheme: Schemes
    order: Orders
    recipe: Named | Recipe
    details: bool


def inspect(
    lora: Named, base: Named | None = None, *, progress: Progress | None = None, **asked: Unpack[Inspecting]
) -> Inspection:
    """Say whether an adapter does anything on a base, by scheme and order, without running it.

    Args:
        lora: The adapter's file, or a name of the demo's.
        base: The base it is meant for; without one nothing is forecast.
        progress: Receives every layer.
        **asked: The options of ``qcheck inspect``, see ``qcheck.api.inspection.Inspecting``.

    Raises:
        UserError: bad input, or a scheme that weights alone do not forecast.
    """
    base_source, source = library.resolve(None if base is None else str(base), str(lora))
    asked_of_it = question(**asked)
    inspection: Inspection = host("qcheck.tasks.inspect").inspect(
        source, base_source, asked_of_it, progress or Silent()
    )
    return inspection


def inspect_each(
    loras: Sequence[Named], base: Named | None = None, *, progress: Progress | None = None, **asked: Unpack[Inspecting]
) -> Iterator[Inspection | Refusal]:
    """``inspect`` of every adapter, one after the other; one that cannot be inspected is a ``Refusal``.

    Args:
        loras: Adapters' files, folders of them, or patterns such as ``loras/*.safetensors``.
        base: As for ``inspect``.
        progress: As for ``inspect``.
        **asked: As for ``inspect``.

    Raises:
        UserError: options or a base that are wrong for every adapter, or a folder or pattern without any.
    """
    stage, asked_of_each = host("qcheck.tasks.inspect"), question(**asked)
    sources = [file for lora in loras for file in stage.files_of(str(lora))]
    if base is not None:
        stage.stored_layers(library.resolve(str(base), sources[0])[0])
    for source in sources:
        try:
            base_source, path = library.resolve(None if base is None else str(base), source)
            yield stage.inspect(path, base_source, asked_of_each, progress or Silent())
        except UserError as error:
            yield Refusal(adapter=source, error=error.what, fix=error.fix)


def attribute(
    file: Named, base: Named, lora: Files, *, weight: float = 1.0, progress: Progress | None = None
) -> Attribution:
    """Say which adapters an ONNX file of a denoiser holds, at which weight and merged in which order.

    Args:
        file: The file, whoever quantized it, or a folder in optimum's layout; nothing of it is run.
        base: The base that it was made from.
        lora: The adapters that may be in it.
        weight: The weight that is expected of each.
        progress: Receives every layer.

    Raises:
        UserError: a file that cannot be read, or is not of this base, or an adapter that does not fit.
    """
    names = [str(one) for one in many(lora)]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"{'an adapter is given twice' if names else 'no adapter is given'}: nothing to tell apart",
            "Give each adapter that may be in the file once, by --lora.",
        )
    _require_finite(weight)
    paths = {name: library.resolve(str(base), name) for name in names}
    source = next(iter(paths.values()))[0]
    loras = {name: path for name, (_, path) in paths.items()}
    found: Attribution = host("qcheck.tasks.attribute").attribute(
        Path(file), source, loras, weight, progress or Silent()
    )
    return found


def is_one(lora: Named) -> bool:
    """Whether ``lora`` names one adapter, and not a folder of them or a pattern."""
    files: list[str] = host("qcheck.tasks.inspect").files_of(str(lora))
    return files == [str(lora)]


def question(
    weight: float = 1.0,
    scheme: Schemes = None,
    order: Orders = None,
    recipe: Named | Recipe = "general",
    details: bool = False,
) -> Any:
    """What is asked of every adapter, checked."""
    _require_finite(weight)
    chosen = [one if isinstance(one, Scheme) else schemes.find(str(one)) for one in many(scheme)]
    if smoothed := [one.name for one in chosen if one.smoothing]:
        raise UserError(
            f"{smoothed[0]} cannot be forecast from the weights: its factors need calibration data",
            "Run qcheck check.",
        )
    every = [one for one in schemes.every() if one.exported and one.smoothing is None]
    return host("qcheck.tasks.inspect").Question(
        weight,
        chosen or every,
        [orders.find(name) for name in many(order) or MERGES],
        recipe if isinstance(recipe, Recipe) else recipes.find(str(recipe)),
        details,
    )


def _require_finite(weight: float) -> None:
    if not math.isfinite(weight):
        raise UserError(f"weight {weight!r} is not finite", "Give another weight.")
