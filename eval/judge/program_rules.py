"""Which Python programs may run at all: an allow-list over the syntax tree.

Nothing is forbidden here by name alone: a node type, an attribute or a builtin that is not listed is refused,
so that a hole must be added before it can be used. What is left cannot reach a file, a process, a frame or a
type's internals: there is no import but `sys`, no attribute outside `ALLOWED_ATTRIBUTES`, no dunder anywhere,
and no `str.format`, whose templates read attributes ("{0.__class__}").
"""

from __future__ import annotations

import ast
import builtins

MAX_SOURCE_CHARACTERS = 20_000

_BUILTINS = """
    abs all any bin bool chr dict divmod enumerate filter float frozenset hex input int isinstance iter len list map
    max min next oct ord pow print range repr reversed round set slice sorted str sum tuple zip
    Exception ArithmeticError AssertionError EOFError IndexError KeyError LookupError OverflowError
    StopIteration TypeError ValueError ZeroDivisionError True False None
"""
ALLOWED_BUILTINS = frozenset(_BUILTINS.split())

_ATTRIBUTES = """
    append extend insert pop remove reverse sort copy clear index count
    split rsplit strip lstrip rstrip join replace upper lower find rfind startswith endswith splitlines zfill
    isdigit isalpha isalnum isspace isupper islower swapcase title ljust rjust
    get items keys values setdefault update fromkeys add discard union intersection difference
    stdin stdout exit read readline readlines write flush
"""
ALLOWED_ATTRIBUTES = frozenset(_ATTRIBUTES.split())

ALLOWED_FROM_SYS = frozenset({"stdin", "stdout", "exit"})

ALLOWED_NODES: tuple[type[ast.AST], ...] = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr,
    ast.If, ast.For, ast.While, ast.Break, ast.Continue, ast.Pass, ast.Return, ast.Assert, ast.Raise,
    ast.Try, ast.ExceptHandler, ast.Import, ast.ImportFrom, ast.alias,
    ast.FunctionDef, ast.Lambda, ast.arguments, ast.arg, ast.Yield,
    ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.IfExp,
    ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred,
    ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    ast.comprehension, ast.JoinedStr, ast.FormattedValue,
    ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context,
)  # fmt: skip

_REFUSED_BUILTINS = frozenset(dir(builtins)) - ALLOWED_BUILTINS


class CompileRefusal(Exception):
    """The text is not a Python program."""


def disallowed(source: str) -> str | None:
    """Why `source` may not run, or None when it may.

    Raises:
        CompileRefusal: the text does not parse; its message is the parser's.
    """
    if len(source) > MAX_SOURCE_CHARACTERS:
        return f"a program of {len(source)} characters"
    try:
        tree = ast.parse(source)
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # ValueError: null bytes. RecursionError and MemoryError: nesting made to exhaust the parser.
        raise CompileRefusal(f"{type(error).__name__}: {error}") from error
    for node in nodes:
        reason = _refusal(node)
        if reason is not None:
            return reason
    return None


def _refusal(node: ast.AST) -> str | None:
    if not isinstance(node, ALLOWED_NODES):
        return type(node).__name__
    for name in _identifiers(node):
        if "__" in name:
            return f"the name {name}"
    if isinstance(node, ast.Name) and node.id in _REFUSED_BUILTINS:
        return f"the name {node.id}"
    if isinstance(node, ast.Attribute):
        if node.attr not in ALLOWED_ATTRIBUTES:
            return f"the attribute {node.attr}"
        if not isinstance(node.ctx, ast.Load):
            return "assignment to an attribute"
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return "a decorator"
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "except without a type"  # it would swallow the runner's own stop signals
    if isinstance(node, ast.Import):
        return next((f"import {alias.name}" for alias in node.names if alias.name != "sys"), None)
    if isinstance(node, ast.ImportFrom):
        allowed = node.module == "sys" and not node.level
        foreign = [alias.name for alias in node.names if not allowed or alias.name not in ALLOWED_FROM_SYS]
        return f"from {node.module} import {foreign[0]}" if foreign else None
    return None


def _identifiers(node: ast.AST) -> list[str]:
    """Every identifier a node carries as a plain string (names are not nodes everywhere in the tree)."""
    fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname", "module"))
    return [value for value in fields if isinstance(value, str)]
