"""A plan becomes requests; a mistake in it is one clear error before anything runs."""

import json
import pickle
from pathlib import Path

import pytest

from qcheck.api import plan
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.spec.check import CheckSpec
from qcheck.tasks import sweep
from qcheck.tasks.sweep import Digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three adapters, one of them in a folder below."""
    for name in ("a.safetensors", "b.safetensors", "more/c.safetensors"):
        path = tmp_path / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((library.ADAPTERS / "faint.safetensors").read_bytes())
    return tmp_path


def names(specs: list[CheckSpec]) -> list[str]:
    return sorted(Path(spec.adapters[0].source).stem for spec in specs)


def test_files_folders_and_globs_name_adapters(folder: Path) -> None:
    base = {"base": "demo"}
    assert names(plan.requests({**base, "lora": str(folder / "loras")})) == ["a", "b", "c"]
    assert names(plan.requests({**base, "lora": str(folder / "loras" / "*.safetensors")})) == ["a", "b"]
    assert names(plan.requests({**base, "lora": [str(folder / "loras" / "a.safetensors"), "faint"]})) == ["a", "faint"]
    twice = [str(folder / "loras"), str(folder / "loras" / "a.safetensors")]
    assert names(plan.requests({**base, "lora": twice})) == ["a", "b", "c"]


def test_every_weight_and_target_is_a_request(folder: Path) -> None:
    targets = ["jetson-agx-orin-64gb", "jetson-thor-t5000"]
    specs = plan.requests({"base": "demo", "lora": "faint", "weight": [0.5, 1.0], "target": targets, "scheme": "int8"})
    assert {(s.adapters[0].weight, s.target.name) for s in specs} == {(w, t) for w in (0.5, 1.0) for t in targets}


def test_a_line_of_jsonl_has_options_of_its_own(folder: Path) -> None:
    lines = [{"lora": "loras/a.safetensors", "trigger": "sks", "weight": 0.7}, {"lora": "loras/b.safetensors"}]
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    specs = plan.requests({"base": "demo", "lora": str(path), "scheme": "int8"})
    by_name = {Path(spec.adapters[0].source).stem: spec for spec in specs}
    assert by_name["a"].trigger == "sks"
    assert by_name["a"].adapters[0].weight == 0.7
    assert by_name["b"].trigger is None


def test_paths_of_a_plan_are_beside_it(folder: Path) -> None:
    path = folder / "plan.toml"
    path.write_text(
        'base = "demo"\nlora = ["loras/*.safetensors"]\nscheme = ["int8"]\nmax-probes = 8\nsteps = 3\n', "utf-8"
    )
    specs = plan.requests(plan.read(path))
    assert names(specs) == ["a", "b"]
    assert {(spec.max_probes, spec.probes.steps) for spec in specs} == {(8, 3)}


def test_lists_and_files_of_values_in_a_plan_are_taken_whole(folder: Path) -> None:
    text = (library.PIPELINE.parents[1] / "spec" / "data" / "schemes" / "int8.toml").read_text("utf-8")
    (folder / "mine.toml").write_text(text, "utf-8")
    content = (
        'base = "demo"\nlora = "faint"\nscheme = "mine.toml"\nprompts = ["a cat", "a dog"]\nwith-lora = "few=0.5"\n'
    )
    (folder / "plan.toml").write_text(content, "utf-8")
    (spec,) = plan.requests(plan.read(folder / "plan.toml"))
    assert [one.name for one in spec.schemes] == ["mine"]
    assert set(spec.probes.prompts) == {"a cat", "a dog"}
    assert [use.weight for use in spec.common] == [0.5]


def test_a_page_s_folder_has_a_name_that_every_disk_takes(folder: Path) -> None:
    path = folder / "loras" / f"{'x' * 230}.safetensors"
    path.write_bytes((library.ADAPTERS / "faint.safetensors").read_bytes())
    (spec,) = plan.requests({"base": "demo", "lora": str(path), "scheme": "int8"})
    assert len(Digests(Cache(folder / "cache")).job(spec).name) < 80


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"base": "demo"}, "names no adapter"),
        ({"lora": "faint"}, "names no base"),
        ({"base": "demo", "lora": "nowhere/*.safetensors"}, "holds no adapter"),
        ({"base": "demo", "lora": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"base": "demo", "lora": "faint", "scheme": "int9"}, "unknown scheme 'int9'"),
    ],
)
def test_a_plan_that_is_none_is_one_error(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        plan.requests(keywords)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = ", "Invalid value"),
        ('bass = "demo"\n', "unknown key of a plan 'bass'"),
        ('base = "demo"\nlora = ["x.jsonl"]\n', "x.jsonl"),
    ],
)
def test_a_file_that_is_no_plan_is_one_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        plan.requests(plan.read(path))


@pytest.mark.parametrize("line", ["[1]", "{", '{"weight": 1}', '{"lora": "a", "wait": 1}'])
def test_a_line_that_is_no_adapter_is_named_with_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(f'{{"lora": "faint"}}\n{line}\n', "utf-8")
    with pytest.raises(UserError, match=r"list\.jsonl:2"):
        plan.requests({"base": "demo", "lora": str(path)})


def test_a_case_s_digest_is_of_all_that_its_verdict_depends_on_and_of_nothing_else(folder: Path) -> None:
    adapter = folder / "loras" / "a.safetensors"
    keywords = {"base": "demo", "lora": str(adapter), "scheme": "int8", "order": "merge-quantize"}

    def case(**more: object) -> str:
        (spec,) = plan.requests({**keywords, **more})
        (digest,) = Digests(Cache(folder / "cache")).job(spec).cases.values()
        return digest

    first = case()
    assert case(threads=3, batch=2) == first
    others = [{"weight": 0.5}, {"steps": 3}, {"guidance": 1.0}, {"scheme": "fp8", "target": "jetson-thor-t5000"}]
    others += [{"order": "unmerged"}, {"max_probes": 8}, {"trigger": "x"}, {"build": False}, {"seed": 3}]
    assert len({first, *(case(**more) for more in others)}) == 1 + len(others)
    adapter.write_bytes((library.ADAPTERS / "ink.safetensors").read_bytes())
    assert case() != first
    adapter.unlink()
    assert case() != first  # a file that is missing is a row, found when the case is run


def test_another_base_s_bytes_are_another_case(pipeline_copy: Path, tmp_path: Path) -> None:
    def case() -> str:
        (spec,) = plan.requests(
            {"base": str(pipeline_copy), "lora": str(library.ADAPTERS / "faint.safetensors"), "scheme": "int8"}
        )
        (digest,) = Digests(Cache(tmp_path / "cache")).job(spec).cases.values()
        return digest

    before = case()
    with (pipeline_copy / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert case() != before


def test_shards_are_all_jobs_once(folder: Path) -> None:
    weights = [0.1 * n for n in range(1, 30)]
    specs = plan.requests({"base": "demo", "lora": "faint", "weight": weights, "scheme": "int8"})
    digests = Digests(Cache(folder / "cache"))
    jobs = [digests.job(spec) for spec in specs]
    shards = [sweep.shard(jobs, index, 3) for index in (1, 2, 3)]
    assert sorted(job.name for part in shards for job in part) == sorted(job.name for job in jobs)
    assert all(shards)


def test_a_job_travels_to_another_process(folder: Path) -> None:
    (spec,) = plan.requests({"base": "demo", "lora": "faint", "scheme": ["int8", "int4-g128"]})
    job = Digests(Cache(folder / "cache")).job(spec)
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301
