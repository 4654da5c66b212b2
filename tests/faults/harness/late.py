"""Asks that were refused because the partition was too far behind: whether it was, by what everybody could see."""

import orjson

from harness.history import Past
from streamproc.messages import Answer, Ask
from streamproc.state.askdesk import PATIENCE_S

SLACK_S = 10.0  # between two answers of a partition that moves, and from a commit to the reader


class Progress:
    """When a partition's answers first had seen which of its records, and when asks were sent and answered."""

    def __init__(self, past: Past) -> None:
        self._asked = {_id(event["value"]): float(event["t"]) for event in past.of("send", topic="asks")}
        self._replied: dict[str, float] = {}
        self._seen: dict[int, list[tuple[float, int]]] = {}  # time and offset of triggered answers, by partition
        for event in past.of("seen"):
            doc = orjson.loads(event["value"])
            if doc["kind"] == "ask":
                self._replied.setdefault(doc["id"], float(event["t"]))
            elif as_of := doc.get("as_of"):
                self._seen.setdefault(as_of["partition"], []).append((float(event["t"]), as_of["offset"]))

    def is_too_late(self, ask: Ask, partition: int, answer: Answer) -> bool:
        """Whether this refusal says so, and rightly: the ask had waited for as long as asks do, in vain."""
        if not (answer.error or "").startswith("too late") or ask.min_offset is None or ask.id not in self._replied:
            return False
        asked, refused = self._asked.get(ask.id, 0.0), self._replied[ask.id]
        come = [t for t, offset in self._seen.get(partition, ()) if offset >= ask.min_offset]
        return refused - asked >= PATIENCE_S and min(come, default=refused) >= refused - SLACK_S


def _id(value: str) -> str:
    return str(orjson.loads(value)["id"])
