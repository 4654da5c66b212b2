"""The product on real models against stateless recomputes: random records, questions, hops, chunk sizes and crashes.

In float32 against plain transformers: the unmodified model, one full forward for every token, contexts written from
the design's words. In float32 and bfloat16 against our own engine: one chunk, an empty cache, nobody beside it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeClock, FakeControl, FakeEngine, FakeSink, FakeSource, Log
from oracle import Context, Expected, contexts, expected_answers, rendered
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, Qwen3Config
from watch import WatchedRunner

from streamproc.config import Config, Engine, Prompts, Worker
from streamproc.engine import build, random_model
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.runner import run_step
from streamproc.messages import Answer, Ask, Query, decode_answer
from streamproc.processor import StreamProcessor
from streamproc.records import Quote, Record, Trade
from streamproc.schedule.plan import Chunk, Plan
from streamproc.state.session import Generation

Ids = tuple[int, ...]
Answerer = Callable[[Ids, int, tuple[str, ...]], Ids]

PROMPTS = Prompts(system="Feed\n", trade="{sym} {px} {sz}\n", quote="{sym} {bid_px} {ask_px}\n", stop=("\n", "~"))
MAX_QUESTION, MAX_ANSWER = 48, 8
# context, step, pool in longest sequences: many short pieces and evictions, all in one piece, more than a tile of keys
SIZES = ((144, 17, 1), (208, 300, 4), (592, 90, 2))
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 99, "eos_token_id": 2, "pad_token_id": None, "bos_token_id": 1,
    "tie_word_embeddings": False, "max_position_embeddings": 2048,
}
CONFIGS: dict[str, Any] = {
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=16, sliding_window=48,
                               layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
}
CASES = (("random-tiny", 0), ("random-tiny", 1), ("random-tiny", 2), ("qwen3", 1), ("gemma3", 0), ("gemma3", 2))
QUERIES = (
    Query("every-3", "last {last}, {count} so far?", "*", every=3, max_tokens=5),
    Query("every-5", "{session} high {high}?", "S0", every=5, max_tokens=4, stop=("e", "7", "Q")),
    Query("change-2", "up?", "S*", every=2, emit="change", max_tokens=1),
    Query("idle", "now {mid}?", "*", max_tokens=3),
)


def write_model(name: str, folder: Path) -> Path:
    """A model with seeded weights, large enough that its greedy text hangs on the context; a token a character."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
        model.get_input_embeddings().weight.mul_(0.2)  # what a token sees should weigh more than what it is
        model.lm_head.weight[: len(random_model.SPECIALS)] = 0
    model.save_pretrained(folder)
    random_model.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engines(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name, dtype) -> engine, built once, as the worker builds it."""
    made: dict[tuple[str, str], build.Engine] = {}
    folders = {name: write_model(name, tmp_path_factory.mktemp(name)) for name in CONFIGS}

    def engine(name: str, dtype: str) -> build.Engine:
        if (name, dtype) not in made:
            settings = replace(world_config(640, 256).engine, model=str(folders.get(name, name)), dtype=dtype)
            made[name, dtype] = build.build_engine(replace(world_config(640, 256), engine=settings))
        return made[name, dtype]

    yield engine
    for one in made.values():
        one.close()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    """The reference's forwards are too small to be shared by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world_config(context_tokens: int, step_tokens: int) -> Config:
    engine = Engine(context_tokens=context_tokens, step_tokens=step_tokens, kv_bytes=4 * 2**20, threads=1)
    worker = Worker(slot="test", commit_interval_ms=10, max_question_tokens=MAX_QUESTION, max_answer_tokens=MAX_ANSWER)
    return Config(engine=engine, worker=worker, prompts=PROMPTS)


