"""Where settings come from: flags over environment over file over default; each remembers its source.

Kafka properties rank the same way, with the file of `-F` between the environment and the settings file. A key of
`-X` that names none of our sections is a Kafka property, and so is everything in `STREAMPROC_KAFKA_*`, where
`STREAMPROC_KAFKA_SASL_PASSWORD` is `sasl.password`.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from streamproc.config import SECTIONS, Config, Setting, check_config, known_settings, wrong_value
from streamproc.errors import Usage
from streamproc.javaproperties import parse_properties
from streamproc.values import parse_bytes, parse_count, parse_span_ms, parse_span_s

DEFAULT_FILE = Path("streamproc.toml")
PREFIX = "STREAMPROC_"
KAFKA_PREFIX = "STREAMPROC_KAFKA_"
BOOTSTRAP = "bootstrap.servers"
BOOTSTRAP_VARIABLE = "STREAMPROC_BOOTSTRAP_SERVERS"
NEAR = 0.8
OTHER_VARIABLES = (
    BOOTSTRAP_VARIABLE,
    "STREAMPROC_STATE_DIR",
    "STREAMPROC_TEST_BOOTSTRAP_SERVERS",
    "STREAMPROC_REQUIRE_BROKER",
)


class Given(NamedTuple):
    """A value as it was found, and where."""

    value: Any
    source: str


Layer = dict[str, Given]  # by full name; Kafka properties as kafka.<name>


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    bootstrap_servers: str | None = None,
    command_config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """All settings, checked. Raises Usage with one line that names the setting, its value and its source."""
    given: Layer = {
        **file_layer(file),
        **properties_layer(command_config),
        **environment_layer(environ),
        **override_layer(overrides),
        **({f"kafka.{BOOTSTRAP}": Given(bootstrap_servers, "flag -b")} if bootstrap_servers else {}),
    }
    config = build_config(given)
    check_config(config)
    return config


def build_config(given: Layer) -> Config:
    """A config from the values found, each read as what its setting is."""
    config = Config(sources={key: found.source for key, found in given.items()})
    known = known_settings()
    for section in SECTIONS:
        values = {
            key.partition(".")[2]: read_value(known[key], found)
            for key, found in given.items()
            if key.startswith(f"{section}.")
        }
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    kafka = {key.removeprefix("kafka."): found.value for key, found in given.items() if key.startswith("kafka.")}
    return replace(config, kafka=kafka)


def read_value(setting: Setting, given: Given) -> Any:
    """A value in the setting's own type. Raises Usage."""
    try:
        return READERS[setting.kind](given.value, setting)
    except (ValueError, OverflowError) as problem:
        takes = setting.rule.takes or kind_words(setting)
        raise wrong_value(setting.key, given.value, given.source, str(problem), takes) from None


def read_int(value: Any, setting: Setting) -> int:
    if type(value) is int:
        return value
    if type(value) is not str:
        raise ValueError("not a whole number")
    by_unit: dict[str, Callable[[str], int]] = {"bytes": parse_bytes, "ms": parse_span_ms, "s": parse_span_s}
    return by_unit.get(setting.rule.unit, parse_count)(value)


def read_float(value: Any, setting: Setting) -> float:
    if type(value) not in (int, float, str):
        raise ValueError("not a number")
    try:
        return float(value)
    except ValueError:
        raise ValueError("not a number") from None


def read_bool(value: Any, setting: Setting) -> bool:
    """In TOML without quotes; elsewhere a text."""
    if type(value) is bool:
        return value
    if value not in ("true", "false"):
        raise ValueError("neither true nor false")
    return bool(value == "true")


def read_str(value: Any, setting: Setting) -> str:
    if type(value) is not str:
        raise ValueError(f"a text is needed, in quotes, not {type(value).__name__}")
    return value


def read_texts(value: Any, setting: Setting) -> tuple[str, ...]:
    """A list of texts; outside TOML written as JSON, or as the only text."""
    if type(value) is str:
        value = json_list(value) if value.startswith("[") else [value]
    if type(value) is not list or not all(type(text) is str and text for text in value):
        raise ValueError("not a list of texts")
    return tuple(value)


def json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("not a list of texts") from None


READERS: dict[type, Callable[[Any, Setting], Any]] = {
    int: read_int,
    float: read_float,
    bool: read_bool,
    str: read_str,
    tuple: read_texts,
}


