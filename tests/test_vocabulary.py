"""Every data file loads, strictly; devices refuse what they cannot run; what calibrates never judges."""

from pathlib import Path

import pytest

from qcheck.core.digest import digest_of_value
from qcheck.core.errors import UserError
from qcheck.core.values import Value, names_in, read_toml
from qcheck.quantize import formats
from qcheck.spec import limits, probe, recipe, scheme, target


def _all(kind: type[Value], folder: Path) -> list[tuple[type[Value], Path]]:
    return [(kind, path) for path in sorted(folder.glob("*.toml"))]


FILES = [
    *_all(scheme.Scheme, scheme.FOLDER),
    *_all(target.Target, target.FOLDER),
    *_all(probe.ProbeSet, probe.FOLDER),
    *_all(recipe.Recipe, recipe.FOLDER),
    *_all(recipe.PromptSet, recipe.PROMPTS),
    *_all(limits.Limits, limits.FOLDER),
]


@pytest.mark.parametrize(("kind", "path"), FILES, ids=[f"{p.parent.name}/{p.stem}" for _, p in FILES])
def test_every_file_loads_and_an_unknown_key_does_not(kind: type[Value], path: Path, tmp_path: Path) -> None:
    assert read_toml(kind, path).model_dump()["name"] == path.stem
    odd = tmp_path / path.name
    odd.write_text('surprise = "?"\n' + path.read_text())
    with pytest.raises(UserError, match="surprise"):
        read_toml(kind, odd)


def test_compute_capabilities_are_numbers_and_no_texts() -> None:
    thor = target.find("jetson-thor-t5000")
    assert thor.capability.value == "11.0"
    assert thor.reaches("8.9")
    assert thor.reaches("11.0")
    assert not thor.reaches("12.0")


@pytest.mark.parametrize("content", ["steps = ", "title = 3\n", "\xff"])
def test_a_file_that_does_not_parse_is_an_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(content, "latin-1")
    with pytest.raises(UserError, match=r"odd\.toml"):
        read_toml(scheme.Scheme, path)


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        scheme.find("int8").compute = "bfloat16"  # type: ignore[misc]


def test_every_number_of_a_target_has_a_source() -> None:
    for device in target.every_target():
        single = (device.capability, device.memory_gb, device.bandwidth_gb_s, device.formats, device.proxy)
        for sourced in (*filter(None, single), *device.peaks, *device.releases):
            assert len(sourced.source) > 10
        for name in (*device.formats.value, *(peak.format for peak in device.peaks)):
            assert len(target.number_format(name).source) > 10


def _bits(number: formats.Format) -> int:
    if isinstance(number, formats.Float):
        return 1 + number.exponent + number.mantissa
    return number.bits if isinstance(number, formats.Integer) else (len(number.levels) - 1).bit_length()


def test_number_formats_are_described_as_they_compute() -> None:
    assert set(names_in(target.FORMATS)) == set(formats.FORMATS)
    for name, computed in formats.FORMATS.items():
        assert target.number_format(name).bits == _bits(computed)


def test_a_board_without_strongly_typed_networks_runs_nothing_and_says_so() -> None:
    xavier = target.find("jetson-agx-xavier")
    assert xavier.deployable() == []
    assert "TensorRT 8.5.2, without strongly typed networks" in str(xavier.refuses(scheme.find("int8")))


def test_a_target_refuses_a_scheme_it_has_no_format_for_and_says_which() -> None:
    for name in ("fp8", "fp8-linear"):
        assert "FP8 (E4M3) needs SM 8.9" in str(target.find("jetson-agx-orin-64gb").refuses(scheme.find(name)))
        assert target.find("jetson-thor-t5000").refuses(scheme.find(name)) is None


def test_a_target_refuses_an_opset_that_no_release_of_it_parses() -> None:
    late = scheme.find("int8").model_copy(update={"opset": 30})
    assert "opset 30" in str(target.find("jetson-agx-orin-64gb").refuses(late))


@pytest.mark.parametrize("name", names_in(recipe.FOLDER))
@pytest.mark.parametrize("judged", names_in(probe.FOLDER))
def test_calibration_prompts_and_seeds_are_disjoint_from_every_probe_set(name: str, judged: str) -> None:
    chosen, probes = recipe.find(name), probe.find(judged)
    used = recipe.calibration(chosen, probes)
    assert not set(used.prompts) & set(probes.prompts)
    assert used.steps == probes.steps
    assert len(used.prompts) == chosen.samples


def test_a_prompt_that_calibrates_and_judges_is_an_error() -> None:
    probes = probe.find("emoji")
    shared = probes.model_copy(update={"prompts": (*probes.prompts, "  Cat  FACE ")})
    with pytest.raises(UserError, match="cat face"):
        recipe.calibration(recipe.find("emoji"), shared)


