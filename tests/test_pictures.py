"""``qcheck pictures``: folders that something else filled, matched, judged, and refused where they do not fit."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

import qcheck
import qcheck.core.values
from qcheck.cli.app import app
from qcheck.core.errors import UserError
from qcheck.device import sums
from qcheck.diagnose import features, flip_map
from qcheck.result.pictures import PicturesReport, exit_code
from qcheck.spec import limits, picture_limits
from qcheck.tasks import picture_pairs
from tests.spec.test_generation import graph

COUNT, SIDE = 10, 32
NETWORK = pytest.mark.skipif(bool(features.missing()), reason=features.missing())


def arm(name: str, share: float, noise: float = 0.02) -> np.ndarray:
    """Pictures [n, H, W, 3]: blobs of each its own colour, on which a style draws stripes at a ``share``."""
    rng, jitter = np.random.default_rng(0), np.random.default_rng(sum(map(ord, name)))
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    centres, colours = rng.uniform(0.3, 0.7, (COUNT, 2)), rng.uniform(0.2, 0.8, (COUNT, 3))
    blobs = np.exp(-8 * ((x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2))
    stripes = share * 0.4 * np.sign(np.sin(2 * np.pi * 8 * x))[None, :, :, None]
    pictures: np.ndarray = blobs[..., None] * colours[:, None, None] + stripes
    return pictures + noise * jitter.standard_normal(pictures.shape)


def save(folder: Path, pictures: np.ndarray, texts: list[dict[str, str]] | None = None, name: str = "{:03d}") -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        info = PngInfo()
        for key, text in (texts[number] if texts else {}).items():
            info.add_text(key, text)
        levels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{name.format(number)}.png", pnginfo=info)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for name, share in (("f0", 0.0), ("f1", 1.0), ("kept", 0.97), ("lost", 0.1), ("near", 0.255)):
        save(root / name, arm(name, share))
    return root


@pytest.fixture
def folders(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "in"))


def judged(root: Path, q1: str, **more: object) -> PicturesReport:
    return qcheck.pictures(root / "f0", root / "f1", root / q1, out=root.parent / f"out-{q1}", **more)  # type: ignore[arg-type]


@NETWORK
def test_a_style_that_is_kept_passes_and_one_that_is_lost_does_not(stored: Path, tmp_path: Path) -> None:
    for q1, outcome, code in (("kept", "PASS", 0), ("lost", "NEEDS-QAT", 1)):
        report = qcheck.pictures(stored / "f0", stored / "f1", stored / q1, out=tmp_path / q1)
        assert (report.verdict, exit_code(report)) == (outcome, code), report.measurements
        assert report.decided is not None
        assert report.decided.name == "style_survival"
        assert PicturesReport.model_validate_json((tmp_path / q1 / "report.json").read_text()) == report
    told = {one.name: one for one in report.measurements}
    assert told["flip"].value is None or told["flip"].value > 0
    assert report.shown_pairs[0] == min(range(COUNT), key=lambda i: report.pairs[i].survival)


@NETWORK
def test_what_was_computed_of_a_picture_is_not_computed_again(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is opened for what it is, for features, for pixels, and to be drawn; FLIP is asked once a pair."""
    opened, compared = Counter[Path](), list[int]()
    opening, comparing = Image.open, flip_map.compare
    monkeypatch.setattr(Image, "open", lambda path, *rest: (opened.update([path]), opening(path, *rest))[1])
    monkeypatch.setattr(flip_map, "compare", lambda *pair: (compared.append(1), comparing(*pair))[1])
    report = qcheck.pictures(stored / "f0", stored / "f1", stored / "kept", out=tmp_path / "out")
    pictures = {path: count for path, count in opened.items() if stored in Path(path).parents}
    assert len(pictures) == 3 * COUNT
    assert max(pictures.values()) <= 4
    assert len(compared) == (0 if flip_map.missing() else COUNT)
    assert len(report.shown[1].flip) == (0 if flip_map.missing() else 8)


@NETWORK
def test_every_file_of_a_check_is_there_and_sealed(stored: Path, tmp_path: Path) -> None:
    report = qcheck.pictures(stored / "f0", stored / "f1", stored / "lost", q0=stored / "f0", out=tmp_path / "out")
    out = tmp_path / "out"
    page = (out / "report.html").read_text()
    assert "The style is lost in these pictures." in page
    assert "no layer is blamed" in page
    maps = 0 if flip_map.missing() else 8 * 2
    assert page.count("data:image/webp;base64,") == 8 * 6 + maps
    assert ('id="maps"' in page) == bool(maps)
    assert len(list((out / "pictures").glob("m?-*.webp"))) == maps
    assert "### qcheck pictures" in (out / "report.md").read_text()
    assert '<failure type="NEEDS-QAT"' in (out / "junit.xml").read_text()
    assert sums.parsed((out / sums.NAME).read_bytes()) == {n: d for n, d in sums.of(out).items() if n != sums.NAME}
    with Image.open(out / "contact.png") as sheet:
        assert sheet.width == 150 + 6 * 118 + 6
    assert {(one.name, one.arm) for one in report.measurements} >= {("deep_distance", "base"), ("psnr", "adapted")}
    assert [folder.role for folder in report.folders] == ["f0", "f1", "q1", "q0"]


