"""The product on real models against stateless recomputes: random records, questions, hops, chunk sizes and crashes.

In float32 against plain transformers: the unmodified model, one full forward for every token, contexts written from
the design's words. In float32 and bfloat16 against our own engine: one chunk, an empty cache, nobody beside it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from engine_world import PROMPTS, QUERIES, SIDE, SIGNALS, SIZES, World, check_cells, make_config
from oracle import Context, Expected, contexts, expected_answers, rendered
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma3TextConfig, Qwen3Config, SmolLM3Config

from streamproc.answertypes import AnswerType
from streamproc.config import Config
from streamproc.engine import build, choice, random_model
from streamproc.engine.gpu.forward import GpuForward
from streamproc.messages import Answer
from streamproc.records import encode_record

Ids = tuple[int, ...]
Answerer = Callable[[Ids, int, tuple[str, ...], AnswerType], Ids]

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 99, "eos_token_id": 2, "pad_token_id": None, "bos_token_id": 1,
    "tie_word_embeddings": False, "max_position_embeddings": 2048,
}
CONFIGS: dict[str, Any] = {
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=16, sliding_window=48,
                               layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma2": Gemma2Config(**SHAPE, query_pre_attn_scalar=16, sliding_window=48,
                           layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1]),
}
CASES = (("random-tiny", 0), ("random-tiny", 1), ("random-tiny", 2), ("qwen3", 1), ("gemma3", 0), ("gemma3", 2),
         ("gemma2", 0), ("smollm3", 1))


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
            largest = make_config(max(SIZES))
            settings = replace(largest.engine, model=str(folders.get(name, name)), dtype=dtype)
            made[name, dtype] = build.build_engine(replace(largest, engine=settings))
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
        self._check_calls()
        self._check_triggered([a for a in answers if a.query_id and not a.query_id.startswith("idle")])
        found = {(number, offset): (session, context) for number in range(2)
                 for offset, session, context in self._contexts(number)}
        texts = [self._check_answer(a, *found[a.as_of.partition, a.as_of.offset]) for a in answers if a.as_of]
        return [text for text, a in zip(texts, answers, strict=True) if len(text) > 1 and isinstance(a.value, str)]

    def _check_calls(self) -> None:
        """Those that no death of a worker has cut off."""
        renderer = self.world.engine.renderer
        for prompt, max_tokens, kind, future in self.world.calls:
            if future.done():
                assert future.result() == self._text(renderer.prompt_ids(prompt), max_tokens, PROMPTS.stop, kind)

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
        asked = source.max_tokens, stop, source.answer
        expected = self.continued(ids, *asked)
        assert tuple(self.world.watch.answers(ids))[:len(expected)] == expected     # a row too many may have come after
        assert answer.text == self._text(ids, *asked)
        check_value(answer, source)
        return answer.text

    def _text(self, ids: Any, max_tokens: int, stop: tuple[str, ...], kind: AnswerType) -> str:
        text = self.world.engine.renderer.decode(self.continued(tuple(ids), max_tokens, stop, kind))
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

    def answer(ids: Ids, max_tokens: int, stop: tuple[str, ...], kind: AnswerType) -> Ids:
        found: list[int] = []
        tokens = [tokenizer.decode([i], skip_special_tokens=True) for i in range(model.config.vocab_size)]
        while len(found) < max_tokens:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*ids, *found]]), use_cache=False, logits_to_keep=1).logits
            text = tokenizer.decode(found)
            barred = [i for i, new in enumerate(tokens) if not may_follow(kind, text, new, i == 2, stop)]
            found.append(int(logits[0, -1].index_fill(0, torch.tensor(barred, dtype=torch.int64), -torch.inf).argmax()))
            if found[-1] == tokenizer.eos_token_id or any(word in tokenizer.decode(found) for word in stop):
                break
        return tuple(found)

    return lambda *asked: made[asked] if asked in made else made.setdefault(asked, answer(*asked))


def in_one_chunk(engine: build.Engine) -> Answerer:
    """Our own engine from an empty cache."""
    made: dict[tuple[Any, ...], Ids] = {}
    return lambda *asked: made[asked] if asked in made else made.setdefault(
        asked, build.stateless_answer(engine, *asked))


def may_follow(kind: AnswerType, text: str, new: str, is_end: bool, stop: tuple[str, ...]) -> bool:
    """Whether a token may come after an answer's text so far: by trying, over all texts that the type allows."""
    if kind.type == "text":
        return True
    whole = text.removeprefix(" ")
    if is_end:
        return is_allowed(kind, whole)
    if new in stop:
        return is_allowed(kind, whole) and any(begins(kind, whole + c) for c in " .0123456789")
    return bool(new) and begins(kind, (text + new).removeprefix(" "))


def texts_of(kind: AnswerType) -> tuple[str, ...]:
    """All that it allows, but for numbers."""
    return {"choice": kind.choices, "json": SIGNALS, "number": ("unknown",),
            "boolean": ("unknown", "yes", "no", "true", "false", "Yes", "No", "True", "False")}[kind.type]


def is_allowed(kind: AnswerType, text: str) -> bool:
    return text in texts_of(kind) or (kind.type == "number" and bool(re.fullmatch(r"-?\d+(\.\d+)?", text)))


