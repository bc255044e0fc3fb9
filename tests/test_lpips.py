"""LPIPS by a file of the user's own: the package's numbers, whole or not at all, and nothing in the file ever runs.

The golden values are those of the package lpips 0.1.4 (torchvision 0.28.0, torch 2.13.0) with the tensors of ``state``.
"""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import qcheck
from qcheck.core.errors import UserError
from qcheck.diagnose import judges, lpips
from qcheck.measure.sample import Sample
from qcheck.spec import judge
from tests.test_pictures import NETWORK, arm, save

WIDTHS = {  # channels by the number of the convolution, by stage
    "alex": [{0: (3, 64, 11)}, {3: (64, 192, 5)}, {6: (192, 384, 3)}, {8: (384, 256, 3)}, {10: (256, 256, 3)}],
    "vgg": [
        {0: (3, 64, 3), 2: (64, 64, 3)},
        {5: (64, 128, 3), 7: (128, 128, 3)},
        {10: (128, 256, 3), 12: (256, 256, 3), 14: (256, 256, 3)},
        {17: (256, 512, 3), 19: (512, 512, 3), 21: (512, 512, 3)},
        {24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3)},
    ],
}
GOLDEN = {"alex": [0.020426, 0.15105, 0.1553712], "vgg": [0.0228508, 0.1509384, 0.1490235]}
PICTURES = {role: list(np.random.default_rng(place).random((2, 40, 36, 3))) for place, role in enumerate(("f0", "f1"))}
PICTURES |= {"q0": [0.8 * one for one in PICTURES["f0"]], "q1": [one[::-1] for one in PICTURES["f1"]]}


def state(net: str) -> dict[str, torch.Tensor]:
    """A state dict of ``lpips.LPIPS(net=net)`` with drawn weights and the package's own scaling."""
    rng = np.random.default_rng(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:], dtype=np.float32)))

    held = {
        "scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None],
        "scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450])[None, :, None, None],
    }
    for place, stage in enumerate(WIDTHS[net]):
        for number, (inputs, outputs, side) in stage.items():
            held[f"net.slice{place + 1}.{number}.weight"] = drawn(outputs, inputs, side, side)
            held[f"net.slice{place + 1}.{number}.bias"] = drawn(outputs) / 10
        held[f"lin{place}.model.1.weight"] = drawn(1, outputs, 1, 1).abs()
    return held


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LPIPS on AlexNet as torch saves it; its name says nothing."""
    path = tmp_path_factory.mktemp("lpips") / "weights"
    torch.save(state("alex"), path, pickle_protocol=3)  # torch warns of any other than 2
    return path


def _measured(path: Path, **pictures: list[np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    found = judges.look(judge.find(f"lpips={path}"), {role: lambda p=p: p for role, p in pictures.items()})
    assert all(isinstance(one, Sample) for one in found)
    return {(one.name, one.arm): one.values for one in found if isinstance(one, Sample)}


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_distance_is_the_packages_own_on_the_backbone_that_the_file_holds(net: str, tmp_path: Path) -> None:
    save_file(state(net), tmp_path / "weights")
    found = _measured(tmp_path / "weights", **PICTURES)
    names = [("lpips", "base"), ("lpips", "adapted"), ("lpips_effect", "adapted")]
    assert list(found) == names
    assert [found[name][0] for name in names] == pytest.approx(GOLDEN[net], rel=1e-5)


def test_a_file_of_torch_and_one_of_safetensors_are_read_alike(file: Path, tmp_path: Path) -> None:
    shared = {name.replace("lin", "lins.", 1): one for name, one in state("alex").items()}  # the heads' other names
    save_file(shared, tmp_path / "weights")
    first, second = _measured(file, **PICTURES), _measured(tmp_path / "weights", **PICTURES)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_equal_pictures_are_equal_and_one_that_is_not_finite_has_no_number(file: Path) -> None:
    f0, f1 = ([np.pad(one, ((0, 0), (0, 2), (0, 0))) for one in PICTURES[role]] for role in ("f0", "f1"))
    q1 = [f1[0], f1[1].copy()]
    q1[1][-1, -1] = np.nan  # a pixel that no convolution of AlexNet reads at this width
    found = _measured(file, f0=f0, f1=f1, q1=q1)
    assert list(found) == [("lpips", "adapted"), ("lpips_effect", "adapted")]
    assert found["lpips", "adapted"][0] == 0
    assert np.isnan(found["lpips", "adapted"][1])
    assert np.isfinite(found["lpips_effect", "adapted"]).all()


@pytest.mark.parametrize(("side", "measured"), [(31, True), (30, False)])
def test_a_picture_of_which_nothing_reaches_the_last_stage_is_not_measured(
    file: Path, side: int, measured: bool
) -> None:
    arms = {role: list(np.zeros((1, side, 64, 3))) for role in ("f0", "f1", "q1")}
    found = lpips.samples(judge.find(f"lpips={file}"), arms)  # type: ignore[arg-type]
    assert [isinstance(one, Sample) for one in found] == [measured] * 2
    assert measured or "31 pixels" in str(found[0])


class Hostile:
    """Unpickled as it asks, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.place),)