@NETWORK
def test_too_few_pictures_or_too_near_are_open_and_say_how_many_would_decide(folders: Path) -> None:
    report = judged(folders, "near")
    assert (report.verdict, exit_code(report)) == ("INCONCLUSIVE", 3)
    for name in ("f0", "f1", "lost"):
        for path in sorted((folders / name).iterdir())[5:]:
            path.unlink()
    few = judged(folders, "lost")
    assert few.verdict == "INCONCLUSIVE"
    assert few.reasons == ["5 pairs are too few: at least 8 decide"]
    assert few.next == "The pictures are too few to say: about 8 pairs would decide."


@NETWORK
def test_pictures_that_are_the_full_precision_ones_prove_nothing(folders: Path) -> None:
    shutil.copytree(folders / "f1", folders / "same")
    report = judged(folders, "same")
    assert report.verdict == "INVALID"
    assert "to the last bit" in report.reasons[0]


@NETWORK
def test_black_pictures_are_lost_and_not_an_error(folders: Path) -> None:
    save(folders / "black", np.zeros((COUNT, SIDE, SIDE, 3)))
    assert judged(folders, "black").verdict in ("NEEDS-QAT", "FAIL-RECIPE", "INVALID")


@NETWORK
def test_what_has_no_partner_is_named_and_left_out(folders: Path) -> None:
    (folders / "lost" / "003.png").rename(folders / "lost" / "other.png")
    report = judged(folders, "lost")
    assert len(report.pairs) == COUNT - 1
    assert {folder.role: folder.unmatched for folder in report.folders} == {
        "f0": ["003.png"],
        "f1": ["003.png"],
        "q1": ["other.png"],
    }
    assert sum("left out: " in warning for warning in report.warnings) == 3


def _texts(kind: str, lora: str = "") -> list[dict[str, str]]:
    if kind == "a1111":
        return [{"parameters": f"fox {n}{lora}\nSteps: 20, Seed: {n}, Size: 1x1"} for n in range(COUNT)]
    nodes = [graph(**{"6": {"text": f"fox {n}", "clip": ["10", 1]}}) for n in range(COUNT)]
    for number, node in enumerate(nodes):
        node["3"]["inputs"]["seed"] = number
    return [{"prompt": json.dumps(node), "workflow": "{}"} for node in nodes]


@pytest.mark.parametrize("kind", ["a1111", "comfyui"])
def test_metadata_match_whatever_files_are_called(kind: str, tmp_path: Path) -> None:
    roles = {"f0": _texts(kind), "f1": _texts(kind, ", <lora:x:1>"), "q1": _texts(kind, ", <lora:x:1>")[::-1]}
    folders = {role: save(tmp_path / role, arm(role, 1.0), texts, role + "-{:03d}") for role, texts in roles.items()}
    paired = picture_pairs.pair(folders, "metadata")  # type: ignore[arg-type]
    assert [path.stem for path in paired.files["q1"]] == [f"q1-{COUNT - 1 - n:03d}" for n in range(COUNT)]
    assert [one.text() for one in paired.generations if one] == [f"'fox {n}' seed {n}" for n in range(COUNT)]


def test_exif_of_jpeg_and_webp_is_read(tmp_path: Path) -> None:
    text = "fox\nSteps: 20, Seed: 5, Size: 1x1"
    graphs = {0x0110: f"prompt:{json.dumps(graph())}", 0x010F: "workflow:{}"}
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for suffix in ("jpg", "webp"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
        picture.save(tmp_path / f"a.{suffix}", exif=exif)
        assert picture_pairs._look(tmp_path / f"a.{suffix}").generation == ("fox", 5)
    exif = Image.Exif()
    for tag, value in graphs.items():
        exif[tag] = value
    picture.save(tmp_path / "comfy.webp", exif=exif)
    assert picture_pairs._look(tmp_path / "comfy.webp").generation == ("a red fox", 7)


def _corrupt(root: Path) -> None:
    path = root / "lost" / "004.png"
    path.write_bytes(path.read_bytes()[:200])


def _deep(root: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 30_000, np.uint16)).save(root / "lost" / "004.png")


