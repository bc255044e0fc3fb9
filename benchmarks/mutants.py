"""Small mistakes put into a module one at a time: do its fast tests notice? ``python -m benchmarks.mutants FILE``.

A mistake is one changed node of the syntax tree: another comparison, operator, number or condition, a statement or an
argument left out. Each is tried in a fork of its own that stops at the first test that fails. A mistake inside a
function takes the place of the function's code in a process that has collected the tests, so it costs their calls
alone; one outside of them, which acts when its module is imported, costs the import of qcheck too. mutmut 2 and
cosmic-ray pay for that and for torch each time.

What no test noticed is printed with its place. Some of it changes nothing that anyone could notice: that is for a
reader.
"""

import argparse
import ast
import copy
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Literal

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "scipy.stats", "onnx", "onnx_ir", "onnxruntime")  # none that pytest rewrites, as hypothesis
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0")
TESTS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
Outcome = Literal["noticed", "late", "left"]
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
    """A module with one mistake: its line, what stood there and what stands there now, and the whole code.

    ``inner`` says that it is inside a function.
    """

    line: int
    before: str
    after: str
    code: str
    inner: bool


def mutants(source: str) -> list[Mutant]:
    """Every module that is one changed node away from ``source``."""
    tree = ast.parse(source)
    aside, inner, made = {id(node) for node in _aside(tree)}, {id(node) for node in _inner(tree)}, []
    for place, node in enumerate(ast.walk(tree)):
        for change in () if id(node) in aside else _changes(node):
            other = copy.deepcopy(tree)
            old = next(other_node for at, other_node in enumerate(ast.walk(other)) if at == place)
            before, new = ast.unparse(old), change(copy.deepcopy(old))
            code = ast.unparse(ast.fix_missing_locations(_Swap(old, new).visit(other)))
            after = ast.unparse(ast.fix_missing_locations(new))
            made.append(Mutant(getattr(node, "lineno", 0), before, after, code, id(node) in inner))
    return made


def _inner(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a function is called: its body, without decorators and defaults."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from ast.walk(statement)


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


def forked(run: Callable[[], bool], limit: float) -> Outcome:
    """Whether ``run`` fails, or does not end within ``limit`` seconds, in a process of its own."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        for shown in () if "QCHECK_LOUD" in os.environ else (1, 2):
            os.dup2(silent, shown)
        failed = True
        try:
            failed = not run()
        finally:
            os._exit(int(failed))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "noticed" if status else "left"
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "late"


def imported(file: str, code: str, folder: str) -> bool:
    """Whether the tests pass where the module of ``file`` is imported from other code; qcheck is not imported yet."""
    name = file.removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, _Loader(name, ROOT / file, code))
    return pytest.main(["-x", *OPTIONS, f"--basetemp={folder}", *TESTS[file]]) == 0


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _numbered(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """Every code object of a module with its name and its number among those of that name (overloads, lambdas)."""
    counts = Counter[str]()
    for one in _codes(code):
        yield (one.co_qualname, counts[one.co_qualname]), one
        counts[one.co_qualname] += 1


def _compiled(code: str, path: str) -> Mapping[tuple[str, int], CodeType]:
    return dict(_numbered(compile(code, path, "exec", dont_inherit=True)))


class _Functions:
    """The functions of an imported module, whose code can be exchanged."""

    def __init__(self, file: str, source: str) -> None:
        self._path = str(ROOT / file)
        places = {(name, one.co_firstlineno): (name, n) for (name, n), one in _compiled(source, self._path).items()}
        self._live = defaultdict[tuple[str, int], list[FunctionType]](list)
        for one in gc.get_objects():
            if type(one) is FunctionType and one.__code__.co_filename == self._path:
                self._live[places[one.__code__.co_qualname, one.__code__.co_firstlineno]].append(one)

    def exchange(self, code: str) -> None:
        """Let every function run what ``code`` has in its place."""
        for place, new in _compiled(code, self._path).items():
            for function in self._live[place]:
                function.__code__ = new


class Trials:
    """Instead of running the tests that pytest collected: the tests of a module against each of its mistakes."""

    def __init__(self, chosen: Mapping[str, Sequence[Mutant]], limit: float, done: dict[Mutant, Outcome]) -> None:
        self._chosen, self._limit, self.done, self.broken = chosen, limit, done, list[str]()

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """A failure that hypothesis draws is enough: it need not become small."""
        from hypothesis import Phase, settings

        settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None, deadline=None)
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try each."""
        gc.unfreeze()
        for one in gc.get_objects():
            if type(one) is functools._lru_cache_wrapper and str(one.__module__).startswith("qcheck."):
                one.cache_clear()
        for file, mutants_of_file in self._chosen.items():
            items = [item for test in TESTS[file] for item in session.items if item.nodeid.startswith(test)]
            started = time.monotonic()
            if forked(lambda items=items: _passes(session, items), 10 * self._limit) != "left":  # type: ignore[misc]
                self.broken.append(file)
                continue
            whole, functions = time.monotonic() - started, _Functions(file, (ROOT / file).read_text("utf-8"))
            for one in mutants_of_file:
                self.done.setdefault(one, self._tried(functions, one, session, items))
            self._told(file, whole, len(items))
        return True

    def _tried(self, functions: _Functions, one: Mutant, session: pytest.Session, items: list[pytest.Item]) -> Outcome:
        def run() -> bool:
            functions.exchange(one.code)
            return _passes(session, items)

        return forked(run, self._limit)

    def _told(self, file: str, seconds: float, tests: int) -> None:
        mutants_of_file = self._chosen[file]
        left = [one for one in mutants_of_file if self.done[one] == "left"]
        late = sum(self.done[one] == "late" for one in mutants_of_file)
        noted = f"{len(mutants_of_file) - len(left)} of {len(mutants_of_file)} noticed"
        print(f"{file}: {noted}, {late} by the limit of time; {tests} tests, {seconds:.1f} s", flush=True)
        for one in sorted(left, key=lambda one: one.line):
            print(f"  {file}:{one.line}: {one.before}  ->  {one.after}", flush=True)


def _passes(session: pytest.Session, items: Sequence[pytest.Item]) -> bool:
    """Whether these tests pass; nothing runs after the first that fails."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return False
    return True


def sample(file: str, count: int, seed: int) -> list[Mutant]:
    """``count`` of a file's mistakes, or all of them for 0."""
    every = mutants((ROOT / file).read_text("utf-8"))
    draw = random.Random(seed)  # noqa: S311  # to choose, not to keep a secret
    return draw.sample(every, min(count, len(every))) if count else every


def main() -> None:
    """Try a sample of the mistakes in each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE")
    parser.add_argument("--sample", type=int, default=12, help="mistakes of each file that are tried; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=60, help="seconds for the tests of one")
    given = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    chosen = {file: sample(file, given.sample, given.seed) for file in given.files}
    tests = list(dict.fromkeys(test for file in given.files for test in TESTS[file]))
    with tempfile.TemporaryDirectory() as folder:
        outer = [(file, one) for file, every in chosen.items() for one in every if not one.inner]
        done = {
            one: forked(lambda f=file, o=one: imported(f, o.code, folder), given.limit)  # type: ignore[misc]
            for file, one in outer
        }
        trials = Trials(chosen, given.limit, done)
        pytest.main(["-s", *OPTIONS, f"--basetemp={folder}", *tests], plugins=[trials])
    for file in trials.broken:
        print(f"{file}: its tests fail, or take more than {10 * given.limit} s, as it is", flush=True)


if __name__ == "__main__":
    main()
