"""Answers on their topic without a worker."""

from confluent_kafka import Producer

from streamproc.config import Config
from streamproc.messages import Answer, AsOf


def flash(number: int, session: str = "BTC", query: str = "trend") -> Answer:
    as_of = AsOf("r", 0, 0, number, 5)
    name, text = f"{query}-{session}-{number}", f"text {number}"
    return Answer(name, "flash", session, "Up?", as_of, text, None, "m", query, "1")


class Publisher:
    """Writes answers as a worker does: in transactions."""

    def __init__(self, config: Config) -> None:
        self.topic = config.topics.answers
        self.producer = Producer({**config.kafka, "transactional.id": config.topics.answers})
        self.producer.init_transactions()

    def publish(self, *answers: Answer, commit: bool = True) -> None:
        self.producer.begin_transaction()
        for answer in answers:
            key = f"{answer.query_id}/{answer.session}" if answer.query_id else answer.id
            self.producer.produce(self.topic, answer.encode(), key, headers={"timings": b'{"queue_ms": 0.5}'})
        if commit:
            self.producer.commit_transaction()
        else:
            self.producer.flush()
            self.producer.abort_transaction()
