"""Which adapters an ONNX file holds, read from its weights: nothing is run.

The file's weights are matched to the base's by shape and correlation alone, so that names in the file do not matter.
Some outputs of every layer are compared; correlations use a few thousand weights of each.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.diagnose.attribution import Layer
from qcheck.model import lora
from qcheck.quantize import decoded, file_grid, given, plan
from qcheck.quantize.decoded import Branch, Decoder, Operand
from qcheck.quantize.file_grid import Weight
from qcheck.quantize.sample import StoredWeights
from qcheck.result.attribution import Attribution
from qcheck.spec.use import Use
from qcheck.tasks import presence
from qcheck.tasks.inspect import stored_layers
from qcheck.tasks.presence import Candidate

_COUNT = 2**16  # weights of a layer that are compared
_SAMPLE = 4096  # weights of a layer that it is recognized by
_SAME = 0.5  # correlation of a weight with its quantized, adapted self; of two weights it is near 0
_MALFORMED = (IndexError, KeyError, RuntimeError, TypeError, ValueError)  # what a graph that makes no sense raises
_LEAST = 0.5  # of the file's weights that have to be the base's


@dataclass(frozen=True)
class _Match:
    """A weight of the file that is one of the base's, and the factor that its inputs are multiplied by."""

    name: str
    operand: Operand
    factor: torch.Tensor | None


def attribute(source: Path, base: str, loras: Mapping[str, str], weight: float, progress: Progress) -> Attribution:
    """Say which of the adapters ``loras``, files by the names they were given by, the file ``source`` holds.

    Raises:
        UserError: a file that cannot be read, or whose weights are not the base's; an adapter that does not fit.
    """
    path, decoder, beside = _decoder(source)
    names, stored = stored_layers(base)
    weights = StoredWeights(names.denoiser, stored)
    candidates = []
    for name, file in loras.items():
        adapter = lora.read(Use(source=file, weight=weight))
        candidates.append(Candidate(name, adapter, lora.contents_of(names, adapter)))
    inner = {part.output for branch in beside.values() for part in (branch.down, branch.up)}
    operands = [one for one in decoder.operands if one.output not in inner]
    layers = [layer for layer in sorted(names.layers) if layer in weights and weights[layer].meta.ndim > 1]
    matches = list(_matched(decoder, operands, weights, layers, progress))
    if len(matches) < max(1, _LEAST * min(len(operands), len(layers))):
        raise UserError(
            f"{str(source)!r}: {len(matches)} of its {len(operands)} weights are this base's",
            "Give the pipeline that it was made from as --base.",
        )
    some = []
    with progress.stage("layers", len(matches)) as advance:
        for match in matches:
            some += [_layer(match, weights, candidates, beside.get(match.operand.output))]
            advance(1)
    facts = presence.Facts(
        file=str(source),
        digest=digest_of(path, *decoder.parts[1:]),
        base=base,
        asked=weight,
        layers=len(matches),
        unmatched=len(operands) - len(matches),
        bound=decoder.bound(),
    )
    return presence.answer(facts, candidates, [layer for layer in some if layer is not None])


