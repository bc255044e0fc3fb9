"""Small mistakes put into a module one at a time: do its fast tests notice? ``python -m benchmarks.mutants FILE``.

A mistake is one changed node of the syntax tree: another comparison, operator, number or condition, a statement or an
argument left out. Each is tried in a fork of a process that has imported the libraries but nothing of qcheck, so that
it costs its tests alone; a new process for each, as mutmut 2 and cosmic-ray take, costs the import of torch too.

What no test noticed is printed with its place. Some of it changes nothing that anyone could notice: that is for a
reader.
"""

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "scipy.stats", "onnx", "onnx_ir", "onnxruntime")  # none that pytest rewrites, as hypothesis
FORMATS = "tests/quantize/test_formats.py"
# the fast tests of each module
TESTS: dict[str, tuple[str, ...]] = {
    "qcheck/judge/verdict.py": ("tests/test_verdict.py", "tests/test_decide.py", "tests/measure/test_sequential.py"),
    "qcheck/judge/compare.py": ("tests/test_compare.py",),
    "qcheck/judge/lapse.py": ("tests/test_verdict.py", "tests/test_decide.py"),
    "qcheck/judge/looks.py": ("tests/test_decide.py", "tests/measure/test_sequential.py"),
    "qcheck/judge/deciding.py": ("tests/test_decide.py", "tests/test_verdict.py"),
    "qcheck/judge/holm.py": ("tests/test_compare.py",),
    "qcheck/measure/interval.py": ("tests/measure", "tests/test_decide.py"),
    "qcheck/measure/effect.py": ("tests/measure",),
    "qcheck/measure/endpoint.py": ("tests/measure",),
    "qcheck/measure/control.py": ("tests/measure", "tests/test_trust.py"),
    "qcheck/measure/lattice.py": ("tests/measure",),
    "qcheck/measure/spectrum.py": ("tests/measure",),
    "qcheck/measure/trajectory.py": ("tests/measure",),
    "qcheck/measure/distribution.py": ("tests/measure",),
    "qcheck/device/effect.py": ("tests/measure", "tests/device/test_statistics.py"),
    "qcheck/device/gates.py": ("tests/measure", "tests/device/test_statistics.py", "tests/test_verdict.py"),
    "qcheck/device/built.py": ("tests/test_realised.py", "tests/device/test_inspector.py"),
    "qcheck/build/precision.py": ("tests/test_realised.py",),
    "qcheck/quantize/formats.py": (FORMATS,),
    "qcheck/quantize/plan.py": (FORMATS, "tests/quantize/test_ranges.py", "tests/quantize/test_merge.py"),
    "qcheck/quantize/merge.py": ("tests/quantize/test_merge.py",),
    "qcheck/quantize/qdq.py": ("tests/quantize/test_onnx.py",),
    "qcheck/core/cache.py": ("tests/test_cache.py",),
    "qcheck/core/digest.py": ("tests/test_cache.py", "tests/test_folder.py"),
    "qcheck/sampling/store.py": ("tests/test_trace.py", "tests/test_cache.py"),
}

Change = Callable[[ast.AST], ast.AST]
_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "sorted": "list"}
_NAMES |= {"abs": "float", "mean": "sum", "amax": "amin", "amin": "amax"}


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake: its line, what stood there and what stands there now, and the whole code."""

    line: int
    before: str
    after: str
    code: str


def mutants(source: str) -> list[Mutant]:
    """Every module that is one changed node away from ``source``."""
    tree = ast.parse(source)
    aside, made = {id(node) for node in _aside(tree)}, []
    for place, node in enumerate(ast.walk(tree)):
        for change in () if id(node) in aside else _changes(node):
            other = copy.deepcopy(tree)
            old = next(other_node for at, other_node in enumerate(ast.walk(other)) if at == place)
            before, new = ast.unparse(old), change(copy.deepcopy(old))
            code = ast.unparse(ast.fix_missing_locations(_Swap(old, new).visit(other)))
            made.append(Mutant(getattr(node, "lineno", 0), before, ast.unparse(ast.fix_missing_locations(new)), code))
    return made


class _Swap(ast.NodeTransformer):
    """One node for another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _aside(tree: ast.AST) -> Iterator[ast.AST]:
    """What computes nothing: annotations, decorators, errors' texts."""
    for node in ast.walk(tree):
        inner: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            inner = [
                node.returns,
                *node.decorator_list,
                *(one.annotation for one in ast.walk(node.args) if isinstance(one, ast.arg)),
            ]
        elif isinstance(node, ast.ClassDef):
            inner = [*node.decorator_list]
        elif isinstance(node, ast.AnnAssign):
            inner = [node.annotation]
        elif isinstance(node, ast.Raise):
            inner = [node.exc]
        elif isinstance(node, ast.JoinedStr):
            inner = [node]
        for one in inner:
            yield from () if one is None else ast.walk(one)


