"""Judging folders of pictures that something else made."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from qcheck.api.functions import default_out
from qcheck.api.keywords import Named
from qcheck.api.lazy import host
from qcheck.api.request import many
from qcheck.core.errors import UserError
from qcheck.core.folder import staged
from qcheck.core.progress import Progress, Silent
from qcheck.result.pictures import Match, PicturesReport, Role
from qcheck.spec import picture_limits
from qcheck.spec.judge import find_all
from qcheck.spec.picture_limits import PictureLimits


def pictures(
    f0: Named,
    f1: Named,
    q1: Named,
    *,
    q0: Named | None = None,
    match: str = "name",
    limits: str | PictureLimits = "default",
    judge: str | Sequence[str] | None = None,
    out: Named | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PicturesReport:
    """Say whether a LoRA's style survives, from pictures that something else made: a black box.

    Args:
        f0: The folder of the base's pictures at full precision.
        f1: Those with the LoRA at full precision: same prompts, seeds and size.
        q1: Those of what is to be shipped: quantized, with the LoRA.
        q0: Those of the quantized base, to tell what it does without the LoRA.
        match: How partners are known: by "name", their file names without endings, or by "metadata", the prompt and
            seed that A1111, Forge or ComfyUI wrote into them.
        limits: A name, a .toml file, or the value.
        judge: Networks of your own that look too, "clip=FOLDER", "dinov2=FOLDER" or "lpips=FILE"; they decide
            nothing.
        out: The folder for report.json, the page and pictures. Default: qcheck-out/pictures-TIME.
        overwrite: Replace what an earlier run wrote there.
        progress: Progress is drawn by this; by default nothing is.

    Raises:
        UserError: the extra ``judge`` is missing, or the folders do not belong together.
    """
    if match not in get_args(Match):
        raise UserError(f"--match {match!r} is none", f"Give {' or '.join(get_args(Match))}.")
    named: dict[Role, Named | None] = {"f0": f0, "f1": f1, "q1": q1, "q0": q0}
    folders = {role: Path(folder) for role, folder in named.items() if folder is not None}
    judges = find_all(many(judge))
    bounds = picture_limits.find(limits) if isinstance(limits, str) else limits
    stage = host("qcheck.tasks.pictures")
    with staged(default_out("pictures") if out is None else Path(out), overwrite) as folder:
        report: PicturesReport = stage.judge(
            stage.Request(folders, match, bounds, judges), folder, progress or Silent()
        )
    return report