def kind_words(setting: Setting) -> str:
    return {int: "a whole number", float: "a number", str: "a text", tuple: 'a list such as ["\\n"]'}[setting.kind]


def file_layer(file: Path | None) -> Layer:
    """The settings file: the one given, else ./streamproc.toml if it is there."""
    if file is None and not DEFAULT_FILE.exists():
        return {}
    path = file or DEFAULT_FILE
    tables = parse_toml(read_text(path, "settings file"), path)
    found: Layer = {}
    for name, table in tables.items():
        if name not in (*SECTIONS, "kafka") or type(table) is not dict:
            raise unknown(name, f"file {path}", [f"[{section}]" for section in (*SECTIONS, "kafka")])
        values = flat(table) if name == "kafka" else table
        for key, value in values.items():
            full = f"{name}.{key}"
            if name != "kafka" and full not in known_settings():
                raise unknown(full, f"file {path}", known_settings())
            found[full] = Given(property_text(value) if name == "kafka" else value, f"file {path}")
    return found


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        hint = ""
        if any(word in str(problem) for word in ("overwrite", "mutate", "twice")):
            hint = '; quote a key that is also the start of another: "group.protocol" = "classic"'
        raise Usage(f"{path}: {problem}{hint}") from None


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Kafka's dotted names back together where TOML made tables of them."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if type(value) is dict else {prefix + key: value}
    return found


def property_text(value: Any) -> str:
    """A TOML value as a Kafka property."""
    if type(value) is bool:
        return "true" if value else "false"
    return ",".join(map(str, value)) if type(value) is list else str(value)


def properties_layer(file: Path | None) -> Layer:
    """The Java properties file of -F."""
    if file is None:
        return {}
    pairs = parse_properties(read_text(file, "Kafka properties file"))
    return {f"kafka.{key}": Given(value, f"file {file}") for key, value in pairs.items()}


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """STREAMPROC_* variables; an empty one counts as not set."""
    by_variable = {setting.variable: key for key, setting in known_settings().items()}
    found: Layer = {}
    for name, value in environ.items():
        if value and name.startswith(KAFKA_PREFIX):
            key = name.removeprefix(KAFKA_PREFIX).lower().replace("_", ".")
            found[f"kafka.{key}"] = Given(value, f"environment {name}")
        elif value and name in by_variable:
            found[by_variable[name]] = Given(value, f"environment {name}")
    if servers := environ.get(BOOTSTRAP_VARIABLE):
        found[f"kafka.{BOOTSTRAP}"] = Given(servers, f"environment {BOOTSTRAP_VARIABLE}")
    return found


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """One line for every STREAMPROC_* variable that sets nothing; a container platform may make some by itself."""
    known = [*OTHER_VARIABLES, *(setting.variable for setting in known_settings().values())]
    strange = [
        name for name in environ if name.startswith(PREFIX) and not name.startswith(KAFKA_PREFIX) and name not in known
    ]
    return [f"{name} sets nothing" + nearest(name, known) for name in sorted(strange)]


def override_layer(overrides: Sequence[str]) -> Layer:
    """The KEY=VALUE pairs of -X; the last of two equal keys counts."""
    found: Layer = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise Usage(f"-X {text}: write KEY=VALUE, such as -X engine.context_tokens=4096")
        if key in known_settings():
            found[key] = Given(value, "flag -X")
        elif key.startswith(tuple(f"{section}." for section in SECTIONS)) or "_" in key:
            raise unknown(key, "flag -X", known_settings())
        else:
            found[f"kafka.{key.removeprefix('kafka.')}"] = Given(value, "flag -X")
    return found


def unknown(key: str, source: str, known: Sequence[str] | Mapping[str, Any]) -> Usage:
    return Usage(f"unknown setting {key} ({source}){nearest(key, known)}")


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """`, did you mean ...?`, or nothing where no known name is near."""
    short = {full.rpartition(".")[2]: full for full in known}
    near = difflib.get_close_matches(name, known, 1, NEAR) or difflib.get_close_matches(
        name.rpartition(".")[2], short, 1, NEAR
    )
    return f", did you mean {short.get(near[0], near[0])}?" if near else ""


def read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "not UTF-8"
        raise Usage(f"{what} {path}: {reason}") from None