def _write(name: str, path: Path) -> None:
    """A file with one thing wrong."""
    held = state("alex")
    heads = {"lin3.model.1.weight": held["lin3.model.1.weight"]}
    if name == "packed":
        torch.save(held, path.with_suffix(".pth"))
        with zipfile.ZipFile(path.with_suffix(".pth")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as to:
            for one in plain.namelist():
                to.writestr(one, plain.read(one))
        return
    if name == "text":
        path.write_text("weights")
        return
    changed: dict[str, object] = {
        "hostile": held | {"more": Hostile(path.with_name("ran"))},
        "nested": {"state_dict": held},
        "sparse": held | {name: one.to_sparse() for name, one in heads.items()},
        "lacking": {name: one for name, one in held.items() if name not in heads},
        "shape": held | {name: one[:, :7] for name, one in heads.items()},
        "integers": held | {name: one.int() for name, one in heads.items()},
        "infinite": held | {name: one / 0 for name, one in heads.items()},
        "heads alone": {name: one for name, one in held.items() if name.startswith("lin")},
    }
    torch.save(changed[name], path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hostile", "no state dict of tensors alone that torch saved (UnpicklingError)"),
        ("packed", "no state dict of tensors alone"),
        ("nested", "no state dict of tensors alone"),
        ("sparse", "no state dict of tensors alone"),
        ("text", "not a whole safetensors file"),
        ("lacking", "lacks 1 tensors of LPIPS, first lin3.model.1.weight"),
        ("heads alone", "lacks 12 tensors of LPIPS, first net.slice1.0.bias"),
        ("shape", "lin3.model.1.weight is 1x7x1x1 float32, and has to be 1x256x1x1 floats"),
        ("integers", "lin3.model.1.weight is 1x256x1x1 int32"),
        ("infinite", "lin3.model.1.weight is not finite"),
    ],
)
def test_a_file_that_is_no_whole_lpips_is_refused_and_never_run(name: str, said: str, tmp_path: Path) -> None:
    _write(name, tmp_path / "weights")
    with pytest.raises(UserError) as told:
        _measured(tmp_path / "weights", **PICTURES)
    assert said in told.value.what
    assert not (tmp_path / "ran").exists()


@NETWORK
def test_pictures_are_held_beside_what_the_adapter_does(file: Path, tmp_path: Path) -> None:
    shares = (("f0", 0.0), ("f1", 1.0), ("q1", 0.95), ("q0", 0.0))
    f0, f1, q1, q0 = (save(tmp_path / name, arm(name, share)) for name, share in shares)
    report = qcheck.pictures(f0, f1, q1, q0=q0, judge=f"lpips={file}", out=tmp_path / "out")
    seen = {(one.name, one.arm): one for one in report.measurements if one.name.startswith("lpips")}
    assert set(seen) == {("lpips", "base"), ("lpips", "adapted"), ("lpips_effect", "adapted")}
    assert all(one.status == "reported" and one.low is not None for one in seen.values())
    assert 0 < seen["lpips", "adapted"].value < seen["lpips_effect", "adapted"].value  # type: ignore[operator]
    plain = qcheck.pictures(f0, f1, q1, out=tmp_path / "plain")
    assert {one.name: one.reason for one in plain.not_measured}["lpips"].startswith("needs its weights: --judge lpips")
