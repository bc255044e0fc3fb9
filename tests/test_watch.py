"""Checkpoints of a training: by which names they are known, what is said of them, and what that stops."""

import functools
import json
import math
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from lxml import html
from safetensors.torch import load_file, save_file

import qcheck
from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.measure import distribution
from qcheck.report import checkpoint
from qcheck.result import watching
from qcheck.result.inspection import Forecast
from qcheck.result.watching import Checkpoint, Watching
from qcheck.sampling import sampler
from qcheck.spec.growth import growth
from qcheck.spec.order import Order
from qcheck.tasks import event_file, run_folder, shift, watch
from tests.conftest import run

# torch.utils.tensorboard of torch 2.13.0 and tensorboard 2.20.0; the last scalar with new_style=True
EVENTS = Path(__file__).parent / "tensorboard" / "events.out.tfevents.1.host.0"
FLAT = library.ADAPTERS / "flat.safetensors"
ASKED = {"scheme": "int4-g128", "order": "quantize-merge"}


def _scaled(path: Path, factor: float) -> Path:
    """The adapter "flat", its change times a factor, as diffusers saves a checkpoint."""
    tensors = {name: t * factor if "lora_B" in name else t for name, t in load_file(FLAT).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    return path


def _checkpoint(folder: Path, step: int, factor: float) -> Path:
    return _scaled(folder / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors", factor)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints are faint, healthy, overcooked."""
    folder = tmp_path_factory.mktemp("run")
    for step, factor in ((10, 0.02), (20, 1.0), (100, 8.0)):
        _checkpoint(folder, step, factor)
    (folder / "log.csv").write_text("step,grad_norm\n10,0.5\n20,0.25\n")
    return folder


@pytest.fixture(scope="module")
def watched(training: Path) -> Watching:
    """All of the run, looked at once."""
    looking = qcheck.Watch(training, "demo", **ASKED)  # type: ignore[arg-type]
    looking.look(settled=0.0)
    return looking.watching


@pytest.mark.parametrize(
    ("names", "unit", "numbers"),
    [
        (["checkpoint-20/pytorch_lora_weights", "checkpoint-100/pytorch_lora_weights"], "step", [20, 100]),
        (["checkpoint-5/adapter_model", "checkpoint-6/optimizer", "adapter_model"], "step", [5, None]),
        (["style-000002", "style-000010", "style"], "epoch", [2, 10, None]),
        (["my_style-step00000500", "my_style-step00001000"], "step", [500, 1000]),
        (["style_000000250", "style_000001000", "style"], "step", [250, 1000, None]),
        (["style", "other"], "", []),
    ],
)
def test_checkpoints_are_known_by_the_names_of_trainers(
    names: list[str], unit: str, numbers: list[int | None], tmp_path: Path
) -> None:
    for name in names:
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    saved = run_folder.checkpoints(tmp_path)
    assert [one.number for one in saved] == numbers
    assert {one.unit for one in saved} <= {unit}


def test_checkpoints_of_two_runs_are_not_one_curve(tmp_path: Path) -> None:
    for name in ("style-000002", "other-000002"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(UserError, match="several runs: other, by epoch, style, by epoch"):
        run_folder.checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "step,loss,grad_norm\n10,1,0.5\n20,1,\n"),
        ("log.jsonl", '{"global_step": 10, "train/grad_norm": 0.5}\n{"step": 20}\n'),
        ("checkpoint-10/trainer_state.json", '{"log_history": [{"step": 10, "grad_norm": 0.5}, {"step": 20}]}'),
    ],
)
def test_norms_are_read_from_logs_and_what_is_no_log_is_left_out(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "mixed.jsonl").write_text('{"step": "inf", "grad_norm": 1}\n{"step": 3, "grad_norm": [1]}\n7\n')
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe")
    assert run_folder.norms(tmp_path) == {10: 0.5}


def test_norms_are_read_from_what_tensorboard_writes(tmp_path: Path) -> None:
    """The norm of the adapter's own weights, which kohya logs beside it, is none of the gradient."""
    folder = tmp_path / "logs" / "style"
    folder.mkdir(parents=True)
    shutil.copy(EVENTS, folder)
    assert run_folder.norms(tmp_path) == {10: 0.5, 20: 0.25, 30: 0.125}


