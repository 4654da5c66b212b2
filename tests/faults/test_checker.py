"""The checker finds every anomaly that it has a name for, in histories spoilt by hand, and none in good ones."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRenderer
from harness.checker import check, check_file, versions
from harness.history import Event, History, Past
from harness.lab import QUERIES
from harness.model import Logged, Model, Question, name_of
from harness.offsets import longest_stall_s
from oracle import expected_answers

from streamproc.messages import Answer, Ask, AsOf, Query, flash_answer_id
from streamproc.records import Trade, encode_record
from streamproc.state.epoch import Message

CONTEXT, KEEP = 160, 80
ASK = Ask("ask-1", "S1", "how is {last}?", min_offset=3, max_tokens=4)
TOPICS = {"records": "r", "asks": "k", "control": "c", "answers": "a", "sessions": "s", "dead": "d"}
POISON = "{not json"


def trades(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Keys and values of records of three sessions."""
    rng, found = random.Random(seed), []
    for number in range(count):
        sym = rng.choice(("S0", "S1", "S2"))
        trade = Trade(sym, number, f"9{rng.randrange(10)}.5", str(rng.randrange(1, 9)), id=str(number), seq=number)
        found.append((sym, encode_record(trade).decode()))
    return found


def flash(due: Any, said: Any, queries: dict[str, Query]) -> Answer:
    query = queries[due.question]
    as_of = AsOf("r", due.partition, said.from_offset, due.offset, 0)
    name = flash_answer_id(query, due.session, "r", due.partition, due.offset)
    return Answer(name, "flash", due.session, "", as_of, said.text, None, "fake", query.id, query.version)


def good_history() -> list[Event]:
    """60 records of one partition, one of them poison; three queries and an ask, answered as they must be."""
    messages = trades(60)
    messages.insert(20, ("S0", POISON))
    log = [Logged(0, offset, key.encode(), value.encode()) for offset, (key, value) in enumerate(messages)]
    asked = max(offset for offset, (key, _) in enumerate(messages) if key == "S1")
    question = Question(ASK.id, ASK.question, ASK.max_tokens, None, frozenset({("S1", 0, asked)}))
    by_name = {name_of(query): query for query in QUERIES}
    answers: list[tuple[str, Answer]] = []
    for due, said in Model(CONTEXT, KEEP, QUERIES, [question]).answers(log):
        if due.question == ASK.id:
            as_of = AsOf("r", 0, said.from_offset, asked, 0)
            answers.append((ASK.id, Answer(ASK.id, "ask", "S1", "", as_of, said.text, None, "fake")))
        else:
            answer = flash(due, said, by_name)
            answers.append((f"{answer.query_id}/{answer.session}", answer))
    events: list[Event] = [
        {"op": "run", "scenario": "T", "seed": 0, "topics": TOPICS, "context_tokens": CONTEXT, "keep_tokens": KEEP}
    ]
    events += [
        {"op": "query", "id": query.id, "value": query.encode().decode(), "low": {}, "high": {}} for query in QUERIES
    ]
    for op in ("send", "log"):
        events += [message(op, "records", offset, *pair) for offset, pair in enumerate(messages)]
        events.append(message(op, "asks", 0, "S1", ASK.encode().decode()))
    for offset, (key, answer) in enumerate(answers):
        place = offset + offset // 10  # every tenth offset is a transaction's marker
        facts = message("seen", "answers", place, key, answer.encode().decode())
        events += [facts, {**facts, "op": "log"}]
    letter = message("log", "dead", 0, "S0", POISON)
    events.append({**letter, "headers": {"topic": "r", "partition": "0", "offset": "20", "code": "BAD_RECORD"}})
    events += [
        {"op": "sample", "seen": {"0": 30}, "committed": {"0": 31}},
        {"op": "settled", "ok": True, "why": ""},
        {"op": "ends", "topic": "answers", "committed": {"0": 99}, "all": {"0": 99}},
        {"op": "group", "topic": "records", "committed": {"0": 61}},
        {"op": "group", "topic": "asks", "committed": {"0": 1}},
    ]
    return [{"t": float(number), **event} for number, event in enumerate(events)]


def message(op: str, topic: str, offset: int, key: str, value: str) -> Event:
    return {"op": op, "topic": topic, "partition": 0, "offset": offset, "key": key, "value": value}


GOOD = good_history()


def find(events: list[Event], op: str, number: int = 5, **facts: Any) -> Event:
    return [e for e in events if e["op"] == op and all(e.get(k) == v for k, v in facts.items())][number]


def everywhere(events: list[Event], offset: int) -> list[Event]:
    """An answer as it was seen and as it stands in the log."""
    return [
        e
        for e in events
        if (e["op"] == "seen" or e.get("topic") == "answers") and e.get("offset") == offset and "key" in e
    ]


