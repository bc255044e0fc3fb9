"""Pictures of several folders that belong together: by file names, or by the prompt and seed in their metadata."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from qcheck.calibration.pictures import SUFFIXES
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError, listed
from qcheck.measure import style
from qcheck.result.pictures import Match, Role
from qcheck.spec import generation
from qcheck.spec.generation import Generation

_EXIF, _USER_COMMENT, _MAKE, _MODEL = 0x8769, 0x9286, 0x010F, 0x0110
_CODES = {b"UNICODE\0": ("utf-16-be", "utf-16-le"), b"ASCII\0\0\0": ("ascii",)}
Key = str | Generation


@dataclass(frozen=True)
class Picture:
    """What one opening of a file tells: width and height, the digest of both and of the pixels, prompt and seed."""

    size: tuple[int, int]
    digest: str
    generation: Generation | None


@dataclass(frozen=True)
class Paired:
    """Pictures that every folder has: ``files`` of an arm in the order of ``keys``; ``unmatched`` are all others.

    ``pictures`` are those of ``files``: two are the same to the last bit where their digests are.
    """

    keys: tuple[Key, ...]
    files: Mapping[Role, tuple[Path, ...]]
    pictures: Mapping[Role, tuple[Picture, ...]]
    unmatched: Mapping[Role, tuple[str, ...]]
    generations: tuple[Generation | None, ...] = field(default=())

    def read(self, role: Role) -> Iterator[np.ndarray]:
        """The pictures [H, W, 3] in [0, 1] of an arm, one at a time."""
        return map(read, self.files[role])


def pair(folders: Mapping[Role, Path], match: Match) -> Paired:
    """The pictures of ``folders`` that belong together, by name in order.

    Raises:
        UserError: a folder has no pictures, one that cannot be read, two that belong to the same key; fewer than three
            belong together; names match where prompts and seeds do not; or most of F1's are F0's.
    """
    files = {role: _pictures(role, folder) for role, folder in folders.items()}
    known = {role: {path: _look(path) for path in paths} for role, paths in files.items()}
    keyed = {role: _keyed(role, folders[role], known[role], match) for role in folders}
    common = set.intersection(*(set(one) for one in keyed.values()))
    if len(common) < style.LEAST:
        raise UserError(*_unpaired(folders, keyed, match, len(common)))
    keys = sorted(common, key=lambda key: keyed["f1"][key].name)
    paired = {role: tuple(one[key] for key in keys) for role, one in keyed.items()}
    pictures = {role: tuple(known[role][path] for path in paths) for role, paths in paired.items()}
    everything = [{role: ones[row].generation for role, ones in pictures.items()} for row in range(len(keys))]
    if match == "name":
        _require_alike([str(key) for key in keys], everything)
    _require_distinct(folders["f1"], dict(zip(paired["f1"], pictures["f1"], strict=True)))
    _require_effect(folders, pictures)
    return Paired(
        keys=tuple(keys),
        files=paired,
        pictures=pictures,
        unmatched={role: tuple(path.name for path in files[role] if path not in set(paired[role])) for role in folders},
        generations=tuple(next((one for one in row.values() if one is not None), None) for row in everything),
    )


def size(paired: Paired, folders: Mapping[Role, Path]) -> tuple[int, int]:
    """Width and height of all pictures.

    Raises:
        UserError: they differ.
    """
    sizes = {role: Counter(one.size for one in ones) for role, ones in paired.pictures.items()}
    if len(set.union(*(set(counts) for counts in sizes.values()))) > 1:
        words = [
            f"{', '.join(f'{width}x{height} ({n})' for (width, height), n in counts.most_common(4))} in {folders[role]}"
            for role, counts in sizes.items()
        ]
        raise UserError(
            f"the pictures have different sizes: {'; '.join(words)}",
            "Make all of them at one width and height: nothing is resized or cropped to fit.",
        )
    return next(iter(sizes["f1"]))


def read(path: Path) -> np.ndarray:
    """A picture [H, W, 3] in [0, 1].

    Raises:
        UserError: the file is no picture of 8 bits a channel, a broken or an animated one, or transparent somewhere.
    """
    with _opened(path) as image:
        return np.asarray(_colours(image), np.float32) / 255


def _colours(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").convert("RGB")  # by way of a palette's transparency


def _look(path: Path) -> Picture:
    """What a file holds.

    Raises:
        UserError: as ``read``.
    """
    with _opened(path) as image:
        pixels = _colours(image).tobytes()
        return Picture(image.size, digest_of(repr(image.size), pixels), _generation(image))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            image.load()
            _require_plain(image)
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"picture {str(path)!r} cannot be read: {error}",
            "Remove it with its partners, or make it again: nothing is left out unasked.",
        ) from error


def _require_plain(image: Image.Image) -> None:
    """Refuse what would not be looked at as it is: other frames, finer levels, and colours that nobody sees.

    Raises:
        ValueError: the picture has them.
    """
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"it is animated, of {frames} frames")
    if image.mode[0] in "IF":
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("parts of it are transparent")


def _pictures(role: Role, folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{role.upper()} {str(folder)!r} is no folder", "Give the folder that its pictures are in.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(
            f"{role.upper()} {str(folder)!r} holds no picture", f"Give a folder with files of {', '.join(SUFFIXES)}."
        )
    return paths


def _generation(image: Image.Image) -> Generation | None:
    """The prompt and seed in a picture's PNG text or EXIF; None where it has none that is known."""
    fields = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    exif = image.getexif()
    comment = exif.get_ifd(_EXIF).get(_USER_COMMENT)
    tags = [exif.get(tag) for tag in (_MAKE, _MODEL)]  # where ComfyUI's WebP keeps its graph
    for text in (_comment(comment), *(tag for tag in tags if isinstance(tag, str))):
        name, _, value = text.partition(":")
        fields |= {"prompt": value} if name == "prompt" else {"parameters": text} if text and name != "workflow" else {}
    return generation.of_metadata(fields)


