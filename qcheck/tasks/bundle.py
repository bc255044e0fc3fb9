"""A bundle: everything that a board needs to judge its own engines, and the verifier that does it.

The host runs its four arms on the probes, judges them, and writes what it fed and what it got: ``qcheck.device.bundle``
says where. Outputs are stored in the layout of the denoiser's own output, so that the board needs no code of a family.
"""

import json
import shutil
from pathlib import Path

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
    with sessions.opened(spec, cache, progress) as session:
        check.require_effect(session, session.reference.take(spec.bounds.looks[0]))
        made = check.make(session, order, check.quantize_base(session, scheme), folder / ".making")
        case = _judged(made, content.probes)
        components = bundle_files.write_components(case, content, folder)
        bundle_files.write_tensors(case, components, folder)
        described = facts(case, components, content.base_arm, folder)
    shutil.rmtree(folder / ".making")
    (folder / layout.NAME).write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", "utf-8")
    (folder / "README.txt").write_text(pack.readme(described), "utf-8")
    pack.verifier(folder / pack.VERIFIER)
    files = [
        BundledFile(path=name, bytes=(folder / name).stat().st_size, digest=value)
        for name, value in sorted(pack.sums(folder).items())
    ]
    return Bundled(
        verdict=case.verdict.outcome,
        probes=len(case.probes),
        scheme=scheme.name,
        order=order,
        target=spec.target.name,
        files=files,
    )


def _judged(quantization: Quantization, probes: int | None) -> BundledCase:
    """The case with the host's verdict on ``probes`` probes, or on as many as it takes."""
    session, instrument = quantization.session, quantization.ground.instrument
    limits = session.spec.bounds.computing(quantization.scheme.compute)

    def judge_at(count: int) -> tuple[Outcome, tuple[Verdict, Look]]:
        look = check.look(quantization, count)
        verdict = decide(limits, instrument, look.samples, look.energies, quantization.builds)
        return verdict.outcome, (verdict, look)

    looks = [probes] if probes is not None else [n for n in limits.looks if n <= MOST] or [limits.looks[0]]
    _, _, (verdict, look) = until_decided(looks, judge_at)
    held, _ = beside_seeds(limits, look.samples, instrument.another_seed)
    return BundledCase(session, quantization, verdict, held, look)
