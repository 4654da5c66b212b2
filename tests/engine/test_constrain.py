"""Masks against what they mean: what the type allows and nothing else, whatever was asked of the matchers before."""

import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from engine_world import SIGNALS, World
from llguidance import LLParserLimits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Prompts
from streamproc.engine import random_model
from streamproc.engine.build import Engine, stateless_answer
from streamproc.engine.constrain import Constrainer, Walk
from streamproc.engine.forward import Forward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.masks import unpacked
from streamproc.engine.model import load_model
from streamproc.engine.runner import ModelRunner
from streamproc.errors import BadAsk, StreamprocError
from streamproc.market.rendering import market_model
from streamproc.messages import Ask, Query, decode_answer
from streamproc.prompts import Renderer, load_tokenizer
from streamproc.schedule.plan import Chunk, Constraint, Plan
from streamproc.state.ending import finished_text

STOP = ("\n", "##")
SCHEMA = AnswerType("json", schema="""{"type": "object", "properties": {
    "price": {"type": "number", "minimum": 0, "maximum": 99999},
    "sides": {"type": "array", "items": {"enum": ["buy", "sell"]}, "maxItems": 3},
    "note": {"type": "string", "maxLength": 6}}, "required": ["price", "sides"], "additionalProperties": false}""")
PATTERN = AnswerType("regex", pattern=r"^[a-z]{2,4}#?/\d+(up|down)$")
TYPES = {
    "number": AnswerType("number"), "boolean": AnswerType("boolean"),
    "choice": AnswerType("choice", ("up", "up a lot", "down", "é")), "regex": PATTERN, "json": SCHEMA,
}
TOKENIZERS = ("characters", "market", "bytes")


def byte_pairs() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with tokens that reach over the parts of a JSON text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f'{{"price": {i}.5, "sides": ["buy", "sell"], "note": "up a lot"}}\n' for i in range(40)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "</s>", "<|end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def renderers() -> dict[str, Renderer]:
    found = (random_model.make_tokenizer(), load_tokenizer(market_model()), byte_pairs())
    return {name: Renderer(tokenizer, Prompts(), {2} if name == "bytes" else ())
            for name, tokenizer in zip(TOKENIZERS, found, strict=True)}  # fmt: skip


@pytest.fixture(scope="module")
def constrainers(renderers: dict[str, Renderer]) -> dict[str, Constrainer]:
    return {name: Constrainer(renderer, renderer.max_id + 5) for name, renderer in renderers.items()}


def grammar_of(kind: AnswerType, stop: tuple[str, ...] = STOP) -> str:
    return kind.grammar(("\n",) if kind.type == "json" else stop) or ""


def chunk(grammar: str, ids: tuple[int, ...], draft: tuple[int, ...] = (), seq_id: int = 0) -> Chunk:
    return Chunk(seq_id, 0, (5, *draft), (0,), 1 + len(draft), constraint=Constraint(grammar, ids))


def allowed(constrainer: Constrainer, asked: Chunk) -> list[list[int]]:
    rows = constrainer.masks([asked])
    return [unpacked(row, 2000).nonzero()[0].tolist() for row in rows if row is not None]


