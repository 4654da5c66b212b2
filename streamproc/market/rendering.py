"""How a model that was made for market data wants to be spoken to: `rendering.toml`, beside its weights.

    [prompts]                                   # templates of records and questions, as in the settings
    system = ""
    trade = "{sym}#{n} {side} {px}{tick} {sz}\\n"
    question = "Q: {question}\\nA: "
    stop = ["\\n"]

    [questions.last_price]                      # words of the kinds of questions.py that it was trained on
    words = "What was the last price{of}?"      # {of}: " of SYMBOL" or nothing; {level}: a price to compare with
    answer = "number"                           # number, boolean, or a list of choices

What the user has set himself wins over the file; the file wins over the defaults and over a chat template.
"""

import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from streamproc.answertypes import AnswerType, parse_answer_type
from streamproc.config import Config, Prompts, known_settings
from streamproc.errors import BadQuery, Usage
from streamproc.market.questions import KINDS, Kind

MARKET_MODEL = "market-tiny"
FILE = "rendering.toml"
PLACES = ("of", "level")


def market_model() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(files("streamproc.market") / "model"))


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a model's folder says; empty where it has no such file."""

    prompts: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)

    def prompts_of(self, config: Config) -> Prompts:
        """The user's prompts, with this model's own in the place of those that he has left alone."""
        return replace(config.prompts, **self._chosen(config))

    def _chosen(self, config: Config) -> dict[str, Any]:
        default = Prompts()
        return {
            name: value
            for name, value in self.prompts.items()
            if f"prompts.{name}" not in config.sources and getattr(config.prompts, name) == getattr(default, name)
        }

    def blame(self, config: Config, folder: Path, problem: Usage) -> Usage:
        """The same error, with this file's name where the prompt that it is about came from here."""
        is_own = any(str(problem).startswith(f"prompts.{name}:") for name in self._chosen(config))
        return Usage(f"{folder / FILE}: {problem}") if is_own else problem


def read_rendering(folder: Path) -> Rendering:
    """The rendering in a model's folder. Raises Usage, with the file's name, where it cannot be used."""
    path = folder / FILE
    if not path.is_file():
        return Rendering()
    try:
        doc = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise Usage(f"{path}: {problem}") from None
    if unknown := sorted(set(doc) - {"prompts", "questions"}):
        raise Usage(f"{path}: unknown table [{unknown[0]}], use [prompts] and [questions.KIND]")
    kinds = {name: _kind(path, name, table) for name, table in _table(path, doc, "questions").items()}
    return Rendering(_prompts(path, _table(path, doc, "prompts")), kinds or KINDS)


def _table(path: Path, doc: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = doc.get(name, {})
    if type(table) is not dict:
        raise Usage(f"{path}: {name} is not a table")
    return table


def _prompts(path: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the settings' own types; what a template may name is checked when it is compiled."""
    known = {item.name: known_settings()[f"prompts.{item.name}"].kind for item in fields(Prompts)}
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise Usage(f"{path}: unknown setting prompts.{name}, use one of {', '.join(known)}")
        is_list, texts = known[name] is tuple, value if type(value) is list else [value]
        if is_list != (type(value) is list) or not all(type(text) is str for text in texts):
            raise Usage(f"{path}: prompts.{name} = {value!r} is not a {'list of texts' if is_list else 'text'}")
        found[name] = tuple(value) if is_list else value
    return found


def _kind(path: Path, name: str, table: Any) -> Kind:
    """A kind of question in this model's words, with the same oracle."""
    if name not in KINDS:
        raise Usage(f"{path}: questions.{name} is unknown, use one of {', '.join(KINDS)}")
    if type(table) is not dict or set(table) - {"words", "answer"} or type(table.get("words")) is not str:
        raise Usage(f'{path}: questions.{name} is a table with words = "..." and answer = "..."')
    own = KINDS[name]
    try:
        places = [place for place in string.Formatter().parse(table["words"]) if place[1] is not None]
        answer = _answer(path, own, table["answer"]) if "answer" in table else own.answer
    except (ValueError, BadQuery) as problem:
        raise Usage(f"{path}: questions.{name}: {problem}") from None
    names = [name for _, name, _, _ in places]
    is_formatted = any(spec or conversion for _, _, spec, conversion in places)
    if is_formatted or set(names) - set(PLACES) or "of" not in names or ("level" in names) != own.needs_level:
        wanted = "{of} and {level}" if own.needs_level else "{of}"
        raise Usage(f"{path}: questions.{name}: {table['words']!r} must hold {wanted} and nothing else in braces")
    return replace(own, words=table["words"], answer=answer)


def _answer(path: Path, own: Kind, value: Any) -> AnswerType:
    """The type of an answer: the oracle's own, with its words in any order. Raises Usage or BadQuery."""
    answer = parse_answer_type({"type": "choice", "choices": value} if type(value) is list else value, BadQuery)
    if answer.type != own.answer.type or set(answer.choices) != set(own.answer.choices):
        says = f"the oracle says {', '.join(own.answer.choices)}" if own.answer.choices else f"is a {own.answer.type}"
        raise Usage(f"{path}: questions.{own.name}.answer = {value!r}: {says}")
    return answer
