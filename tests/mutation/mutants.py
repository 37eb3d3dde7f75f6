"""Small faults in a module: each swaps one operator, number, condition or call for another that is nearly right."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType

SWAPPED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
TWINS = [
    ("min", "max"),
    ("any", "all"),
    ("floor", "ceil"),
    ("cos", "sin"),
    ("minimum", "maximum"),
    ("clamp_min", "clamp_max"),
    ("add_", "sub_"),
    ("mul_", "div_"),
    ("zeros_like", "ones_like"),
    ("float64", "float32"),
]
RENAMED = {**dict(TWINS), **{other: one for one, other in TWINS if other != "float32"}}
_UNHARMED = """
abs abs_ absolute add_ clamp clamp_ clamp_max clamp_min clamp_min_ clone contiguous copy detach div_ double exp float
flip log log_ masked_fill_ mul_ neg reciprocal round sign sort sqrt sqrt_ square square_ sub_
"""
UNHARMED = frozenset(_UNHARMED.split())
"""Methods that may be left out: what they are called on has the shape of what they return."""


@dataclass(frozen=True)
class Mutant:
    """One fault: the same text as long as its statement stays as it is, wherever in the file that is."""

    name: str
    """``module.function: statement before => statement after``."""
    lines: range
    """Lines of the statement."""
    compiled: Callable[[], CodeType]
    """The module with the fault."""


def mutants_of(source: str, module: str, path: str) -> Iterator[Mutant]:
    """Every fault of a module, in the order of its statements."""
    tree, seen = ast.parse(source), Counter[str]()
    for where, home in _statements(tree, module):
        statement, before = home.node_here(), _shown(home.node_here())
        for at, new in list(_faults(home, statement)):
            old = at.exchange(new)
            after = _shown(home.node_here())
            at.exchange(old)
            name = f"{where}: {before} => {after}"
            seen[name] += 1
            stop = statement.body[0].lineno if _is_compound(statement) else statement.end_lineno + 1
            yield Mutant(
                name if seen[name] == 1 else f"{name} #{seen[name]}",
                range(statement.lineno, max(stop, statement.lineno + 1)),
                lambda at=at, new=new: _compiled(tree, at, new, path),
            )


@dataclass(frozen=True)
class _Place:
    """A field of a node, or an item of a field that is a list."""

    node: ast.AST
    field: str
    index: int | None = None

    def node_here(self) -> ast.AST:
        """The node that is here."""
        value = getattr(self.node, self.field)
        return value if self.index is None else value[self.index]

    def exchange(self, new: ast.AST) -> ast.AST:
        """Put a node here; the one that was here."""
        old = self.node_here()
        if self.index is None:
            setattr(self.node, self.field, new)
        else:
            getattr(self.node, self.field)[self.index] = new
        return old


def _compiled(tree: ast.Module, at: _Place, new: ast.AST, path: str) -> CodeType:
    old = at.exchange(new)
    try:
        return compile(ast.fix_missing_locations(tree), path, "exec")
    finally:
        at.exchange(old)


def _statements(parent: ast.AST, where: str) -> Iterator[tuple[str, _Place]]:
    """Places of statements with the name of the function or class that they are in, outer ones first."""
    for field in ("body", "handlers", "orelse", "finalbody"):
        for index, node in enumerate(getattr(parent, field, [])):
            is_named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            inner = f"{where}.{node.name}" if is_named else where
            if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom | ast.Assert):
                yield inner, _Place(parent, field, index)
            yield from _statements(node, inner)


def _is_compound(statement: ast.stmt) -> bool:
    return bool(getattr(statement, "body", None))


def _shown(statement: ast.stmt) -> str:
    """A statement as one line, without the block that it heads."""
    text = ast.unparse(statement)
    if not _is_compound(statement):
        return " ".join(text.split())
    if isinstance(statement, ast.FunctionDef):
        return f"def {statement.name}({ast.unparse(statement.args)})"
    return next(line for line in text.splitlines() if not line.startswith("@"))


SPARED = frozenset({"body", "orelse", "finalbody", "handlers", "decorator_list", "annotation", "returns", "bases"})
"""Fields of a statement that hold others, or types."""
GUARDS = frozenset({"strict", "force"})
"""Arguments against callers' mistakes, and for devices."""


