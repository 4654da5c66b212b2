"""Text to token ids and back: how records and questions read to the model.

    prefix                   stream                    tail
    [begin, system text]     [record | record | ...]   [question ... start of the answer]

Records are tokenised one by one, a session's ids are the concatenation. Where the tokenizer has a chat template and
`prompts.question` is left as it is, that template gives the frame: one system message, one user message that holds the
stream and the question. Otherwise the frame is `prompts.system` and `prompts.question` as written.

Control tokens (special tokens, and others that the chat template writes) come from the settings and the chat template
alone: in a record or a question, "<|im_end|>" is just text.
"""

import hashlib
import json
import operator
import re
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from streamproc.config import Prompts
from streamproc.errors import Usage
from streamproc.past import Past
from streamproc.records import DERIVED, FIELDS, LOOKING_BACK, Record

STREAM, QUESTION = "\ue000stream\ue001", "\ue000question\ue001"     # private use: no template writes or trims them
NONE = "-"
ANY_TEXT = "".join(map(chr, range(32, 127))) + "\n\t é ☃ 漢 😀 \ue002"
# For templates that print today's date: the prefix must be the same on every day.
CHAT_DATE = "26 Jul 2024"
FIXED_CLOCK = f"{{% macro strftime_now(format) %}}{CHAT_DATE}{{% endmacro %}}"


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a model's folder. Raises Usage where there is none, or none that streamproc can use."""
    from transformers import AutoTokenizer  # noqa: PLC0415  seconds to import, and only here needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as problem:
        raise Usage(f"engine.model: {path} has no tokenizer that can be loaded: "
                    f"{(str(problem).splitlines() or [''])[0][:200]}") from problem
    if not tokenizer.is_fast:
        raise Usage(f"engine.model: {path} has a tokenizer without tokenizer.json; convert it and save it there")
    return tokenizer