class World:
    """A log, and a worker with a real engine that may die at any moment."""

    def __init__(self, engine: build.Engine, seed: int) -> None:
        self.rng = random.Random(seed)
        self.engine = engine
        context_tokens, step_tokens, num_longest = SIZES[seed % len(SIZES)]
        self.config = world_config(context_tokens, step_tokens)
        longest = -(-build.longest_sequence(self.config) // engine.runner.block_size) + 1
        self.watch = WatchedRunner(engine.runner, num_longest * longest)
        self.log = Log(self.config)
        self.clock = FakeClock()
        self.fate = "ok"
        self.asks: dict[str, Ask] = {}
        for query in QUERIES:
            self.log.append(self.config.topics.control, 0, query.id.encode(), query.encode())
        self.start()

    def start(self) -> None:
        """A new worker; what the one before held in memory is gone, its cells hold what they held."""
        engine = FakeEngine(self.watch, self.engine.renderer, self.engine.fingerprint)
        sink = FakeSink(self.log, lambda: self.fate)
        self.processor = StreamProcessor(self.config, engine, sink, FakeControl(self.log), self.clock.clock())
        self.source = FakeSource(self.log, batch=self.rng.choice((1, 4, 30)))
        self.source.listener = self.processor
        self.processor.connect(self.source)
        self.source.assign(range(2))

    def walk(self, num_turns: int) -> None:
        """Records and asks come in, steps are made, epochs fail, workers die."""
        for _ in range(num_turns):
            for _ in range(self.rng.choice((0, 1, 1, 4))):
                number = self.rng.randrange(3)
                self.log.produce(number % 2, self.record(f"S{number}"))
            if self.rng.random() < 0.12:
                self.ask(self.rng.randrange(3))
            self.fate = self.rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
            self.clock.now_s += self.rng.choice((0.0, 0.004, 0.02))
            self.processor.step()
            self.processor.check()
            if self.rng.random() < 0.04:
                check_cells(self)
                self.start()
        self.drain()

    def record(self, sym: str) -> Record:
        rng, when = self.rng, self.rng.randrange(10**6)
        if rng.random() < 0.3:
            return Quote(sym, when, f"{rng.randrange(90, 100)}.5", f"{rng.randrange(100, 110)}.25")
        return Trade(sym, when, f"{rng.randrange(90, 110)}.{rng.randrange(100):02}", str(rng.randrange(1, 900)))

    def ask(self, number: int) -> Ask:
        """A question to a session of which there is a record."""
        sym, partition = f"S{number}", number % 2
        offset = self.log.produce(partition, self.record(sym))
        ask = Ask(f"ask-{len(self.asks)}", sym, "how is {last}?", min_offset=offset, max_tokens=MAX_ANSWER)
        self.log.append(self.config.topics.asks, partition, sym.encode(), ask.encode())
        self.asks[ask.id] = ask
        return ask

    def drain(self) -> None:
        """Until nothing is left to do."""
        self.fate = "ok"
        for _ in range(10_000):
            self.clock.now_s += 0.02
            self.processor.step()
            idle = self.processor.workload.is_idle and self.source.is_drained
            if idle and not any(p.finished or p.replies or p.dirty for p in self.processor.partitions.values()):
                return
        raise AssertionError("the worker does not come to rest")

    def generations(self) -> list[Generation]:
        """All that hold cells."""
        sessions = [s for partition in self.processor.partitions.values() for s in partition.sessions.values()]
        return [generation for s in sessions for generation in s.generations if generation.num_computed]

    def answers(self) -> list[Answer]:
        return [decode_answer(message.value or b"") for message in self.log.read(self.config.topics.answers)]


@dataclass
class Oracle:
    """What a world's log says that the answers are, given how to continue a context."""

    world: World
    continued: Answerer

    def check(self) -> list[str]:
        """Every answer is there once and right -> the texts of more than a token."""
        answers = self.world.answers()
        assert len({answer.id for answer in answers}) == len(answers)
        assert sorted(a.id for a in answers if a.kind == "ask") == sorted(self.world.asks)
        self._check_triggered([a for a in answers if a.query_id and a.query_id != "idle"])
        found = {(number, offset): (session, context) for number in range(2)
                 for offset, session, context in self._contexts(number)}
        texts = [self._check_answer(a, *found[a.as_of.partition, a.as_of.offset]) for a in answers if a.as_of]
        return [text for text in texts if len(text) > 1]

    def _check_triggered(self, answers: list[Answer]) -> None:
        """The log alone decides which of them there are."""
        queries = [query for query in QUERIES if query.every]
        for number in range(2):
            expected = expected_answers(self.world.engine.renderer, self._messages(number), queries, *self._sizes(),
                                        lambda _, *asked: self._text(*asked))
            here = [Expected(a.session, a.as_of.offset, a.as_of.from_offset, a.query_id or "", a.text or "")
                    for a in answers if a.as_of and a.as_of.partition == number]
            assert sorted(here, key=lambda e: (e.offset, e.query_id)) == expected

    def _check_answer(self, answer: Answer, session: str, context: Context) -> str:
        """Its tokens, one by one, and its text."""
        source: Any = self.world.asks.get(answer.id) or next(q for q in QUERIES if q.id == answer.query_id)
        question = rendered(source, session, context)
        assert (answer.session, answer.question, answer.error) == (session, question, None)
        stop = PROMPTS.stop if source.stop is None else source.stop
        ids = (*context.ids, *self.world.engine.renderer.tail_ids(question))
        assert tuple(self.world.watch.answers(ids)) == self.continued(ids, source.max_tokens, stop)
        assert answer.text == self._text(ids, source.max_tokens, stop)
        return answer.text

    def _text(self, ids: Any, max_tokens: int, stop: tuple[str, ...]) -> str:
        text = self.world.engine.renderer.decode(self.continued(tuple(ids), max_tokens, stop))
        return text[: min([text.index(word) for word in stop if word in text], default=len(text))].strip()

    def _contexts(self, number: int) -> Any:
        return contexts(self.world.engine.renderer, self._messages(number), *self._sizes())

    def _sizes(self) -> tuple[int, int]:
        settings = self.world.config.engine
        return settings.context_tokens, int(settings.context_tokens * settings.keep)

    def _messages(self, number: int) -> Any:
        return self.world.log.read(self.world.config.topics.records, number)


def plain_transformers(engine: build.Engine, attention: str) -> Answerer:
    """The unmodified model: for every token one forward over all ids, with no cache."""
    model = AutoModelForCausalLM.from_pretrained(engine.loaded.folder, dtype=torch.float32,
                                                 attn_implementation=attention).eval()
    tokenizer = AutoTokenizer.from_pretrained(engine.loaded.folder)
    made: dict[tuple[Any, ...], Ids] = {}

    def answer(ids: Ids, max_tokens: int, stop: tuple[str, ...]) -> Ids:
        found: list[int] = []
        while len(found) < max_tokens:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*ids, *found]]), use_cache=False, logits_to_keep=1).logits
            found.append(int(logits[0, -1].argmax()))
            if found[-1] == tokenizer.eos_token_id or any(word in tokenizer.decode(found) for word in stop):
                break
        return tuple(found)

    return lambda *asked: made[asked] if asked in made else made.setdefault(asked, answer(*asked))


