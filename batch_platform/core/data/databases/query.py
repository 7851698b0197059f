"""A source's SQL: one statement that reads, with the partition's window as bound parameters.

Decides which texts are accepted: a single SELECT (WITH, VALUES) that changes nothing. This is for an early and clear
refusal; the databases are told as well that nothing may be written. It knows no database.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_WORDS = ("SELECT", "WITH", "VALUES", "FROM")
PARAMETERS = ("start", "end", "partition")


@dataclass(frozen=True)
class Query:
    """A checked statement.

    Attributes:
        pieces: the statement's text cut at its parameters: texts and names take turns, a text is first and last.
    """

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Query":
        """Check a statement.

        Raises:
            ValueError: it is no single statement that only reads, or has an unknown parameter.
        """
        from sqlparse import lexer, tokens

        found = [(kind, value) for kind, value in lexer.tokenize(text) if kind not in tokens.Comment]
        words = [(kind, value) for kind, value in found if value.strip()]
        while words and words[-1][1] == ";":
            words.pop()
        if any(kind in tokens.Punctuation and value == ";" for kind, value in words):
            raise ValueError("query has more than one statement: give a single SELECT")
        first = next((value.upper() for _, value in words if value != "("), "")
        if first not in _FIRST_WORDS:
            raise ValueError(
                f"query begins with {first or 'nothing'}: only a SELECT (or WITH ... SELECT) may be given"
            )
        for kind, value in words:
            writes = kind in tokens.Keyword.DML and value.upper() != "SELECT"
            if writes or kind in tokens.Keyword.DDL or (kind in tokens.Keyword and value.upper() == "INTO"):
                raise ValueError(
                    f"query has the word {value.upper()}: it may only read; quote it if it is a name"
                )
        return cls(_pieces(found))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters used, each once, in the order of `PARAMETERS`."""
        return tuple(name for name in PARAMETERS if name in self.pieces[1::2])

    def written(self, marks: Mapping[str, str]) -> str:
        """The statement with each parameter written as a database wants it."""
        return "".join(marks[piece] if place % 2 else piece for place, piece in enumerate(self.pieces))

    def numbered(self) -> str:
        """With `$1`, `$2`, ... in the order of `parameters`."""
        return self.written({name: f"${number}" for number, name in enumerate(self.parameters, 1)})


def _pieces(found: list[tuple[object, str]]) -> tuple[str, ...]:
    from sqlparse import tokens

    pieces = [""]
    for kind, value in found:
        if kind in tokens.Name.Placeholder:
            name = value[1:].lower()
            if not value.startswith(":") or name not in PARAMETERS:
                known = ", ".join(f":{known}" for known in PARAMETERS)
                raise ValueError(f"query has the parameter {value}: only {known} are known")
            pieces += [name, ""]
        else:
            pieces[-1] += value
    pieces[-1] = pieces[-1].rstrip("; \t\r\n")
    return tuple(pieces)