def _decoder(source: Path) -> tuple[Path, Decoder, dict[str, Branch]]:
    """The ONNX file, its constants, and its branches by the outputs of their layers."""
    path = given.locate(source)
    try:
        decoder = Decoder(path)
        return path, decoder, decoded.branches(decoder)
    except _MALFORMED as error:
        raise UserError(
            f"{str(path)!r}: {error}", "Give the denoiser's ONNX file, with the tensors that lie beside it."
        ) from error


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """Evenly spaced values of a weight, of mean 0 and length 1; as many for every weight of one size."""
    flat = weight.flatten()
    some = flat[:: max(1, len(flat) // _SAMPLE)].float()
    centered = some - some.mean()
    result: torch.Tensor = centered / centered.norm().clamp(min=1e-30)
    return result


class _Read(NamedTuple):
    """A weight of the file: samples of it as stored, and as its rescaled input meets it."""

    operand: Operand
    factor: torch.Tensor | None
    stored: torch.Tensor
    scaled: torch.Tensor


def _read(decoder: Decoder, operand: Operand) -> _Read | None:
    """A weight of the file; None where its codes cannot be decoded here.

    Raises:
        UserError: it holds NaN or infinity.
    """
    try:
        values, constant = operand.weight().values, decoder.factor(operand)
    except _MALFORMED:
        return None
    factor = None if constant is None else torch.from_numpy(constant)
    for part in (values, factor):
        _require_finite(part, operand)
    stored = _sample(values)
    scaled = stored if factor is None else _sample(values.view(operand.sides) * factor)
    return _Read(operand, factor, stored, scaled)


def _require_finite(values: torch.Tensor | None, operand: Operand) -> None:
    if values is not None and not bool(values.isfinite().all()):
        raise UserError(
            f"a weight of the node {operand.node.name or operand.output!r} holds NaN or infinity",
            "Make the file again: all that it computes would be NaN.",
        )


def _matched(
    decoder: Decoder, operands: Sequence[Operand], weights: StoredWeights, layers: Sequence[str], progress: Progress
) -> Iterator[_Match]:
    """The pairs of weights of one shape that correlate: every weight of the file with one of the base."""
    theirs: dict[tuple[int, ...], list[_Read]] = defaultdict(list)
    with progress.stage("weights", len(operands)) as advance:
        for operand in operands:
            if (read := _read(decoder, operand)) is not None:
                theirs[operand.sides].append(read)
            advance(1)
    ours: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for layer in layers:
        meta = weights[layer].meta
        ours[len(meta), meta[0].numel()].append(layer)
    for sides, members in theirs.items():
        if not ours[sides]:
            continue
        base = torch.stack([_sample(weights[layer].whole()) for layer in ours[sides]]).t()
        stored, scaled = (
            torch.stack(parts) @ base for parts in zip(*((m.stored, m.scaled) for m in members), strict=True)
        )
        best = torch.maximum(stored, scaled)
        for row, column in zip(*linear_sum_assignment(-best.numpy()), strict=True):
            if best[row, column] >= _SAME:
                factor = members[row].factor if scaled[row, column] > stored[row, column] else None
                yield _Match(ours[sides][column], members[row].operand, factor)


def _layer(
    match: _Match, weights: StoredWeights, candidates: Sequence[Candidate], branch: Branch | None
) -> Layer | None:
    """Some outputs of a layer; None where the file's grid is not known."""
    weight, before = match.operand.weight(), weights[match.name].whole()
    if weight.grid is None:
        return None
    divisor = torch.ones(1) if match.factor is None else match.factor.view(-1, *[1] * (before.ndim - 2))
    changes = {}
    for one in candidates:
        factors = one.contents.factors.get(match.name)
        if factors is not None:
            lora.require_shape(match.name, before, factors)
            changes[one.name] = factors.shaped(before.shape).added(before, 1.0) / divisor
    first = _own_grid(weight, before / divisor)
    outputs, inputs = match.operand.sides
    stride = max(1, outputs * inputs // _COUNT)
    try:
        grid = file_grid.thinned(weight.grid, outputs, stride)
    except ValueError:  # runs of several outputs
        grid, stride = weight.grid, 1

    def rows(values: torch.Tensor) -> torch.Tensor:
        return values.flatten(1)[::stride]

    start = rows(before / divisor)
    change = None if branch is None else branch.change()
    _require_finite(change, match.operand)
    beside = None if change is None else rows(change / divisor.flatten())
    return Layer(
        name=match.name,
        before=start,
        file=rows(weight.values) + (0.0 if beside is None else beside),
        grid=grid,
        first=grid.fake(start) if first is None else rows(first.fake((before / divisor).flatten(1))),
        changes={name: rows(change) for name, change in changes.items()},
        branch=beside,
        own=None if first is None or stride > 1 else functools.partial(_own_steps, weight),
        scaled=match.factor is not None,
    )


def _own_grid(weight: Weight, before: torch.Tensor) -> plan.Grid | None:
    """The grid that the file's scheme has for the base's own weight; None where its steps are chosen otherwise."""
    return None if weight.numbers is None else plan.grid(before.flatten(1), weight.numbers, weight.compute)


def _own_steps(weight: Weight, before: torch.Tensor) -> torch.Tensor:
    """As ``_own_grid``, the steps."""
    if weight.numbers is None:
        raise ValueError("the steps are chosen otherwise")
    return plan.grid(before, weight.numbers, weight.compute).step