def _set(name: str, value: object) -> Change:
    def change(node: ast.AST) -> ast.AST:
        setattr(node, name, value)
        return node

    return change


def _without(name: str, place: int) -> Change:
    def change(node: ast.AST) -> ast.AST:
        del getattr(node, name)[place]
        return node

    return change


def _negated(node: ast.AST) -> ast.AST:
    node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
    return node


def _changes(node: ast.AST) -> Iterator[Change]:
    """The mistakes at one node."""
    yield from _of_values(node)
    yield from _of_parts(node)
    if isinstance(node, ast.Name) and node.id in _NAMES:
        yield _set("id", _NAMES[node.id])
    if isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield _set("attr", _NAMES[node.attr])


def _of_values(node: ast.AST) -> Iterator[Change]:
    """Other operators and constants."""
    match node:
        case ast.Compare(ops=[operator]):
            yield from (_set("ops", [other()]) for other in _COMPARISONS[type(operator)])
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator):
            if type(operator) in _OPERATORS:
                yield _set("op", _OPERATORS[type(operator)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda found: found.operand  # type: ignore[attr-defined]
        case ast.Constant(value=bool(value)):
            yield _set("value", not value)
        case ast.Constant(value=int(value) | float(value)):
            yield _set("value", value + 1)


def _of_parts(node: ast.AST) -> Iterator[Change]:
    """A condition turned round; a part left out."""
    match node:
        case ast.If() | ast.IfExp() | ast.While():
            yield _negated
        case ast.comprehension(ifs=[_, *_]):
            yield _without("ifs", 0)
        case ast.Tuple(elts=[_, _, *_], ctx=ast.Load()) | ast.List(elts=[_, _, *_], ctx=ast.Load()):
            yield from (_without("elts", place) for place in range(len(node.elts)))  # type: ignore[attr-defined]
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield lambda _: ast.Pass()
        case ast.Call(args=[_, _, *_]):
            yield from (_without("args", place) for place in range(len(node.args)))  # type: ignore[attr-defined]


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module other code."""

    def __init__(self, name: str, path: Path, code: str) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._code, str(self._path), "exec"), module.__dict__)  # noqa: S102


def noticed(file: str, code: str, tests: tuple[str, ...], limit: int) -> bool:
    """Whether a test fails, or none ends within ``limit`` seconds, where the module of ``file`` has other code."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        for shown in () if "QCHECK_LOUD" in os.environ else (1, 2):
            os.dup2(silent, shown)
        status = 1
        try:
            name = file.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, _Loader(name, ROOT / file, code))
            few = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0")
            status = int(pytest.main([*few, *tests]))
        finally:
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> None:
    """Try a sample of the mistakes in each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE")
    parser.add_argument("--sample", type=int, default=40, help="mistakes of each file that are tried; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=120, help="seconds for the tests of one")
    given = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    for file in given.files:
        source = (ROOT / file).read_text("utf-8")
        every = mutants(source)
        draw = random.Random(given.seed)  # noqa: S311  # to choose, not to keep a secret
        chosen = draw.sample(every, min(given.sample, len(every))) if given.sample else every
        if noticed(file, source, TESTS[file], given.limit):
            print(f"{file}: its tests fail, or take more than {given.limit} s, as it is", flush=True)
            continue
        left = [one for one in chosen if not noticed(file, one.code, TESTS[file], given.limit)]
        print(f"{file}: {len(chosen) - len(left)} of {len(chosen)} noticed, of {len(every)} that there are", flush=True)
        for one in sorted(left, key=lambda one: one.line):
            print(f"  {file}:{one.line}: {one.before}  ->  {one.after}", flush=True)


if __name__ == "__main__":
    main()
