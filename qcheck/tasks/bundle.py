"""A bundle: everything that a board needs to judge its own engines, and the verifier that does it.

The host runs its four arms on the probes, judges them, and writes what it fed and what it got: ``qcheck.device.bundle``
says where. Outputs are stored in the layout of the denoiser's own output, so that the board needs no code of a family.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.device import bundle as layout
from qcheck.judge.looks import until_decided
from qcheck.result.bundled import Bundled, BundledFile
from qcheck.result.verdict import Outcome, Verdict
from qcheck.spec.check import CheckSpec
from qcheck.tasks import bundle_files, check, pack
from qcheck.tasks import session as sessions
from qcheck.tasks.bundle_content import Content
from qcheck.tasks.bundle_facts import facts
from qcheck.tasks.bundled_case import BundledCase
from qcheck.tasks.check import Look, Quantization
from qcheck.tasks.decide import beside_seeds, decide

MOST = 16  # probes of a bundle that no number was asked for


def bundle(spec: CheckSpec, content: Content, folder: Path, cache: Cache, progress: Progress) -> Bundled:
    """Write the bundle of a request's first scheme in its first order to ``folder``.

    Raises:
        UserError: bad input, a scheme that TensorRT does not run, or a disk without room for it.
    """
    scheme, order = spec.schemes[0], spec.orders[0]
    if "tensorrt" not in scheme.runs:
        raise UserError(
            f"scheme {scheme.name!r} runs in {' and '.join(scheme.runs)}: a board's engine cannot be built from it",
            f"Bundle one of {', '.join(one.name for one in spec.target.deployable())}.",
        )
    if content.probes is not None:
        spec = spec.changed(max_probes=content.probes)
    with _case(spec, content, folder, cache, progress) as case:
        if spec.bound_with:
            _require_one_encoding(case)
        components = bundle_files.write_components(case, content, folder)
        bundle_files.write_samples(case, components, folder)
        verdict, probes = case.verdict.outcome, len(case.probes)
        described = _written(case, components, folder, folder)
    for index, own in enumerate(_of_others(spec)):
        place = folder / "adapters" / f"{index:03d}"
        with _case(own, content, folder, cache, progress) as case:
            _require_one_encoding(case)
            _written(case, components[:1], place, folder)
    (folder / "README.txt").write_text(pack.readme(described), "utf-8")
    pack.verifier(folder / pack.VERIFIER)
    pack.sbom(folder, described)
    files = [
        BundledFile(path=name, bytes=(folder / name).stat().st_size, digest=value)
        for name, value in sorted(pack.sums(folder).items())
    ]
    return Bundled(
        verdict=verdict,
        probes=probes,
        scheme=scheme.name,
        order=order,
        target=spec.target.name,
        files=files,
    )


@contextmanager
def _case(spec: CheckSpec, content: Content, folder: Path, cache: Cache, progress: Progress) -> Iterator[BundledCase]:
    """The case of one adapter, judged; its artifact lies in ``folder`` until the block ends."""
    making, scheme, order = folder / ".making", spec.schemes[0], spec.orders[0]
    with sessions.opened(spec, cache, progress) as session:
        check.require_effect(session, session.reference.take(spec.bounds.looks[0]))
        quantized = check.make(session, order, check.quantize_base(session, scheme), making)
        yield _judged(quantized, content.probes)
    shutil.rmtree(making)


def _written(case: BundledCase, components: Sequence[Mapping[str, Any]], place: Path, folder: Path) -> dict[str, Any]:
    """Write what is an adapter's own to ``place``; the files of ``components`` are in ``folder``. Returns its facts."""
    bundle_files.write_probes(case, components[0], place)
    described = facts(case, components, folder)
    (place / layout.NAME).write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", "utf-8")
    return described


def _of_others(spec: CheckSpec) -> Iterator[CheckSpec]:
    """The request of each other adapter that the file takes: the same file, judged with that adapter."""
    every = (*spec.adapters, *spec.bound_with)
    for other in spec.bound_with:
        yield spec.changed(adapters=(other,), bound_with=tuple(use for use in every if use != other))


def _require_one_encoding(case: BundledCase) -> None:
    """Refuse an adapter that changes text encoders, which a bundle of several adapters holds once."""
    if not case.session.arms.encode_alike:
        source = case.session.spec.adapters[0].source
        raise UserError(
            f"adapter {source!r} changes text encoders, of which a bundle holds one for all adapters",
            "Give it a bundle of its own, without --bound-with.",
        )


def _judged(quantization: Quantization, probes: int | None) -> BundledCase:
    """The case with the host's verdict on ``probes`` probes, or on as many as it takes."""
    session, instrument = quantization.session, quantization.ground.instrument
    limits = session.spec.bounds.computing(quantization.scheme.compute)

    def judge_at(count: int) -> tuple[Outcome, tuple[Verdict, Look]]:
        look = check.look(quantization, count)
        verdict = decide(
            limits, instrument, look.samples, look.energies, quantization.builds, session.spec.probes.groups
        )
        return verdict.outcome, (verdict, look)

    looks = [probes] if probes is not None else [n for n in limits.looks if n <= MOST] or [limits.looks[0]]
    _, _, (verdict, look) = until_decided(looks, judge_at)
    held, _ = beside_seeds(limits, look.samples, instrument.another_seed)
    return BundledCase(session, quantization, verdict, held, look)
