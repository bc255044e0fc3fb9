"""Where the files of a report are on this machine: the report may have been made on another one.

A report names its base, adapters, ranges, pictures and networks by paths, and has their digests. Each is taken where
the user says it is, else where the report says, else at the end of that path below the report's folder, the two folders
above it, the current folder or the shipped demo: but only with the digest that it had.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath

from qcheck.core.digest import digest_of, digest_of_folder
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.diagnose import judges
from qcheck.model import bases, lora
from qcheck.result.report import Report
from qcheck.spec import judge
from qcheck.spec.check import CheckSpec
from qcheck.spec.use import Use
from qcheck.tasks import exam


@dataclass(frozen=True)
class Given:
    """What the user says of where a report's files are; ``folder`` is the report's, None for one in memory."""

    base: str | None = None
    lora: Sequence[str] = ()
    ranges: str | None = None
    style_pictures: str | None = None
    judge: Sequence[str] = ()
    folder: Path | None = None

    def paths(self, option: str) -> Sequence[str]:
        """The values of an option by its long name."""
        value = getattr(self, option.removeprefix("--").replace("-", "_"))
        return (value,) if isinstance(value, str) else value or ()


OPTIONS = {"--base": "DIR", "--lora": "FILE", "--ranges": "FILE", "--style-pictures": "DIR", "--judge": "KIND=PATH"}


@dataclass(frozen=True)
class _File:
    """A file or folder of a report: the option that says where it is, its path and its digest there.

    ``digest_at`` gives the digest at another path, and raises where there is no such thing.
    """

    option: str
    source: str
    digest: str
    digest_at: Callable[[str], str]

    def is_at(self, path: str) -> bool:
        """Whether the same content is at a path."""
        with suppress(UserError, OSError):
            return self.digest_at(path) == self.digest
        return False


def here(report: Report, given: Given, of_file: Callable[[Path], bytes]) -> Report:
    """The report with the paths that the files of its request have on this machine.

    ``of_file`` gives the digests of the base's files.

    Raises:
        UserError: a file is not here, or is another one by now; a path is given that is none of the report's files.
    """
    files = [*_files(report, of_file)]
    _require_of_report(files, given)
    known = {(file.option, file.source): _place(file, given) for file in files}
    missing = [key for key, place in known.items() if place is None]
    if missing:
        named = ", ".join(f"no {option.removeprefix('--')} {source!r}" for option, source in missing)
        options = " ".join(f"{option} {OPTIONS[option]}" for option in dict.fromkeys(option for option, _ in missing))
        raise UserError(
            f"the report was made on another machine, or its files have changed since: here there is {named} "
            "with the digest that it had",
            f"Say where the same content is: qcheck advise {given.folder or 'REPORT'} {options}. "
            "Where it is gone, run qcheck check again.",
        )
    return report.model_copy(update={"spec": _moved(report.spec, lambda *key: known.get(key) or key[1])})


def _files(report: Report, of_file: Callable[[Path], bytes]) -> Iterator[_File]:
    """Everything that the request reads and of which the report has the digest."""
    spec = report.spec
    yield _File("--base", spec.base, report.base.digest, lambda path: digest_of_folder(bases.locate(path), of_file))
    for use, one in zip((*spec.adapters, *spec.references, *spec.common), report.adapters, strict=True):
        yield _File("--lora", use.source, one.digest, lambda path: lora.digest(Path(path)))
    if spec.ranges is not None and report.ranges is not None:
        yield _File("--ranges", spec.ranges, report.ranges.digest, lambda path: digest_of(Path(path)))
    if spec.style_pictures is not None and report.style_pictures is not None:
        pictures = partial(exam.digest_of_pictures, spec)
        yield _File("--style-pictures", spec.style_pictures, report.style_pictures.digest, pictures)
    for network, one in zip(spec.judges, report.judges, strict=True):
        yield _File("--judge", network.text(), one.digest, lambda text: judges.digest(judge.find(text)))


def _require_of_report(files: Sequence[_File], given: Given) -> None:
    """Refuse a path with other content than any file of the report that its option may name."""
    for option in OPTIONS:
        own = [file for file in files if file.option == option]
        for path in given.paths(option):
            if any(file.is_at(path) for file in own):
                continue
            if not Path(path.rpartition("=")[2]).exists():
                raise UserError(f"{option} {path!r} does not exist", "Correct the path.")
            names = ", ".join(f"{file.source!r} of digest {file.digest}" for file in own) or "none"
            raise UserError(
                f"{option} {path!r} is not what the report was made of, which is {names}",
                "Give the same content, or run qcheck check again with this one.",
            )


def _place(file: _File, given: Given) -> str | None:
    """The first place of the content; None where it is nowhere."""
    candidates = (*given.paths(file.option), file.source, *_ends(file.source, given.folder))
    place = next((path for path in candidates if file.is_at(path)), None)
    return str(Path(place).absolute()) if place is not None and Path(place).exists() else place


def _ends(source: str, folder: Path | None) -> Iterator[str]:
    """The ends of a path, of this system or another, that exist below the folders where a report's files may lie."""
    parts = [part for part in PureWindowsPath(source).parts if part.strip("/\\.")]
    near = [] if folder is None else [folder.absolute(), *folder.absolute().parents[:2]]
    for root in (*near, Path.cwd(), library.PIPELINE.parent):
        paths = (root.joinpath(*parts[start:]) for start in range(len(parts)))
        yield from (str(path) for path in paths if path.exists())


def _moved(spec: CheckSpec, place: Callable[[str, str], str]) -> CheckSpec:
    """The request with every path as ``place`` of option and path gives it."""

    def uses(several: Sequence[Use]) -> tuple[Use, ...]:
        return tuple(Use(source=place("--lora", use.source), weight=use.weight) for use in several)

    pictures, ranges = spec.style_pictures, spec.ranges
    return spec.changed(
        base=place("--base", spec.base),
        adapters=uses(spec.adapters),
        references=uses(spec.references),
        common=uses(spec.common),
        ranges=None if ranges is None else place("--ranges", ranges),
        style_pictures=None if pictures is None else place("--style-pictures", pictures),
        judges=tuple(judge.find(place("--judge", network.text())) for network in spec.judges),
    )