class Renderer:
    """Records and questions of one tokenizer and one set of templates. Raises Usage where a template is wrong."""

    def __init__(self, tokenizer: Any, settings: Prompts, eos_ids: Iterable[int] = ()) -> None:
        """eos_ids: ends of an answer besides the tokenizer's own."""
        self.control = control_tokens(tokenizer)
        self._plain = plain_tokenizer(tokenizer, self.control)
        check_takes_any_text(self._plain)
        self._pattern = re.compile("|".join(_token_pattern(tokenizer, text) for text in self.control) or r"(?!)")
        self._lines = {kind: Line(kind, getattr(settings, kind)) for kind in FIELDS}
        self.looks_back = any(line.looks_back for line in self._lines.values())
        chat = getattr(tokenizer, "chat_template", None)
        uses_chat = bool(chat) and settings.question == Prompts().question
        frame = chat_frame(tokenizer, settings.system) if uses_chat else plain_frame(tokenizer, settings)
        self._before, self._after = self._split(frame[1]), self._split(frame[2])
        self.prefix_ids = self._encode(self._split(frame[0]))
        self._begin = begin_ids(tokenizer)
        self.stop = settings.stop
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.eos_ids = frozenset([*own, *eos_ids])
        self.max_id = max(tokenizer.get_vocab().values())
        facts = [tokenizer.backend_tokenizer.to_str(), [getattr(settings, kind) for kind in FIELDS], frame, self.stop]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self._check(settings)

    def record_ids(self, records: Sequence[Record]) -> list[tuple[int, ...]]:
        """The ids of each record; where templates look back, of the first records of a generation."""
        if self.looks_back:
            past, texts = Past(), []
            for record in records:
                texts.append(self._lines[record.kind].text_after(past, record))
                past.add(record)
        else:
            texts = [self._lines[record.kind].text(record) for record in records]
        return [tuple(found.ids) for found in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def record_text(self, record: Record, past: Past | None = None) -> str:
        """A record as the model reads it after these; None: as the first of its generation."""
        return self._lines[record.kind].text_after(past or Past(), record)

    def ids_after(self, past: Past, record: Record) -> tuple[int, ...]:
        """The ids of a record that comes after these in its generation."""
        return self.text_ids(self.record_text(record, past))

    def tail_ids(self, question: str) -> tuple[int, ...]:
        """What follows the stream: the question, up to where the answer starts."""
        return self._encode([*self._before, question, *self._after])

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        """A prompt without a session: plain text, after the token that begins a text where the model has one."""
        return (*self._begin, *self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, without special tokens."""
        return str(self._plain.decode(list(ids), skip_special_tokens=True))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """The ids of plain text."""
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def tokenizer_json(self) -> str:
        """The tokenizer that answers are decoded with; control tokens are special in it."""
        return str(self._plain.to_str())

    def _split(self, text: str) -> list[str | int]:
        """Text with its control tokens taken out as ids."""
        parts: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text):
            parts += [text[end:match.start()], self.control[match.group().strip()]]
            end = match.end()
        return [*parts, text[end:]]

    def _encode(self, parts: Iterable[str | int]) -> tuple[int, ...]:
        """Ids of text and control tokens in turn; texts side by side are tokenised as one."""
        ids: list[int] = []
        text = ""
        for part in [*parts, None]:
            if isinstance(part, str):
                text += part
                continue
            ids += self._plain.encode(text, add_special_tokens=False).ids if text else []
            ids += [] if part is None else [part]
            text = ""
        return tuple(ids)

    def _check(self, settings: Prompts) -> None:
        """Every record gives ids, and no text gives a control token."""
        for kind in FIELDS:
            template = getattr(settings, kind)
            if found := self._pattern.search(template):
                raise Usage(f"prompts.{kind}: {template!r} holds the control token {found.group()!r}; records are "
                            "plain text, put control tokens into prompts.system or prompts.question")
            if not self._plain.encode(template, add_special_tokens=False).ids:
                raise Usage(f"prompts.{kind}: {template!r} gives no tokens; write the record's fields, such as {{sym}}")
        for text, token_id in self.control.items():
            if token_id in self._plain.encode(f"a {text} b", add_special_tokens=False).ids:
                raise Usage(f"engine.model: its tokenizer cannot tell the text {text!r} in a record from its control "
                            "token; use a model with a byte-pair tokenizer")


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Added tokens that steer the model: the special ones, and those that the chat template writes."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return {token.content: token_id for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
            if token.content.strip() and (token.special or token.content in template)}


def plain_tokenizer(tokenizer: Any, control: dict[str, int]) -> Tokenizer:
    """The same tokenizer, to which control tokens are text like any other."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control
    plain = Tokenizer.from_str(json.dumps(spec))
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def check_takes_any_text(tokenizer: Tokenizer) -> None:
    """Raises Usage where a character that it does not know would stop it: a record or a question may hold any."""
    try:
        tokenizer.encode(ANY_TEXT, add_special_tokens=False)
    except Exception as problem:    # tokenizers raises nothing finer
        raise Usage(f"engine.model: its tokenizer stops at a character that it does not know ({problem}); use a model "
                    "whose tokenizer has a token for unknown text, or one for each byte") from problem


def _token_pattern(tokenizer: Any, text: str) -> str:
    """Some control tokens swallow the white space beside them."""
    token = next(token for token in tokenizer.added_tokens_decoder.values() if token.content == text)
    return (r"\s*" if token.lstrip else "") + re.escape(text) + (r"\s*" if token.rstrip else "")


class Line:
    """One kind of record as text: a template compiled for speed. Raises Usage where it cannot be one."""

    def __init__(self, kind: str, template: str) -> None:
        setting, fields, derived = f"prompts.{kind}", FIELDS[kind], DERIVED.get(kind, {})
        parts = _parse(setting, template, fields)
        self._literal = "".join("%s" if name else text.replace("%", "%%") for text, name in parts)
        names = [name for _, name in parts if name]
        if not self._literal.strip():
            raise Usage(f"{setting}: {template!r} renders to nothing; write text and fields, such as {{sym}}")
        self.looks_back = bool(set(names) & set(LOOKING_BACK))
        self._places = [LOOKING_BACK.index(name) if name in LOOKING_BACK else None for name in names]
        self._getters: list[Callable[[Record], Any]] = [
            derived.get(name) or operator.itemgetter(0 if name in LOOKING_BACK else fields.index(name))
            for name in names
        ]
        plain = not derived.keys() & set(names) and len(names) > 1
        self._pick = operator.itemgetter(*map(fields.index, names)) if plain and not self.looks_back else None

    def text(self, record: Record) -> str:
        """Of a template that does not look back."""
        return self._fill(self._pick(record) if self._pick else tuple([get(record) for get in self._getters]))

    def text_after(self, past: Past, record: Record) -> str:
        """Of any template, for a record that comes after these."""
        if not self.looks_back:
            return self.text(record)
        marks = past.marks(record)
        places = zip(self._places, self._getters, strict=True)
        return self._fill(tuple([get(record) if place is None else marks[place] for place, get in places]))

    def _fill(self, values: tuple[Any, ...]) -> str:
        return self._literal % (tuple(NONE if v is None else v for v in values) if None in values else values)


def _parse(setting: str, template: str, fields: Iterable[str]) -> list[tuple[str, str | None]]:
    """A template's texts and fields in turn: (text, None) or ("", field). Raises Usage."""
    known = ", ".join(fields)
    parts: list[tuple[str, str | None]] = []
    try:
        for text, name, spec, conversion in string.Formatter().parse(template):
            parts += [(text, None)] if text else []
            if name is None:
                continue
            if name not in fields or spec or conversion:
                shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise Usage(f"{setting}: {{{shown}}} in {template!r} is not a field, known are {known}")
            parts.append(("", name))
    except ValueError as problem:
        raise Usage(f"{setting}: {template!r}: {problem}; write {{{{ and }}}} for braces") from None
    return parts


def plain_frame(tokenizer: Any, settings: Prompts) -> tuple[str, str, str]:
    """Text before the stream, before the question, after it: as the settings say."""
    parts = _parse("prompts.question", settings.question, ("question",))
    if [name for _, name in parts if name] != ["question"]:
        raise Usage(f"prompts.question: {settings.question!r} must hold {{question}} once")
    place = parts.index(("", "question"))
    before, after = ("".join(text for text, _ in side) for side in (parts[:place], parts[place + 1:]))
    return (tokenizer.bos_token if begin_ids(tokenizer) else "") + settings.system, before, after


def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts before every text, if it does."""
    first = tokenizer.bos_token_id
    return (first,) if first is not None and tokenizer("a").input_ids[:1] == [first] else ()


def chat_frame(tokenizer: Any, system: str) -> tuple[str, str, str]:
    """The same, cut out of the chat template; a template without system messages gets its text in the user's."""
    user = {"role": "user", "content": STREAM + QUESTION}
    text = _render_chat(tokenizer, [{"role": "system", "content": system.strip()}, user]) if system.strip() else None
    if text is None or system.strip() not in text:
        text = _render_chat(tokenizer, [{**user, "content": system + STREAM + QUESTION}])
    if text is None or text.count(STREAM) != 1 or text.count(QUESTION) != 1:
        raise Usage("engine.model: its chat template does not take one user message as it is; "
                    "set prompts.question, then the templates of the settings are used instead")
    before, rest = text.split(STREAM)
    between, after = rest.split(QUESTION)
    return before, between, after


def _render_chat(tokenizer: Any, messages: list[dict[str, str]]) -> str | None:
    """None where the template refuses these messages."""
    from jinja2 import TemplateError  # noqa: PLC0415  only needed with a chat template

    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = FIXED_CLOCK + template
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False,
                                                 add_generation_prompt=True, enable_thinking=False,
                                                 date_string=CHAT_DATE))
    except (TemplateError, TypeError):
        return None
