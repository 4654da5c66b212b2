import pytest

from streamproc.cli.produce import Progress, paced, parse_rate, parse_speed, send, since_first
from streamproc.errors import BadRecord, Usage
from streamproc.records import Trade


@pytest.mark.parametrize(("text", "rate"), [(None, None), ("100", 100), ("100/s", 100), ("2.5k/s", 2500), ("0.5", 0.5)])
def test_rates_are_records_a_second(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(("text", "speed"), [(None, None), ("10x", 10), ("0.5x", 0.5), ("3", 3)])
def test_speeds_are_factors(text, speed):
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf", "1/m", "x"])
def test_rates_and_speeds_that_are_none_are_refused(text):
    with pytest.raises(Usage, match=r"--rate .*: use N/s"):
        parse_rate(text)
    with pytest.raises(Usage, match=r"--speed .*: use a factor"):
        parse_speed("y" + text)


def trades_at(*seconds: float) -> list[Trade]:
    return [Trade("A", int((100 + second) * 1e9), "1", "1") for second in seconds]


def test_records_are_due_evenly_or_as_they_were_recorded():
    played = list(since_first(trades_at(0, 1, 5)))
    assert [due_s for due_s, _ in paced(played, 2, None)] == [0, 0.5, 1]
    assert [due_s for due_s, _ in paced(played, None, 10)] == [0, 0.1, 0.5]
    assert [due_s for due_s, _ in paced(played, None, None)] == [0, 0, 0]


class FakeProducer:
    """Acknowledges at once; waiting moves the clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_sent = self.num_acked = 0
        self.sent_at: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def poll(self, timeout_s: float) -> None:
        self.now_s += timeout_s

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        self.num_sent += 1
        self.num_acked += 1
        self.sent_at.append(self.now_s)

    def flush(self, timeout_s: float) -> int:
        return 0


def test_every_record_is_sent_at_its_time_and_progress_is_a_line_every_ten_seconds():
    producer, lines = FakeProducer(), []
    progress = Progress(lines.append, None, producer.clock)
    assert send(producer, "t", paced(since_first(trades_at(0, 1, 12, 25)), None, 1), progress) is None
    assert producer.sent_at == pytest.approx([0, 1, 12, 25], abs=0.002)
    assert len(lines) == 2
    assert lines[0].startswith("2 sent, 2 acknowledged")


@pytest.mark.parametrize("problem", [BadRecord("a.csv:3: no"), KeyboardInterrupt()])
def test_what_stops_the_sending_is_handed_on_after_the_flush(problem):
    def records():
        yield 0.0, trades_at(0)[0]
        raise problem

    producer = FakeProducer()
    assert send(producer, "t", records(), Progress([].append, None, producer.clock)) is problem
    assert producer.num_sent == 1
