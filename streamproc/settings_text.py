"""Settings as people read them: the running config as TOML with sources, and the table of all settings in Markdown."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from streamproc.config import DEFAULT_BOOTSTRAP_SERVERS, SECTIONS, Config, known_settings
from streamproc.values import without_account

HIDDEN = "***"
SECRET = re.compile(r"password|secret|jaas|token(?!\.endpoint)|ssl\.key\.pem|ssl\.keystore\.key|oauthbearer\.config")


def shown(key: str, value: Any) -> Any:
    """A Kafka property's value, or *** where it is a secret."""
    return HIDDEN if SECRET.search(key) else value


def print_config(config: Config, secrets: bool = False) -> str:
    """All settings as TOML, each with its source in a comment; secrets as ***, or as they are for a worker's file."""
    lines = []
    for section in SECTIONS:
        names = [item.name for item in fields(getattr(config, section))]
        lines += [f"[{section}]", *(setting_line(config, f"{section}.{name}", secrets) for name in names), ""]
    return "\n".join([*lines, "[kafka]", *kafka_lines(config, secrets), ""])


def without_secret(value: Any) -> Any:
    """A setting's value; an address without the account that it may have in it."""
    return without_account(value) if isinstance(value, str) else value


def setting_line(config: Config, key: str, secrets: bool = False) -> str:
    """Prompts that nobody has set stay a comment: written down, they would overrule those of the model's folder."""
    source = config.sources.get(key, "default")
    value = config.value(key) if secrets else without_secret(config.value(key))
    line = f"{key.partition('.')[2]} = {toml(value)}  # {source}"
    if key.startswith("prompts.") and key not in config.sources and config.value(key) == known_settings()[key].default:
        return f"# {line}, or the model's own"
    return line


def kafka_lines(config: Config, secrets: bool) -> Iterator[str]:
    if "bootstrap.servers" not in config.kafka:
        yield f'"bootstrap.servers" = {toml(DEFAULT_BOOTSTRAP_SERVERS)}  # default'
    for key, value in sorted(config.kafka.items()):
        source = config.sources.get(f"kafka.{key}", "given")
        yield f"{toml(key)} = {toml(value if secrets else shown(key, value))}  # {source}"


def toml(value: Any) -> str:
    """A value of a setting as TOML; JSON's texts, numbers and lists are TOML's but for the DEL character."""
    listed = list(value) if type(value) is tuple else value
    return json.dumps(listed, ensure_ascii=False).replace("\x7f", "\\u007F")


def settings_doc(config: Config) -> list[dict[str, Any]]:
    """Every setting and Kafka property with value and source, secrets hidden; for JSON."""
    ours = [
        {"setting": key, "value": without_secret(config.value(key)), "source": config.sources.get(key, "default")}
        for key in known_settings()
    ]
    kafka = {"bootstrap.servers": DEFAULT_BOOTSTRAP_SERVERS, **config.kafka}
    return ours + [
        {"setting": f"kafka.{key}", "value": shown(key, value), "source": config.sources.get(f"kafka.{key}", "default")}
        for key, value in sorted(kafka.items())
    ]


def settings_table() -> str:
    """Every setting as a Markdown table: name, default, values, meaning."""
    rows = ["| setting | default | takes | meaning |", "|--|--|--|--|"]
    for key, known in known_settings().items():
        default = toml(known.default).replace("|", "\\|")
        rows.append(f"| `{key}` | `{default}` | {known.rule.takes.replace('|', chr(92) + '|')} | {known.rule.doc} |")
    return "\n".join(rows)