def remove(events: list[Event], gone: list[Event]) -> None:
    events[:] = [event for event in events if not any(event is each for each in gone)]


def drop_answer(events: list[Event]) -> None:
    remove(events, everywhere(events, 5))


def repeat_answer(events: list[Event]) -> None:
    events += [{**event, "offset": 90} for event in everywhere(events, 5)]


def change_answer(events: list[Event]) -> None:
    for event in everywhere(events, 5):
        event["value"] = json.dumps({**json.loads(event["value"]), "text": "?"})


def forget_context(events: list[Event]) -> None:
    for event in everywhere(events, 5):
        doc = json.loads(event["value"])
        event["value"] = json.dumps({**doc, "as_of": {**doc["as_of"], "from_offset": 999}})


def invent_answer(events: list[Event]) -> None:
    for event in everywhere(events, 5):
        doc = json.loads(event["value"])
        doc["as_of"]["offset"] = 0
        events.append({**event, "offset": 91, "value": json.dumps(doc)})


def lose_record(events: list[Event]) -> None:
    remove(events, [find(events, "log", 60, topic="records")])


def repeat_record(events: list[Event]) -> None:
    events.append({**find(events, "log", topic="records"), "offset": 70})


def replace_record(events: list[Event]) -> None:
    find(events, "send", topic="records")["value"] = "{}"


def abort_answer(events: list[Event]) -> None:
    remove(events, [event for event in everywhere(events, 5) if event["op"] == "log"])


def see_another(events: list[Event]) -> None:
    find(events, "seen")["value"] = find(events, "seen", 6)["value"]


def never_see(events: list[Event]) -> None:
    remove(events, [events_seen(events)[-1]])


def skip(events: list[Event]) -> None:
    remove(events, [events_seen(events)[4]])


def events_seen(events: list[Event]) -> list[Event]:
    return [event for event in events if event["op"] == "seen"]


def go_back(events: list[Event]) -> None:
    events.append(dict(find(events, "seen", 3)))


def swap_answers(events: list[Event]) -> None:
    """Two answers of one query and session change places in the log."""
    places = [e["offset"] for e in events_seen(events) if e["key"] == "every-3/S1"]
    first, second = (everywhere(events, places[number]) for number in (0, 1))
    for one, other in zip(first, second, strict=True):
        one["value"], other["value"] = other["value"], one["value"]


def show_early(events: list[Event]) -> None:
    find(events, "sample", 0)["committed"] = {"0": 30}


def commit_less(events: list[Event]) -> None:
    find(events, "group", 0, topic="records")["committed"] = {"0": 40}


def leave_open(events: list[Event]) -> None:
    find(events, "ends", 0)["committed"] = {"0": 98}


def get_stuck(events: list[Event]) -> None:
    find(events, "settled", 0)["ok"] = False


def crash(events: list[Event]) -> None:
    events.append({"op": "worker", "what": "crash", "slot": "a", "line": "KeyError: 3"})


def drop_reply(events: list[Event]) -> None:
    remove(events, [e for e in events if e.get("key") == ASK.id])


def repeat_reply(events: list[Event]) -> None:
    events += [{**e, "offset": 92} for e in events if e.get("key") == ASK.id]


def reply_too_early(events: list[Event]) -> None:
    for event in events:
        if event.get("topic") == "asks":
            event["value"] = Ask(**{**vars_of(ASK), "min_offset": 61}).encode().decode()


def vars_of(ask: Ask) -> dict[str, Any]:
    return {name: getattr(ask, name) for name in ask.__slots__}


def reply_to_nobody(events: list[Event]) -> None:
    remove(events, [e for e in events if e.get("topic") == "asks" and e["op"] != "group"])


def lose_letter(events: list[Event]) -> None:
    remove(events, [find(events, "log", 0, topic="dead")])


def repeat_letter(events: list[Event]) -> None:
    events.append({**find(events, "log", 0, topic="dead"), "offset": 1})


def bury_the_living(events: list[Event]) -> None:
    letter = find(events, "log", 0, topic="dead")
    events.append({**letter, "offset": 1, "headers": {**letter["headers"], "offset": "21"}})


def remove_query(events: list[Event]) -> None:
    events.append({"op": "query", "id": "every-3", "value": None, "low": {"0": 10}, "high": {"0": 12}})


