"""A request's models, loaded once and shared by every stage of a task."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qcheck.build import gate
from qcheck.build.gate import Gate
from qcheck.build.profile import Needs, needs
from qcheck.calibration.inputs import Calibrator
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Stopwatch
from qcheck.diagnose.sheet import Decoder
from qcheck.model import arms, bases, load, lora
from qcheck.model import device as devices
from qcheck.model.arms import Arms
from qcheck.model.device import CPU, Device
from qcheck.model.family import Shape
from qcheck.model.lora import Adapter, note
from qcheck.quantize import bound, fake
from qcheck.quantize.artifact import ArtifactSources, Exporter, QuantizedArm
from qcheck.quantize.bound import Binding
from qcheck.result.manifest import model_files
from qcheck.runtime import ort_runner, torch_runner
from qcheck.runtime.ort_runner import COMPUTES
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import prompts, subject
from qcheck.sampling import setup as setups
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import STRATA, Subject, forwards
from qcheck.sampling.store import Trace
from qcheck.sampling.yardsticks import Yardsticks
from qcheck.spec import order as orders
from qcheck.spec import ranges
from qcheck.spec.arm import Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.scheme import Scheme
from qcheck.tasks import exam
from qcheck.tasks.exam import Exam

Traces = Mapping[Side, Trace]


@dataclass(frozen=True)
class Session:
    """Everything that stages share. ``sampler`` has all probes that may be needed; a look takes the first of them.

    Artifacts are made from ``shipped``. It differs from ``arms``, the reference, where adapters were calibrated.
    """

    spec: CheckSpec
    arms: Arms
    shipped: Arms
    sampler: Sampler
    exporter: Exporter
    calibrator: Calibrator
    watch: Stopwatch

    @property
    def store(self) -> Cache:
        """The cache of results."""
        return self.sampler.store

    @functools.cached_property
    def reference(self) -> "Reference":
        """The traces of f0 and f1."""
        return Reference(self.arms, self.sampler, self.watch)

    @functools.cached_property
    def yardsticks(self) -> Yardsticks:
        """Changes of known size, beside which errors are held."""
        count = self.spec.bounds.looks[0]
        return Yardsticks(self.arms, self.spec.probes, self.sampler.take(count), self.reference.take(count), self.watch)

    @functools.cached_property
    def example(self) -> dict[str, np.ndarray]:
        """The denoiser's inputs for the first probe at its first step: a row for each branch of guidance."""
        return setups.example(self.sampler.setup, self.sampler.probes[0])

    @functools.cached_property
    def cut_prompts(self) -> list[str]:
        """Warnings of prompts whose end no text encoder reads."""
        asked = self.spec.probes.prompts[: self.spec.bounds.looks[-1]]
        return prompts.cut(self.sampler.setup.family, asked, self.spec.trigger)

    @property
    def shape(self) -> Shape:
        """Latents [1, C, h, w] of one picture."""
        first = self.sampler.probes[0]
        return self.sampler.setup.family.shape(first.width, first.height)

    @functools.cached_property
    def needs(self) -> Needs:
        """Memory and operations of one call of each component, at the probes' size and guidance."""
        with self.arms.held("adapted") as family:
            rows = len(self.example[family.latent])
            return needs(family.component(self.example), family.others(self.shape), rows)

    @functools.cached_property
    def exam(self) -> Exam | None:
        """The exam on the user's own pictures, if there are any."""
        return exam.of(self.arms, self.spec, self.sampler, self.watch)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The decoder of final latents to pictures."""
        return Decoder(self.arms.computing.family)

    @functools.cached_property
    def gate(self) -> Gate:
        """The gate that builds artifacts for the target."""
        shapes = gate.shapes_of(self.sampler.setup.family, self.example)
        return Gate(self.spec.target, self.spec.execution.build, shapes, self.store, self.watch)

    def stored(
        self,
        name: str,
        side: Side,
        path: Path,
        content: str,
        device: Device | None = None,
        bound: Callable[[], Mapping[str, np.ndarray]] = dict,
    ) -> Subject:
        """An exported arm, run by ONNX Runtime on ``device``, by default the one that computes."""
        return subject.stored(self.arms, name, side, path, content, self.spec.execution.threads, device, bound)

    def exported(self, side: Side, compute: str, device: Device | None = None) -> Subject:
        """An unquantized arm's exported file, run by ONNX Runtime as ``stored``."""
        path = self.exporter.full(side, compute)
        return self.stored(f"{subject.name(side)} in {compute}", side, path, digest_of(*model_files(path)), device)

    @property
    def runs_files(self) -> bool:
        """Whether ONNX Runtime runs artifacts on the device; where it does not, they are simulated in torch."""
        return ort_runner.runs_on(self.arms.device)

    def computing(self, side: Side, compute: str) -> Subject:
        """An unquantized arm in another compute type: its exported file, or torch where ONNX Runtime has no kernels."""
        if compute not in COMPUTES or not self.runs_files:
            return subject.full(self.arms, side, compute)
        return self.exported(side, compute)

    def sources(self, scheme: Scheme) -> ArtifactSources:
        """The inputs of a scheme's artifacts, with a twin where ONNX Runtime runs it on the device."""
        ranges, spec = self.calibrator.inputs(scheme), self.spec
        return ArtifactSources(
            self.shipped, self.exporter, self.store, scheme, spec.recipe, ranges, self.runs_files, self.binding
        )

    @functools.cached_property
    def binding(self) -> Binding | None:
        """The inputs of a file that binds its adapter; None where no order of the request does.

        Raises:
            UserError: an adapter that the file has to take does not fit the base, has a larger rank, or changes more
                than layers.
        """
        spec = self.spec
        if not any(orders.merge(order).binds for order in spec.orders):
            return None
        if not self.shipped.graphs_alike:
            raise arms.unbindable(spec.adapters[0].source)
        others = [arms.ranks_of(self.arms.base, lora.read(use), spec.allow_unmatched) for use in spec.bound_with]
        return bound.binding([self.shipped.ranks(), *others], spec.max_rank)

    def quantized(self, name: str, side: Side, arm: QuantizedArm, scheme: Scheme) -> Subject:
        """A quantized arm: its file in ONNX Runtime, its simulation, or bitsandbytes' layers in torch."""
        if arm.path is not None:
            return self.stored(name, side, arm.path, arm.digest, bound=arm.inputs)
        if scheme.exported:
            identity = cache.code(fake.__name__, torch_runner.__name__)
            content = digest_of(arm.digest, identity, self.arms.device.title, "simulation")
            return Subject(name, side, content, lambda: self._simulation(side, arm))
        content = digest_of(arm.digest, cache.code("qcheck.quantize.bnb", torch_runner.__name__), CPU.title)
        return Subject(name, side, content, lambda: self._bnb_runner(arm))

    @contextmanager
    def _simulation(self, side: Side, arm: QuantizedArm) -> Iterator[TorchRunner]:
        q = arm.content()
        with self.arms.running(side) as family, fake.simulated(family.module, q.plan, q.branches, q.state):
            yield subject.runner(self.arms, family.module, "torch float32 with quantization simulated")

    @contextmanager
    def _bnb_runner(self, arm: QuantizedArm) -> Iterator[TorchRunner]:
        from qcheck.quantize import bnb  # an extra that only its schemes need

        content = arm.content()
        with self.arms.held("base") as family:
            module = bnb.converted(family.module, content.state, content.plan, content.branches)
        yield TorchRunner(family.entry(module), bnb.NAME, fixed=family.fixed)


