"""Bills of materials hold against CycloneDX's own schema; licences are known, and one that is not is an error."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcheck.core import sbom
from qcheck.core.sbom import Part
from qcheck.tasks import pack
from tools import licences
from tools import sbom as wheel_sbom
from tools.licences import Package, Rules

ASKED = {
    "base": "my-pipeline",
    "base_digest": "97645b7e7bce0751",
    "adapter": "a.safetensors + b.safetensors",
    "adapter_digests": ["5d2eea7e932ea634", "6d2eea7e932ea634"],
    "scheme": "int8",
    "order": "merge-quantize",
    "target": "jetson-thor-t5000",
    "verdict": "PASS",
}
FACTS: Mapping[str, Any] = {"asked": ASKED, "components": [{"file": "model/unet/model.onnx"}]}


def _require_valid(text: str) -> None:
    """Hold a document against the schema that the CycloneDX library ships."""
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (extra dev)")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name in ("bundle.json", "model/unet/model.onnx", "verify.pyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    pack.sbom(tmp_path, FACTS)
    return tmp_path


def test_the_bill_of_a_bundle_has_every_file_and_source(bundle: Path) -> None:
    bill = json.loads((bundle / sbom.NAME).read_text())
    parts = {one["name"]: one for one in bill["components"]}
    for name in ("bundle.json", "model/unet/model.onnx", "verify.pyz"):
        assert parts[name]["hashes"][0]["content"] == hashlib.sha256(name.encode()).hexdigest()
    assert parts["model/unet/model.onnx"]["type"] == "machine-learning-model"
    assert {"my-pipeline", "a.safetensors", "b.safetensors", "numpy", "tensorrt", "qcheck-edge"} <= set(parts)
    assert parts["b.safetensors"]["properties"] == [{"name": "qcheck:digest", "value": "6d2eea7e932ea634"}]
    assert len(bill["dependencies"][0]["dependsOn"]) == len(parts) == len(bill["components"])
    assert sbom.NAME in pack.sums(bundle)


def test_the_bill_of_a_bundle_is_cyclonedx(bundle: Path) -> None:
    _require_valid((bundle / sbom.NAME).read_text())


def test_the_bill_of_a_wheel_is_cyclonedx(tmp_path: Path) -> None:
    wheel = tmp_path / "qcheck_edge-0.2.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    text = wheel_sbom.bill(wheel, Rules.read())
    bill = json.loads(text)
    assert bill["metadata"]["component"]["hashes"][0]["content"] == hashlib.sha256(b"a wheel").hexdigest()
    names = {one["name"] for one in bill["components"]}
    assert {"numpy", "pydantic", "torch", "qcheck/demo/pipeline"} <= names
    _require_valid(text)


def test_equal_parts_are_equal_bytes() -> None:
    parts = [Part("file", name, sha256="0" * 64) for name in "ab"]
    documents = [json.dumps(sbom.document(Part("application", "x"), order)) for order in (parts, parts[::-1])]
    assert documents[0] == documents[1]


def test_every_licence_here_is_known() -> None:
    rules = Rules.read()
    found = [*licences.packages(rules), *(Package(name, "", licence) for name, licence in rules.data.items())]
    assert [one for one in found if not rules.allows(one.licence)] == []
    assert len(found) > 40


def test_shipped_data_is_where_its_licence_says() -> None:
    assert all((licences.ROOT / name).exists() for name in Rules.read().data)


@pytest.mark.parametrize(
    ("facts", "classifiers", "licence", "allowed"),
    [
        ({"License-Expression": "MIT"}, [], "MIT", True),
        ({"License": "Apache 2.0"}, [], "Apache-2.0", True),
        ({}, ["License :: OSI Approved :: BSD License"], "BSD-3-Clause", True),
        ({"License": "MIT License\n\nCopyright (c)"}, ["License :: OSI Approved :: MIT License"], "MIT", True),
        ({"License-Expression": "GPL-3.0-only OR MIT"}, [], "GPL-3.0-only OR MIT", True),
        ({"License-Expression": "GPL-3.0-only AND MIT"}, [], "GPL-3.0-only AND MIT", False),
        ({"License": "AGPL-3.0-only"}, [], "AGPL-3.0-only", False),
        ({"License": "ask us"}, ["License :: Other/Proprietary License"], None, False),
    ],
)
def test_a_licence_is_read_and_held_to_the_list(
    facts: dict[str, str], classifiers: list[str], licence: str | None, allowed: bool
) -> None:
    rules = Rules.read()
    found = licences.licence_of({"Name": "some-package", **facts}, classifiers, rules)
    assert (found, rules.allows(found)) == (licence, allowed)


def test_an_unknown_licence_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "packages", lambda _: [Package("odd", "1", "AGPL-3.0-only")])
    monkeypatch.setattr("sys.argv", ["licences"])
    with pytest.raises(SystemExit, match="odd"):
        licences.main()
