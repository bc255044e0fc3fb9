"""An audit of report folders: verdicts from the numbers of the probes, files beside their digests, what lapsed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcheck.core.digest import digest_of, digest_of_value, joined
from qcheck.core.errors import UserError
from qcheck.core.files import read_object
from qcheck.core.places import Folder
from qcheck.device import sums
from qcheck.judge import lapse
from qcheck.measure.doubt import doubt
from qcheck.report import seal, signature, statement
from qcheck.report.seal import Files
from qcheck.result import audit as results
from qcheck.result import manifest, pictures, store
from qcheck.result.audit import Audit, FolderAudit
from qcheck.result.fleet import CASES, MARK, PAGES, Row, Store
from qcheck.result.measurement import Judged
from qcheck.result.report import REPORT, Case, Report
from qcheck.result.verified import Verified
from qcheck.spec import recipe
from qcheck.spec.limits import Limits
from qcheck.spec.picture_limits import PictureLimits
from qcheck.tasks import again, audit_pictures

_SHA256 = re.compile("[0-9a-f]{64}")
_FORECAST = ("forecast", "NEEDS-QAT")  # of a row without a page: weights alone decide nothing else


@dataclass(frozen=True)
class Asked:
    """What the recipient brings: limits of their own, what a board says by now, an engine's file.

    ``signature`` are the files of a signature and of the public key of who has to have signed.
    """

    limits: Limits | PictureLimits | None = None
    verified: Verified | None = None
    engine: Path | None = None
    signature: tuple[Path, Path] | None = None


def audit(folder: Path, asked: Asked) -> Audit:
    """Audit the folder of a check, or every page of a sweep.

    Raises:
        UserError: it is none of them, its report cannot be read, or what is asked belongs to no case of it.
    """
    if not (folder / REPORT).exists() and any((folder / name).exists() for name in (MARK, PAGES)):
        if asked.signature is not None:
            raise UserError("a signature is of one folder, and this is a sweep", f"Give one of its {PAGES}/.")
        folders = list(_sweep(folder, asked))
    elif not any((folder / name).exists() for name in (REPORT, sums.NAME)):
        raise UserError(f"{str(folder)!r} holds neither a report nor a sweep", "Give what check or sweep wrote.")
    elif (report := pictures.read(folder)) is not None:
        if isinstance(asked.limits, Limits) or asked != Asked(limits=asked.limits):
            raise UserError(
                f"{str(folder)!r} is a report of pictures",
                "Audit it by limits of pictures or none, without board, engine and signature.",
            )
        folders = [audit_pictures.of_folder(folder, report, asked.limits)]
    else:
        folders = [of_folder(folder, _read(folder), asked)]
    return results.audit(None if asked.limits is None else asked.limits.name, folders)


def _read(folder: Path) -> Report:
    try:
        return store.read(folder)
    except UserError as error:
        if (folder / REPORT).exists() and REPORT in seal.files(folder).changed:
            raise UserError(
                f"{str(folder / REPORT)!r} was changed after the check, and is no report any more: {error.what}",
                "Take the folder from where it was written.",
            ) from error
        raise


def of_folder(folder: Path, report: Report, asked: Asked, trusted: bool = True) -> FolderAudit:
    """The audit of one report and the files around it; ``trusted`` as in ``again.of_case``."""
    files, limits = seal.files(folder), asked.limits
    if isinstance(limits, PictureLimits):
        raise UserError(f"limits {limits.name!r} are of pictures", f"Give limits of a check for {str(folder)!r}.")
    differences = [*_digests_of_values(report)]
    changed = [*files.changed]
    if not seal.states(report, folder, files.expected):
        changed.append(statement.NAME)
    changed += [name for name in _manifests(folder, files) if name not in changed]
    lapsed = _lapsed(report, asked)
    return FolderAudit(
        folder=str(folder),
        files=len(files.expected),
        changed=changed,
        missing=files.missing,
        added=files.added,
        signed=None if asked.signature is None else _signed(folder, *asked.signature),
        differences=differences,
        cases=[
            again.of_case(report, case, limits, [*_artifact(folder, case, files), *lapsed.get(place, [])], trusted)
            for place, case in enumerate(report.cases)
        ],
    )


def _signed(folder: Path, file: Path, key: Path) -> bool:
    """Whether the folder's statement is signed; one that is missing is not."""
    path = folder / statement.NAME
    return signature.holds(path.read_bytes() if path.is_file() else b"", file, key)