def test_a_trigger_does_not_hide_a_shared_prompt() -> None:
    probes = probe.triggered(probe.find("emoji").model_copy(update={"prompts": ("cat face",)}), "mystyle")
    with pytest.raises(UserError, match="mystyle, cat face"):
        recipe.calibration(recipe.find("emoji"), probes, "mystyle")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('operators = ["linear"]\nweights = { format = "int8", granularity = "tensor" }', "operators"),
        ('operators = []\nweights = { format = "int8", granularity = "tensor" }', "operators"),
        ('operators = ["Linear"]\nweights = { format = "int4", granularity = "block", block = 8 }', "multiple of 16"),
        ('operators = ["Linear"]\nweights = { format = "int4", granularity = "block" }', "block"),
        ('operators = ["Conv2d"]\nweights = { format = "int4", granularity = "block", block = 16 }', "convolutions"),
        (
            'operators = ["Linear"]\nweights = { format = "int8", granularity = "channel" }\n'
            'activations = { format = "int8", granularity = "channel" }',
            "per tensor",
        ),
    ],
)
def test_a_scheme_that_cannot_be_carried_out_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(f'title = "x"\ncompute = "float16"\nopset = 20\nruns = ["tensorrt"]\n[[rules]]\n{text}\n')
    with pytest.raises(UserError, match=message):
        read_toml(scheme.Scheme, path)


@pytest.mark.parametrize("change", ["probes = 1", "gates = []", "tail = [0.5]", "bad_share = 1.0", 'name = "../../x"'])
def test_limits_that_would_gate_nothing_are_an_error(change: str, tmp_path: Path) -> None:
    text = (limits.FOLDER / "default.toml").read_text()
    key = change.split(" =", maxsplit=1)[0]
    lines = [line for line in text.split("[[gates]]")[0].splitlines() if not line.startswith(f"{key} =")]
    gates = "" if key == "gates" else "[[gates]]" + text.split("[[gates]]", 1)[1]
    path = tmp_path / "odd.toml"
    path.write_text("\n".join([change, *lines, gates]))
    with pytest.raises(UserError, match=key):
        read_toml(limits.Limits, path)


def test_a_seed_that_calibrates_and_judges_is_an_error() -> None:
    with pytest.raises(UserError, match="seeds"):
        recipe.calibration(recipe.find("emoji"), probe.find("emoji").model_copy(update={"seed": 910010}))


def test_probes_differ_in_seed_and_digest() -> None:
    found = probe.probes(probe.find("emoji"), (1.0,))
    assert len({p.seed for p in found}) == len(found)
    assert len({digest_of_value(p) for p in found}) == len(found)
    assert digest_of_value(found[0]) != digest_of_value(probe.probes(probe.find("emoji"), (0.5,))[0])


def test_prompts_of_a_text_file_are_cycled_with_new_seeds_and_triggered_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# mine\na cat\n\n  mystyle, a dog \n")
    chosen = probe.from_text(path, probe.find("general"))
    used = probe.triggered(probe.repeated(chosen, 5), "mystyle")
    assert used.prompts == ("mystyle, a cat", "mystyle, a dog", "mystyle, a cat", "mystyle, a dog", "mystyle, a cat")
    assert len({p.seed for p in probe.probes(used, (1.0,))}) == 5
    assert probe.repeated(chosen, 1).prompts == ("a cat",)


@pytest.mark.parametrize("content", ["", "# only a comment\n"])
def test_a_text_file_without_prompts_is_an_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no prompt"):
        probe.from_text(path, probe.find("general"))


def test_a_trigger_is_put_into_calibration_prompts_too() -> None:
    used = recipe.calibration(recipe.find("emoji"), probe.find("emoji"), "mystyle")
    assert all(p.startswith("mystyle, ") for p in used.prompts)


def test_a_release_that_is_not_documented_to_parse_a_file_is_a_warning_not_a_pass_in_silence() -> None:
    orin = target.find("jetson-agx-orin-64gb")
    assert "JetPack 6.2" in orin.warns(scheme.find("int4-g128"))[0]
    assert orin.warns(scheme.find("int8")) == []
    assert orin.warns(scheme.find("nf4-g64")) == []


def test_controls_and_what_tensorrt_does_not_run_are_no_default() -> None:
    names = {found.name for found in target.find("jetson-thor-t5000").deployable()}
    assert {"int8", "fp8", "nvfp4", "int4-g128"} <= names
    assert not {"fp16", "bf16", "nf4-g64", "bnb-nf4", "bnb-int8"} & names
    assert {"fp16", "bnb-nf4"} <= {found.name for found in target.find("jetson-thor-t5000").runnable()}
