"""Kinds of answers: how they are written down, which texts they allow, and the value that a text has.

    text      anything                                       regex     a text that matches `pattern`
    number    -?digits, then .digits or not                  json      a JSON text that `schema` allows, in one line
    choice    one of `choices`                               boolean   yes, no, true or false

All but text are constrained: the engine lets the model write nothing else (engine/constrain.py). A number and a boolean
may also be the word "unknown": a model that cannot tell must not be made to invent one.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import orjson

from streamproc.errors import BadInput

ANSWER_TYPES = ("text", "number", "choice", "boolean", "regex", "json")
UNKNOWN = "unknown"
MAX_PATTERN_CHARS = 1_000
MAX_SCHEMA_BYTES = 16_000
MAX_VALUE_DEPTH = 32     # of a JSON answer: what nests deeper has no value

Value = Any              # str | float | bool | None; of a json answer whatever JSON holds


@dataclass(frozen=True, slots=True)
class AnswerType:
    """One kind of answer, with what it needs."""

    type: str = "text"
    choices: tuple[str, ...] = ()
    pattern: str = ""    # of a regex: Rust's syntax, without look-around
    schema: str = ""     # of json: the JSON text of an object. Its order counts: answers have their fields in it

    def value_of(self, text: str) -> Value:
        """The typed value in an answer's text; None where the text holds none.

        A constrained text holds one unless it says unknown or `max_tokens` cut it: a cut number or regex is read as far
        as it goes, a cut choice, boolean or JSON text has no value.
        """
        text = text.strip()
        match self.type:
            case "number":
                found = re.search(r"[-+]?\d+(?:\.\d+)?", text.replace(",", ""))
                number = float(found.group()) if found else math.inf
                return number if math.isfinite(number) else None
            case "choice":
                return self._choice(text)
            case "boolean":
                word = re.match(r"[a-z]*", text.casefold())
                return {"yes": True, "true": True, "no": False, "false": False}.get(word.group() if word else "")
            case "json":
                return _json_value(text)
        return text

    def _choice(self, text: str) -> str | None:
        """The word that the text is, else the longest that it begins with."""
        by_length = sorted(self.choices, key=len, reverse=True)
        exact = (choice for choice in by_length if choice.strip() == text)
        begins = (choice for choice in by_length if text.casefold().startswith(choice.strip().casefold()))
        return next(exact, None) or next(begins, None)

    def doc(self) -> dict[str, Any]:
        """The table that is parsed back into this; only the fields that its type has."""
        doc: dict[str, Any] = {"type": self.type}
        if self.choices:
            doc["choices"] = list(self.choices)
        if self.pattern:
            doc["pattern"] = self.pattern
        if self.schema:
            doc["schema"] = orjson.Fragment(self.schema)
        return doc

    def grammar(self, stop: tuple[str, ...]) -> str | None:
        """Which texts may be written, in words that the engine understands; None where all may.

        Stop texts are part of it: they end an answer, and so must not stand inside one.
        """
        return None if self.type == "text" else orjson.dumps({**self.doc(), "stop": stop}).decode()


def _json_value(text: str) -> Value:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if _is_flat(value, MAX_VALUE_DEPTH) else None


def _is_flat(value: Any, depth: int) -> bool:
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return depth > 0 and all(_is_flat(part, depth - 1) for part in inner)


def parse_answer_type(doc: Any, error: type[BadInput]) -> AnswerType:
    """The kind in a JSON or TOML table, or a word alone. Whether the engine can hold a model to it, only it can say."""
    doc = {"type": doc} if type(doc) is str else doc or {}
    kind = doc.get("type", "text") if type(doc) is dict else doc
    if kind not in ANSWER_TYPES:
        raise error(f"answer: {kind!r} is unknown, use one of {', '.join(ANSWER_TYPES)}")
    choices = doc.get("choices", [])
    if type(choices) is not list or not all(type(c) is str and c.strip() for c in choices):
        raise error("answer.choices: must be a list of words")
    if found := next((c for c in choices if not c.isprintable()), None):
        raise error(f"answer.choices: {found[:40]!r} holds a control character")
    words = [c.strip() for c in choices]
    if found := next((word for word in words if words.count(word) > 1), None) if len(words) <= 1_000 else None:
        raise error(f"answer.choices: {found[:40]!r} is there twice")
    if (kind == "choice") != bool(choices):
        raise error("answer.choices: a choice needs its words, and only a choice has them")
    return AnswerType(kind, tuple(choices), _parse_pattern(kind, doc, error), _parse_schema(kind, doc, error))


def _parse_pattern(kind: str, doc: dict[str, Any], error: type[BadInput]) -> str:
    pattern = doc.get("pattern", "")
    if type(pattern) is not str or (kind == "regex") != bool(pattern):
        raise error("answer.pattern: a regex needs its pattern, a text, and only a regex has one")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise error(f"answer.pattern: {len(pattern)} characters, the limit is {MAX_PATTERN_CHARS}")
    if not pattern.isprintable():
        raise error(r"answer.pattern: holds a control character, write it as in \n or \x09")
    return pattern


def _parse_schema(kind: str, doc: dict[str, Any], error: type[BadInput]) -> str:
    schema = doc.get("schema")
    if schema is None and kind != "json":
        return ""
    if type(schema) is not dict or kind != "json":
        raise error("answer.schema: json needs its schema, an object, and only json has one")
    try:
        text = orjson.dumps(schema)
    except TypeError as problem:
        raise error(f"answer.schema: not JSON: {problem}") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise error(f"answer.schema: {len(text)} bytes, the limit is {MAX_SCHEMA_BYTES}")
    return text.decode()
