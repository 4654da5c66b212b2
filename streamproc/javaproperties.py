"""The syntax of Java's .properties files, as Kafka's own tools write and read them."""

import re

ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
PAIR = re.compile(r"((?:\\.|[^\\=:\s])*)(?:\s*[=:]\s*|\s+|$)(.*)", re.DOTALL)


def parse_properties(text: str) -> dict[str, str]:
    """Keys and values of a file's text; the last of two equal keys counts, as in Java."""
    found = (PAIR.fullmatch(line) for line in logical_lines(text))
    return {unescape(pair.group(1)): unescape(pair.group(2)) for pair in found if pair}


def logical_lines(text: str) -> list[str]:
    """Lines without comments and blanks, continuation lines joined."""
    joined: list[str] = []
    pending = ""
    for line in re.split(r"\r\n|\r|\n", text):
        part = line.lstrip(" \t\f")
        if not pending and (not part or part[0] in "#!"):
            continue
        pending += part
        if (len(part) - len(part.rstrip("\\"))) % 2:
            pending = pending[:-1]
            continue
        joined.append(pending)
        pending = ""
    return [*joined, pending] if pending else joined


def unescape(text: str) -> str:
    return ESCAPE.sub(replacement, text)


def replacement(found: re.Match[str]) -> str:
    escape = found.group(1)
    return chr(int(escape[1:], 16)) if len(escape) == 5 else ESCAPES.get(escape, escape)