def is_right(kind: AnswerType, text: str) -> bool:
    """Written from what the types mean."""
    match kind.type:
        case "number":
            return text == "unknown" or bool(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text))
        case "boolean":
            return text in ("unknown", "yes", "no", "true", "false", "Yes", "No", "True", "False")
        case "choice":
            return text in kind.choices
        case "regex":
            return bool(re.fullmatch(kind.pattern, text, re.ASCII))
    doc = orjson.loads(text)
    assert list(doc) == ["price", "sides", "note"][: len(doc)]
    assert type(doc["price"]) in (int, float)
    assert len(doc["sides"]) <= 3
    return len(doc.get("note", "")) <= 6 and set(doc["sides"]) <= {"buy", "sell"}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_whatever_is_chosen_among_what_is_allowed_gives_a_text_of_the_type(
    tokenizer: str, name: str, renderers: dict[str, Renderer], constrainers: dict[str, Constrainer]
) -> None:
    """And what is forced is what one by one would have been, on matchers that have seen nothing."""
    renderer, constrainer, kind = renderers[tokenizer], constrainers[tokenizer], TYPES[name]
    rng, grammar, texts, num_forced = random.Random(name), grammar_of(kind), set(), 0
    stop = ("\n",) if name == "json" else STOP
    for turn in range(40):
        ids: list[int] = []
        while not ids or finished_text(renderer, ids, stop, 400) is None:
            (tokens,) = allowed(constrainer, chunk(grammar, tuple(ids), seq_id=turn))
            ends = [t for t in tokens if t in renderer.eos_ids or t in renderer.text_ids("\n")]
            new = rng.choice(ends if ends and rng.random() < 0.3 else tokens)
            forced = constrainer.forced(turn, Constraint(grammar, tuple(ids)), (new,))
            ids.append(new)
            for token in forced:
                assert allowed(constrainer.fresh(), chunk(grammar, tuple(ids))) == [[token]]
                ids.append(token)
            num_forced += len(forced)
        text = finished_text(renderer, ids, stop, 400)
        if len(ids) < 400:
            assert is_right(kind, text or "") or (text == "" and "é" in kind.choices and tokenizer == "characters")
        texts.add(text)
    assert len(texts) > 2
    assert num_forced or name == "number"


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_mask_depends_on_the_answers_tokens_alone(
    tokenizer: str, name: str, renderers: dict[str, Renderer], constrainers: dict[str, Constrainer]
) -> None:
    """Answers grow, go back, turn elsewhere; drafts hold, break, run over an end."""
    renderer, constrainer = renderers[tokenizer], constrainers[tokenizer].fresh()
    rng, grammar, ids = random.Random(name), grammar_of(TYPES[name]), []
    for _ in range(150):
        seq_id = rng.randrange(3)
        draft = []
        for _ in range(rng.randrange(5)):
            (tokens,) = allowed(constrainer.fresh(), chunk(grammar, (*ids, *draft)))
            draft.append(rng.choice(tokens) if tokens and rng.random() < 0.9 else rng.randrange(renderer.max_id))
        asked = chunk(grammar, tuple(ids), tuple(draft), seq_id)
        assert all(map(np.array_equal, constrainer.masks([asked]), constrainer.fresh().masks([asked])))
        kept = draft[: rng.randrange(len(draft) + 1)]
        if kept:
            found = constrainer.forced(seq_id, Constraint(grammar, tuple(ids)), kept)
            assert found == constrainer.fresh().forced(seq_id, Constraint(grammar, tuple(ids)), kept)
        ids = [*ids, *kept] if rng.random() < 0.8 else ids[: rng.randrange(len(ids) + 1)]
        if len(ids) > 30 or (ids and ids[-1] in renderer.eos_ids):
            ids = []


def test_where_a_text_is_whole_it_may_end_or_go_on(
    renderers: dict[str, Renderer], constrainers: dict[str, Constrainer]
) -> None:
    renderer = renderers["characters"]

    def after(kind: AnswerType, text: str, stop: tuple[str, ...] = STOP) -> str:
        ids = tuple(renderer.text_ids(text))
        (tokens,) = allowed(constrainers["characters"], chunk(kind.grammar(stop) or "", ids))
        return "".join("$" if token in renderer.eos_ids else renderer.decode([token]) for token in tokens)

    assert after(TYPES["choice"], "") == " du"
    assert after(TYPES["choice"], "up") == "$\n #"
    assert after(TYPES["choice"], "up", ()) == "$ "
    assert after(TYPES["choice"], "down") == "$"
    assert after(TYPES["choice"], "up#") == "#"
    assert after(TYPES["choice"], "up##") == "$"
    assert after(TYPES["choice"], "sideways") == ""
    assert after(TYPES["number"], " -") == "0123456789"
    assert after(TYPES["number"], "12") == "$\n#.0123456789"
    assert after(TYPES["number"], "12", (".",)) == "$.0123456789"
    assert after(TYPES["number"], "12.", (".",)) == "$"
    assert after(PATTERN, "ab") == "#/abcdefghijklmnopqrstuvwxyz"