class Reference:
    """Traces of the full-precision arms f0 and f1 by number of probes; each number is traced once."""

    def __init__(self, both: Arms, sampler: Sampler, watch: Stopwatch) -> None:
        self._both, self._sampler, self._watch = both, sampler, watch
        self._known: dict[int, Traces] = {}

    def take(self, count: int) -> Traces:
        """f1 is sampled normally; f0 is evaluated at the latents f1 visited, then sampled from the same noise.

        Raises:
            UserError: the base's own output is not finite.
        """
        if count not in self._known:
            sampler = self._sampler.take(count)
            calls = forwards(sampler.setup, 2, 1, count)
            with self._watch.stage(f"reference, {count} probes", calls) as advance:
                f1 = sampler.reference(subject.full(self._both, "adapted"), advance)
                f0 = sampler.arm(subject.full(self._both, "base"), f1, advance)
            if not all(np.isfinite(final).all() for final in f0.finals()):
                raise UserError(
                    "the base's own output is not finite on these probes",
                    "Check the base in float32, and the guidance scale.",
                )
            self._known[count] = {"base": f0, "adapted": f1}
        return self._known[count]


class Warm:
    """The base that a process loaded last: the next adapter of the same base is merged in its place."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._arms: Arms | None = None

    def arms(self, spec: CheckSpec, device: Device, store: Cache, adapters: Sequence[Adapter]) -> Arms:
        """Both arms of ``spec`` with ``adapters`` merged into one of them.

        Raises:
            UserError: the base does not load, or an adapter does not fit it.
        """
        key = (spec.base, spec.common, device)
        if self._arms is not None and key == self._key:
            self._arms = arms.swapped(self._arms, adapters, spec.allow_unmatched)
            return self._arms
        self._arms = None  # its memory goes before the next is loaded
        common = [lora.read(use) for use in spec.common]
        base = load.load(spec.base, store.file_digest, device)
        self._arms, self._key = arms.apply(base, adapters, common, spec.allow_unmatched).on(device), key
        return self._arms


@contextmanager
def opened(spec: CheckSpec, store: Cache, progress: Progress, warm: Warm | None = None) -> Iterator[Session]:
    """Load the base and the adapters of ``spec``, and set torch's threads to those of ``spec`` until the block ends.

    ``warm`` may hold the base already.

    Raises:
        UserError: bad input.
    """
    threads, device = torch.get_num_threads(), devices.find(spec.execution.device, spec.execution.precision)
    torch.set_num_threads(spec.execution.threads)
    try:
        with devices.exact(device):
            yield _load(spec, device, store, Stopwatch(progress), warm or Warm())
    finally:
        torch.set_num_threads(threads)


def _require_ranges(spec: CheckSpec) -> None:
    """Refuse ranges that are no such file, or that none of the request's schemes reads."""
    if spec.ranges is None:
        return
    ranges.read(Path(spec.ranges))
    rules = [rule for scheme in spec.schemes for rule in scheme.rules]
    if not any(rule.activations is not None and rule.activations.scales is None for rule in rules):
        names = ", ".join(scheme.name for scheme in spec.schemes) or "none"
        raise UserError(
            f"--ranges {spec.ranges!r}: no scheme of the request ({names}) has inputs on fixed ranges",
            "Leave --ranges out, or add a scheme such as int8 or fp8.",
        )


def _load(spec: CheckSpec, device: Device, store: Cache, watch: Stopwatch, warm: Warm) -> Session:
    bases.locate(spec.base)
    _require_ranges(spec)
    adapters, references = ([lora.read(use) for use in group] for group in (spec.adapters, spec.references))
    note.require_references(adapters, references)
    with watch.stage("load base and adapter", 1) as advance:
        both = warm.arms(spec, device, store, references or adapters)
        shipped = arms.alike(both, adapters) if references else both
        advance(1)
    sampler = Sampler.of(both, spec.probes, STRATA, spec.execution.batch, store)
    exporter = Exporter(both, store, setups.example(sampler.setup, sampler.probes[0]))
    calibrator = Calibrator(both, spec, store, watch)
    return Session(spec, both, shipped, sampler, exporter, calibrator, watch)
