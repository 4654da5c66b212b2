"""Files of standing questions: one `[query.ID]` table each, with the fields of the control topic.

[query.move]
question = "Which way did the price of {session} move last?"
sessions = "BTC*"
trigger = "every 10 records"
emit = "change"
answer = { type = "choice", choices = ["up", "down", "flat"] }
"""

import tomllib
from pathlib import Path
from typing import Any

from streamproc.errors import BadQuery, Usage
from streamproc.messages import Query, parse_query


def load_queries(path: Path) -> list[Query]:
    """The questions of a file, in its order. Raises Usage with the file and the field."""
    try:
        doc = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise Usage(f"{path}: cannot be read: {problem.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise Usage(f"{path}: not TOML: {problem}") from None
    if unknown := [name for name in doc if name != "query"]:
        raise Usage(f"{path}: {unknown[0]}: unknown, a file of questions has tables [query.ID]")
    tables = doc.get("query")
    if not isinstance(tables, dict) or not tables:
        raise Usage(f'{path}: no question in it, write [query.ID] and under it question = "..."')
    return [_query(path, query_id, table) for query_id, table in tables.items()]


def _query(path: Path, query_id: str, table: Any) -> Query:
    try:
        return parse_query(query_id, table)
    except BadQuery as problem:
        raise Usage(f"{path}: [query.{query_id}]: {problem}") from None
