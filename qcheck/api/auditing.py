"""The audit of reports, for who received one: it needs no library of the host."""

import importlib
from pathlib import Path

from qcheck.api.keywords import Named
from qcheck.core.errors import UserError
from qcheck.result import pictures
from qcheck.result import verified as verified_files
from qcheck.result.audit import Audit
from qcheck.result.report import REPORT
from qcheck.spec import limits as limit_files
from qcheck.spec import picture_limits
from qcheck.spec.limits import Limits
from qcheck.spec.picture_limits import PictureLimits


def audit(
    folder: Named,
    *,
    limits: str | Limits | PictureLimits | None = None,
    verified: Named | None = None,
    engine: Named | None = None,
    signature: Named | None = None,
    public_key: Named | None = None,
) -> Audit:
    """Compute every verdict of a report, or of a sweep's pages, again, and hold every file against its digest.

    Args:
        folder: What a check or a sweep wrote.
        limits: Limits of the recipient, by which the same evidence is judged too: a name, a .toml file, or the value;
            of pictures for what `qcheck pictures` wrote.
        verified: A verify.json, to name what is no longer as it was when the verdict was made.
        engine: An engine that the board's verifier built, with its record beside it; for the same.
        signature: A signature of the folder's report.intoto.json.
        public_key: The PEM file of the public key of who has to have signed it.

    Raises:
        UserError: there is no report, it cannot be read, or what is given does not belong to it.
    """
    stage = importlib.import_module("qcheck.tasks.audit")  # needs numpy
    place = Path(folder)
    if (signature is None) != (public_key is None):
        given, other = ("--public-key", "--signature") if signature is None else ("--signature", "--public-key")
        raise UserError(f"{given} is given alone", f"Give {other} too.")
    signed = None if signature is None or public_key is None else (Path(signature), Path(public_key))
    asked = stage.Asked(
        limits=_limits(place, limits) if isinstance(limits, str) else limits,
        verified=None if verified is None else verified_files.read(Path(verified)),
        engine=None if engine is None else Path(engine),
        signature=signed,
    )
    result: Audit = stage.audit(place.parent if place.name == REPORT else place, asked)
    return result


def _limits(place: Path, name: str) -> Limits | PictureLimits:
    folder = place.parent if place.name == REPORT else place
    return limit_files.find(name) if pictures.read(folder) is None else picture_limits.find(name)
