"""Text that others chose, such as the names of classes, in Markdown: it is shown, and does nothing."""

import re
from collections.abc import Iterable

# An underscore within a word does nothing; a colon only before what may be an emoji's name.
_ACTIVE = re.compile(r"([\\`*\[\]|~#$!<>&]|(?<![^\W_])_|_(?![^\W_])|:(?=[\w+-]+:))")
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;"}
_LIST = re.compile(r"^([-+=]|\d+[.)])")


def markdown(text: str) -> str:
    """A text as one line of Markdown that shows it as it is, in a table too."""
    line = " ".join(printable(text).split())
    escaped = _ACTIVE.sub(lambda match: _HTML.get(match[1], f"\\{match[1]}"), line)
    return _LIST.sub(lambda match: f"{match[1][:-1]}\\{match[1][-1]}", escaped)


def code(text: object, in_table: bool = False) -> str:
    """A text as a code span, in which nothing is Markdown, HTML or an emoji; in a table `|` needs a backslash."""
    content = printable(str(text))
    fence = "`" * (max(map(len, re.findall("`+", content)), default=0) + 1)
    pad = " " if content[:1] in ("`", " ", "") or content[-1:] in ("`", " ") else ""
    span = f"{fence}{pad}{content}{pad}{fence}"
    return span.replace("|", "\\|") if in_table else span


def listed(names: Iterable[str]) -> str:
    """Names as code spans: `a`, `b` and `c`."""
    spans = [code(name) for name in names]
    return " and ".join([", ".join(spans[:-1]), spans[-1]] if len(spans) > 1 else spans)


def printable(text: str) -> str:
    """A text with what cannot be printed, line breaks among it, as an escape such as `\\n`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