def test_a_picture_of_any_size_in_an_event_file_is_passed_over(tmp_path: Path) -> None:
    """Trainers log pictures into the same file: it may be larger than anything that is read as a whole."""
    path, length = tmp_path / EVENTS.name, files.MOST + 1
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.seek(12 + length + 4)  # a hole
        file.write(EVENTS.read_bytes())
    assert list(event_file.scalars(path)) == list(event_file.scalars(EVENTS))


def test_an_event_file_that_is_cut_or_damaged_says_what_is_whole(tmp_path: Path) -> None:
    content, path = EVENTS.read_bytes(), tmp_path / EVENTS.name
    every = list(event_file.scalars(EVENTS))
    lengths = set()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        read = list(event_file.scalars(path))
        lengths.add(len(read))
        assert read == every[: len(read)]
    assert lengths == set(range(len(every) + 1))  # the last record is a text
    for start in range(0, len(content), 3):  # lengths, tags and types of fields of every kind
        path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
        assert len(list(event_file.scalars(path))) <= len(every)
    (length,) = struct.unpack_from("<Q", content)
    first = content[: length + 16]  # what writers begin with; then a scalar without its checksum is not whole
    (length,) = struct.unpack_from("<Q", content, len(first))
    path.write_bytes(content[: len(first) + 12 + length])
    assert list(event_file.scalars(path)) == []
    path.write_bytes(struct.pack("<QI", 2**63, 0) + content)
    assert list(event_file.scalars(path)) == []
    path.write_bytes(struct.pack("<QI", 2**20 + 1, 0) + bytes(2**20 + 5) + content)
    assert list(event_file.scalars(path)) == every


def test_a_line_that_is_being_written_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 5, "grad_norm": 0.0}\n{"step": 10, "grad_norm": 0.5}\n{"step": 20, "gr'
    )
    assert run_folder.norms(tmp_path) == {5: 0.0, 10: 0.5}


def test_a_checkpoint_that_the_trainer_removes_meanwhile_is_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Watching
) -> None:
    """Trainers that keep the latest checkpoints alone remove one while another is looked at."""
    for step in (10, 20):
        _checkpoint(tmp_path, step, 1.0)
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-30/pytorch_lora_weights.safetensors").symlink_to(tmp_path / "removed")
    looked = iter(watched.checkpoints)

    def look(_: object, saved: run_folder.CheckpointFile) -> Checkpoint:
        shutil.rmtree(tmp_path / "checkpoint-20", ignore_errors=True)
        return next(looked)

    monkeypatch.setattr(watch, "look", look)
    looking = qcheck.Watch(tmp_path, "demo", **ASKED)  # type: ignore[arg-type]
    assert looking.look(settled=0.0) == watched.checkpoints[:1]
    assert looking.watching.checkpoints == watched.checkpoints[:1]


def test_a_checkpoint_that_the_trainer_removed_stays_a_row(training: Path, watched: Watching, tmp_path: Path) -> None:
    """And is not the latest: a folder may hold a later training than what is remembered."""
    shutil.copytree(training, tmp_path, dirs_exist_ok=True)
    looking = qcheck.Watch(tmp_path, "demo", out=tmp_path / "out", **ASKED)  # type: ignore[arg-type]
    looking.look(settled=0.0)
    for step in (10, 100):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert looking.look(settled=0.0) == []
    rows = [(one.number, one.state, one.removed) for one in looking.watching.checkpoints]
    assert rows == [(10, "faint", True), (20, "healthy", False), (100, "overcooked", True)]
    assert watching.exit_code(looking.watching) == 0
    page = html.fromstring((tmp_path / "out" / "watch.html").read_text("utf-8"))
    assert [row.findtext("th/span") for row in page.xpath("//tbody/tr")] == ["removed", None, "removed"]
    shutil.copytree(training / "checkpoint-10", tmp_path / "checkpoint-10")
    shutil.rmtree(tmp_path / "checkpoint-20")
    again = qcheck.Watch(tmp_path, "demo", out=tmp_path / "out", **ASKED)  # type: ignore[arg-type]
    again.look(settled=0.0)
    assert [one.removed for one in again.watching.checkpoints] == [False, True, True]
    shutil.rmtree(tmp_path / "checkpoint-10")
    again.look()
    assert [one.removed for one in again.watching.checkpoints] == [True, True, True]
    assert watching.exit_code(again.watching) == 3


