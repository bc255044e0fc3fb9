"""Networks of the user's own that look at pictures: read from a folder, whole or not at all, and what they tell."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

import qcheck
from qcheck.api.request import check_spec
from qcheck.core.errors import UserError
from qcheck.diagnose import embeddings
from qcheck.measure import embedding
from qcheck.model.quiet import quiet
from qcheck.spec import command, judge
from tests.test_pictures import NETWORK, arm, save

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small CLIP and a small DINOv2 with random weights, by kind."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES, intermediate_size=32, projection_dim=8))
    with quiet():
        for name, network in (("clip", clip), ("dinov2", Dinov2Model(Dinov2Config(**SIZES)))):
            network.save_pretrained(root / name)
            prepared = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
            (root / name / "preprocessor_config.json").write_text(json.dumps(prepared))
    return {name: root / name for name in ("clip", "dinov2")}


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_an_embedding_is_the_networks_own_of_the_prepared_picture(networks: dict[str, Path], kind: str) -> None:
    picture = np.random.default_rng(0).random((16, 16, 3))
    chosen = judge.find(f"{kind}={networks[kind]}")
    (row,) = embeddings.of(chosen, [picture])
    kinds = {"clip": (CLIPVisionModelWithProjection, "image_embeds"), "dinov2": (Dinov2Model, "pooler_output")}
    network = kinds[kind][0].from_pretrained(networks[kind])  # type: ignore[attr-defined]
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    prepared = (torch.from_numpy(np.float32(picture)).permute(2, 0, 1) - mean) / deviation
    with torch.no_grad():
        wanted = network.eval()(pixel_values=prepared[None])[kinds[kind][1]][0].numpy()
    assert row == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-5)


def test_a_picture_of_another_size_is_resized_and_one_that_is_not_finite_has_no_number(
    networks: dict[str, Path],
) -> None:
    chosen = judge.find(f"clip={networks['clip']}")
    rows = embeddings.of(chosen, [np.full((40, 24, 3), 0.5), np.full((16, 16, 3), np.nan)])
    assert np.linalg.norm(rows[0]) == pytest.approx(1)
    assert np.isnan(rows[1]).all()


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_survival_is_the_share_of_the_way_from_f0_to_f1(share: float) -> None:
    f0, f1 = np.random.default_rng(1).standard_normal((2, 6, 5))
    sample = embedding.survival("clip_survival", f0, f1, f0 + share * (f1 - f0))
    assert (sample.name, sample.arm) == ("clip_survival", "adapted")
    assert sample.values == pytest.approx(np.full(6, share))
    assert np.isnan(embedding.survival("clip_survival", f0, f0, f1).values).all()


@NETWORK
def test_pictures_are_seen_by_the_networks_that_are_asked_for(networks: dict[str, Path], tmp_path: Path) -> None:
    folders = [save(tmp_path / name, arm(name, share)) for name, share in (("f0", 0.0), ("f1", 1.0), ("q1", 0.95))]
    asked = [f"{kind}={folder}" for kind, folder in networks.items()]
    report = qcheck.pictures(*folders, out=tmp_path / "out", judge=asked)
    seen = {one.name: one for one in report.measurements if one.name in ("clip_survival", "dinov2_survival")}
    assert set(seen) == {"clip_survival", "dinov2_survival"}
    assert all(one.status == "reported" and one.value is not None and one.value > 0.5 for one in seen.values())


def test_the_request_keeps_its_judges(networks: dict[str, Path], tmp_path: Path) -> None:
    spec = check_spec("demo", "flat", scheme="int8", judge=f"clip={networks['clip']}", threads=1)
    assert [one.kind for one in spec.judges] == ["clip"]
    words = command.words(spec, tmp_path)
    assert words[words.index("--judge") + 1] == f"clip={networks['clip']}"


def _broken(source: Path, folder: Path, name: str) -> Path:
    """A copy of a network's folder with one thing wrong."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if name == "weights":
        (folder / "model.safetensors").unlink()
    elif name == "a tensor":
        from safetensors.torch import load_file, save_file

        held = load_file(folder / "model.safetensors")
        save_file(
            {key: value for key, value in held.items() if key != "visual_projection.weight"},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    elif name == "mean":
        (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [("weights", "model.safetensors"), ("a tensor", "lacks 1 tensors, first visual_projection"), ("mean", "image_std")],
)
def test_a_network_that_is_not_whole_is_refused(
    networks: dict[str, Path], tmp_path: Path, name: str, said: str
) -> None:
    chosen = judge.find(f"clip={_broken(networks['clip'], tmp_path / 'broken', name)}")
    with pytest.raises(UserError) as told:
        embeddings.of(chosen, [np.zeros((8, 8, 3))])
    assert said in told.value.what


@pytest.mark.parametrize("text", ["siglip=x", "clip", "clip=nowhere", "lpips=nowhere", "lpips=.", "=x"])
def test_what_names_no_network_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(UserError, match="--judge"):
        check_spec("demo", "flat", scheme="int8", judge=text)


def test_one_network_a_kind(networks: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="twice"):
        judge.find_all([f"clip={networks['clip']}"] * 2)
