"""Mutants: small faults, each one change of one line's meaning, drawn by a seed.

Only what a test can notice is changed: no annotations, no docstrings, no log lines, no texts of errors.
"""

import ast
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Wiring and core. Reading of files has its own tests of every format and is fuzzed (fuzz.py).
SCOPE = (
    "api", "cli", "training", "config", "data/grid", "data/cases", "inference", "planning", "evaluation", "networks",
    "interop", "transforms", "files", "modelfile", "system.py", "documents.py", "precision.py", "device.py",
)  # fmt: skip
MOVED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
FLIPPED = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
# Calls that mean the same with their two arguments in the other order.
SYMMETRIC = {"max", "min", "maximum", "minimum", "addcmul_", "result_type", "equal", "array_equal", "multiply", "gcd"}
# Statements that only tell people something.
TOLD = ("logger.debug", "logger.info", "progress", "warnings.")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Args:
        kind: of change.
        file: of the package, relative to the checkout.
        line: of the change, from 1.
        old, new: the source text that is replaced, and its replacement.
        start: offset of `old` in the file, in characters.
        names: what a line that runs at import defines: constants, fields; empty for a line within a function.
    """

    kind: str
    file: str
    line: int
    old: str
    new: str
    start: int
    names: tuple[str, ...] = ()

    def source(self) -> str:
        """The text of the file with the change."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        assert text[self.start : self.start + len(self.old)] == self.old, f"{self.file} has changed"
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


@dataclass(frozen=True)
class Site:
    """A node, with what surrounds it."""

    node: ast.AST
    parents: tuple[ast.AST, ...]

    @property
    def function(self) -> ast.FunctionDef | None:
        """The innermost function around it."""
        return next((one for one in reversed(self.parents) if isinstance(one, ast.FunctionDef)), None)


Change = Callable[[Site], Iterator[tuple[ast.AST, ast.AST]]]


def draw(count: int, seed: int, without: tuple[str, ...] = ()) -> list[Mutant]:
    """`count` mutants, as many of each kind as of any other, drawn from all files in SCOPE but `without`."""
    by_kind: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    for file in files():
        if file not in without:
            for mutant in mutants_of(file):
                by_kind[mutant.kind].append(mutant)
    rng = random.Random(seed)
    drawn: list[Mutant] = []
    for kind in by_kind:
        rng.shuffle(by_kind[kind])
    kinds = list(by_kind)
    while len(drawn) < count and any(by_kind.values()):
        for kind in kinds:
            if by_kind[kind] and len(drawn) < count:
                drawn.append(by_kind[kind].pop())
    return drawn


def files() -> list[str]:
    """The files that mutants are drawn from."""
    package = ROOT / "volseg"
    found = [path for one in SCOPE for path in ([package / one] if one.endswith(".py") else (package / one).rglob("*"))]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.suffix == ".py")


def mutants_of(file: str) -> Iterator[Mutant]:
    """All mutants of a file, each kind in the order of its lines."""
    text = (ROOT / file).read_text(encoding="utf-8")
    starts = line_starts(text)
    for site in sites(ast.parse(text)):
        for kind, change in KINDS.items():
            for old, new in change(site):
                start, end = (
                    starts[line - 1] + len(text.split("\n")[line - 1].encode()[:column].decode())
                    for line, column in ((old.lineno, old.col_offset), (old.end_lineno, old.end_col_offset))
                )
                after = ast.unparse(new)
                after = f"({after})" if isinstance(new, ast.expr) and not isinstance(new, ast.Constant) else after
                if after.strip("()") != ast.unparse(old).strip("()"):
                    yield Mutant(kind, file, old.lineno, text[start:end], after, start, names_of(site))


def line_starts(text: str) -> list[int]:
    """The offset of each line."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def sites(tree: ast.Module) -> Iterator[Site]:
    """All nodes that may be changed."""

    def visit(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[Site]:
        # Positions within f-strings are wrong in Python 3.11; what is raised is a text.
        if isinstance(node, ast.JoinedStr | ast.Raise) or is_told(node):
            return
        yield Site(node, parents)
        skipped = [getattr(node, name, None) for name in ("annotation", "returns", "decorator_list")]
        for child in ast.iter_child_nodes(node):
            if not any(child is one or (isinstance(one, list) and child in one) for one in skipped):
                yield from visit(child, (*parents, node))

    yield from visit(tree, ())


def is_told(node: ast.AST) -> bool:
    """Whether a statement only tells people something, or only tells the type checker."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    return isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant) or ast.unparse(node.value).startswith(TOLD)
    )


def names_of(site: Site) -> tuple[str, ...]:
    """What a line that runs at import defines."""
    if isinstance(site.node, ast.arguments):
        function = next(one for one in reversed(site.parents) if isinstance(one, ast.FunctionDef))
        return (function.name,)
    if site.function and not _is_default(site):
        return ()
    if site.function:
        return (site.function.name,)
    for one in (*reversed(site.parents), site.node):
        if isinstance(one, ast.Assign):
            return tuple(ast.unparse(target) for target in one.targets)
        if isinstance(one, ast.AnnAssign):
            return (ast.unparse(one.target),)
    return ()


def _is_default(site: Site) -> bool:
    return any(isinstance(one, ast.arguments) for one in site.parents)


