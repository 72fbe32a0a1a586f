"""Syntax of the conditions that clients of the server send, and its bounds: from text to a tree.

The grammar, whose keywords may be in upper or lower case:

    condition   = conjunction {"OR" conjunction}
    conjunction = negation {"AND" negation}
    negation    = "NOT" negation | "(" condition ")" | comparison
    comparison  = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") literal
                | column ["NOT"] "IN" "(" literal {"," literal} ")"
                | column ["NOT"] "BETWEEN" literal "AND" literal
                | column ["NOT"] "LIKE" string
                | column "IS" ["NOT"] "NULL"
    literal     = number | string | "true" | "false"

A string is in single quotes, '' stands for a quote in it. A column whose name is a keyword or begins with a digit is in
double quotes or backticks. In a pattern of LIKE, % stands for any characters, _ for one, and a backslash before one of
these, or before another backslash, for the character itself. Comparisons with a missing value are neither true nor
false, as in SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from polymodal.errors import UserError

MAX_CHARACTERS = 1000
MAX_DEPTH = 8  # nesting of parentheses and NOT
MAX_LITERALS = 100
MAX_LITERAL = 300  # characters of a string or a number
MAX_WILDCARDS = 16  # in all patterns of LIKE together: the engine's time grows with their number

Literal = bool | int | float | str


@dataclass(frozen=True)
class Comparison:
    column: str
    operator: str
    """Comparison by =, !=, <, <=, > or >=."""
    value: Literal


@dataclass(frozen=True)
class Among:
    """Membership in a list (IN)."""

    column: str
    values: tuple[Literal, ...]
    negated: bool = False


@dataclass(frozen=True)
class Between:
    column: str
    low: Literal
    high: Literal
    negated: bool = False


@dataclass(frozen=True)
class Like:
    column: str
    pattern: str
    negated: bool = False


@dataclass(frozen=True)
class Missing:
    """Test for missing values (IS NULL)."""

    column: str
    negated: bool = False


@dataclass(frozen=True)
class Negation:
    part: Condition


@dataclass(frozen=True)
class Conjunction:
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Disjunction:
    parts: tuple[Condition, ...]


Condition = Comparison | Among | Between | Like | Missing | Negation | Conjunction | Disjunction


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<string>'(?:[^']|'')*+')
    | (?P<quoted>"[^"]+"|`[^`]+`)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|<>|!=|[=<>(),])""",
    re.VERBOSE,
)
_KEYWORDS = {"AND", "OR", "NOT", "IN", "LIKE", "BETWEEN", "IS", "NULL", "TRUE", "FALSE"}
_OPERATORS = {"=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def parse(text: str, columns: tuple[str, ...] = ()) -> Condition:
    """Parse a condition. columns: for the error, which says what is allowed. Raises UserError."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"A condition has at most {MAX_CHARACTERS:,} characters.")
    return _Parser(text, columns).condition_alone()


class _Parser:
    """Recursive descent; the depth of the recursion is bounded by `MAX_DEPTH`."""

    def __init__(self, text: str, columns: tuple[str, ...]):
        self.text, self.columns = text, columns
        self.depth = self.literals = self.wildcards = 0
        self.tokens = list(self._tokens())
        self.place = 0

    def condition_alone(self) -> Condition:
        condition = self._condition()
        if self._next.kind != "end":
            raise self._failed("AND, OR or the end")
        return condition

    def _tokens(self) -> Iterator[_Token]:
        start = 0
        while start < len(self.text):
            match = _TOKEN.match(self.text, start)
            if match is None or re.search("[\ud800-\udfff]", match[0]):
                raise self._failed("a column, an operator or a value", _Token("unknown", self.text[start:], start))
            kind, token = str(match.lastgroup), match[0]
            if kind == "word" and token.upper() in _KEYWORDS:
                kind, token = "keyword", token.upper()
            if kind != "space":
                yield _Token(kind, token, start)
            start = match.end()
        yield _Token("end", "", start)

    @property
    def _next(self) -> _Token:
        return self.tokens[self.place]

    def _taken(self, *texts: str) -> str | None:
        """Consume and return the next token if it is one of these."""
        token = self._next
        if token.kind not in ("keyword", "sign") or token.text not in texts:
            return None
        self.place += 1
        return token.text

    def _expect(self, text: str) -> None:
        if not self._taken(text):
            raise self._failed(text)

    def _failed(self, expected: str, token: _Token | None = None) -> UserError:
        token = token or self._next
        start = token.text[:20].encode("utf-8", "backslashreplace").decode()
        where = f"at character {token.start + 1}, {start}" if start else "at its end"
        named = f"a column ({', '.join(self.columns)})" if self.columns else "a column"
        return UserError(
            f"The condition cannot be read {where}: expected {expected}; allowed are comparisons of {named} with a "
            "number, a 'string', true or false by =, !=, <, <=, >, >=, IN (...), BETWEEN, LIKE and IS NULL, joined by "
            "AND, OR, NOT and parentheses."
        )

    def _condition(self) -> Condition:
        parts = [self._conjunction()]
        while self._taken("OR"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else Disjunction(tuple(parts))

    def _conjunction(self) -> Condition:
        parts = [self._negation()]
        while self._taken("AND"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else Conjunction(tuple(parts))

    def _negation(self) -> Condition:
        opened = self._taken("NOT", "(")
        if opened is None:
            return self._comparison()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UserError(f"A condition has at most {MAX_DEPTH} levels of parentheses and NOT.")
        condition: Condition
        if opened == "NOT":
            condition = Negation(self._negation())
        else:
            condition = self._condition()
            self._expect(")")
        self.depth -= 1
        return condition

    def _comparison(self) -> Condition:
        column = self._column()
        if operator := self._taken(*_OPERATORS):
            return Comparison(column, _OPERATORS[operator], self._literal())
        if self._taken("IS"):
            negated = bool(self._taken("NOT"))
            self._expect("NULL")
            return Missing(column, negated)
        negated = bool(self._taken("NOT"))
        if self._taken("IN"):
            self._expect("(")
            values = [self._literal()]
            while self._taken(","):
                values.append(self._literal())
            self._expect(")")
            return Among(column, tuple(values), negated)
        if self._taken("BETWEEN"):
            low = self._literal()
            self._expect("AND")
            return Between(column, low, self._literal(), negated)
        if self._taken("LIKE"):
            return Like(column, self._pattern(), negated)
        raise self._failed("IN, BETWEEN or LIKE" if negated else "a comparison")

    def _column(self) -> str:
        token = self._next
        if token.kind not in ("word", "quoted"):
            raise self._failed("a column")
        self.place += 1
        name = token.text if token.kind == "word" else token.text[1:-1]
        if self.columns and name not in self.columns:
            raise UserError(
                f"The condition names no column of the index at character {token.start + 1}, {name[:40]}; "
                f"there are {', '.join(self.columns)}."
            )
        return name

    def _literal(self) -> Literal:
        token = self._next
        if truth := self._taken("TRUE", "FALSE"):
            self._count()
            return truth == "TRUE"
        if token.kind not in ("number", "string"):
            raise self._failed("a number, a 'string', true or false")
        if len(token.text) > MAX_LITERAL + 2 * (token.kind == "string"):
            raise UserError(f"A value of a condition has at most {MAX_LITERAL} characters.")
        self.place += 1
        self._count()
        if token.kind == "string":
            return token.text[1:-1].replace("''", "'")
        number = float(token.text)
        if abs(number) == float("inf"):
            raise UserError(f"The number at character {token.start + 1} of the condition is too large.")
        return int(token.text) if re.fullmatch(r"[+-]?[0-9]+", token.text) else number

    def _count(self) -> None:
        self.literals += 1
        if self.literals > MAX_LITERALS:
            raise UserError(f"A condition has at most {MAX_LITERALS} values.")

    def _pattern(self) -> str:
        if self._next.kind != "string":
            raise self._failed("a 'pattern' with % and _")
        start, pattern = self._next.start, str(self._literal())
        plain = re.sub(r"\\[\\%_]", "", pattern)
        if "\\" in plain:
            raise UserError(
                f"In the pattern at character {start + 1} of the condition, a backslash stands before %, _ or "
                "another backslash."
            )
        self.wildcards += plain.count("%") + plain.count("_")
        if self.wildcards > MAX_WILDCARDS:
            raise UserError(f"The patterns of a condition have at most {MAX_WILDCARDS} signs % and _ together.")
        return pattern
