"""Folders of strangers, pipelines and bundles: those that mean harm are refused, and nothing else is touched."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.device import bundle as bundles
from qcheck.device import facts as bundle_facts
from qcheck.device import main as verifier
from qcheck.device import sums as sums_file
from qcheck.device.bundle import Bundle
from qcheck.device.tensors import Tensor
from qcheck.device.tensors import read as read_tensor
from qcheck.model import load, parts
from qcheck.model.bases import INDEX, locate
from qcheck.spec import sampling
from qcheck.tasks.inspect import stored_layers
from tests import hostile
from tests.hostile import harmless, refused, safetensors, written

# Pipelines

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Damage = Callable[[Path], None]


def _edited(name: str, **changes: Any) -> Damage:
    def damage(base: Path) -> None:
        path = base / name
        content = json.loads(path.read_text("utf-8")) | changes
        path.unlink()
        path.write_text(json.dumps(content), "utf-8")

    return damage


def _replaced(name: str, content: str | bytes) -> Damage:
    def damage(base: Path) -> None:
        (base / name).unlink(missing_ok=True)
        written(base / name, content)

    return damage


def _linked(name: str, target: str) -> Damage:
    def damage(base: Path) -> None:
        shutil.rmtree(base / name, ignore_errors=True) if (base / name).is_dir() else (base / name).unlink(True)
        (base / name).symlink_to(target)

    return damage


def _pipe(name: str) -> Damage:
    def damage(base: Path) -> None:
        (base / name).unlink(missing_ok=True)
        os.mkfifo(base / name)

    return damage


def _doubled(base: Path) -> None:
    """A name twice in the header of the weights."""
    content = (base / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    text = f"{json.dumps(header)[:-1]},{json.dumps(name)}:{json.dumps(header[name])}}}"
    _replaced(WEIGHTS, safetensors(text.encode(), content[8 + length :]))(base)


LINKS = {
    "a file of somewhere else": (_linked("unet/config.json", "/etc/passwd"), "a link out of the folder"),
    "a folder of somewhere else": (_linked("vae", "/etc"), "a link out of the folder"),
    "a link above the folder": (_linked("unet/notes.txt", "../../secret"), "a link out of the folder"),
    "a link to itself": (_linked("unet/config.json", "config.json"), "a broken link, a pipe or a device"),
    "a link to nothing": (_linked("unet/notes.txt", "gone"), "a broken link, a pipe or a device"),
    "a pipe": (_pipe("README.md"), "a broken link, a pipe or a device"),
    "weights in a pipe": (_pipe(WEIGHTS), "a broken link, a pipe or a device"),
}
_PICKLE = b"cposix\nsystem\n(S'touch pwned'\ntR."
PARTS = {
    "an index 100000 deep": (_replaced(INDEX, hostile.DEEP), "recursion limit"),
    "an index that is a list": (_replaced(INDEX, "[1]"), "is no index of a pipeline"),
    "an index that is no UTF-8": (_replaced(INDEX, b"\xff"), "utf-8"),
    "a part of three words": (_edited(INDEX, unet=["a", "b", "c"]), "is no index of a pipeline"),
    "a part that is no module": (_edited(INDEX, unet=["os", "system"]), "This version"),
    "a class in the folder": (_edited(INDEX, scheduler=["evil", "Evil"]), "no class of diffusers"),
    "a pipeline in the folder": (_edited(INDEX, _class_name=["pipeline", "Evil"], unet=["pipeline", "Evil"]), "is a "),
    "a config 100000 deep": (_replaced("unet/config.json", hostile.DEEP), "recursion limit"),
    "a config that is a list": (_replaced("unet/config.json", "[1]"), "an object {...} is expected"),
    "a config that is null": (_replaced("text_encoder/config.json", "null"), "an object {...} is expected"),
    "channels beyond all memory": (_edited("unet/config.json", block_out_channels=[10**9] * 3), "block_out_channels"),
    "a million layers": (_edited("unet/config.json", layers_per_block=10**6), "layers_per_block"),
    "a million layers of text": (_edited("text_encoder/config.json", num_hidden_layers=10**6), "num_hidden_layers"),
    "a picture of 800 km": (_edited("unet/config.json", sample_size=10**5), "sample_size"),
    "timesteps beyond all memory": (
        _edited("scheduler/scheduler_config.json", num_train_timesteps=10**9),
        "num_train_timesteps",
    ),
    "a solver 100000 deep": (_replaced("scheduler/scheduler_config.json", hostile.DEEP), "recursion limit"),
    "cut weights": (_replaced(WEIGHTS, b"\x00" * 7), "not a whole safetensors"),
    "a name twice": (_doubled, "twice"),
}


def _base(tmp_path: Path, damage: Damage) -> Path:
    """The shipped pipeline, damaged, beside a secret."""
    (tmp_path / "secret").write_text("secret")
    base = Path(shutil.copytree(library.PIPELINE, tmp_path / "base", copy_function=os.link))
    damage(base)
    return base


@pytest.mark.parametrize("name", LINKS)
def test_a_pipeline_that_reaches_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    damage, said = LINKS[name]
    base = _base(tmp_path, damage)
    refused(lambda: locate(str(base)), tmp_path, said)


@pytest.mark.parametrize("name", PARTS)
def test_a_pipeline_that_means_harm_is_refused_before_a_model_is_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, said = PARTS[name]
    base = _base(tmp_path, damage)
    monkeypatch.setattr(parts, "_module", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(UserError) as caught, harmless(tmp_path):
        load.load(str(base))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["config 100000 deep", "config that is a list", "cut weights", "name twice"])
def test_a_base_is_inspected_as_carefully(name: str, tmp_path: Path) -> None:
    damage, said = PARTS[name if name.startswith("cut") else f"a {name}"]
    base = _base(tmp_path, damage)
    refused(lambda: stored_layers(str(base)), tmp_path, said)


@pytest.mark.parametrize(
    "damage",
    [
        _replaced("README.md", f"num_inference_steps={hostile.DIGITS}"),
        _replaced(INDEX, hostile.DEEP),
        _pipe("README.md"),
        _replaced("README.md", "num_inference_steps=" * 10**6),
    ],
)
def test_a_card_that_says_nonsense_says_nothing(damage: Damage, tmp_path: Path) -> None:
    base = _base(tmp_path, damage)
    with harmless(tmp_path):
        found = sampling.of_base(base)
    assert found is None or "README" not in found[1]


def test_pickles_and_code_in_a_pipeline_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = _base(tmp_path, _replaced("unet/diffusion_pytorch_model.bin", _PICKLE))
    written(base / "unet" / "modeling.py", "open('pwned', 'w')")
    _edited("text_encoder/config.json", auto_map={"AutoModel": "modeling.Evil"})(base)
    index = parts.require_folders(base, json.loads((base / INDEX).read_text()))
    assert index is None
    (base / WEIGHTS).unlink()
    refused(lambda: stored_layers(str(base)), tmp_path, "no denoiser in safetensors")
    assert not (tmp_path / "pwned").exists()


def test_a_pipeline_of_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in library.PIPELINE.rglob("*") if path.is_file()):
        place = snapshot / path.relative_to(library.PIPELINE)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    assert locate(str(snapshot)) == snapshot
    assert stored_layers(str(snapshot))[0].denoiser == "unet"
    (tmp_path / "models--a--b" / "token").write_text("secret")
    (snapshot / "token").symlink_to("../../token")
    refused(lambda: locate(str(snapshot)), tmp_path, "a link out of the folder")


# Bundles

_WORDS = ("asked", "components", "denoiser", "limits", "probes", "strata", "host_only", "forecast", "guidance", "tile")


def _component(**changes: Any) -> dict[str, Any]:
    return {"components": [hostile.FACTS["components"][0] | changes]}


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    **{f"{word} that is {value!r}": ({word: value}, word) for word in _WORDS for value in ("x", None, True)},
    "no probes": ({"probes": []}, "no probe"),
    "an unknown type": (_component(inputs=[hostile.HALF | {"dtype": "object"}]), "of the type 'object'"),
    "a shape that wraps to nothing": (_component(inputs=[hostile.HALF | {"shape": [2**32, 2**32]}]), "has the shape"),
    "a negative shape": (_component(outputs=[hostile.HALF | {"shape": [-2, 4, 8, 8]}]), "has the shape"),
    "a shape of words": (_component(inputs=[hostile.HALF | {"shape": ["2"]}]), "int is expected"),
    "an output of another size": (_component(outputs=[hostile.HALF | {"shape": [2, 4, 8, 9]}]), "has the shape"),
    "a name that climbs": (_component(name="../../evil"), "no plain name"),
    "a file that climbs": (_component(file="../../evil.onnx"), "no plain name"),
    "an absolute file": (_component(file="/etc/passwd"), "no plain name"),
    "a tensor that climbs": (_component(inputs=[hostile.HALF, hostile.HALF | {"name": "../other"}]), "no plain name"),
    "a solver that ends early": ({"solver": hostile.FACTS["solver"] | {"scales": []}}, "other numbers of scales"),
    "an encoder without a limit": (_component(role="encoder"), "no limit for unet"),
}


def test_the_bundle_that_the_others_are_made_of_is_read(tmp_path: Path) -> None:
    assert isinstance(bundles.read(hostile.bundle(tmp_path)), Bundle)


@pytest.mark.parametrize("name", NONSENSE)
def test_a_signed_bundle_of_nonsense_is_refused(name: str, tmp_path: Path) -> None:
    changes, said = NONSENSE[name]
    made = hostile.bundle(tmp_path, json.dumps(hostile.FACTS | changes))
    refused(lambda: bundles.read(made), tmp_path, said)


@pytest.mark.parametrize("content", hostile.JSON.values(), ids=hostile.JSON)
def test_a_signed_bundle_of_no_facts_is_refused(content: str | bytes, tmp_path: Path) -> None:
    made = hostile.bundle(tmp_path, content)
    refused(lambda: bundles.read(made), tmp_path, bundles.NAME)


def test_what_a_real_bundle_says_is_what_is_asked_of_a_strangers(bundle_said: dict[str, Any]) -> None:
    bundle_facts.require(bundle_said)


@pytest.fixture
def bundle_said() -> dict[str, Any]:
    """The facts of a bundle with every kind of component."""
    encoder = {"role": "encoder", "name": "text_encoder"}
    gate = {
        "name": "embedding_cosine",
        "arm": "adapted",
        "unit": "",
        "low": 0.99,
        "high": None,
        "below": "other",
        "above": "",
    }
    layer = {"name": "a", "node": "b", "dequantizer": None, "weight": "int8", "activation": None}
    parts_of = [*_component(layers=[layer])["components"], *_component(**encoder)["components"]]
    return hostile.FACTS | {
        "components": parts_of,
        "limits": hostile.FACTS["limits"] | {"gates": [gate]},
        "solver": None,
    }


@pytest.mark.parametrize("link", ["/etc/passwd", "bundle.json", "/dev/zero", "..", "gone"])
def test_a_bundle_of_links_is_refused(link: str, tmp_path: Path) -> None:
    made = hostile.bundle(tmp_path)
    (made / "model").symlink_to(link)
    sums = (made / sums_file.NAME).read_text() + f"{'0' * 64}  model\n"
    written(made / sums_file.NAME, "".join(f"{line}\n" for line in sorted(sums.splitlines(), key=lambda one: one[66:])))
    refused(lambda: bundles.read(made), tmp_path, "is a link, a pipe or a device")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret"])
def test_digests_of_files_outside_are_no_bundle(name: str, tmp_path: Path) -> None:
    made = hostile.bundle(tmp_path)
    sums = {**bundles.check(made), name: "0" * 64}
    (made / sums_file.NAME).write_bytes(sums_file.text(sums))
    refused(lambda: bundles.read(made), tmp_path, "was changed")


def test_a_digest_twice_is_no_bundle(tmp_path: Path) -> None:
    made = hostile.bundle(tmp_path)
    (made / sums_file.NAME).write_bytes((made / sums_file.NAME).read_bytes() * 2)
    refused(lambda: bundles.read(made), tmp_path, "was changed")


def test_a_pipe_in_place_of_digests_is_not_waited_for(tmp_path: Path) -> None:
    made = hostile.bundle(tmp_path)
    (made / sums_file.NAME).unlink()
    os.mkfifo(made / sums_file.NAME)
    refused(lambda: bundles.read(made), tmp_path, "is no file")


def test_a_folder_of_work_that_came_with_the_bundle_leads_nowhere(tmp_path: Path) -> None:
    made, secret = hostile.bundle(tmp_path), tmp_path / "secret"
    secret.write_text("secret")
    work = tmp_path / "bundle-verify"
    work.mkdir()
    (work / ".qcheck-writable").symlink_to(secret)
    refused(lambda: verifier.run(made, None, None, "onnxruntime", True), tmp_path, "is a link")
    assert secret.read_text() == "secret"


def test_an_archive_is_not_unpacked(tmp_path: Path) -> None:
    packed = written(tmp_path / "bundle.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(100))
    refused(lambda: bundles.read(Path(packed)), tmp_path, "is a file")


def test_a_tensor_is_read_when_its_file_has_the_size_that_is_claimed(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "sample.bin", bytes(16)))
    refused(lambda: read_tensor(path, Tensor("sample", "float32", (2**38,))), tmp_path, "has 16 bytes")
