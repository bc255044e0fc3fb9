"""All that writes in qcheck, on small contents: ``python -m tests.crash.writers FOLDER [MODE ...]``.

The law: whatever fails, what is there is the earlier content or the new one, never another; there is one error that
says what to do; a process that lives leaves nothing behind; and the same work done again gives the new content.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from qcheck.api import functions
from qcheck.core import files, folder, places
from qcheck.core.cache import Cache
from qcheck.device import built, main, replay
from qcheck.diagnose.sheet import Sheet
from qcheck.model import lora
from qcheck.model.lora import trainable
from qcheck.report import contact, html, seal
from qcheck.report import write as report_files
from qcheck.result.report import REPORT
from qcheck.spec.use import Use
from qcheck.tasks import pack
from tests import reports
from tests.crash.injector import NONE, Ended, Fault, Mode, attempt, faults, leftovers, tree

Act = Callable[[Path], None]
MADE, RENEWED = reports.report(), reports.report(reports.case(verdict="NEEDS-QAT"))


@dataclass(frozen=True)
class Writer:
    """What writes below a folder: ``earlier`` content first, if any, then ``act``, which is broken.

    ``marks`` are the files without which readers take a folder for none: a killed process may leave one without them,
    and where ``alive`` one that lives.
    ``mixed`` says that a killed process may also leave some files new and some old, which the seal then shows.
    """

    earlier: Act
    act: Act
    marks: tuple[str, ...] = ()
    mixed: bool = False
    alive: bool = False


def _nothing(_: Path) -> None:
    pass


def _content(place: Path, text: str) -> None:
    (place / "artifacts").mkdir()
    (place / "artifacts" / f"{text}.onnx").write_text(text)
    (place / REPORT).write_text(json.dumps({"schema": "qcheck-report/2", "text": text}))
    (place / "z.txt").write_text(text)


def _staged(text: str, overwrite: bool = False) -> Act:
    def act(root: Path) -> None:
        with folder.staged(root / "out", overwrite) as place:
            _content(place, text)

    return act


def _replaced(text: str) -> Act:
    def act(root: Path) -> None:
        with folder.replaced(root / "ranges.json", True, folder.ours):
            files.write(root / "ranges.json", json.dumps({"schema": "qcheck-ranges/1", "text": text}).encode())
            (root / "later").mkdir(exist_ok=True)  # what comes after, which may fail too

    return act


def _entry(root: Path) -> None:
    def make(place: Path) -> None:
        save_file({"x": np.arange(1000.0)}, place / "x.safetensors")
        np.savez(place / "y.npz", y=np.arange(10))
        (place / "z.json").write_text("{}")

    Cache(root / "cache").obtain("trace", "key", "about", make)


def _pruned(root: Path) -> None:
    Cache(root / "cache").prune(0, 0)


def _place(text: str) -> Act:
    return lambda root: places.Folder(root / "store").write("cases/row.json", text.encode())


def _moved(text: str) -> Act:
    def act(root: Path) -> None:
        store = places.Folder(root / "store")
        with store.work() as work:
            (work / "page").mkdir()
            (work / "page" / "report.html").write_text(text)
            (work / "page" / "report.md").write_text(text)
            store.move(work / "page", "pages/case")

    return act


def _checked(root: Path) -> None:
    with folder.staged(root / "out") as place:
        report_files.values(MADE, place)
        _pictures(place)
        html.write(place)
        seal.write(MADE, place)


def _pictures(place: Path) -> None:
    picture = np.zeros((1, 16, 16, 3), np.float32)
    sides = {"adapted": picture, "base": picture}
    contact.draw([Sheet("int8", ("red apple",), sides, sides)], place / "contact.png")  # type: ignore[arg-type]
    (place / "pictures").mkdir()
    report_files._picture(picture[0], place, "f1-1")


def _renewed(root: Path) -> None:
    report_files.renew(RENEWED, root / "out")


def _page(root: Path) -> None:
    report_files.page(root / "out")


def _saved(text: str) -> Act:
    def act(root: Path) -> None:
        {"old": MADE, "new": RENEWED}[text].save(root / "saved")

    return act


def _result(root: Path) -> None:
    replay.Results(root / "work").obtain("forced-000", lambda: np.arange(1000.0))


def _verified(text: str) -> Act:
    def act(root: Path) -> None:
        replay.whole(root / "verify.json", lambda path: main._write(path, json.dumps({"text": text})))

    return act


def _onnx(root: Path) -> None:
    (root / "model.onnx").touch()


def _engine(root: Path) -> None:
    onnx = root / "model.onnx"
    job = built.Job(onnx, "0", (), root / "work" / "unet.engine", root / "t", 1, "board", "mode", level=0)

    def attempted(_: int) -> built.Tried:
        try:
            job.partial.write_bytes(b"engine" * 100)
        except OSError as error:  # the builder is a child
            return built.Tried(str(error))
        return built.Tried()

    assert built.build(job, "10.3.0", attempted).bytes == 600


def _packed(root: Path) -> None:
    with functions.writing(root / "bundle") as place:
        (place / "manifest.json").write_text('{"schema": "qcheck-bundle/1"}')
        pack.verifier(place / pack.VERIFIER)
        pack.sums(place)


def _archived(root: Path) -> None:
    pack.archive(root / "bundle", root / "bundle.tar.zst")


def _bundle(root: Path) -> None:
    (root / "bundle").mkdir()
    (root / "bundle" / "manifest.json").write_text("{}" * 1000)
    for path in (root / "bundle" / "manifest.json", root / "bundle"):
        os.utime(path, (0, 0))  # an archive holds times


def _adapter(root: Path) -> None:
    save_file({"unet.a.lora_A.weight": np.zeros((2, 4), np.float32)}, root / "a.safetensors")
    (root / "adapter_config.json").write_text("{}")


def _trained(root: Path) -> None:
    adapter = lora.read(Use(source=str(root / "a.safetensors"), weight=1.0))
    trainable.write(adapter, {"unet.a.lora_A.weight": torch.ones(2, 4)}, {"qcheck": "{}"}, root / "new.safetensors")


WRITERS: dict[str, Writer] = {
    "a new output": Writer(_nothing, _staged("new")),
    "an output in an empty folder": Writer(lambda root: (root / "out").mkdir(), _staged("new"), (REPORT,)),
    "an output over an earlier one": Writer(_staged("old"), _staged("new", overwrite=True), (REPORT,)),
    "a new file": Writer(_nothing, _replaced("new")),
    "a file over an earlier one": Writer(_replaced("old"), _replaced("new")),
    "an entry of the cache": Writer(_nothing, _entry),
    "a removed entry": Writer(_entry, lambda root: Cache(root / "cache").drop("trace", "key")),
    "a pruned cache": Writer(_entry, _pruned),
    "a row of a sweep": Writer(_place("old"), _place("new")),
    "a page of a sweep": Writer(_moved("old"), _moved("new"), ("report.html",)),
    "the folder of a check": Writer(_nothing, _checked),
    "a report with a board's result": Writer(_checked, _renewed, mixed=True),
    "a page that is rendered again": Writer(_checked, _page, mixed=True),
    "a report that a script saves": Writer(_saved("old"), _saved("new")),
    "a result on a board": Writer(_nothing, _result),
    "what a board says": Writer(_verified("old"), _verified("new")),
    "an engine on a board": Writer(_onnx, _engine, ("unet.engine.json",), alive=True),
    "a bundle": Writer(_nothing, _packed),
    "an archive": Writer(_bundle, _archived),
    "a trained adapter": Writer(_adapter, _trained),
}


def _broken(
    writer: Writer, root: Path, fault: Fault, before: dict[str, bytes], after: dict[str, bytes]
) -> Iterator[str]:
    """What is wrong after a fault, in words."""
    _fresh(writer, root)
    ended = attempt(lambda: writer.act(root), root, fault, root.with_name("log"))
    wrong = _wrong(writer, root, fault, ended, before, after)
    if tree(root) != after:
        with suppress(Exception):
            writer.act(root)
        if tree(root) != after:
            wrong.append(f"done again: {sorted(tree(root))}")
    if wrong:
        calls = root.with_name("log").read_text().splitlines()
        yield f"call {calls[fault.number - 1 : fault.number]}, {fault.mode.name} {fault.error}: {'; '.join(wrong)}"


def _fresh(writer: Writer, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    writer.earlier(root)


def _undisturbed(writer: Writer, root: Path) -> tuple[dict[str, bytes], dict[str, bytes], int]:
    _fresh(writer, root)
    before = tree(root)
    ended = attempt(lambda: writer.act(root), root, NONE)
    if ended.error or not ended.calls:
        raise RuntimeError(ended.detail or "no call was counted")
    return before, tree(root), ended.calls


def _wrong(
    writer: Writer, root: Path, fault: Fault, ended: Ended, before: dict[str, bytes], after: dict[str, bytes]
) -> list[str]:
    now, wrong = tree(root), list[str]()
    unmarked = writer.marks and not {Path(name).name for name in now} & {*writer.marks}
    unread = (fault.mode == Mode.KILL and (writer.mixed or unmarked)) or (writer.alive and unmarked)
    if now not in (before, after) and not unread:
        wrong.append(f"half of it is there: {sorted(now)}")
    if fault.mode == Mode.SHORT and ended.error:
        wrong.append(f"a short write ends in {ended.error}")
    if fault.mode != Mode.KILL and leftovers(root):
        wrong.append(f"left behind: {leftovers(root)}")
    if ended.error and not ended.told:
        wrong.append(f"no error that says what to do: {ended.error}")
    return wrong


def run(root: Path, modes: Collection[Mode]) -> None:
    """Print a line for each thing that is wrong, and last how many faults were tried."""
    html.render = lambda source: f"<html>{source.report.cases[0].verdict}</html>"  # charts take seconds
    torch.set_num_threads(1)
    tried = 0
    for name, writer in WRITERS.items():
        before, after, calls = _undisturbed(writer, root / "work")
        for fault in faults(calls, modes):
            tried += 1
            for line in _broken(writer, root / "work", fault, before, after):
                sys.stdout.write(f"{name}: {line}\n")
    sys.stdout.write(f"{len(WRITERS)} writers, {tried} faults\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]), [Mode[name] for name in sys.argv[2:]] or list(Mode))