REFUSED = (
    (AnswerType("regex", pattern="(a"), "answer.pattern: unclosed group"),
    (AnswerType("regex", pattern="(?=a)b"), "answer.pattern: look-around, including look-ahead and look-behind"),
    (AnswerType("regex", pattern=r"a\b"), "answer.pattern: lookarounds not supported yet; WordUnicode"),
    (AnswerType("regex", pattern="a{3000}{3000}"), "answer.pattern: fuel exhausted"),
    (AnswerType("regex", pattern="[a&&b]"), "answer.pattern: no text that this model can write satisfies it"),
    (AnswerType("regex", pattern="a##b"), "answer.pattern: no text that this model can write satisfies it"),
    (AnswerType("json", schema='{"type": "thing"}'), "answer.schema: Invalid type: thing"),
    (AnswerType("json", schema='{"not": {"type": "string"}}'), 'answer.schema: Unimplemented keys: ["not"]'),
    (AnswerType("json", schema='{"type": "integer", "minimum": 5, "maximum": 3}'),
     "answer.schema: Unsatisfiable schema: minimum (5) is greater than maximum (3)"),
    (AnswerType("json", schema='{"$ref": "http://example.com/schema"}'), "answer.schema: Resource 'http://example.com"),
    (AnswerType("choice", ("up", "a##b")), "answer.choices: 'a##b' holds a stop text, it would be cut there"),
)


@pytest.mark.parametrize(("kind", "reason"), REFUSED)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_what_cannot_be_compiled_has_a_reason_of_one_line(
    tokenizer: str, kind: AnswerType, reason: str, constrainers: dict[str, Constrainer]
) -> None:
    for _ in range(2):
        found = constrainers[tokenizer].why_not(grammar_of(kind)) or ""
        assert found.startswith(reason)
        assert "\n" not in found


def test_a_stop_text_that_may_stand_inside_json_is_refused(constrainers: dict[str, Constrainer]) -> None:
    reason = constrainers["bytes"].why_not(SCHEMA.grammar(("\n", "~")) or "")
    assert reason == 'stop: \'~\' may stand inside JSON, use stop = ["\\n"] or []'
    assert constrainers["bytes"].why_not(SCHEMA.grammar(()) or "") is None


def test_a_model_without_an_end_of_sequence_answers_in_text_only() -> None:
    tokenizer = random_model.make_tokenizer()
    tokenizer.eos_token = None
    reason = Constrainer(Renderer(tokenizer, Prompts()), 99).why_not(grammar_of(TYPES["number"])) or ""
    assert reason.startswith("answer: only text, this model has no end-of-sequence token")


def asked_ids(engine: Engine, words: str) -> tuple[int, ...]:
    return (*engine.renderer.prefix_ids, *engine.renderer.tail_ids(words))


@pytest.mark.parametrize("name", TYPES)
def test_a_draft_is_verified_under_the_constraint(name: str, engine: Engine) -> None:
    """Whatever was guessed, a step gives what token by token gives, and then what needs no choice."""
    kind, stop, rng = TYPES[name], ("\n",), random.Random(name)
    ids = asked_ids(engine, f"what {name} is it?")
    expected = stateless_answer(engine, ids, 40, stop, kind)
    constraint, table = Constraint(kind.grammar(stop) or ""), tuple(range(40))
    lengths = set()
    for num_held in range(min(len(expected), 12)):
        draft = (*expected[:num_held], *(rng.randrange(99) for _ in range(3)))
        plan = Plan((), (Chunk(num_held % 2, 0, (*ids, *draft), table, 4 + num_held, constraint=constraint),))
        (found,) = engine.runner.launch(plan).wait().values()
        assert found[:40] == expected[: len(found)]
        assert len(found) > num_held
        lengths.add(len(found) - num_held)
    assert expected[-1] in (2, 3) or len(expected) == 40
    if name in ("choice", "regex"):
        assert max(lengths) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["own", "torch", "kernels"])