def in_one_chunk(engine: build.Engine) -> Answerer:
    """Our own engine from an empty cache."""
    made: dict[tuple[Any, ...], Ids] = {}
    return lambda *asked: made[asked] if asked in made else made.setdefault(
        asked, build.stateless_answer(engine, *asked))


def cells(kv: KVCache, table: tuple[int, ...], num_tokens: int) -> torch.Tensor:
    """[layers, 2, kv_heads, num_tokens, head_dim]"""
    return kv.gather(table).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[:, :, :, :num_tokens]


def check_cells(world: World) -> int:
    """Every live generation's cells are those of one chunk from nothing -> how many were compared."""
    runner, loaded, num_cells = world.engine.runner, world.engine.loaded, 0
    for generation in world.generations():
        num_tokens = generation.num_computed
        table = tuple(range(-(-num_tokens // runner.block_size)))
        fresh = KVCache(runner.kv.layout, len(table), loaded.device)
        plan = Plan((), (Chunk(0, 0, tuple(generation.token_ids[:num_tokens]), table, False),))
        runner.call(lambda fresh=fresh, plan=plan: run_step(loaded, fresh, plan, runner.row_multiple))
        ours = cells(runner.kv, tuple(generation.block_table[: len(table)]), num_tokens)
        assert torch.equal(ours, cells(fresh, table, num_tokens)), f"cells differ in a generation of {num_tokens}"
        num_cells += num_tokens
    return num_cells


def check_variety(texts: list[str]) -> None:
    """A model that said the same whatever it has seen would pass every comparison."""
    assert len(texts) > 12
    assert len(set(texts)) > len(texts) / 2


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_in_float32_every_answer_is_what_plain_transformers_says(name: str, seed: int, engines: Any) -> None:
    world = World(engines(name, "float32"), seed)
    world.walk(36)
    check_variety(Oracle(world, plain_transformers(world.engine, ("eager", "sdpa")[seed % 2])).check())
    check_variety(Oracle(world, in_one_chunk(world.engine)).check())
    assert check_cells(world)


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_in_bfloat16_answers_and_cells_are_those_of_one_chunk(name: str, seed: int, engines: Any) -> None:
    world = World(engines(name, "bfloat16"), seed + len(SIZES))
    world.walk(36)
    check_variety(Oracle(world, in_one_chunk(world.engine)).check())
    assert check_cells(world)


@pytest.fixture
def world(engines: Any) -> World:
    """A walk that is over, and right."""
    world = World(engines("random-tiny", "float32"), 7)
    world.walk(30)
    Oracle(world, in_one_chunk(world.engine)).check()
    assert check_cells(world)
    return world


def test_one_wrong_cell_is_seen_in_the_cells_and_in_the_next_answer(world: World) -> None:
    kv = world.engine.runner.kv
    generation = next(g for g in world.generations() if not g.is_retired)
    table, position = generation.block_table, generation.num_computed - 1
    block = kv.gather(table[position // 16 :][:1])
    block[:, :, :, :, position % 16] *= -1
    kv.scatter(table[position // 16 :][:1], block)
    with pytest.raises(AssertionError, match="cells differ"):
        check_cells(world)
    for number in range(3):
        world.ask(number)
    world.drain()
    with pytest.raises(AssertionError):
        Oracle(world, in_one_chunk(world.engine)).check()


def test_one_lost_record_is_seen(world: World) -> None:
    topics = world.config.topics
    messages = world.log.read(topics.records)
    world.log.topics[topics.records, 0] = [m for m in messages if m.offset != len(messages) // 2]
    with pytest.raises((AssertionError, KeyError)):
        Oracle(world, in_one_chunk(world.engine)).check()