def dropped_keyword(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """f(a, b=c) -> f(a)."""
    node = site.node
    if isinstance(node, ast.Call) and not _describes(site):
        for index, keyword in enumerate(node.keywords):
            if keyword.arg and keyword.arg != "description":
                new = copy.deepcopy(node)
                del new.keywords[index]
                yield node, new


def _describes(site: Site) -> bool:
    """Whether it is in a field of a configuration or an option of the command line, whose texts are no behaviour."""
    calls = [ast.unparse(one.func) for one in (*site.parents, site.node) if isinstance(one, ast.Call)]
    return any(call in ("Field", "typer.Option", "typer.Argument") for call in calls)


def dropped_statement(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """A call, an assignment to an attribute or item, or an augmented assignment -> pass."""
    node = site.node
    stored = isinstance(node, ast.Assign) and any(
        isinstance(one, ast.Attribute | ast.Subscript) for one in node.targets
    )
    if site.function and (stored or isinstance(node, ast.AugAssign | ast.Expr)) and not _yields(node):
        yield node, ast.Pass()


def _yields(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield | ast.YieldFrom | ast.Constant)


def constant(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """A number or truth value elsewhere than in a default."""
    if not _is_default(site) and not _is_field(site) and isinstance(site.node, ast.Constant):
        yield from _changed(site.node)


def _is_field(site: Site) -> bool:
    """Whether it is the value of a field in the body of a class."""
    inside = site.parents[-1] if site.parents else None
    if isinstance(inside, ast.Call) and len(site.parents) > 1:
        inside = site.parents[-2]
    return isinstance(inside, ast.AnnAssign) and site.function is None


def _changed(node: ast.Constant) -> Iterator[tuple[ast.AST, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield node, ast.Constant(not value)
    elif isinstance(value, int):
        yield node, ast.Constant(value + 1)
    elif isinstance(value, float):
        yield node, ast.Constant(value * 2 if value else 1.0)


def default(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """The default of an argument or of a field."""
    node = site.node
    if not isinstance(node, ast.Constant):
        return
    direct = isinstance(site.parents[-1], ast.arguments)
    if isinstance(site.parents[-1], ast.AnnAssign | ast.Call) and _is_field(site):
        call = site.parents[-1]
        direct = isinstance(call, ast.AnnAssign) or (call.args[:1] == [node] and ast.unparse(call.func) == "Field")
    if direct:
        if isinstance(node.value, str):
            yield node, ast.Constant(f"{node.value}x")
        yield from _changed(node)


def comparison(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """a < b -> a <= b, and a >= b."""
    node = site.node
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for table in (MOVED, FLIPPED):
            if type(node.ops[0]) in table:
                yield node, ast.Compare(node.left, [table[type(node.ops[0])]()], node.comparators)


def condition(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """if a -> if not a."""
    node = site.node
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
    tests += node.ifs if isinstance(node, ast.comprehension) else []
    for test in tests:
        if not isinstance(test, ast.Constant):
            yield test, ast.UnaryOp(ast.Not(), test)


def swapped(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """a - b -> b - a, a if c else b -> b if c else a, a and b -> a or b, f(a, b) -> f(b, a)."""
    node = site.node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.MatMult | ast.FloorDiv | ast.BitOr):
        yield node, ast.BinOp(node.right, node.op, node.left)
    if isinstance(node, ast.IfExp):
        yield node, ast.IfExp(node.test, node.orelse, node.body)
    if isinstance(node, ast.BoolOp):
        yield node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    if (
        isinstance(node, ast.Call)
        and len(node.args) == 2
        and ast.unparse(node.func).rpartition(".")[2] not in SYMMETRIC
        and not any(isinstance(one, ast.Starred) for one in node.args)
    ):
        yield node, ast.Call(node.func, node.args[::-1], node.keywords)


def operator(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """a * b -> a / b."""
    node = site.node
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER and not _is_text(node):
        yield node, ast.BinOp(node.left, OTHER[type(node.op)](), node.right)


def _is_text(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.JoinedStr) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
        for one in ast.walk(node)
    )


def returned(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """return a -> another value of its type."""
    node, function = site.node, site.function
    if not (isinstance(node, ast.Return) and node.value and function and function.returns):
        return
    text, kind = ast.unparse(node.value), ast.unparse(function.returns)
    if isinstance(node.value, ast.Constant) and node.value.value is None:
        return
    other = {"bool": f"not ({text})", "int": f"({text}) + 1", "float": f"({text}) + 1.0", "str": f"({text}) + 'x'"}
    if kind.startswith(("list", "dict", "tuple")):
        other[kind] = f"type({text})()"
    yield node, ast.parse(f"return {other.get(kind, 'None')}").body[0]


def term(site: Site) -> Iterator[tuple[ast.AST, ast.AST]]:
    """a + b -> a, and b; likewise one operand of and, or, |."""
    node = site.node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.BitOr) and not _is_text(node):
        yield node, node.left
        yield node, node.right
    if isinstance(node, ast.BoolOp) and len(node.values) > 1:
        for index in range(len(node.values)):
            rest = [value for at, value in enumerate(node.values) if at != index]
            yield node, rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


KINDS: dict[str, Change] = {
    "dropped keyword argument": dropped_keyword,
    "dropped statement": dropped_statement,
    "constant changed": constant,
    "default changed": default,
    "comparison changed": comparison,
    "condition negated": condition,
    "operands swapped": swapped,
    "operator changed": operator,
    "returned value replaced": returned,
    "term left out": term,
}