SPOILT: list[tuple[Callable[[list[Event]], None], str]] = [
    (drop_answer, "lost-write"),
    (lose_record, "lost-write"),
    (drop_reply, "lost-write"),
    (lose_letter, "lost-write"),
    (repeat_answer, "duplicate"),
    (repeat_record, "duplicate"),
    (repeat_reply, "duplicate"),
    (repeat_letter, "duplicate"),
    (replace_record, "inconsistent-offsets"),
    (see_another, "inconsistent-offsets"),
    (abort_answer, "G1a"),
    (show_early, "precommitted-read"),
    (commit_less, "precommitted-read"),
    (never_see, "unseen"),
    (skip, "poll-skip"),
    (go_back, "nonmonotonic-poll"),
    (swap_answers, "nonmonotonic-send"),
    (leave_open, "hanging-transaction"),
    (change_answer, "wrong-answer"),
    (forget_context, "wrong-answer"),
    (reply_too_early, "wrong-answer"),
    (invent_answer, "phantom"),
    (reply_to_nobody, "phantom"),
    (bury_the_living, "phantom"),
    (remove_query, "phantom"),
    (get_stuck, "stuck"),
    (crash, "crash"),
]


def test_a_good_history_has_no_anomaly() -> None:
    verdict = check(Past(GOOD))
    assert verdict.anomalies == []
    assert verdict.num_answers > 30


@pytest.mark.parametrize(("spoil", "name"), SPOILT, ids=lambda item: getattr(item, "__name__", item))
def test_every_anomaly_is_found_and_named(spoil: Callable[[list[Event]], None], name: str) -> None:
    events = copy.deepcopy(GOOD)
    spoil(events)
    assert name in {anomaly.name for anomaly in check(Past(events)).anomalies}


def test_the_longest_stall_is_that_of_the_partition_that_waited_longest() -> None:
    def seen(partition: int, t: float) -> Event:
        return {"op": "seen", "t": t, "value": json.dumps({"as_of": {"partition": partition}})}

    sends = [{"op": "send", "topic": "records", "partition": p, "t": t} for p in (0, 1) for t in (1.0, 5.0, 9.0)]
    answers = [seen(0, t) for t in (2.0, 4.0, 6.0, 8.0, 9.5, 30.0)] + [seen(1, t) for t in (2.0, 8.5, 9.5)]
    assert longest_stall_s(Past([*sends, *answers])) == 6.5


def test_one_record_lost_inside_a_session_shows_in_every_later_answer() -> None:
    """The worker has skipped a record that is in the log: its answers are those of a log without it."""
    events = copy.deepcopy(GOOD)
    number = next(n for n, (key, _) in enumerate(trades(60)) if key == "S1")
    records = [event for event in events if event.get("topic") == "records" and event["op"] == "log"]
    fresh = Trade("S1", number, "1.0", "1", id=str(number), seq=number)  # the log says another price than was read
    records[number]["value"] = encode_record(fresh).decode()
    wrong = [anomaly for anomaly in check(Past(events)).anomalies if anomaly.name == "wrong-answer"]
    assert len(wrong) > 3


def test_a_query_answers_between_its_changes_and_may_do_either_while_they_spread() -> None:
    old, new = Query("q", "one?", every=1, max_tokens=2), Query("q", "two?", every=1, max_tokens=2)
    steps = [(old, {}, {}), (new, {"0": 10}, {"0": 20}), (None, {"0": 30}, {"0": 40})]
    past = Past(
        {"op": "query", "id": "q", "value": q and q.encode().decode(), "low": low, "high": high}
        for q, low, high in steps
    )
    found = versions(past)
    first, second = found[name_of(old)], found[name_of(new)]
    offsets = range(50)
    assert [o for o in offsets if first.must(0, o)] == list(range(10))
    assert [o for o in offsets if first.may(0, o)] == list(range(20))
    assert [o for o in offsets if second.must(0, o)] == list(range(20, 30))
    assert [o for o in offsets if second.may(0, o)] == list(range(10, 40))


@pytest.mark.parametrize("seed", range(5))
def test_the_model_says_what_the_slow_oracle_says(seed: int) -> None:
    messages = trades(120, seed)
    log = [Logged(0, offset, key.encode(), value.encode()) for offset, (key, value) in enumerate(messages)]
    found = [
        (due.session, due.offset, said.from_offset, due.question.split()[0], said.text)
        for due, said in Model(CONTEXT, KEEP, QUERIES).answers(log)
    ]
    as_messages = [Message("r", 0, m.offset, m.key, m.value, 0) for m in log]
    slow = expected_answers(FakeRenderer(), as_messages, list(QUERIES), CONTEXT, KEEP)
    assert sorted(found) == sorted((e.session, e.offset, e.from_offset, e.query_id, e.text) for e in slow)


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for event in GOOD:
        history.add(**{name: value for name, value in event.items() if name != "t"})
    history.close()
    assert check_file(history.path).anomalies == []