def _faults(home: _Place, statement: ast.stmt) -> Iterator[tuple[_Place, ast.AST]]:
    """Faults of a statement itself, without the block that it heads."""
    is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Raise | ast.Break | ast.Continue):
        yield home, ast.copy_location(ast.Pass(), statement)
        return  # what is raised are words
    if is_call and "super(" not in ast.unparse(statement):
        yield home, ast.copy_location(ast.Pass(), statement)
    if isinstance(statement, ast.AugAssign):
        yield _Place(statement, "value"), _neutral(statement)
        yield _Place(statement, "op"), SWAPPED[type(statement.op)]()
    if isinstance(statement, ast.If | ast.While) and not _is_negated_by_another(statement.test):
        yield _Place(statement, "test"), ast.UnaryOp(ast.Not(), statement.test)
    for place, node in _expressions(statement):
        for new in _replacements(node):
            yield place, new


def _is_negated_by_another(test: ast.expr) -> bool:
    """Whether one of the other faults of a condition is its negation."""
    is_equality = isinstance(test, ast.Compare) and not isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return is_equality or isinstance(test, ast.UnaryOp)


def _neutral(statement: ast.AugAssign) -> ast.expr:
    """What leaves the target as it is."""
    if isinstance(statement.op, ast.BitAnd):
        return ast.Constant(True)
    return ast.Constant(1 if isinstance(statement.op, ast.Mult | ast.Div | ast.FloorDiv) else 0)


def _expressions(node: ast.AST) -> Iterator[tuple[_Place, ast.expr]]:
    """Expressions below a node with their places; no types, words, or blocks of statements."""
    for field, value in ast.iter_fields(node):
        if field in SPARED and isinstance(node, ast.stmt | ast.arg):
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, ast.JoinedStr) or not isinstance(item, ast.AST) or getattr(item, "arg", "") in GUARDS:
                continue
            if isinstance(item, ast.expr):
                yield _Place(node, field, index if isinstance(value, list) else None), item
            yield from _expressions(item)


def _replacements(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        yield from _compared(node)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPPED[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node.value)
    elif isinstance(node, ast.Name) and node.id in RENAMED:
        yield ast.Name(RENAMED[node.id], node.ctx)
    elif isinstance(node, ast.Attribute) and node.attr in RENAMED:
        yield ast.Attribute(node.value, RENAMED[node.attr], node.ctx)
    elif isinstance(node, ast.Call):
        yield from _called(node)
    elif isinstance(node, ast.ListComp | ast.GeneratorExp) and node.generators[0].ifs:
        first = node.generators[0]
        kept = ast.comprehension(first.target, first.iter, first.ifs[1:], first.is_async)
        yield type(node)(node.elt, [kept, *node.generators[1:]])


def _compared(node: ast.Compare) -> Iterator[ast.Compare]:
    for index, op in enumerate(node.ops):
        ops = [*node.ops[:index], SWAPPED[type(op)](), *node.ops[index + 1 :]]
        yield ast.Compare(node.left, ops, node.comparators)


def _other_constants(value: object) -> Iterator[ast.Constant]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
        yield ast.Constant(value - 1)


def _called(node: ast.Call) -> Iterator[ast.expr]:
    """The call left out, or a bound of a clamp taken for the other."""
    if isinstance(node.func, ast.Attribute) and node.func.attr in UNHARMED and not _is_library(node.func.value):
        yield node.func.value
    for index, keyword in enumerate(node.keywords):
        if keyword.arg in ("min", "max"):
            other = ast.keyword("max" if keyword.arg == "min" else "min", keyword.value)
            yield ast.Call(node.func, node.args, [*node.keywords[:index], other, *node.keywords[index + 1 :]])


def _is_library(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "np", "math")
