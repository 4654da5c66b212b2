"""Types of answers as llguidance reads them, and a model's vocabulary for it."""

import re
from typing import Any

import orjson
from llguidance import LLTokenizer, regex_to_lark

from streamproc.answertypes import UNKNOWN
from streamproc.prompts import Renderer

MAX_ALL_OF = 8
NUMBER = f"-?[0-9]+(\\.[0-9]+)?|{UNKNOWN}"
BOOLEAN = f"[Yy]es|[Nn]o|[Tt]rue|[Ff]alse|{UNKNOWN}"
PLACE = re.compile(r'(at \d+\(\d+\): )?(invalid regex ".*" \(in regex\): |failed to compile JSON schema: )?')
IN_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class CannotConstrain(Exception):
    """Why a grammar, or any, cannot be used with this model."""


def lark(grammar: dict[str, Any]) -> str:
    """llguidance's form of AnswerType.grammar. Raises CannotConstrain."""
    kind, stop = grammar["type"], grammar["stop"]
    if kind == "json":
        if inside := next((text for text in stop if min(text) >= " "), None):
            raise CannotConstrain(f'stop: {inside!r} may stand inside JSON, use stop = ["\\n"] or []')
        if num_members(grammar["schema"]) > MAX_ALL_OF:
            raise CannotConstrain(f"answer.schema: more than {MAX_ALL_OF} members of allOf, they take too long to join")
        schema = orjson.dumps({**grammar["schema"], "x-guidance": IN_ONE_LINE}).decode()
        return f'start: SPACE? body\nSPACE: " "\nbody: %json {schema}'
    choices = [choice.strip() for choice in grammar.get("choices", ())]
    if found := [choice for choice in choices if any(text in choice for text in stop)]:
        raise CannotConstrain(f"answer.choices: {found[0]!r} holds a stop text, it would be cut there")
    body = {"number": NUMBER, "boolean": BOOLEAN, "choice": "|".join(map(literal, choices))}.get(kind)
    allowed = f"/ ?({body or regex_to_lark(without_anchors(grammar['pattern']), 'd')})/"
    if not stop:
        return f"start: TEXT\nTEXT: {allowed}"
    stopped = f"/(?s:.*)({'|'.join(map(literal, stop))})(?s:.*)/"
    return f"start: TEXT\nTEXT: BODY & ~STOPPED\nBODY: {allowed}\nSTOPPED: {stopped}"


def num_members(schema: Any) -> int:
    """Of all allOf: what joins them takes exponential time."""
    if isinstance(schema, list):
        return sum(map(num_members, schema))
    if not isinstance(schema, dict):
        return 0
    own = schema.get("allOf")
    return sum(map(num_members, schema.values())) + (len(own) if isinstance(own, list) else 0)


def without_anchors(pattern: str) -> str:
    """The whole text has to match anyhow."""
    return re.sub(r"(?<!\\)((\\\\)*)\$$", r"\1", pattern.removeprefix("^"))


def literal(text: str) -> str:
    """A regex of this very text."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def one_line(problem: str) -> str:
    """What is wrong, without the place in a grammar that its sender did not write."""
    lines = [line.strip() for line in problem.splitlines()]
    told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return PLACE.sub("", told).partition(" in regex /")[0][:200]


class Spelling:
    """A tokenizer whose decoder llguidance does not know, as the bytes of its tokens."""

    def __init__(self, renderer: Renderer, texts: list[str], end_id: int) -> None:
        self.tokens = [text.encode() for text in texts]
        self.special_token_ids = [i for i, text in enumerate(texts) if not text]
        self.eos_token_id = end_id
        self.bos_token_id: int | None = None
        self.is_tokenizer_wrapper = True
        self._renderer = renderer

    def __call__(self, text: str) -> list[int]:
        return list(self._renderer.text_ids(text))


def make_tokenizer(renderer: Renderer, vocab_size: int, end_ids: list[int]) -> LLTokenizer:
    """Raises CannotConstrain where a token's text is not to be had from it alone."""
    try:
        return LLTokenizer(renderer.tokenizer_json(), n_vocab=vocab_size, eos_token=end_ids)
    except ValueError:
        pass
    texts = [renderer.decode([i]) for i in range(renderer.max_id + 1)]
    ids = range(0, len(texts), max(1, len(texts) // 64))
    if any(renderer.decode([a, b]) != texts[a] + texts[b] for a in ids for b in ids):
        raise CannotConstrain("answer: only text, this model's tokenizer writes tokens differently side by side")
    spelling: Any = Spelling(renderer, texts, end_ids[0])
    return LLTokenizer(spelling, n_vocab=vocab_size, eos_token=end_ids)
