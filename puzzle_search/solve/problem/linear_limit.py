"""Linear conditions on the choice of variants, as people write them in recipes.

    sum(attention == "no_op") <= 20
    mean(ffn in ("no_op", "linear")) <= 0.25
    10 <= sum(kv_heads == 1 and layer < 40) <= 20
    sum(ffn_width) / 2 >= 100000 + sum(kv_heads)

``sum`` adds over the blocks of the child, ``mean`` divides that by the parent's layers. Inside them
stand ``attention``, ``ffn`` (variant names), ``layer`` (the first that a block stands for),
``kv_heads``, ``ffn_width``, ``experts`` and ``parameters``. The text is parsed as a Python
expression and interpreted here; nothing in it is executed.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from puzzle_search.arch import Subblock, parse_variant
from puzzle_search.errors import InputError
from puzzle_search.solve.problem.items import Floats

Scalar = float | str | bool | tuple[object, ...]
# What the conditions may speak of, one mapping an item.
Facts = Mapping[str, Scalar]

_NUMBER: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,  # type: ignore[dict-item]
    ast.LtE: operator.le,  # type: ignore[dict-item]
    ast.Gt: operator.gt,  # type: ignore[dict-item]
    ast.GtE: operator.ge,  # type: ignore[dict-item]
    ast.In: lambda left, right: left in right,  # type: ignore[operator]
    ast.NotIn: lambda left, right: left not in right,  # type: ignore[operator]
}
_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")


_LONGEST_TEXT = 2000


@dataclass(frozen=True, kw_only=True)
class LinearLimit:
    """Summed ``amounts`` of the items taken are ``at_most``; ``turned`` where it said at least."""

    text: str
    amounts: Floats
    at_most: float
    turned: bool


@dataclass(frozen=True)
class _Linear:
    """A constant and an amount for each item."""

    constant: float
    amounts: Floats
    summed: bool = False


def parse_linear_limit(text: str, items: list[Facts], num_layers: int) -> list[LinearLimit]:
    """The limits that a condition means, one for each side of ``==`` and of a chain.

    Args:
        text: the condition.
        items: facts about each item.
        num_layers: layers of the parent, what ``mean`` divides by.

    Raises:
        InputError: the text is no such condition.
    """
    if len(text) > _LONGEST_TEXT:
        raise _wrong(text[:40] + "...", f"it is longer than {_LONGEST_TEXT} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.Compare):
            raise _Refused("there is no <=, >= or ==")
        reader = _Reader(items, num_layers)
        sides = [reader.linear(side) for side in (tree.left, *tree.comparators)]
        limits: list[LinearLimit] = []
        for left, sign, right in zip(sides, tree.ops, sides[1:], strict=False):
            if not isinstance(sign, ast.LtE | ast.GtE | ast.Eq):
                raise _Refused("only <=, >= and == compare sums")
            if not isinstance(sign, ast.GtE):
                limits.append(_at_most(text, left, right, turned=False))
            if not isinstance(sign, ast.LtE):
                limits.append(_at_most(text, right, left, turned=True))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise _wrong(text, "it cannot be read") from error
    except _Refused as error:
        raise _wrong(text, str(error)) from error
    return limits


class _Refused(Exception):
    """What a condition may not say."""


def _wrong(text: str, why: str) -> InputError:
    return InputError(
        f"limit {text!r}: {why}", remedy='write for example sum(attention == "no_op") <= 20'
    )


def _at_most(text: str, left: _Linear, right: _Linear, *, turned: bool) -> LinearLimit:
    amounts, at_most = left.amounts - right.amounts, right.constant - left.constant
    if not (left.summed or right.summed):
        raise _Refused("it speaks of no sum(...) or mean(...)")
    if not (np.isfinite(amounts).all() and math.isfinite(at_most)):
        raise _Refused("its numbers are not finite")
    return LinearLimit(text=text, amounts=amounts, at_most=at_most, turned=turned)


class _Reader:
    """Interprets the allowed part of Python's expressions."""

    def __init__(self, items: list[Facts], num_layers: int) -> None:
        self._items = items
        self._num_layers = num_layers

    def linear(self, node: ast.expr) -> _Linear:
        """A sum of numbers, sums and means."""
        match node:
            case ast.Constant(value=float() | int() as value) if type(value) is not bool:
                return _Linear(float(value), np.zeros(len(self._items)))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return self._scaled(self.linear(inner), -1.0)
            case ast.BinOp(op=ast.Add() | ast.Sub() as sign):
                left, right = self.linear(node.left), self.linear(node.right)
                if isinstance(sign, ast.Sub):
                    right = self._scaled(right, -1.0)
                summed = left.summed or right.summed
                constant = left.constant + right.constant
                return _Linear(constant, left.amounts + right.amounts, summed)
            case ast.BinOp(op=ast.Mult()):
                left, right = self.linear(node.left), self.linear(node.right)
                if left.summed and right.summed:
                    raise _Refused("sums may not be multiplied with each other")
                number, other = (right, left) if left.summed else (left, right)
                return self._scaled(other, number.constant)
            case ast.BinOp(op=ast.Div()):
                left, right = self.linear(node.left), self.linear(node.right)
                if right.summed or right.constant == 0:
                    raise _Refused("only a number other than zero may divide")
                return self._scaled(left, 1 / right.constant)
            case ast.Call(func=ast.Name(id="sum" | "mean" as name), args=[inner], keywords=[]):
                amounts = np.array([self._number(inner, facts) for facts in self._items])
                share = amounts / (self._num_layers if name == "mean" else 1)
                return _Linear(0.0, share, summed=True)
        raise _Refused(f"{ast.unparse(node)!r} is neither a number nor a sum(...) or mean(...)")

    @staticmethod
    def _scaled(value: _Linear, factor: float) -> _Linear:
        with np.errstate(over="ignore", invalid="ignore"):  # refused where it is used
            return _Linear(value.constant * factor, value.amounts * factor, value.summed)

    def _number(self, node: ast.expr, facts: Facts) -> float:
        value = self._scalar(node, facts)
        if isinstance(value, str | tuple):
            raise _Refused(f"{ast.unparse(node)!r} is not a number or a condition")
        return float(value)

    def _scalar(self, node: ast.expr, facts: Facts) -> Scalar:
        match node:
            case ast.Constant(value=str() | int() | float() as value):
                return value
            case ast.Name(id=name) if name in facts:
                return facts[name]
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return tuple(self._scalar(element, facts) for element in elements)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return not self._number(inner, facts)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self._number(inner, facts)
            case ast.BoolOp(op=connective, values=values):
                truths = [bool(self._number(value, facts)) for value in values]
                return all(truths) if isinstance(connective, ast.And) else any(truths)
            case ast.BinOp(op=sign) if type(sign) in _NUMBER:
                left, right = self._number(node.left, facts), self._number(node.right, facts)
                try:
                    return _NUMBER[type(sign)](left, right)
                except ZeroDivisionError as error:
                    raise _Refused("it divides by zero") from error
            case ast.Compare():
                sides = [self._scalar(side, facts) for side in (node.left, *node.comparators)]
                steps = list(zip(sides, node.ops, sides[1:], strict=False))
                for step in steps:
                    _check_comparable(node, *step)
                return all(_COMPARE[type(sign)](one, other) for one, sign, other in steps)
        raise _Refused(f"{ast.unparse(node)!r} is not known here")


def _check_comparable(node: ast.Compare, left: Scalar, sign: ast.cmpop, right: Scalar) -> None:
    """Refuse what Python would compare without meaning anything: kinds that differ, parts of text.

    Raises:
        _Refused: it is such a comparison, or it names no variant.
    """
    if isinstance(sign, ast.In | ast.NotIn):
        if not isinstance(right, tuple):
            raise _Refused(f"{ast.unparse(node)!r}: write == for one, in (..., ...) for several")
        others = right
    else:
        others = (right,)
    ordered = isinstance(sign, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    for other in others:
        text = isinstance(left, str)
        if (
            type(sign) not in _COMPARE
            or isinstance(left, tuple)
            or isinstance(other, tuple)
            or isinstance(other, str) is not text
            or (text and ordered)
        ):
            raise _Refused(f"{ast.unparse(node)!r} compares what differs in kind")
    named = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    for subblock in _SUBBLOCKS:
        if subblock in named:
            for name in (left, *others):
                _check_variant_name(subblock, str(name))


@functools.cache
def _check_variant_name(subblock: Subblock, name: str) -> None:
    try:
        parse_variant(subblock, name)
    except InputError as error:
        raise _Refused(error.message) from error