def test_a_healthy_one_says_what_was_not_counted(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.changes, "intruders", lambda *_: None)
    looking = qcheck.Watch(training, "demo", out=training / "uncounted", **ASKED)  # type: ignore[arg-type]
    healthy = looking.look(settled=0.0)[1]
    assert (healthy.state, healthy.intruders) == ("healthy", None)
    assert "not counted" in healthy.reasons[0]


def test_a_log_that_comes_after_its_checkpoint_is_read(training: Path, tmp_path: Path) -> None:
    """TensorBoard's writer keeps what it is given for minutes; a watch that was started again looks again too."""
    run = Path(shutil.copytree(training, tmp_path / "run"))
    (run / "log.csv").unlink()
    first = qcheck.Watch(run, "demo", **ASKED)  # type: ignore[arg-type]
    first.look(settled=0.0)
    assert {one.gradient for one in first.watching.checkpoints} == {None}
    (run / "log.csv").write_text("step,grad_norm\n10,0.5\n")
    assert first.look(settled=0.0) == []
    assert [one.gradient for one in first.watching.checkpoints] == [0.5, None, None]
    (run / "log.csv").write_text("step,grad_norm\n10,0.5\n20,0.25\n")
    again = qcheck.Watch(run, "demo", **ASKED)  # type: ignore[arg-type]
    again.look(settled=0.0)
    assert [one.gradient for one in again.watching.checkpoints] == [0.5, 0.25, None]


def test_limits_name_what_is_beyond_them() -> None:
    limits = growth()
    assert limits.beyond(limits.change, limits.intruders) == []
    assert limits.beyond(limits.change, None) == []
    assert "change" in limits.beyond(1.01 * limits.change, 0.0)[0]
    assert "intruder" in limits.beyond(0.0, 1.01 * limits.intruders)[0]
    assert len(limits.beyond(math.nan, math.nan)) == 2


def test_a_training_goes_from_faint_to_healthy_to_overcooked(watched: Watching) -> None:
    states = [(one.number, one.state) for one in watched.checkpoints]
    assert states == [(10, "faint"), (20, "healthy"), (100, "overcooked")]
    faint, healthy, hot = watched.checkpoints
    assert "does nothing" in faint.reasons[0]
    assert healthy.change == pytest.approx(50 * faint.change, rel=1e-3)
    assert hot.change == pytest.approx(8 * healthy.change, rel=1e-3)
    assert faint.intruders == 0
    assert hot.intruders is not None
    assert healthy.intruders is not None
    assert hot.intruders > healthy.intruders
    assert [one.gradient for one in watched.checkpoints] == [0.5, 0.25, None]
    assert watching.exit_code(watched) == 3
    assert watching.exit_code(watched.model_copy(update={"checkpoints": [healthy]})) == 0


def test_intruders_and_the_change_are_those_of_inspect(watched: Watching, training: Path) -> None:
    path = training / watched.checkpoints[1].file
    layers = qcheck.inspect(path, "demo", scheme="int8", details=True).layers
    relative = torch.tensor([layer.relative for layer in layers])
    assert watched.checkpoints[1].change == pytest.approx(float(relative.square().mean().sqrt()), rel=0.02)
    chosen = [layer.details.intruders for layer in layers if layer.details is not None][:: math.ceil(len(layers) / 32)]
    assert watched.checkpoints[1].decomposed == len(chosen)
    assert watched.checkpoints[1].intruders == sum(one or 0 for one in chosen) / len(chosen)


