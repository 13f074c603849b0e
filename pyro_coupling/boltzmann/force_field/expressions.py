"""Formulas of OpenMM's custom forces, compared as trees with formulas whose numbers are left open."""

from __future__ import annotations

__all__ = ["match"]

import ast
import re
from collections.abc import Mapping

_NAME = re.compile(r"(?<![\w.])\{?[A-Za-z_]\w*\}?")


def match(template: str, expression: str, constants: Mapping[str, float] | None = None) -> dict[str, float] | None:
    """The numbers with which a template becomes an expression, or None if there are none.

    Both may have definitions, ``main; name = formula; ...``, which are put in for their names first; spaces,
    the order of definitions and the choice of auxiliary names thus make no difference.

    Args:
        template: A formula with ``{name}`` where a number is open.
        expression: The formula as OpenMM states it.
        constants: Values of further names of the expression.

    Example:
        >>> match("{a}*x/y; y = x+{b}", "2*x/z; z=x + offset; offset=0.5")
        {'a': 2.0, 'b': 0.5}
        >>> match("{a}*x", "x*2") is None
        True
    """
    known: dict[str, ast.expr] = {name: ast.Constant(number) for name, number in (constants or {}).items()}
    found: dict[str, float] = {}
    try:
        agree = _agree(_parse(template, {}), _parse(expression, known), found)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return found if agree else None


def _parse(expression: str, known: dict[str, ast.expr]) -> ast.expr:
    """The tree of a formula. A definition may use those to its right, as in OpenMM."""
    main, *definitions = expression.split(";")
    known = dict(known)
    for definition in reversed(definitions):
        name, equals, formula = definition.partition("=")
        if equals:
            known[name.strip()] = _tree(formula, known)
    return _tree(main, known)


def _tree(formula: str, known: Mapping[str, ast.expr]) -> ast.expr:
    # Python reads the formula, under names with a sign ahead that keeps `or` and the like from being words of its own
    source = _NAME.sub(_quote, formula).replace("^", "**")
    return _Substitution(known).visit(ast.parse(source.strip(), mode="eval")).body


def _quote(name: re.Match) -> str:
    """``_x`` for a name, ``__x`` for an open number."""
    text = name.group()
    return f"__{text[1:-1]}" if text.startswith("{") else f"_{text}"


class _Substitution(ast.NodeTransformer):
    def __init__(self, known: Mapping[str, ast.expr]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.known.get(node.id[1:], node)


def _agree(wanted: object, found: object, numbers: dict[str, float]) -> bool:
    """Whether two trees are the same but for open numbers, which are noted."""
    if isinstance(wanted, ast.Name) and wanted.id.startswith("__"):
        number = ast.literal_eval(found) if isinstance(found, ast.AST) else None
        return isinstance(number, (int, float)) and numbers.setdefault(wanted.id[2:], float(number)) == number
    if isinstance(wanted, ast.AST) and type(wanted) is type(found):
        fields = ((getattr(wanted, name), getattr(found, name)) for name in wanted._fields)
        return all(_agree(a, b, numbers) for a, b in fields)
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return all(_agree(a, b, numbers) for a, b in zip(wanted, found, strict=True))
    return wanted == found
