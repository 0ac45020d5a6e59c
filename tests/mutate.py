"""Change the kit in one small place at a time, and see whether the quick tests of its room notice.

    python tests/mutate.py [--number 120] [--seed 0] [--jobs 2] [FILE ...]

A comparison is turned, a number moved by one, a condition dropped. What no test notices is printed with its
place; the command fails where that is more than one in ten. It works on a copy of the tree.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mapsage_kaggle"

# Where a fault costs a person work or trust.
FILES = (
    "checkpoints/choose.py", "checkpoints/inspect.py", "checkpoints/recovery.py", "checkpoints/retention.py",
    "checkpoints/saver.py", "checkpoints/store.py", "clock.py", "config/fingerprint.py",
    "engine/accumulate.py", "engine/sampling.py", "machine.py", "pace.py", "relay/decide.py",
    "training/supervisor.py",
)  # fmt: skip
LIMIT_S = 300.0
"""What the tests of one change may take; one that makes them hang is noticed."""
MAX_MISSED = 0.1

_TURNED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """A change of one expression: where it stands, what stood there, and what does then."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def mutations_of(file: str) -> Iterator[Mutation]:
    """Yield every change that can be made in a file of the package."""
    text = (PACKAGE / file).read_text(encoding="utf-8")
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))

    def changed(node: ast.expr, after: str) -> Mutation:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return Mutation(
            file=file, line=node.lineno, start=starts[node.lineno - 1] + node.col_offset,
            end=starts[node.end_lineno - 1] + node.end_col_offset, before=ast.unparse(node), after=after,
        )  # fmt: skip

    for node in _expressions(ast.parse(text)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _TURNED:
            left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
            yield changed(node, f"({left} {_TURNED[type(node.ops[0])]} {right})")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield changed(node, repr(node.value + 1))
        elif isinstance(node, ast.BoolOp):
            yield from (changed(node, f"({ast.unparse(value)})") for value in node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield changed(node, f"({ast.unparse(node.operand)})")


def _expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that are run; what is within an f-string has no place of its own before 3.12."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.JoinedStr, ast.arguments)):
            continue
        if isinstance(child, ast.expr):
            yield child
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield child.value
                yield from _expressions(child.value)
            continue
        yield from _expressions(child)


def tests_of(file: str) -> Iterator[list[str]]:
    """Yield a file's own tests, and then those of the rest of its room."""
    path = Path(file)
    own = Path("tests") / path.parent / f"test_{path.stem}.py"
    if (ROOT / own).is_file():
        yield [str(own)]
    if path.parent != Path():
        room = {str(found.relative_to(ROOT)) for found in (ROOT / own.parent).glob("test_*.py")}
        yield sorted(room - {str(own)})


def is_noticed(mutation: Mutation, tree: Path) -> bool:
    """Tell whether a test fails once the change is made in a copy of the tree."""
    file = tree / "mapsage_kaggle" / mutation.file
    source = file.read_bytes()
    file.write_bytes(mutation.apply(source))
    try:
        return any(_fails(tests, mutation, tree) for tests in tests_of(mutation.file))
    finally:
        file.write_bytes(source)


def _fails(tests: Sequence[str], mutation: Mutation, tree: Path) -> bool:
    environ = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
    command += ["-m", "not slow and not soak and not gpu", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"hangs   {mutation}", flush=True)
        return True
    if done.returncode not in (0, 1, 2):
        raise SystemExit(f"{mutation}: pytest could not run:\n{done.stdout.decode()[-2000:]}")
    return done.returncode != 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the changes, print what nobody noticed, and return 1 where that is too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="below mapsage_kaggle/")
    parser.add_argument("--number", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)

    draw = random.Random(options.seed)
    files = options.files or FILES
    drawn: list[Mutation] = []
    for number, file in enumerate(files):
        possible = list(mutations_of(file))
        share = options.number // len(files) + (number < options.number % len(files))
        drawn += draw.sample(possible, min(share, len(possible)))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as workers:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            tree = Path(folder) / str(number)
            shutil.copytree(
                ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")
            )
            trees.put(tree)

        def judge(mutation: Mutation) -> tuple[Mutation, bool]:
            tree = trees.get()
            try:
                return mutation, is_noticed(mutation, tree)
            finally:
                trees.put(tree)

        missed = []
        for number, (mutation, noticed) in enumerate(workers.map(judge, drawn), 1):
            if not noticed:
                missed.append(mutation)
                print(f"missed  {mutation}", flush=True)
            elif number % 10 == 0:
                print(f"{number} of {len(drawn)}", flush=True)
    print(
        f"{len(missed)} of {len(drawn)} changes in {len(files)} files were not noticed (seed {options.seed})."
    )
    return int(len(missed) > MAX_MISSED * len(drawn))


if __name__ == "__main__":
    sys.exit(main())