def begins(kind: AnswerType, text: str) -> bool:
    is_number = kind.type == "number" and re.fullmatch(r"-?(\d+(\.\d*)?)?", text)
    return bool(is_number) or any(whole.startswith(text) for whole in texts_of(kind))


def check_value(answer: Answer, source: Any) -> None:
    """Whatever the model, an answer is of its type, unless it was cut; then it begins one."""
    kind, text = source.answer, answer.text or ""
    assert kind.type == "text" or begins(kind, text)
    if kind.type == "json" and source.max_tokens > len(SIGNALS[-1]):
        assert text in SIGNALS
        assert answer.value == orjson.loads(text)
    if source.id == "cut-5":
        assert answer.value is None
    if source.id == "choice-4":
        assert answer.value == text in SIDE.choices


def check_variety(texts: list[str]) -> None:
    """A model that said the same whatever it has seen would pass every comparison."""
    assert len(texts) > 12
    assert len(set(texts)) > len(texts) / 2


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_in_float32_every_answer_is_what_plain_transformers_says(name: str, seed: int, engines: Any) -> None:
    world = World(engines(name, "float32"), seed)
    world.walk(30)
    check_variety(Oracle(world, plain_transformers(world.engine, ("eager", "sdpa")[seed % 2])).check())
    check_variety(Oracle(world, in_one_chunk(world.engine)).check())
    assert check_cells(world)
    assert world.num_hopped


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_in_bfloat16_answers_and_cells_are_those_of_one_chunk(name: str, seed: int, engines: Any) -> None:
    world = World(engines(name, "bfloat16"), seed + len(SIZES))
    world.walk(30)
    check_variety(Oracle(world, in_one_chunk(world.engine)).check())
    assert check_cells(world)
    assert world.num_hopped


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(len(SIZES)))
def test_restored_or_evicted_to_host_memory_answers_and_cells_are_those_of_one_chunk(
    seed: int, dtype: str, engines: Any, tmp_path: Path
) -> None:
    world = World(engines("random-tiny", dtype), seed, tmp_path)
    world.walk(40)
    world.writer.wait(5.0)
    world.die()
    num_loaded = world.watch.num_loaded
    world.start()
    world.drain()
    assert world.watch.num_loaded > num_loaded
    check_variety(Oracle(world, in_one_chunk(world.engine)).check())
    assert check_cells(world)
    assert world.num_hopped
    world.die()
    assert not [note for note in world.notes if "passed over" not in note]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_right_where_torch_computes(dtype: str, engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "cpu_forward", lambda *_: None)
    settings = make_config(SIZES[0])
    engine = build.build_engine(replace(settings, engine=replace(settings.engine, model="random-tiny", dtype=dtype)))
    world = World(engine, 3)
    world.walk(12)
    Oracle(world, in_one_chunk(engine)).check()
    assert engine.runner.forward.name == "torch"


@pytest.mark.parametrize(("name", "seed"), [("random-tiny", 0), ("random-tiny", 3), ("gemma3", 3)])
def test_answers_are_right_by_the_gpus_forward(
    name: str, seed: int, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with the references of its kernels."""
    monkeypatch.setattr(choice, "cpu_forward", lambda loaded, block_size, _: choice.gpu_forward(loaded, block_size))
    model, settings = str(engines(name, "float32").loaded.folder), make_config(SIZES[0])
    engine = build.build_engine(replace(settings, engine=replace(settings.engine, model=model, dtype="float32")))
    assert isinstance(engine.runner.forward, GpuForward)
    assert engine.runner.exact
    world = World(engine, seed)
    world.walk(12)
    Oracle(world, in_one_chunk(engine)).check()
    engine.close()
    engine.close()


@pytest.fixture
def world(engines: Any) -> World:
    """A walk that is over, and right."""
    world = World(engines("random-tiny", "float32"), 7)
    world.walk(30)
    Oracle(world, in_one_chunk(world.engine)).check()
    assert check_cells(world)
    assert world.num_guessed > world.num_held > 10
    assert sum(future.done() for *_, future in world.calls) > 3
    return world


def test_a_wrong_cell_is_seen_in_the_cells_and_in_the_next_answers(world: World) -> None:
    """The newest token's in every session: some of them hop, and compute again what they keep."""
    kv, size = world.engine.runner.kv, world.engine.runner.block_size
    for generation in world.generations():
        position = generation.num_computed - 1
        block_id = generation.block_table[position // size]
        block = kv.gather([block_id])
        block[..., position % size, :] *= -1
        kv.scatter([block_id], block)
    with pytest.raises(AssertionError, match="cells differ"):
        check_cells(world)
    for number in range(world.size.num_sessions):
        world.ask(number)
    world.drain()
    with pytest.raises(AssertionError):
        Oracle(world, in_one_chunk(world.engine)).check()


@pytest.mark.parametrize("change", ["lost", "changed"])
def test_one_record_is_missed_in_the_answers(change: str, world: World) -> None:
    place = (world.config.topics.records, 0)
    messages = world.log.topics[place]
    middle = messages[len(messages) // 2]
    record = encode_record(world.record((middle.key or b"").decode()))
    other = [middle._replace(value=record)] if change == "changed" else []
    world.log.topics[place] = [m for message in messages for m in (other if message is middle else [message])]
    with pytest.raises(AssertionError):
        Oracle(world, in_one_chunk(world.engine)).check()