def test_what_was_judged_before_is_not_judged_again(
    training: Path, watched: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def look(_: object, saved: run_folder.CheckpointFile) -> Checkpoint:
        judged.append(saved.path.parent.name)
        return watched.checkpoints[0]

    monkeypatch.setattr(watch, "look", look)
    again = qcheck.Watch(training, "demo", **ASKED)  # type: ignore[arg-type]
    assert again.look(settled=0.0) == watched.checkpoints
    assert again.look() == []
    _checkpoint(training, 10, 0.01)
    again.look(settled=0.0)
    assert judged == ["checkpoint-10"]
    _checkpoint(training, 10, 0.02)
    other = qcheck.Watch(training, "demo", scheme="int8", out=training / "other")
    other.look(settled=0.0)
    assert len(judged) == 4


def test_a_file_that_is_being_written_waits_and_one_with_nan_is_unread(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 10, math.nan)
    looking = qcheck.Watch(tmp_path, "demo", **ASKED)  # type: ignore[arg-type]
    assert looking.look() == []
    os.utime(path, (0, 0))
    (found,) = looking.look()
    assert found.state == "unread"
    assert "NaN" in found.reasons[0]
    assert watching.exit_code(looking.watching) == 3
    stored = watching.read(looking.out)
    assert stored is not None
    assert stored.to_json() == looking.watching.to_json()


def test_the_page_has_every_curve_and_checkpoint_and_no_script(training: Path, watched: Watching) -> None:
    text = (training / "qcheck-watch" / "watch.html").read_text("utf-8")
    page = html.fromstring(text)
    assert len(page.xpath("//figure//svg")) == 4
    assert [row.findtext("th/bdi") for row in page.xpath("//tbody/tr")] == ["step 10", "step 20", "step 100"]
    assert "step 100: overcooked" in page.findtext(".//h1")
    assert page.xpath("//script") == []
    assert not any(link.startswith("http") for link in page.xpath("//@src | //link/@href"))
    assert json.loads((training / "qcheck-watch" / "watch.json").read_text())["schema"] == "qcheck-watch/1"
    assert watched.not_measured == []


@pytest.mark.parametrize(("number", "code"), [(10, 3), (20, 0), (100, 3)])
def test_the_exit_code_is_that_of_the_latest(number: int, code: int, training: Path, tmp_path: Path) -> None:
    shutil.copytree(training / f"checkpoint-{number}", tmp_path / f"checkpoint-{number}")
    asked = ("--scheme", "int4-g128", "--order", "quantize-merge")
    result = run("watch", str(tmp_path), "--base", "demo", "--once", *asked)
    assert result.exit_code == code
    assert f"step {number}" in result.stdout
    assert "norm of the gradient" in (tmp_path / "qcheck-watch" / "watch.html").read_text()


def test_stop_ends_at_the_first_overcooked_one_and_prints_json(training: Path) -> None:
    asked = ("--scheme", "int4-g128", "--order", "quantize-merge")
    result = run("watch", str(training), "--base", "demo", "--stop", "--json", *asked)
    assert result.exit_code == 3
    assert [json.loads(line)["number"] for line in result.stdout.splitlines()] == [10, 20, 100]


def test_a_folder_that_is_not_there_is_taken_for_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("watch", "runs", "--base", "demo", "--once")
    assert isinstance(result.exception, UserError)
    assert result.exception.what == "no folder 'runs'"


@pytest.mark.parametrize(
    ("arguments", "message"), [(("--once",), "no checkpoint"), (("--once", "-o", "other"), "none")]
)
def test_a_folder_without_checkpoints_or_with_another_file_is_an_error(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "watch.json").write_text('{"mine": 1}')
    result = run("watch", str(tmp_path), "--base", "demo", *arguments)
    assert isinstance(result.exception, UserError)
    assert message in result.exception.what


@pytest.mark.parametrize(("stop", "stopped"), [(True, True), (False, False)])
def test_the_callback_ends_a_training_that_is_overcooked(
    stop: bool, stopped: bool, training: Path, tmp_path: Path
) -> None:
    callback = qcheck.Watch(tmp_path, "demo", **ASKED).callback(stop)  # type: ignore[arg-type]
    control = SimpleNamespace(should_training_stop=False)
    for number in (20, 100):
        assert not control.should_training_stop
        shutil.copytree(training / f"checkpoint-{number}", tmp_path / f"checkpoint-{number}")
        callback.on_save(None, None, control)
    assert control.should_training_stop == stopped


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_step_diverges_as_ddpm_samples_it(kind: str) -> None:
    """Held to diffusers' own step: half the squared distance of its means over its variance."""
    solver = functools.partial(_ddpm, kind)
    setup = SimpleNamespace(solver=solver, strata=tuple(range(6)))
    expected, x = [], torch.full((1, 1, 1, 1), 0.3)
    for timestep in solver().timesteps[:-1]:
        means = [_mean(solver(), torch.full_like(x, output), timestep, x) for output in (0.0, 1.0)]
        variance = float(solver()._get_variance(timestep))
        expected.append((means[1] - means[0]) ** 2 / (2 * variance))
    rates = shift.nats(setup)  # type: ignore[arg-type]
    assert rates[:-1] == pytest.approx(expected, rel=1e-4)
    assert rates[-1] == 0
    first, second = np.zeros((6, 2, 2)), np.full((6, 2, 2), 2.0)
    assert distribution.chain_kl(first, second, rates) == pytest.approx(16 * rates.sum())


def _ddpm(kind: str) -> DDPMScheduler:
    solver = DDPMScheduler(prediction_type=kind, clip_sample=False)
    solver.set_timesteps(6)
    return solver


def _mean(solver: DDPMScheduler, output: torch.Tensor, timestep: int, x: torch.Tensor) -> float:
    """The mean of a step's result: its noise, by the same seed, is that of a step from nothing to nothing."""
    made, noise = (
        solver.step(*given, generator=torch.Generator().manual_seed(0)).prev_sample
        for given in ((output, timestep, x), (0 * output, timestep, 0 * x))
    )
    return float(made - noise)


def test_what_it_does_not_arrive_in_is_named() -> None:
    """The first three, and how many more: on the terminal and, by the same words, on the page."""
    orders = ("merge-quantize", "quantize-merge")
    forecasts = [_forecast(scheme, order) for scheme in ("fp8", "int4-g32", "int4-g64") for order in orders]
    one = _faint(forecasts)
    assert (
        checkpoint.numbers(one)[-1]
        == "3 of 6, not fp8 quantize-merge, int4-g32 quantize-merge, int4-g64 quantize-merge"
    )
    two = _faint([*forecasts, _forecast("nf4-g64", orders[1]), _forecast("nvfp4", orders[1])])
    assert "arrives in 3 of 8, not fp8 quantize-merge, " in checkpoint.line(two, "step").plain
    assert "int4-g64 quantize-merge and 2 more" in checkpoint.line(two, "step").plain
    assert checkpoint.numbers(_faint(forecasts[:1]))[-1] == "1 of 1"


def _forecast(scheme: str, order: Order) -> Forecast:
    fate = "arrives" if order == "merge-quantize" else "loses it"
    return Forecast(scheme=scheme, order=order, fate=fate, reason="", survival=0.3, error=0.0, snr=1.0, layers=1)


def _faint(forecasts: list[Forecast]) -> Checkpoint:
    numbers = {"rank": 4, "scale": 1.0, "change": 0.1, "intruders": None, "decomposed": 0, "gradient": None, "kl": None}
    return Checkpoint.model_validate(
        {"number": 1, "file": "a", "digest": "", "state": "faint", "reasons": [], **numbers, "forecasts": forecasts}
    )


def test_a_base_whose_output_is_not_known_is_no_unread_checkpoint(training: Path, tmp_path: Path) -> None:
    """It is the base that --probes cannot ask: an error before anything is judged, and weights alone still tell."""
    base = shutil.copytree(library.PIPELINE, tmp_path / "base")
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"score"'))
    asked = ("--scheme", "int4-g128", "--order", "quantize-merge", "--once", "-o", str(tmp_path / "out"))
    result = run("watch", str(training), "--base", str(base), "--probes", "1", *asked)
    assert isinstance(result.exception, UserError)
    assert "base's denoiser gives 'score'" in result.exception.what
    assert "--probes" in result.exception.fix
    assert not (tmp_path / "out").exists()


def test_probes_tell_how_far_checkpoints_move_the_sampler(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times as far for twice the change, where it is small; the base is sampled once for all."""
    for step, factor in ((1, 0.0), (2, 0.02), (3, 0.04), (4, 1.0)):
        _checkpoint(tmp_path, step, factor)
    sampled: list[int] = []
    sample = sampler._sample
    monkeypatch.setattr(sampler, "_sample", lambda *given: sampled.append(1) or sample(*given))
    looking = qcheck.Watch(tmp_path, "demo", probes=1, **ASKED)  # type: ignore[arg-type]
    none, small, double, whole = (one.kl or 0.0 for one in looking.look(settled=0.0))
    assert none == 0
    assert double == pytest.approx(4 * small, rel=0.1)
    assert whole > 100 * double
    assert len(sampled) == 1
    page = html.fromstring((looking.out / "watch.html").read_text("utf-8"))
    assert "KL from the base" in page.xpath("//figcaption/h3/text()")
    assert f"{whole:.3g}" in page.xpath("//tbody/tr/td/text()")
    with pytest.raises(UserError, match="-1 probes"):
        qcheck.Watch(tmp_path, "demo", probes=-1)
