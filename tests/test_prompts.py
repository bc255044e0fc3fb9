"""What the text encoders read of prompts."""

from pathlib import Path

import pytest

from qcheck.core.errors import UserError
from qcheck.model import load
from qcheck.sampling import prompts
from qcheck.spec import probe
from tests import families

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


@pytest.fixture(scope="module", params=["sd1", "sdxl", "flux", "z-image", "qwen-image"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> load.Family:
    return load.load(str(families.saved(request.param, tmp_path_factory.mktemp("base") / request.param))).family


def test_different_prompts_of_the_same_tokens_are_an_error(family: load.Family) -> None:
    most = max(family.read_by().values())
    start = " ".join(["red"] * most)
    prompts.require_distinct(family, ["a cat", "a dog", "A  Cat", "a cat"])
    with pytest.raises(UserError, match=r"red cat' and '.* red dog' are the same tokens to every text encoder"):
        prompts.require_distinct(family, [f"{start} cat", f"{start} dog"])


def test_the_end_that_no_encoder_reads_is_named_and_so_is_a_lost_trigger(family: load.Family) -> None:
    limits = family.read_by()
    long = " ".join([LONG] * (2 + max(limits.values()) // 16)) + " mystyle"
    assert prompts.cut(family, ["a cat", "a red fox"], "mystyle") == []
    said = prompts.cut(family, ["a cat", long], "mystyle")
    assert f"1 of 2 prompts are longer than the {max(limits.values())} tokens" in said[0]
    assert said[0].endswith("or judge on others by --prompts")
    assert "the trigger 'mystyle' is in the part that is cut of 1 prompts" in said[1]
    assert len(prompts.cut(family, [f"mystyle, {long.removesuffix(' mystyle')}"], "mystyle")) == 1
    assert len(prompts.cut(family, [f"mystyle, {long}"], "mystyle")) == 1  # once in what is read
    assert len(prompts.cut(family, [long.replace("mystyle", "MyStyle")], "MyStyle")) == 2


def test_an_encoder_with_room_reads_what_another_cuts(family: load.Family) -> None:
    shortest, longest = min(family.read_by().values()), max(family.read_by().values())
    words = " ".join(["red"] * (shortest + 2))
    assert bool(prompts.cut(family, [words], None)) == (shortest == longest)


def test_a_file_that_begins_with_a_byte_order_mark_is_read_as_one_without(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# mine\r\na red cat\r\n".encode())
    assert probe.from_text(path, probe.find("general")).prompts == ("a red cat",)
