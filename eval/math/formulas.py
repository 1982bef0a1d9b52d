"""Formulas in TeX or plain text, read and computed: exactly where they are rational, else as complex numbers.

Nothing is executed; lengths, depths and sizes of numbers are bounded.
"""

import cmath
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

MOST_CHARACTERS, MOST_DEPTH = 1000, 40
"""Of a formula; longer and deeper ones are none."""
_MOST_BITS = 4096
"""Of a numerator or denominator; larger numbers are none."""

Number = Fraction | complex
Node = Callable[[Mapping[str, Number]], Number]
"""The value of a formula for those of its variables. Raises ArithmeticError or ValueError for none."""

_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\?[a-zA-Z]+|\*\*|.)", re.DOTALL)
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x), "cot": lambda x: 1 / cmath.tan(x), "abs": abs, "log": cmath.log10,
}  # fmt: skip
_CONSTANTS: dict[str, Number] = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_LETTERS = {"alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma", "rho"}


class NoFormula(ValueError):
    """A text that is no formula, or one that is not read."""


class Formula:
    """A formula: its `variables`, and its value for some of theirs."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_CHARACTERS:
            raise NoFormula(text[:20])
        self._tokens = [token for token in _TOKEN.findall(text) if not token.isspace()]
        self._place, self._depth, self.variables = 0, 0, set[str]()
        self._node = self._sum()
        if self._place < len(self._tokens):
            raise NoFormula(text)

    def value(self, variables: Mapping[str, Number]) -> Number | None:
        """The value, or None where it has none that is finite."""
        try:
            found = self._node(variables)
            return found if isinstance(found, Fraction) or cmath.isfinite(found) else None
        except (ArithmeticError, ValueError):
            return None

    @property
    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, *accepted: str) -> str:
        """The next token, if it is one of these or none is named; else nothing."""
        token = self._next
        if token and (not accepted or token in accepted):
            self._place += 1
            return token
        return ""

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise NoFormula("it is too deep")
        found = self._product()
        while sign := self._take("+", "-"):
            found = _binary(sign, found, self._product())
        self._depth -= 1
        return found

    def _product(self) -> Node:
        sign = 1
        while mark := self._take("+", "-"):
            sign = -sign if mark == "-" else sign
        found = self._power()
        while True:
            if mark := self._take("*", "/", "\\cdot", "\\times", "\\div"):
                operator = "/" if mark in ("/", "\\div") else "*"
                found = _binary(operator, found, self._power(signed=True))
            elif self._starts_factor():
                found = _binary("*", found, self._power())
            else:
                return found if sign > 0 else _binary("*", _constant(Fraction(-1)), found)

    def _starts_factor(self) -> bool:
        token = self._next
        # Two numbers side by side are no product.
        return bool(token) and (token[0].isalpha() or token[0] == "\\" or token in "({")

    def _power(self, signed: bool = False) -> Node:
        if signed and self._take("-"):
            return _binary("*", _constant(Fraction(-1)), self._power(signed=True))
        found = self._atom()
        if self._take("^", "**"):
            return _binary("^", found, self._exponent())
        return found

    def _exponent(self) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise NoFormula("it is too deep")
        if sign := self._take("+", "-"):
            found = _binary("*", _constant(Fraction(1 if sign == "+" else -1)), self._exponent())
            self._depth -= 1
            return found
        found = self._power()
        self._depth -= 1
        return found

    def _group(self) -> Node:
        """A group in braces, or a digit or letter, as TeX's commands take them."""
        if self._next != "{":
            token = self._next
            if token.isdigit() and len(token) > 1:  # \frac12
                self._tokens[self._place : self._place + 1] = [token[0], token[1:]]
            return self._atom()
        return self._atom()

    def _atom(self) -> Node:
        token = self._take()
        if token in ("(", "{"):
            found = self._sum()
            if not self._take({"(": ")", "{": "}"}[token]):
                raise NoFormula("a bracket is open")
            return found
        if token == "|":
            found = self._sum()
            if not self._take("|"):
                raise NoFormula("a bar is open")
            return _applied(abs, found)
        if token[:1].isdigit() or token[:1] == ".":
            return _constant(Fraction(token.rstrip(".") or "0"))
        return self._named(token.removeprefix("\\"), token)

    def _named(self, name: str, token: str) -> Node:
        if name in ("frac", "sqrt") and token.startswith("\\"):
            return self._fraction() if name == "frac" else self._root()
        if name == "sqrt":
            return _binary("^", self._atom(), _constant(Fraction(1, 2)))
        if name in _FUNCTIONS:
            return _applied(_FUNCTIONS[name], self._power())
        if name in _CONSTANTS:
            return _constant(_CONSTANTS[name])
        if (len(name) == 1 and name.isalpha()) or (name in _LETTERS and token.startswith("\\")):
            self.variables.add(name)
            return lambda variables: variables[name]
        if name.isalpha() and len(name) <= 3 and not token.startswith("\\"):  # a product of letters
            self._tokens[self._place - 1 : self._place] = list(name)
            self._place -= 1
            return self._atom()
        raise NoFormula(token)

    def _fraction(self) -> Node:
        top = self._group()
        return _binary("/", top, self._group())

    def _root(self) -> Node:
        degree = _constant(Fraction(2))
        if self._take("["):
            degree = self._sum()
            if not self._take("]"):
                raise NoFormula("a bracket is open")
        return _binary("^", self._group(), _binary("/", _constant(Fraction(1)), degree))


def _constant(value: Number) -> Node:
    return lambda variables: value


def _applied(function: Callable[[complex], complex], argument: Node) -> Node:
    def value(variables: Mapping[str, Number]) -> Number:
        found = argument(variables)
        return (
            abs(found)
            if function is abs and isinstance(found, Fraction)
            else complex(function(_complex(found)))
        )

    return value


def _binary(operator: str, left: Node, right: Node) -> Node:
    def value(variables: Mapping[str, Number]) -> Number:
        a, b = left(variables), right(variables)
        if operator == "^":
            return _raised(a, b)
        if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
            a, b = _complex(a), _complex(b)
        match operator:
            case "+":
                return _bounded(a + b)  # type: ignore[operator]
            case "-":
                return _bounded(a - b)  # type: ignore[operator]
            case "*":
                return _bounded(a * b)  # type: ignore[operator]
        return _bounded(a / b)  # type: ignore[operator]

    return value


def _raised(a: Number, b: Number) -> Number:
    """a to the power of b: exact for whole powers, and for roots that are rational."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        bits = max(a.numerator.bit_length(), a.denominator.bit_length())
        if b.denominator == 1 and abs(b.numerator) * bits <= _MOST_BITS:
            return a**b.numerator
        if b == Fraction(1, 2) and a >= 0:
            top, bottom = math.isqrt(a.numerator), math.isqrt(a.denominator)
            if top * top == a.numerator and bottom * bottom == a.denominator:
                return Fraction(top, bottom)
        if a < 0 and b.denominator % 2 and abs(b.denominator) < 100:  # the real root
            size = float(-a) ** float(b)
            return complex(-size if b.numerator % 2 else size)
    return _complex(a) ** _complex(b)


def _complex(value: Number) -> complex:
    return complex(float(value)) if isinstance(value, Fraction) else value


def _bounded(value: Number) -> Number:
    if (
        isinstance(value, Fraction)
        and max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS
    ):
        raise OverflowError("a number is too large")
    return value
