"""Formulas that are read, run on tensors, differentiated, simplified and rounded.

A formula is a tree and a list of its constants, so that constants can be learned while the tree
stays. Python's own parser reads it; nothing of it is ever run as Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.core.errors import UsageError

__all__ = ["FUNCTIONS", "Expression"]

FUNCTIONS = ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt")
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Expression:
    """A formula of some variables.

    Args:
        text: as it was written, for example "y / (1.0 + y)".
        names: of the variables, in the order of their columns.
        values: of the constants, in the order of the text; those of the text if None.

    Raises:
        UsageError: something in the text is no arithmetic, or a name is unknown.

    Example:
        >>> f = Expression("2.0*x + y/(1.01 + y)", ("x", "y"))
        >>> f(torch.tensor([[1.0, 0.0]])).tolist(), f.constants, f.nodes
        ([2.0], (2.0, 1.01), 9)
        >>> str(f.rounded(0.1))
        '(2*x*y + 2*x + y)/(y + 1)'
    """

    text: str
    names: tuple[str, ...]
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check(self.tree)
        if self.values is not None and len(self.values) != len(self._literals):
            raise UsageError(
                f"{self.text!r} has {len(self._literals)} constants, and {len(self.values)} values "
                "were given."
            )

    @cached_property
    def tree(self) -> ast.expr:
        """What Python's parser makes of it."""
        try:
            return ast.parse(self.text.replace("^", "**"), mode="eval").body
        except SyntaxError as error:
            raise UsageError(f"{self.text!r} is no formula: {error.msg}.") from error

    @cached_property
    def _literals(self) -> list[ast.Constant]:
        """Numbers that may be learned; exponents are part of the tree."""
        fixed = {id(n.right) for n in ast.walk(self.tree)
                 if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow)}  # fmt: skip
        found = [n for n in ast.walk(self.tree) if isinstance(n, ast.Constant)]
        found = [n for n in found if id(n) not in fixed]
        return sorted(found, key=lambda n: (n.lineno, n.col_offset))

    @property
    def constants(self) -> tuple[float, ...]:
        """The values of the constants, in the order of the text."""
        if self.values is not None:
            return self.values
        return tuple(float(n.value) for n in self._literals)  # type: ignore[arg-type]

    @property
    def nodes(self) -> int:
        """How many operators, functions, variables and constants it has: its complexity."""
        counted = ast.BinOp, ast.Call, ast.Constant
        names = [n for n in ast.walk(self.tree) if isinstance(n, ast.Name) and n.id in self.names]
        return len(names) + sum(isinstance(n, counted) for n in ast.walk(self.tree))

    def __call__(self, x: Tensor, constants: Tensor | None = None) -> Tensor:
        """Return its values, (batch,).

        Args:
            x: (batch, variables).
            constants: (n,) in the place of its own, through which gradients go; or None.
        """
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise UsageError(
                f"a formula of {', '.join(self.names)} reads (batch, {len(self.names)}), and was "
                f"given {tuple(x.shape)}."
            )
        known = list(self.constants) if constants is None else list(constants.unbind())
        variables = dict(zip(self.names, x.unbind(1), strict=True))
        made = self._built(variables, known, _TORCH)
        return torch.as_tensor(made, dtype=x.dtype, device=x.device).expand(len(x))

    def with_constants(self, values: Sequence[float]) -> Expression:
        """Return the same tree with other constants."""
        return replace(self, values=tuple(float(v) for v in values))

    def simplified(self) -> Expression:
        """Return the formula as one fraction whose denominator has the constant 1, where it can be.

        Constants that cancel are gone: (1.9 y)/(1.9 y + 1.9) becomes y/(y + 1).
        """
        return self._from_sympy(_canonical(self._sympy()))

    def rounded(self, to: float = 0.01) -> Expression:
        """Return it simplified, with constants that are multiples of `to`."""
        import sympy

        def near(number: Any) -> Any:
            return sympy.Rational(round(float(number) / to)) * sympy.Rational(str(to))

        formula = _canonical(self._sympy())
        powers = {p.exp for p in formula.atoms(sympy.Pow)}
        numbers = {n for n in formula.atoms(sympy.Number) if n not in powers or not n.is_integer}
        return self._from_sympy(_canonical(formula.xreplace({n: near(n) for n in numbers})))

    def same_as(self, other: Expression | str) -> bool:
        """Whether both are the same function, by algebra."""
        import sympy

        if isinstance(other, str):
            other = Expression(other, self.names)
        return sympy.simplify(self._sympy() - other._sympy()) == 0

    def __str__(self) -> str:
        if self.values is None:
            return self.text
        return str(self._from_sympy(self._sympy()).text)

    # -- one walk, two algebras

    def _sympy(self) -> Any:
        import sympy

        variables = {name: sympy.Symbol(name, real=True) for name in self.names}
        known = [sympy.Rational(repr(c)) for c in self.constants]
        functions = {name: getattr(sympy, name) for name in FUNCTIONS}
        return sympy.sympify(self._built(variables, known, functions))

    def _from_sympy(self, formula: Any) -> Expression:
        import sympy

        exact = {n: sympy.Float(n, 12) for n in formula.atoms(sympy.Rational) if not n.is_integer}
        text = sympy.sstr(formula.xreplace(exact), full_prec=False)
        return Expression(text, self.names)

    def _built(self, variables: Mapping[str, Any], constants: Sequence[Any],
               functions: Mapping[str, Callable[[Any], Any]]) -> Any:  # fmt: skip
        numbers = {id(n): c for n, c in zip(self._literals, constants, strict=True)}

        def walk(node: ast.expr) -> Any:
            if isinstance(node, ast.BinOp):
                return _BINARY[type(node.op)](walk(node.left), walk(node.right))
            if isinstance(node, ast.UnaryOp):
                made = walk(node.operand)
                return -made if isinstance(node.op, ast.USub) else made
            if isinstance(node, ast.Call):
                return functions[node.func.id](walk(node.args[0]))  # type: ignore[attr-defined]
            if isinstance(node, ast.Name):
                return variables[node.id]
            assert isinstance(node, ast.Constant)
            return numbers.get(id(node), node.value)

        return walk(self.tree)

    def _check(self, node: ast.expr) -> None:
        """Refuse what is no arithmetic."""
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            self._check(node.operand)
        elif isinstance(node, ast.Call) and _name(node.func) in FUNCTIONS and len(node.args) == 1:
            self._check(node.args[0])
        elif not (_name(node) in self.names or _is_number(node)):
            raise UsageError(
                f"{ast.unparse(node)!r} in {self.text!r} is none of +, −, *, /, **, numbers, "
                f"{', '.join(FUNCTIONS)} and the variables {', '.join(self.names)}."
            )


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _applied(name: str) -> Callable[[Any], Any]:
    function = getattr(torch, name)
    return lambda x: function(x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64))


_TORCH = {name: _applied(name) for name in FUNCTIONS}


def _canonical(formula: Any) -> Any:
    """Return numerator/denominator without common factors, the denominator's constant being 1.

    Where it has none, its largest coefficient is 1.
    """
    import sympy

    top, bottom = sympy.fraction(sympy.cancel(sympy.together(formula)))
    top, bottom = sympy.expand(top), sympy.expand(bottom)
    scale = bottom.as_coeff_Add()[0]
    if scale == 0:
        terms = sympy.Add.make_args(bottom)
        scale = max((term.as_coeff_Mul()[0] for term in terms), key=abs)
    return sympy.expand(top / scale) / sympy.expand(bottom / scale)
