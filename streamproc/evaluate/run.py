"""An evaluation from its settings to its report: feeds, places, questions, the real processor, the oracle."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from streamproc import ports
from streamproc.config import Config
from streamproc.errors import StreamprocError, Usage
from streamproc.evaluate.feeds import Feeds, open_feeds
from streamproc.evaluate.plan import Inquiry, draw_points
from streamproc.evaluate.play import NoQueries, Play
from streamproc.evaluate.report import Facts, Outcome, Report, Seen, judge, percent, share
from streamproc.evaluate.settings import PARTITION, Settings
from streamproc.evaluate.stretch import Stretch, Surveyor
from streamproc.market.rendering import Rendering
from streamproc.market.tape import Tapes
from streamproc.messages import Answer
from streamproc.processor import StreamProcessor
from streamproc.state.session import Shape

CONTEXT_TOKENS = 2048
MAX_ANSWER_TOKENS = 32
FILLS = 1.5  # tokens of a session, in contexts: it hops and fills up again
POINTS_PER_SESSION = 4
FEWEST_STRETCHES = 4
LINE_EVERY_S = 10.0
MOST_IDLE_STEPS = 1_000
STANDING = ports.Clock(lambda: 0.0, lambda: 0)  # nobody is ever too late: a slow model is not a wrong one

Note = Callable[[str], None]


class Engine(ports.Engine, Protocol):
    """A running model, and its own words for the questions; `streamproc.engine.build.Engine`, or a fake."""

    @property
    def rendering(self) -> Rendering: ...

    def close(self) -> None: ...


Build = Callable[[Config], Engine]


def quiet(text: str) -> None:
    """Says nothing."""


def evaluate(build: Build, config: Config, settings: Settings, note: Note = quiet) -> Report:
    """Build an engine, ask it, close it. Contexts are of CONTEXT_TOKENS unless the user has set them, if they can be.

    Raises Usage and other errors of one line for what the user has got wrong.
    """
    feeds = open_feeds(settings, note)
    engine, config = open_engine(build, config, note)
    try:
        return Evaluation(engine, config, settings, note).run(feeds)
    finally:
        engine.close()


def evaluate_engine(engine: Engine, config: Config, settings: Settings, note: Note = quiet) -> Report:
    """Ask an engine that runs already, with the settings that it was built from."""
    return Evaluation(engine, config, settings, note).run(open_feeds(settings, note))


def open_engine(build: Build, config: Config, note: Note) -> tuple[Engine, Config]:
    """An engine for long contexts; where the model or its memory does not allow them, for those of the settings."""
    if "engine.context_tokens" in config.sources:
        return build(config), config
    longer = replace(config, engine=replace(config.engine, context_tokens=CONTEXT_TOKENS))
    try:
        return build(longer), longer
    except Usage as problem:
        engine = build(config)
        note(f"contexts of {config.engine.context_tokens} tokens, not {CONTEXT_TOKENS}: {problem}")
        return engine, config


class Evaluation:
    """One evaluation of a running engine."""

    def __init__(self, engine: Engine, config: Config, settings: Settings, note: Note) -> None:
        given = config.worker.session_by if "worker.session_by" in config.sources else settings.own_session_by
        session_by = settings.session_by or given
        self.engine, self.settings, self.note = engine, settings, note
        self.config = replace(config, worker=replace(config.worker, session_by=session_by))
        self.by_partition = session_by == PARTITION

    def run(self, feeds: Feeds) -> Report:
        """Everything from the survey to the report."""
        started = time.monotonic()
        play = Play(self.config.topics, min(MAX_ANSWER_TOKENS, self.config.worker.max_answer_tokens))
        processor = StreamProcessor(self.config, self.engine, play, NoQueries(), STANDING)
        processor.connect(play)
        stretches = self._survey(feeds, processor.shape)
        points = draw_points(self.settings, self.engine.rendering.kinds, stretches)
        if not points:
            raise Usage(f"--feed: {self.settings.feed} holds nothing that can be asked")
        processor.assigned(play.begin(stretches, points))
        outcomes = self._play(play, processor, Oracle(self.engine, stretches))
        sessions = {(point.place.partition, point.place.session) for point in points}
        seconds = round(time.monotonic() - started, 3)
        return Report(self._facts(len(sessions), len(points), seconds), tuple(outcomes))

    def _facts(self, num_sessions: int, num_points: int, seconds: float) -> Facts:
        settings, engine, worker = self.settings, self.config.engine, self.config.worker
        return Facts(
            engine.model,
            self.engine.fingerprint,
            settings.feed,
            worker.session_by,
            settings.seed,
            engine.context_tokens,
            num_sessions,
            num_points,
            seconds,
        )

    def _survey(self, feeds: Feeds, shape: Shape) -> list[Stretch]:
        """Enough stretches, each long enough."""
        renderer, num_tokens = self.engine.renderer, int(FILLS * shape.context_tokens)
        num_keys = feeds.num_keys(self.by_partition)
        lengths = [len(ids) for ids in renderer.record_ids(feeds.some)]
        num_records = math.ceil(num_keys * num_tokens * len(lengths) / sum(lengths))
        num_points = math.ceil(self.settings.asks / self.settings.per_point)
        num = min(num_points, max(FEWEST_STRETCHES, math.ceil(num_points / (POINTS_PER_SESSION * num_keys))))
        surveyor = Surveyor(renderer, shape, self.by_partition, num_tokens)
        return [
            surveyor.survey(number, feeds.stretch(number, self.by_partition, num_records)) for number in range(num)
        ]

    def _play(self, play: Play, processor: StreamProcessor, oracle: "Oracle") -> list[Outcome]:
        """Until everything is answered."""
        outcomes: list[Outcome] = []
        progress = Progress(self.note, play.num_asks)
        num_idle = 0
        while not play.is_done:
            processor.step()
            outcomes += [oracle.judge(inquiry, answer) for inquiry, answer in play.answered[len(outcomes) :]]
            progress.tick(outcomes)
            num_idle = num_idle + 1 if processor.workload.is_idle else 0
            if num_idle > MOST_IDLE_STEPS:
                raise StreamprocError(f"evaluation: the worker rests at {len(outcomes)} of {play.num_asks} answers")
        return outcomes


class Oracle:
    """Says what is true of the records that an answer has seen, from its own account of them."""

    def __init__(self, engine: Engine, stretches: Sequence[Stretch]) -> None:
        self._renderer = engine.renderer
        self._stretches = {stretch.partition: stretch for stretch in stretches}

    def judge(self, inquiry: Inquiry, answer: Answer) -> Outcome:
        """Hold an answer to the truth of the context that it names; a refusal names none."""
        place, as_of = inquiry.place, answer.as_of
        from_offset, offset = (as_of.from_offset, as_of.offset) if as_of else (place.from_offset, place.offset)
        records = self._stretches[place.partition].context(place.session, from_offset, offset)
        truth = inquiry.kind.oracle(Tapes().update_all(records)[inquiry.sym], inquiry.level)
        assert truth is not None, "only what can be told is asked"
        num_tokens = len(self._renderer.prefix_ids) + sum(map(len, self._renderer.record_ids(records)))
        return judge(inquiry, answer, Seen(from_offset, num_tokens, truth))


@dataclass(slots=True)
class Progress:
    """A line now and then."""

    note: Note
    num_asks: int
    next_s: float = field(default_factory=lambda: time.monotonic() + LINE_EVERY_S)

    def tick(self, outcomes: Sequence[Outcome]) -> None:
        now_s = time.monotonic()
        if now_s >= self.next_s:
            self.next_s = now_s + LINE_EVERY_S
            right = f", {percent(share(outcomes))} % right so far" if outcomes else ""
            self.note(f"{len(outcomes)} of {self.num_asks} answered{right}")