def _digests_of_values(report: Report) -> Iterator[str]:
    """The values of the request that have other digests than the report gives."""
    spec, stated = report.spec, report.provenance
    calibrating = recipe.calibration(spec.recipe, spec.probes).prompts
    pairs = (
        ("limits", stated.limits_digest, digest_of_value(spec.limits)),
        ("probes", report.probes.digest, digest_of_value(spec.probes)),
        ("recipe", stated.recipe_digest, digest_of(digest_of_value(spec.recipe), *calibrating)),
    )
    for name, here, there in pairs:
        if here != there:
            yield f"the digest of the {name} is {here} in the report, and the {name} in it have {there}"


def _artifact(folder: Path, case: Case, files: Files) -> Iterator[str]:
    """The files of a case's artifact that are here and are others than the verdict is about."""
    for file in case.artifact:
        for name, expected in file.sha256.items():
            elsewhere = case.quantized_layers is None and Path(name).is_absolute() and Path(name).is_file()
            actual = sums.digest(Path(name)) if elsewhere else files.digests.get(name)
            if actual not in (None, expected):
                yield f"{name} was changed: its SHA-256 is {actual}, and the verdict is of {expected}"
        every = list(file.sha256.values())  # of an adapter beside it too, which ``digest`` is not of
        own = [file.sha256[name] for name in (file.path, f"{file.path}.data") if name in file.sha256]
        if not all(map(_SHA256.fullmatch, every)):
            yield f"{file.path}: what the report gives for its SHA-256 is none"
        elif every and file.digest not in (joined(every), joined(own)):
            yield f"{file.path}: its digest in the report is {file.digest}, and its SHA-256 give {joined(every)}"


def _manifests(folder: Path, files: Files) -> Iterator[str]:
    """The files that a manifest in the folder has other digests of."""
    for name in files.digests:
        if Path(name).name != manifest.NAME:
            continue
        try:
            listed = dict(read_object(folder / name)["files"])
        except (OSError, ValueError, LookupError, TypeError):
            yield name
            continue
        for inner, expected in listed.items():
            path = (Path(name).parent / inner).as_posix()
            digests = [files.digests[part] for part in (path, f"{path}.data") if part in files.digests]
            if digests and joined(digests) != expected:
                yield path


def _lapsed(report: Report, asked: Asked) -> Mapping[int, list[str]]:
    """What no longer holds of each case, by its place, by what a board says and an engine's file."""
    lapsed: dict[int, list[str]] = {}
    if asked.verified is not None:
        place, later = _verified_case(report, asked.verified)
        lapsed.setdefault(place, []).extend(lapse.verification(report, report.cases[place], later))
    if asked.engine is not None:
        for place, sentences in _engine(report, asked.engine):
            lapsed.setdefault(place, []).extend(sentences)
    return lapsed


def _verified_case(report: Report, verified: Verified) -> tuple[int, Verified]:
    """The place of the case that a board verified, and its verification of the report's adapter."""
    ours = [one.digest for one in report.adapters if one.arms == "adapted"]
    later = next((one for one in verified.every if one.asked.adapter_digests == ours), verified)
    key = (later.asked.scheme, later.asked.order)
    places = [place for place, case in enumerate(report.cases) if (case.scheme, case.order) == key]
    if not places:
        raise UserError(f"the board verified {' '.join(key)}, which is no case of the report", "Give the report of it.")
    return places[0], later


def _engine(report: Report, engine: Path) -> list[tuple[int, list[str]]]:
    """The cases whose file an engine was built from, each with what it is that the verdict is not about.

    An engine of none of them is one of a changed file, which is so for every case.
    """
    path = engine.with_name(f"{engine.name}.json")
    try:
        record, actual = read_object(path), sums.digest(engine)
    except (OSError, ValueError) as error:
        raise UserError(f"engine {str(engine)!r}: {error}", f"Give an engine with its record, {path.name}.") from error
    broken_bytes = []
    if record.get("sha256") != actual:
        broken_bytes = [f"the engine {engine.name} was changed: its SHA-256 is {actual}, not {record.get('sha256')}"]
    sources = {place: lapse.source(case) for place, case in enumerate(report.cases)}
    own = [place for place, source in sources.items() if source is not None and source == record.get("digest")]
    if not own:
        other = f"the engine {engine.name} was built from another file than the verdict is of"
        return [(place, [*broken_bytes, other]) for place in sources]
    return [(place, [*broken_bytes, *lapse.engine(report.cases[place], record)]) for place in own]