def _animated(root: Path) -> None:
    frames = [Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)) for level in (0, 200)]
    (root / "lost" / "004.png").unlink()
    frames[0].save(root / "lost" / "004.webp", save_all=True, append_images=frames[1:])


def _transparent(root: Path) -> None:
    with Image.open(root / "lost" / "004.png") as image:
        image.putalpha(254)
        image.save(root / "lost" / "004.png")


def _with_holes(root: Path) -> None:
    with Image.open(root / "lost" / "004.png") as image:
        image.convert("P").save(root / "lost" / "004.png", transparency=bytes(256))


def _resized(root: Path) -> None:
    shutil.rmtree(root / "lost")
    save(root / "lost", arm("lost", 0.1)[:, : SIDE // 2])


def _renamed(root: Path) -> None:
    for path in list((root / "lost").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))


def _twice(root: Path) -> None:
    with Image.open(root / "f1" / "001.png") as image:
        image.save(root / "f1" / "001.bmp")


def _same(root: Path) -> None:
    shutil.copy(root / "f1" / "001.png", root / "f1" / "002.png")


def _empty(root: Path) -> None:
    shutil.rmtree(root / "lost")
    (root / "lost").mkdir()


def _other_seeds(root: Path) -> None:
    for name, shift in (("f1", 0), ("lost", 1)):
        shutil.rmtree(root / name)
        texts = [{"parameters": f"fox\nSteps: 20, Seed: {n + shift}, Size: 1x1"} for n in range(COUNT)]
        save(root / name, arm(name, 1.0), texts)


def _no_effect(root: Path) -> None:
    shutil.rmtree(root / "f1")
    shutil.copytree(root / "f0", root / "f1")


@pytest.mark.parametrize(
    ("spoil", "match", "message"),
    [
        (_corrupt, "name", r"004.png' cannot be read"),
        (_deep, "name", r"004.png' cannot be read: it has more than 8 bits a channel \(mode I;16\)"),
        (_animated, "name", r"004.webp' cannot be read: it is animated, of 2 frames"),
        (_transparent, "name", r"004.png' cannot be read: parts of it are transparent"),
        (_with_holes, "name", r"004.png' cannot be read: parts of it are transparent"),
        (_resized, "name", r"different sizes: 32x32 \(10\) in .*32x16 \(10\) in"),
        (_renamed, "name", r"no picture is in all folders by name.*try --match metadata"),
        (_twice, "name", r"cannot be told apart by name: 001.bmp and 001.png"),
        (_same, "name", r"holds the same picture twice: 001.png and 002.png"),
        (_no_effect, "name", r"10 of 10 pictures in F1 .*f1' are those of F0 .*f0' to the last bit: the LoRA does no"),
        (_empty, "name", r"Q1 .* holds no picture"),
        (_other_seeds, "name", r"10 pictures of the same name have different prompts or seeds: 000: f1 'fox' seed 0"),
        (lambda root: None, "metadata", r"10 of 10 pictures in F0 .* have no prompt and seed"),
        (lambda root: shutil.rmtree(root / "f0"), "name", r"F0 .* is no folder"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    spoil: Callable[[Path], None], match: str, message: str, folders: Path
) -> None:
    spoil(folders)
    given = {"f0": folders / "f0", "f1": folders / "f1", "q1": folders / "lost"}
    with pytest.raises(UserError, match=f"(?s){message}"):
        picture_pairs.size(picture_pairs.pair(given, match), given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["opaque", "palette", "opaque palette", "grey"])
def test_other_kinds_of_pictures_are_read_as_they_look(kind: str, tmp_path: Path) -> None:
    levels = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 3, 1).reshape(8, 8, 3)
    image, more = Image.fromarray(levels), {}
    if kind == "opaque":
        image.putalpha(255)
    elif "palette" in kind:
        image = image.quantize(64)
        more = {"transparency": b"\xff" * 64} if "opaque" in kind else {}
    elif kind == "grey":
        image = image.convert("L")
    image.save(tmp_path / "one.png", **more)
    np.testing.assert_array_equal(picture_pairs.read(tmp_path / "one.png"), np.float32(levels) / 255)


def test_pictures_of_one_batch_cannot_be_told_apart_by_metadata(tmp_path: Path) -> None:
    texts = [{"parameters": "fox\nSteps: 20, Seed: 5, Size: 1x1"}] * COUNT
    given = {role: save(tmp_path / role, arm(role, 1.0), texts) for role in ("f0", "f1", "q1")}
    with pytest.raises(UserError, match=r"(?s)by metadata: 000.png and 001.png \('fox' seed 5\).*--match name"):
        picture_pairs.pair(given, "metadata")  # type: ignore[arg-type]


def test_without_the_extra_it_is_one_error_and_nothing_is_written(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "NEEDED", ("a_package_that_is_not_there",))
    with pytest.raises(UserError, match="the style measure is not here") as refused:
        judged(folders, "lost")
    assert "pip install -e '.[judge]'" in refused.value.fix
    assert not (folders.parent / "out-lost").exists()


@NETWORK
def test_the_command_prints_exits_and_takes_limits_of_ones_own(stored: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = (qcheck.core.values.DATA / "pictures" / "default.toml").read_text()
    own.write_text(text.replace("low = 0.75", "low = 0.2"))
    words = ["pictures", *(str(stored / name) for name in ("f0", "f1", "lost"))]
    shown = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")])
    assert shown.exit_code == 1, shown.output
    assert "black box: no layer is blamed" in shown.output
    loose = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--limits", str(own), "--json"])
    assert loose.exit_code == 0, loose.output
    assert json.loads(loose.stdout)["verdict"] == "PASS"
    with pytest.raises(UserError, match="--match 'seed' is none"):
        qcheck.pictures("a", "b", "c", match="seed")


@NETWORK
def test_other_weights_under_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHA256", "0" * 64)
    features._network.cache_clear()
    with pytest.raises(UserError, match="57934424, and not 00000000"):
        features.of(np.zeros((3, 32, 32, 3)))


def _changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Edit report.json, and renew its digest, as someone would who knows how."""
    content = json.loads((folder / "report.json").read_text("utf-8"))
    change(content)
    (folder / "report.json").write_text(json.dumps(content), "utf-8")
    digests = {name: digest for name, digest in sums.of(folder).items() if name != sums.NAME}
    (folder / sums.NAME).write_bytes(sums.text(digests))
    return folder


def _of(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in content["measurements"] if (one["name"], one["arm"]) == (name, "adapted"))


AUDITED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "verdict": (lambda c: c.update(verdict="NEEDS-QAT"), "the report says NEEDS-QAT, the evidence gives PASS"),
    "bound": (lambda c: _of(c, "style_survival").update(low=0.999), "low is 0.999 in the report"),
    "limit": (
        lambda c: _of(c, "style_survival").update(limit={"low": 0.1, "high": None}),
        "style_survival (adapted): limit is >= 0.1 in the report",
    ),
    "a number": (lambda c: c["samples"][0]["rows"].__setitem__(0, [0.0]), "value is"),
    "numbers that are gone": (
        lambda c: c.update(samples=[one for one in c["samples"] if one["name"] != "style_survival"]),
        "the evidence gives",
    ),
    "a pair": (lambda c: c["pairs"].pop(), "pairs are named, and numbers of"),
    "twice": (lambda c: c["measurements"].insert(0, _of(c, "style_survival") | {"value": 0.99}), "is there 2 times"),
    "its limits": (lambda c: c["limits"].update(least=2), "the limits are called 'default', and are not those"),
    "what decided": (lambda c: c.update(deciding=None), "and the report says None"),
}


@pytest.fixture(scope="module")
def kept(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    judged(root := Path(shutil.copytree(stored, tmp_path_factory.mktemp("audited") / "in")), "kept")
    return root.parent / "out-kept"


@NETWORK
def test_the_recipients_limits_judge_the_same_pictures(kept: Path, tmp_path: Path) -> None:
    shipped = (picture_limits.FOLDER / "default.toml").read_text("utf-8")
    (tmp_path / "ours.toml").write_text(shipped.replace("least = 8", "least = 11"), "utf-8")
    done = CliRunner().invoke(app, ["audit", str(kept), "--limits", str(tmp_path / "ours.toml")])
    assert done.exit_code == 1, done.output
    assert "10 pairs are too few: at least 11 decide" in " ".join(done.output.split())
    assert qcheck.audit(kept, limits="default").code == 0
    with pytest.raises(UserError, match="is a report of pictures"):
        qcheck.audit(kept, limits=limits.find("default"))


@NETWORK
@pytest.mark.parametrize("name", [None, *AUDITED])
def test_an_audit_names_what_does_not_follow_from_the_pairs(name: str | None, kept: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "out"))
    if name is not None:
        _changed(folder, AUDITED[name][0])
    done = CliRunner().invoke(app, ["audit", str(folder)], env={"COLUMNS": "300"})
    assert done.exit_code == (0 if name is None else 1), done.output
    assert name is None or AUDITED[name][1] in done.output
    (folder / "more.html").write_text("", "utf-8")
    assert qcheck.audit(folder).folders[0].added == ["more.html"]
    with (folder / "contact.png").open("ab") as file:
        file.write(b"x")
    assert qcheck.audit(folder).folders[0].changed == ["contact.png"]
    with pytest.raises(UserError, match="is of pictures, and a report of a check is needed"):
        qcheck.load_report(folder)