def test_both_paths_choose_the_best_of_what_is_allowed(
    path: str, dtype: torch.dtype, forward: Callable[..., Forward], renderers: dict[str, Renderer]
) -> None:
    """By the logits of the step without a mask: of three tokens the best, beside a row that is free."""
    found = forward(path, "random-tiny", dtype)
    ids, table = tuple(range(3, 40)), (0, 1, 2)
    kv = KVCache(found.loaded.layout(16), 6, found.loaded.device)
    (free,) = run_step(found, kv, Plan((), (Chunk(0, 0, ids, table, 1),)))[0]
    better: dict[int, int] = {}
    for token in (10, 20, 30, 98):
        for other in (10, 20, 30, 98):
            row = np.zeros(4, np.uint32)
            for one in (token, other):
                row[one // 32] |= np.uint32(1 << one % 32)
            plan = Plan((), (Chunk(0, 0, ids, table, 1), Chunk(1, 0, ids, (3, 4, 5), 1)))
            best = run_step(found, kv, plan, lambda row=row: [row, None])
            assert best[0][0] in (token, other)
            assert best[1] == (free,)
            better[best[0][0]] = better.get(best[0][0], 0) + 1
    assert sorted(better.values()) == [1, 3, 5, 7]  # an order


@pytest.mark.parametrize("path", ["own", "torch", "kernels"])
def test_a_mask_hides_no_logit_that_is_no_number(path: str, forward: Callable[..., Forward]) -> None:
    found = forward(path, "random-tiny")
    kv = KVCache(found.loaded.layout(16), 3, found.loaded.device)
    row = np.array([1 << 10, 0, 0, 0], np.uint32)
    bad = KVCache(found.loaded.layout(16), 3, found.loaded.device)
    bad.scatter([0, 1, 2], torch.full((3, *bad.layout.block_shape), float("nan")))
    assert run_step(found, kv, Plan((), (Chunk(0, 0, (5, 6), (0, 1, 2), 1),)), lambda: [row]) == {0: (10,)}
    with pytest.raises(StreamprocError, match="not finite"):
        run_step(found, bad, Plan((), (Chunk(0, 20, (5, 6), (0, 1, 2), 1),)), lambda: [row])


def test_lanes_carry_constraints(engine: Engine) -> None:
    loaded, results = load_model(replace(Config().engine, model="random-tiny")), []
    constraints = [Constraint(grammar_of(kind)) for kind in (*TYPES.values(), *TYPES.values())]
    for lanes in (1, 3):
        kv = KVCache(loaded.layout(16), 60, loaded.device)
        runner = ModelRunner(loaded, kv, 1, lanes, engine.constrainer)
        chunks = [Chunk(i, 0, tuple(range(3 + i, 45)), (3 * i, 3 * i + 1, 3 * i + 2), 1,
                        constraint=constraints[i] if i % 3 else None) for i in range(10)]  # fmt: skip
        results.append(runner.launch(Plan((), tuple(chunks))).wait())
        runner.close()
    assert results[0] == results[1]
    assert len(results[0]) == 10


def test_a_query_that_cannot_be_compiled_goes_to_the_dead_topic_and_an_ask_gets_the_reason(engine: Engine) -> None:
    world = World(engine, 1)
    topics = world.config.topics
    bad, good = AnswerType("regex", pattern="(a"), AnswerType("choice", ("up", "down"))
    for name, kind in (("bad", bad), ("good", good)):
        query = Query(name, "Way {last}?", every=1, answer=kind, max_tokens=8)
        world.log.append(topics.control, 0, name.encode(), query.encode())
    world.log.produce(0, world.record("S0"))
    ask = Ask("ask-bad", "S0", "Up?", answer=AnswerType("json", schema='{"type": "thing"}'), max_tokens=8, stop=())
    world.log.append(topics.asks, 0, b"S0", ask.encode())
    world.drain()
    letters = [dict(outgoing.headers) for outgoing, _ in world.log.headers if outgoing.topic == topics.dead]
    assert [letter["reason"] for letter in letters] == [b"answer.pattern: unclosed group"]
    answers = {answer.query_id or answer.id: answer for answer in
               (decode_answer(m.value or b"") for m in world.log.read(topics.answers))}
    assert answers["ask-bad"].error == "answer.schema: Invalid type: thing"
    assert answers["good"].value in good.choices
    assert "bad" not in answers


def test_text_that_a_vocabulary_lacks_ends_the_answer(engine: Engine) -> None:
    kind = AnswerType("json", schema='{"const": "é"}')
    ids = stateless_answer(engine, asked_ids(engine, "say é"), 20, (), kind)
    text = engine.renderer.decode(ids).strip()
    assert (text, ids[-1], kind.value_of(text)) == ('"', 2, None)


def test_fields_come_in_the_order_of_the_schema(engine: Engine) -> None:
    assert all(signal.startswith('{"up": ') for signal in SIGNALS)
    kinds = [AnswerType("json", schema=orjson.dumps({
        "type": "object", "properties": {name: {"enum": [1]} for name in names}, "required": list(names),
        "additionalProperties": False}).decode()) for names in ("zab", "abz")]  # fmt: skip
    texts = [engine.renderer.decode(stateless_answer(engine, asked_ids(engine, "x"), 60, (), kind)) for kind in kinds]
    assert [text.strip() for text in texts] == ['{"z": 1, "a": 1, "b": 1}', '{"a": 1, "b": 1, "z": 1}']
    queries = [Query("q", "x", answer=kind) for kind in kinds]
    assert queries[0].version != queries[1].version


def test_the_library_is_part_of_what_answers_depend_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine.fingerprint
    monkeypatch.setattr("streamproc.engine.constrain.version", lambda name: "0.0")
    assert engine.fingerprint != before
    assert replace(engine).fingerprint == engine.fingerprint


def test_matchers_do_not_pile_up(constrainers: dict[str, Constrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproc.engine.constrain.MAX_WALKS", 8)
    monkeypatch.setattr("streamproc.engine.constrain.MAX_GRAMMARS", 4)
    constrainer: Any = constrainers["characters"].fresh()
    for i in range(50):
        kind = AnswerType("choice", (f"a{i % 7}", "b"))
        constrainer.masks([chunk(grammar_of(kind), (), seq_id=i)])
    assert 0 < len(constrainer._walks) <= 8
    for i in range(50):
        constraint = Constraint(grammar_of(TYPES["number"]), ())
        constrainer.masks([chunk(constraint.grammar, (), seq_id=i)])
        constrainer.forced(i, constraint, constrainers["characters"]._renderer.text_ids(("5", "5\n")[i % 2]))
    assert {seq_id % 2 for seq_id in constrainer._walks} == {0}
    assert len(constrainer._grammars) <= 4


HEAVY = (r"(.{3,50}[a-z]|.{2,60}[0-9]){2,5}#", r"(\p{L}{1,50}|[0-9. ]{1,30}){3,20}#")


@pytest.mark.parametrize("pattern", HEAVY)
def test_what_was_asked_before_changes_no_mask_even_where_a_pattern_is_too_large(pattern: str, engine: Engine) -> None:
    """What matchers build of a grammar they share, and the limit to that as well."""
    grammar = AnswerType("regex", pattern=pattern).grammar(())
    assert grammar

    def walked(constrainer: Constrainer, seed: int) -> list[bytes]:
        rng, ids, rows = random.Random(seed), [], []
        while len(ids) < 30 and (not ids or ids[-1] not in engine.renderer.eos_ids):
            chunk = Chunk(seed, 0, (1,), (0,), 1, constraint=Constraint(grammar, tuple(ids)))
            (row,) = constrainer.masks([chunk])
            assert row is not None
            rows.append(row.tobytes())
            if not row.any():
                break
            ids.append(int(rng.choice(np.flatnonzero(unpacked(row, engine.loaded.vocab_size)))))
        return rows

    alone = [walked(Constrainer(engine.renderer, engine.loaded.vocab_size), seed) for seed in range(4)]
    together = Constrainer(engine.renderer, engine.loaded.vocab_size)
    assert [walked(together, seed) for seed in range(4)] == alone
    assert [walked(together, seed) for seed in reversed(range(4))] == alone[::-1]


def test_an_answer_whose_type_is_too_large_to_follow_says_so_and_harms_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.engine.constrain.LIMITS", LLParserLimits(step_lexer_fuel=50, verbose_errors=False))
    world = World(engine, 1)
    topics, heavy = world.config.topics, AnswerType("regex", pattern="(a|b)*a(a|b){14}")
    query = Query("heavy", "Say {last}", every=1, answer=heavy, max_tokens=26, stop=())
    world.log.append(topics.control, 0, b"heavy", query.encode())
    world.log.produce(0, world.record("S0"))
    ask = Ask("ask-heavy", "S0", "Say it", answer=heavy, max_tokens=26, stop=())
    world.log.append(topics.asks, 0, b"S0", ask.encode())
    call = world.processor.calls.call("Say it", 26, (), heavy)
    world.drain()
    reason = "answer: what its type allows after"
    answers = {answer.query_id or answer.id: answer for answer in world.answers()}
    for name in ("heavy", "ask-heavy"):
        assert (answers[name].error or "").startswith(reason)
        assert (answers[name].text, answers[name].value) == (None, None)
    with pytest.raises(BadAsk, match=reason):
        call.result(0)
    assert answers["idle"].error is None
    context = [*engine.renderer.prefix_ids, *engine.renderer.tail_ids("x")]
    with pytest.raises(StreamprocError, match="cannot be followed beyond"):
        stateless_answer(engine, context, 200, (), heavy)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (AnswerType("json", schema=orjson.dumps({"allOf": [{"pattern": ".*0.*"}] * 40}).decode()), "members of allOf"),
        (AnswerType("regex", pattern=")|("), "answer.pattern"),
        (AnswerType("regex", pattern="\\"), "answer.pattern"),
    ],
)
def test_what_takes_for_ever_or_reaches_beyond_itself_is_refused(kind: AnswerType, reason: str, engine: Engine) -> None:
    assert reason in (engine.why_not(grammar_of(kind)) or "")


def test_masks_of_a_step_may_be_made_while_the_one_before_it_ends(
    renderers: dict[str, Renderer], constrainers: dict[str, Constrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two threads: one after the other is at the matchers, which share what they know of their grammar."""
    ids = tuple(renderers["characters"].prompt_ids("-12.5"))
    grammar = grammar_of(TYPES["number"])
    shared, alone = constrainers["characters"].fresh(), constrainers["characters"].fresh()
    wanted = [(alone.masks([chunk(grammar, ids[:i])])[0], alone.forced(0, Constraint(grammar, ids[:i]), ids[i : i + 1]))
              for i in range(len(ids))]  # fmt: skip
    go, inside, most = Walk.go, [], [0]

    def slow(walk: Walk, tokens: Sequence[int]) -> Walk:
        inside.append(walk)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()
        return go(walk, tokens)

    monkeypatch.setattr(Walk, "go", slow)

    def work(first: int) -> bool:
        return all(
            np.array_equal(shared.masks([chunk(grammar, ids[:i], seq_id=first + turn)])[0], wanted[i][0])
            and shared.forced(first + turn, Constraint(grammar, ids[:i]), ids[i : i + 1]) == wanted[i][1]
            for turn in range(5)
            for i in range(len(ids))
        )

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(work, (0, 1_000)))
    assert max(most) == 1