def _comment(content: object) -> str:
    """EXIF's UserComment, whose first eight bytes name its encoding; empty for any other."""
    if not isinstance(content, bytes):
        return content if isinstance(content, str) else ""
    for encoding in _CODES.get(content[:8], ()):
        try:
            text = content[8:].decode(encoding)
        except ValueError:
            continue
        if generation.of_parameters(text) is not None:
            return text
    return ""


def _keyed(role: Role, folder: Path, known: Mapping[Path, Picture], match: Match) -> dict[Key, Path]:
    nameless = [path.name for path, one in known.items() if one.generation is None]
    if match == "metadata" and nameless:
        raise UserError(
            f"{len(nameless)} of {len(known)} pictures in {role.upper()} {str(folder)!r} have no prompt and seed in "
            f"their metadata: {listed(nameless)}",
            "Give the pictures as the generator saved them, or name partners alike and match them with --match name.",
        )
    keyed: dict[Key, Path] = {}
    twice: list[str] = []
    for path, one in known.items():
        key: Key = path.stem if match == "name" or one.generation is None else one.generation
        if key in keyed:
            twice.append(f"{keyed[key].name} and {path.name} ({_shown(key)})")
        keyed[key] = path
    if twice:
        raise UserError(
            f"pictures in {role.upper()} {str(folder)!r} cannot be told apart by {match}: {listed(twice)}",
            "Keep one of each; pictures of one batch share prompt and seed: name partners alike and use --match name."
            if match == "metadata"
            else "Keep one of each.",
        )
    return keyed


def _unpaired(
    folders: Mapping[Role, Path], keyed: Mapping[Role, Mapping[Key, Path]], match: Match, count: int
) -> tuple[str, str]:
    examples = "; ".join(f"{folders[role]} has {listed([_shown(key) for key in one])}" for role, one in keyed.items())
    other = "metadata" if match == "name" else "name"
    what = f"only {count} of the pictures are" if count else "no picture is"
    return (
        f"{what} in all folders by {match}, and at least {style.LEAST} have to be: {examples}",
        f"Give folders with the same prompts and seeds, or try --match {other}.",
    )


def _shown(key: Key) -> str:
    return key.text() if isinstance(key, Generation) else key


def _require_alike(names: Sequence[str], rows: Sequence[Mapping[Role, Generation | None]]) -> None:
    """Refuse pictures of one name whose metadata tell of different prompts or seeds."""
    apart = []
    for name, row in zip(names, rows, strict=True):
        told = {role: one for role, one in row.items() if one is not None}
        if len(set(told.values())) > 1:
            apart.append(f"{name}: {', '.join(f'{role} {one.text()}' for role, one in told.items())}")
    if apart:
        raise UserError(
            f"{len(apart)} pictures of the same name have different prompts or seeds: {'; '.join(apart[:3])}",
            "Match them by what they show: --match metadata. Or make them again with the same prompts and seeds.",
        )


def _require_distinct(folder: Path, pictures: Mapping[Path, Picture]) -> None:
    """Refuse a picture that is there twice: counted twice, it would narrow the intervals."""
    first: dict[str, Path] = {}
    twice = []
    for path, one in pictures.items():
        if one.digest in first:
            twice.append(f"{first[one.digest].name} and {path.name}")
        first.setdefault(one.digest, path)
    if twice:
        raise UserError(
            f"F1 {str(folder)!r} holds the same picture twice: {listed(twice)}",
            "Keep one of each, or make them with other seeds.",
        )


def _require_effect(folders: Mapping[Role, Path], pictures: Mapping[Role, tuple[Picture, ...]]) -> None:
    """Refuse pictures that the LoRA leaves as they are at full precision: of nothing no share is kept or lost."""
    count = sum(f0.digest == f1.digest for f0, f1 in zip(pictures["f0"], pictures["f1"], strict=True))
    if 2 * count > len(pictures["f1"]):
        raise UserError(
            f"{count} of {len(pictures['f1'])} pictures in F1 {str(folders['f1'])!r} are those of F0 "
            f"{str(folders['f0'])!r} to the last bit: the LoRA does nothing there",
            "Give two folders, and make F1 again with the LoRA loaded at its weight; qcheck inspect LORA --base BASE "
            "says whether the file does anything on the base.",
        )
