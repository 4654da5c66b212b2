"""`streamproc query add|list|remove`: standing questions, through the control topic."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from streamproc.answertypes import ANSWER_TYPES
from streamproc.cli.common import Call, shared_options
from streamproc.errors import Refused, Usage
from streamproc.messages import EMITS, Query, parse_query
from streamproc.queryfile import load_queries

if TYPE_CHECKING:
    from streamproc.client import Client

ROW = "{:<20} {:<12} {:<12} {:<8} {:<8} {:<16} {}"
HEADER = ROW.format("ID", "VERSION", "TRIGGER", "EMIT", "ANSWER", "SESSIONS", "QUESTION")


@click.group()
def query() -> None:
    """Add, list or remove standing questions."""


@query.command()
@click.argument("query_id", metavar="[ID]", required=False)
@click.argument("question", metavar="[QUESTION]", required=False)
@click.option("--file", metavar="FILE", type=click.Path(path_type=Path), help="Add all of a TOML file of [query.ID].")
@click.option("--sessions", metavar="GLOB", help="Sessions it is asked of.  [default: *]")
@click.option("--every", metavar="N", type=int, help="Short for --trigger 'every N records'.")
@click.option("--trigger", metavar="WHEN", help="idle, or 'every N records'.  [default: idle]")
@click.option("--emit", type=click.Choice(EMITS), help="Publish always, or on change only.  [default: always]")
@click.option("--answer", type=click.Choice(ANSWER_TYPES), help="What an answer may be.  [default: text]")
@click.option("--choice", "choices", metavar="WORD", multiple=True, help="A word to choose from; repeatable.")
@click.option("--pattern", metavar="REGEX", help="What an answer looks like, as a regular expression.")
@click.option("--schema", metavar="FILE", type=click.Path(path_type=Path), help="What it holds: a JSON schema.")
@click.option("--max-tokens", metavar="N", type=int, help="Longest answer.  [default: 32]")
@click.option("--stop", metavar="S", multiple=True, help="Text that ends an answer; repeatable.")
@shared_options
def add(call: Call, query_id: str | None, question: str | None, file: Path | None, **options: Any) -> None:
    """Make a question a standing one; the same question again changes nothing.

    \b
    streamproc query add move "Which way did the price move last?" --every 10 --emit change
    streamproc query add side "What was the last side?" --choice buy --choice sell --sessions 'BTC*'
    streamproc query add --file queries.toml
    """
    if file is not None:
        if query_id is not None or question is not None or any(options.values()):
            raise Usage("query add --file: the file says everything, leave the rest out")
        wanted = load_queries(file)
    elif query_id is None or question is None:
        raise Usage('query add: needs an id and a question, such as last "What was the last price?", or --file')
    else:
        wanted = [parse_query(query_id, query_doc(question, **options))]
    with open_client(call) as client:
        outcomes = register(client, wanted)
    text = "\n".join(f"{found.id} {found.version} {state}" for found, state in outcomes)
    call.emit({"queries": [{**doc_of(found), "state": state} for found, state in outcomes]}, text)


@query.command(name="list")
@shared_options
def list_(call: Call) -> None:
    """List the standing questions."""
    with open_client(call) as client:
        found, bad = client.read_queries()
    for query_id, problem in bad.items():
        call.note(f"warning: {query_id}: {problem}")
    queries = [found[query_id] for query_id in sorted(found)]
    doc = {"queries": [doc_of(query) for query in queries]}
    doc["bad"] = [{"id": query_id, "error": problem.code, "message": str(problem)} for query_id, problem in bad.items()]
    call.emit(doc, "\n".join((HEADER, *map(row_of, queries))))


@query.command()
@click.argument("query_id", metavar="ID")
@shared_options
def remove(call: Call, query_id: str) -> None:
    """End a standing question."""
    with open_client(call) as client:
        removed = client.remove(query_id)
    if not removed:
        raise Refused(f"query {query_id!r}: there is none of this id, see `streamproc query list`")
    call.emit({"id": query_id, "state": "removed"}, f"{query_id} removed")


def query_doc(question: str, every: int | None, trigger: str | None, **options: Any) -> dict[str, Any]:
    """The control message's fields of what was typed; what was not typed keeps its default."""
    if every is not None and trigger is not None:
        raise Usage("--every and --trigger: choose one")
    doc: dict[str, Any] = {"question": question, "trigger": trigger if every is None else f"every {every} records"}
    doc |= {name: options[name] for name in ("sessions", "emit", "max_tokens")}
    doc["answer"] = answer_fields(options)
    doc["stop"] = list(options["stop"]) or None
    return {name: value for name, value in doc.items() if value is not None}


def answer_fields(options: dict[str, Any]) -> dict[str, Any] | None:
    """An answer's type as typed; words to choose from make it a choice, a pattern a regex, a schema json."""
    fields: dict[str, Any] = {"type": options["answer"]}
    if options["choices"]:
        fields |= {"type": options["answer"] or "choice", "choices": list(options["choices"])}
    if options["pattern"] is not None:
        fields |= {"type": fields["type"] or "regex", "pattern": options["pattern"]}
    if options["schema"] is not None:
        fields |= {"type": fields["type"] or "json", "schema": read_schema(options["schema"])}
    return None if fields["type"] is None else fields


def read_schema(path: Path) -> Any:
    """The JSON in a file. Raises Usage."""
    try:
        return orjson.loads(path.read_bytes())
    except OSError as problem:
        raise Usage(f"--schema {path}: cannot be read: {problem.strerror}") from None
    except orjson.JSONDecodeError as problem:
        raise Usage(f"--schema {path}: not JSON: {problem}") from None


def register(client: "Client", wanted: list[Query]) -> list[tuple[Query, str]]:
    """Register each -> what became of it: added | replaced | unchanged."""
    before = client.read_queries()[0]
    outcomes = []
    for query in wanted:
        old = before.get(query.id)
        state = "added" if old is None else "unchanged" if old.version == query.version else "replaced"
        outcomes.append((client.register(query), state))
    return outcomes


def open_client(call: Call) -> "Client":
    from streamproc.client import Client

    return Client(config=call.config)


def doc_of(query: Query) -> dict[str, Any]:
    return {**asdict(query), "answer": answer_doc(query), "version": query.version, "trigger": query.trigger}


def answer_doc(query: Query) -> dict[str, Any]:
    doc = query.answer.doc()
    return {**doc, "schema": orjson.loads(query.answer.schema)} if query.answer.schema else doc


def row_of(query: Query) -> str:
    trigger = "idle" if query.every is None else f"every-{query.every}"
    question = " ".join(query.question.split())
    sessions = query.sessions.replace(" ", "?")  # one word a column; a glob's ? is any character
    return ROW.format(query.id, query.version, trigger, query.emit, query.answer.type, sessions, question)