def _sweep(sweep: Path, asked: Asked) -> Iterator[FolderAudit]:
    """A sweep as a whole, then its pages; the rows of its cases have to say what the report of their page says.

    Raises:
        UserError: it has neither rows nor pages.
    """
    folders = sorted(path.parent for path in sweep.glob(f"{PAGES}/*/{REPORT}"))
    known, changed, missing = seal.sweep(sweep)
    names = sorted(path.stem for path in (sweep / CASES).glob("*.json"))
    if not names and not folders:
        raise UserError(f"sweep {str(sweep)!r} has neither rows nor pages", "Give a sweep that checked something.")
    rows, place = list[Row](), Store(Folder(sweep))
    for name in names:
        try:
            rows.append(place.read(name))
        except UserError:
            changed.append(place.name(name))
    pages = {folder.name for folder in folders}
    alone = [row for row in rows if _page(row) not in pages]
    loose = [row for row in alone if row.verdict is not None and (row.stage, row.verdict) != _FORECAST]
    yield FolderAudit(
        folder=str(sweep),
        files=len(known),
        changed=sorted(set(changed)),
        missing=missing,
        added=[place.name(row.case) for row in rows if known and place.name(row.case) not in known],
        unaudited=len(alone) - len(loose),
        differences=[f"the row of {row.title} {row.scheme} {row.order} has no page that says so" for row in loose],
        cases=[],
    )
    for folder in folders:
        yield _of_page(folder, [row for row in rows if _page(row) == folder.name], asked)


def _of_page(folder: Path, rows: Sequence[Row], asked: Asked) -> FolderAudit:
    try:
        report = _read(folder)
    except UserError as error:  # the other pages go on
        return FolderAudit(
            folder=str(folder), files=0, changed=[REPORT], missing=[], added=[], differences=[error.what], cases=[]
        )
    one = of_folder(folder, report, asked, trusted=False)
    return one.model_copy(update={"differences": [*one.differences, *_rows(report, rows)]})


def _page(row: Row) -> str | None:
    return None if row.page is None else Path(row.page).parent.name


def _text(one: Judged | None) -> str:
    """As JSON, in which NaN equals itself."""
    return "" if one is None else one.to_json()


def _rows(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    """The values of rows that are not those of the report's cases."""
    cases, spec = {(case.scheme, case.order): case for case in report.cases}, report.spec
    limits, adapters = spec.bounds, " + ".join(use.source for use in spec.adapters)
    for row in rows:
        title, case = f"the sweep's row of {row.scheme} {row.order}", cases.get((row.scheme, row.order))
        if case is None:
            yield f"{title} names a report that has no such case"
            continue
        pairs = (
            ("verdict", row.verdict, case.verdict),
            ("number of probes", row.probes, case.probes_used),
            ("adapter", row.adapter, adapters),
            ("weight", row.weight, spec.adapters[0].weight),
            ("base", row.base, spec.base),
            ("target", row.target, spec.target.name),
        )
        yield from (
            f"{title} says {name} {here}, and its report {there}" for name, here, there in pairs if here != there
        )
        if _text(row.deciding) != _text(case.decided) or row.reasons != case.reasons:
            yield f"{title} gives other reasons than its report"
        survival = [one.value for one in case.measurements if (one.name, one.arm) == ("effect_survival", "adapted")]
        if not again.alike(row.survival, survival[0] if survival else None):
            yield f"{title} has a survival of {row.survival}, and its report {survival}"
        certain = doubt(case.measurements, case.probes_used, limits.alpha, len(limits.looks))
        if not again.alike(row.doubt, certain):
            yield f"{title} has a p-value of {row.doubt}, and its report gives {certain}"
