"""The request of a check as one value, resolved before any model is loaded.

The command line, ``qcheck.toml`` and the Python API build it, and report.json stores it whole. Commands that work on a
report later (advice, calibration, comparison, the command that repeats the check) read it from there, so no name is
looked up a second time. Schemes, target, recipe, limits and probes are stored as values. Large inputs (base, adapters,
ONNX files, ranges) are stored as paths, and the report holds their digests.
"""

import re
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from qcheck.core.errors import UserError
from qcheck.core.values import Names, Value, as_tuple
from qcheck.spec import order as orders
from qcheck.spec import recipe
from qcheck.spec.judge import Judge
from qcheck.spec.limits import Limits
from qcheck.spec.order import Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target
from qcheck.spec.use import Use

PRECISIONS = ("float32", "tf32")


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name!r} is no device", "Give auto, cpu, cuda or cuda:1.")
    return name


def _precision(name: str) -> str:
    if name not in PRECISIONS:
        raise UserError(f"--precision {name!r} is none", f"Give {' or '.join(PRECISIONS)}.")
    return name


class Execution(Value):
    """How the request is carried out on a machine: processor threads, probes in a batch, whether engines are built.

    ``device`` computes everything but artifacts' files and engines: cpu, cuda, cuda:N, or auto, the first CUDA device
    where there is one. ``precision`` is that of the factors of torch's products there.
    """

    device: Annotated[str, AfterValidator(_device)] = "auto"
    precision: Annotated[str, AfterValidator(_precision)] = PRECISIONS[0]
    threads: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=1)] = 8
    build: bool = True


Uses = Annotated[tuple[Use, ...], BeforeValidator(as_tuple)]


class CheckSpec(Value):
    """The whole request.

    ``adapters`` are judged together; adapters in ``common`` are merged into both arms. ``references``, where there are
    any, are the files that ``adapters`` were calibrated from, one for each: the artifacts are compared with them at
    full precision. ``artifacts`` are files of other tools, judged beside the schemes. ``probes`` hold one prompt for
    each probe up to the last look of ``limits``; ``max_probes`` ends the looks earlier. ``trigger`` are words that are
    added to every prompt, for calibration too. ``ranges`` is a ranges file. ``judges`` look at finished pictures.
    ``style_pictures`` is a folder of pictures
    of the adapter's style, on which its benefit is measured. ``max_rank`` is the rank of a file's inputs for an
    adapter, in an order that binds it, by default the largest of the adapters'; ``bound_with`` are other adapters that
    the same file has to take. ``require`` says whether all cases have to pass, or any.
    """

    base: str
    adapters: Annotated[Uses, Field(min_length=1)]
    references: Uses = ()
    common: Uses = ()
    allow_unmatched: bool = False
    schemes: Annotated[tuple[Scheme, ...], BeforeValidator(as_tuple)] = ()
    artifacts: Names = ()
    orders: Annotated[tuple[Order, ...], Field(min_length=1), BeforeValidator(as_tuple)]
    max_rank: Annotated[int, Field(ge=1)] | None = None
    bound_with: Uses = ()
    target: Target
    probes: ProbeSet
    trigger: str | None = None
    recipe: Recipe
    ranges: str | None = None
    style_pictures: str | None = None
    judges: Annotated[tuple[Judge, ...], BeforeValidator(as_tuple)] = ()
    limits: Limits
    max_probes: Annotated[int, Field(ge=2)] | None = None
    require: Literal["all", "any"] = "all"
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if not self.schemes and not self.artifacts:
            raise UserError("the request names no scheme and no artifact", "Name one of them.")
        if self.references and len(self.references) != len(self.adapters):
            raise UserError(
                f"{len(self.adapters)} adapters and {len(self.references)} references are given",
                "Give one --reference-lora for each --lora, or none.",
            )
        for kind, names in (("scheme", [s.name for s in self.schemes]), ("artifact", self.artifacts)):
            if len(set(names)) != len(names):
                raise UserError(
                    f"{kind} is named twice: {', '.join(names)}", "Name each once; files need names of their own."
                )
        if len(self.probes.prompts) != self.limits.looks[-1]:
            raise UserError(
                f"{len(self.probes.prompts)} probes, and the last look is at {self.limits.looks[-1]}",
                "Repeat the prompts with other seeds (probe.repeated), or give limits with other `looks`.",
            )
        self._require_bindable()
        recipe.calibration(self.recipe, self.probes, self.trigger)
        _ = self.bounds  # refuses more probes than the last look
        return self

    def _require_bindable(self) -> None:
        """Refuse an adapter as inputs of no file, and several files stacked where others are to take their place."""
        binding = [order for order in self.orders if orders.merge(order).binds]
        loading = [scheme.name for scheme in self.schemes if not scheme.exported]
        if binding and loading:
            raise UserError(
                f"scheme {loading[0]!r} is no file, so nothing in it takes an adapter as inputs",
                f"Leave --order {binding[0]} out, or the scheme.",
            )

        twice = [use.source for use in self.bound_with if use in self.adapters]
        if self.bound_with and (len(self.adapters) > 1 or twice):
            problem = f"names {twice[0]!r}, which is --lora" if twice else "stands beside a stack of adapters"
            raise UserError(f"--bound-with {problem}", "Give one --lora, and each other adapter as --bound-with.")

    @property
    def bounds(self) -> Limits:
        """The limits, with the looks cut at ``max_probes``."""
        return self.limits if self.max_probes is None else self.limits.at_most(self.max_probes)

    def __reduce__(self) -> tuple[Callable[[str], "CheckSpec"], tuple[str]]:
        """Pickled as the JSON that reports hold, for workers in other processes."""
        return CheckSpec.model_validate_json, (self.model_dump_json(),)

    def of_case(self, scheme: Scheme, order: Order) -> "CheckSpec":
        """The same request for one scheme in one order, which has to pass."""
        return self.changed(schemes=(scheme,), orders=(order,), artifacts=(), require="all")

    def changed(self, **values: object) -> "CheckSpec":
        """The request with other values in some fields, validated as a whole."""
        return CheckSpec.model_validate({name: getattr(self, name) for name in CheckSpec.model_fields} | values)
