"""A session: a base and its adapters stay loaded while several schemes and orders are measured and judged."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from qcheck.api.functions import caching
from qcheck.api.keywords import Files, Made, Named, Request
from qcheck.api.lazy import host
from qcheck.api.request import asked, made
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.result.measurement import Measurement
from qcheck.result.report import Case
from qcheck.spec import order as orders
from qcheck.spec import scheme as schemes
from qcheck.spec.check import CheckSpec
from qcheck.spec.scheme import Scheme

if TYPE_CHECKING:
    from qcheck.tasks.check import Quantization
    from qcheck.tasks.session import Session as Loaded


class Session:
    """A base with its adapters, loaded until the ``with`` block ends.

        with qcheck.Session("sd15/", lora="style.safetensors") as session:
            q1 = session.quantize("int4-g128", order="merge-quantize")
            session.measure(q1, probes=16)
            session.judge(q1)

    Args:
        base: A diffusers pipeline folder, a hub id, "demo", or a whole request.
        lora: A .safetensors file, or a list of them that are judged together.
        cache: Use and keep results of earlier runs.
        progress: Receives every stage; silent by default.
        **request: The options of ``qcheck check``, see ``qcheck.api.keywords.Request``; ``quantize`` takes
            ``scheme`` and ``order``.

    Raises:
        UserError: bad input.
    """

    def __init__(
        self,
        base: Named | CheckSpec,
        lora: Files = None,
        *,
        cache: bool = True,
        progress: Progress | None = None,
        **request: Unpack[Request],
    ) -> None:
        keywords: Request = request if isinstance(base, CheckSpec) else {**made(base, Made()), **request}
        self.spec = asked(base, lora, **keywords)
        self._cache, self._progress = cache, progress or Silent()
        self._stack = ExitStack()
        self._loaded: Loaded | None = None
        self._folder = Path()

    def __enter__(self) -> Self:
        """Load the models."""
        store = self._stack.enter_context(caching(self._cache))
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        opened = host("qcheck.tasks.session").opened(self.spec, store, self._progress)
        self._loaded = self._stack.enter_context(opened)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        self._stack.close()

    def quantize(self, scheme: Named | Scheme, order: str = "merge-quantize") -> "Quantization":
        """Base and base + LoRA under a scheme, the adapter merged in that order: files as a board would get them.

        Raises:
            UserError: a scheme or order that is not known, or that the target does not run.
        """
        scheme_value = scheme if isinstance(scheme, Scheme) else schemes.find(str(scheme))
        if reason := self.spec.target.refuses(scheme_value):
            raise UserError(
                f"scheme {scheme_value.name!r} cannot run on {self.spec.target.name!r}: {reason}",
                "Take another scheme.",
            )
        loaded = self._open()
        spec = self.spec.of_case(scheme_value, orders.find(order))
        case_session = replace(loaded, spec=spec, calibrator=replace(loaded.calibrator, spec=spec))
        quantization: Quantization = host("qcheck.tasks.check").quantize(case_session, self._folder)
        return quantization

    def measure(self, quantized: "Quantization", probes: int) -> list[Measurement]:
        """Every sampled measurement over the first ``probes`` probes, with its interval; no limit is applied.

        Raises:
            UserError: more probes than the request has, or fewer than two.
        """
        self._open()
        if not 2 <= probes <= len(self.spec.probes.prompts):
            raise UserError(f"{probes} probes are asked for", f"Take 2 to {len(self.spec.probes.prompts)}.")
        measurements: list[Measurement] = host("qcheck.tasks.check").measured(quantized, probes)
        return measurements

    def judge(self, quantized: "Quantization") -> Case:
        """The case as a check would report it: probes are added until there is a verdict."""
        self._open()
        case: Case = host("qcheck.tasks.check").judged(quantized)
        return case

    def _open(self) -> "Loaded":
        if self._loaded is None:
            raise RuntimeError("the session is not open: use it in a `with` block")
        return self._loaded
