"""Counts the lines of the package by room, and names what is too long: lines.py [CHECKOUT]."""

import argparse
import ast
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_MODULE, LONGEST_FUNCTION = 450, 60
SHARES = {
    "report and tracking": {"report", "tracking"},
    "networks, methods, irn and masks": {"networks", "methods", "irn", "masks"},
}
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Lines:
    """Line counts: what is no code, docstring or comment of its own line is blank."""

    total: int = 0
    code: int = 0
    docstrings: int = 0
    comments: int = 0

    def __add__(self, other: "Lines") -> "Lines":
        return Lines(*(a + b for a, b in zip(self.cells(), other.cells(), strict=True)))

    def cells(self) -> tuple[int, ...]:
        return self.total, self.code, self.docstrings, self.comments

    @property
    def blank(self) -> int:
        return self.total - self.code - self.docstrings - self.comments


def count(file: Path) -> Lines:
    """Count a module's lines. A string that stands alone, such as below a field, is a docstring."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    code, comments = set(), set()
    with file.open("rb") as content:
        for token in tokenize.tokenize(content.readline):
            if token.type not in LAYOUT:
                (comments if token.type == tokenize.COMMENT else code).update(range(token.start[0], token.end[0] + 1))
    return Lines(
        len(file.read_bytes().splitlines()), len(code - docstrings), len(docstrings), len(comments - code - docstrings)
    )


def modules(package: Path) -> dict[str, Path]:
    """Return the package's modules, by their path within it."""
    return {file.relative_to(package).as_posix(): file for file in sorted(package.rglob("*.py"))}


def rooms(package: Path) -> dict[str, Lines]:
    """Count lines by room: a folder, or a module beside the folders."""
    counts: dict[str, Lines] = {}
    for name, file in modules(package).items():
        room = name.partition("/")[0].removesuffix(".py")
        counts[room] = counts.get(room, Lines()) + count(file)
    return counts


def long_modules(package: Path) -> dict[str, int]:
    """Return the modules with too many lines, and how many they have."""
    sizes = {name: len(file.read_bytes().splitlines()) for name, file in modules(package).items()}
    return {name: size for name, size in sizes.items() if size > LONGEST_MODULE}


def _functions(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        inner = f"{name}.{child.name}" if named else name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner, child.end_lineno - child.lineno + 1
        yield from _functions(child, inner)


def long_functions(package: Path) -> dict[str, int]:
    """Return the functions with too many lines, docstring included, and how many they have."""
    return {
        name: size
        for module, file in modules(package).items()
        for name, size in _functions(ast.parse(file.read_bytes()), module)
        if size > LONGEST_FUNCTION
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    package = parser.parse_args().checkout / "ribray"
    counts = rooms(package)
    everything = sum(counts.values(), Lines())
    print(f"{'':20}{'total':>8}{'code':>8}{'docstr.':>8}{'comment':>8}{'blank':>8}{'share':>8}")
    for room, lines in [*counts.items(), ("all", everything)]:
        numbers = "".join(f"{number:8,}" for number in (*lines.cells(), lines.blank))
        print(f"{room:20}{numbers}{lines.total / everything.total:8.1%}")
    print()
    for title, members in SHARES.items():
        part = sum((lines for room, lines in counts.items() if room in members), Lines())
        print(
            f"{title}: {part.total / everything.total:.1%} of all lines, {part.code / everything.code:.1%} of the code"
        )
    for title, found in (
        (f"modules over {LONGEST_MODULE} lines", long_modules(package)),
        (f"functions over {LONGEST_FUNCTION} lines", long_functions(package)),
    ):
        print(f"\n{title}: {len(found)}")
        for name, size in sorted(found.items(), key=lambda item: -item[1]):
            print(f"{size:8,}  {name}")


if __name__ == "__main__":
    main()
