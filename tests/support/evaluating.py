"""What the tests of an evaluation share: a small context, and a model that is right unless it is told to err."""

from collections.abc import Callable
from functools import cache

from reading import PlainRenderer, ReadingEngine, ReadingRunner

from streamproc.config import Config, Engine, Worker
from streamproc.evaluate import Report, Settings, evaluate_engine

CONTEXT = 1024
CONFIG = Config(
    engine=Engine(context_tokens=CONTEXT, step_tokens=256, block_size=16),
    worker=Worker(slot="test", max_question_tokens=200, max_answer_tokens=40),
    sources={"engine.context_tokens": "test"},
)
SETTINGS = Settings(asks=320, seed=7)


def engine(alter: Callable[[str, str], str] = lambda kind, truth: truth, forgets: int = 0) -> ReadingEngine:
    return ReadingEngine(ReadingRunner(alter, forgets), PlainRenderer())


@cache
def report_of_a_right_model() -> Report:
    return evaluate_engine(engine(), CONFIG, SETTINGS)
