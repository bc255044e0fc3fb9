"""The functions for a board: a bundle for it, its verification, and the way back into a report."""

import importlib
from pathlib import Path
from typing import Unpack

from qcheck.api.functions import caching, load_report, writing
from qcheck.api.keywords import Files, Named, Request
from qcheck.api.lazy import host
from qcheck.api.request import asked
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.demo import library
from qcheck.device.errors import CannotVerify
from qcheck.judge import merge as merging
from qcheck.result import verified as verified_files
from qcheck.result.bundled import Bundled
from qcheck.result.report import Report
from qcheck.result.verified import Verified
from qcheck.spec.check import CheckSpec


def bundle(
    base: Named | CheckSpec,
    lora: Files = None,
    *,
    out: Named,
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
    bundle_probes: int | None = None,
    base_arm: bool = False,
    twin: bool = True,
    pack: bool = False,
    **request: Unpack[Request],
) -> Bundled:
    """Write what a board needs to judge its own engines: a request's first scheme in its first order.

    Args:
        base: As for ``check``; ``report.spec`` of a check bundles what was checked, from its cache.
        lora: As for ``check``.
        out: The bundle's folder.
        overwrite: Replace an earlier bundle in ``out``.
        cache: Use and keep results of earlier runs.
        progress: Receives every stage.
        bundle_probes: The number of probes; by default as many as the host's verdict takes, at most 16.
        base_arm: The board also runs the quantized base, whose outputs are otherwise the host's.
        twin: The denoiser in 16 bit too, which the board times beside the quantized one.
        pack: Also write ``out``.tar.zst.
        **request: The options of ``qcheck check``, see ``qcheck.api.keywords.Request``.

    Raises:
        UserError: bad input, a scheme that TensorRT does not run, or a disk without room.
    """
    if not isinstance(base, CheckSpec):
        request.setdefault("scheme", library.SCHEME)
    spec = asked(base, lora, **request)
    content = host("qcheck.tasks.bundle_content").Content(bundle_probes, base_arm, twin)
    with writing(out, overwrite, "--bundle") as folder, caching(cache) as entries:
        bundled: Bundled = host("qcheck.tasks.bundle").bundle(spec, content, folder, entries, progress or Silent())
    if pack:
        host("qcheck.tasks.pack").archive(Path(out), Path(out).with_name(f"{Path(out).name}.tar.zst"))
    return bundled


def verify(
    bundle: Named,
    *,
    runner: str | None = None,
    out: Named | None = None,
    work: Named | None = None,
    free_run: bool = True,
) -> Verified:
    """Verify a bundle on this machine, as verify.pyz does on the board.

    Args:
        bundle: The bundle's folder.
        runner: "tensorrt", "trtexec" or "onnxruntime"; by default the first that works here.
        out: The verify.json to write, with verify.txt beside it; by default in ``work``.
        work: The folder of engines and results, for the next run; by default beside the bundle.
        free_run: Also the probes' own runs.

    Raises:
        UserError: nothing can be verified.
    """
    main = importlib.import_module("qcheck.device.main")  # needs numpy
    work_folder, out_file = (None if place is None else Path(place) for place in (work, out))
    try:
        verification = main.run(Path(bundle), work_folder, out_file, runner, free_run)
    except CannotVerify as error:
        raise UserError(error.problem, error.fix) from error
    return Verified.model_validate_json(main.as_json(verification))


def merge(verified: Named, report: Named) -> Report:
    """Add what a board said of its own engine to the report of a check, and render its pages again.

    Args:
        verified: The verify.json that the board wrote.
        report: The folder of the check whose bundle it verified.

    Raises:
        UserError: one of them is none, or they do not belong together.
    """
    folder = Path(report)
    merged = merging.merged(load_report(folder), verified_files.read(Path(verified)))
    host("qcheck.report.write").renew(merged, folder)
    return merged
