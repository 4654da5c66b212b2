"""From settings to a running engine, with every check that can be made before the first record."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from streamproc.answertypes import AnswerType
from streamproc.config import Config
from streamproc.engine.attention import KEY_TILE
from streamproc.engine.constrain import Constrainer
from streamproc.engine.forward import run_step
from streamproc.engine.gpu.forward import GRAPH_ROWS, scratch_bytes
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.model import load_model
from streamproc.engine.runner import ModelRunner
from streamproc.errors import StreamprocError, Usage
from streamproc.market.rendering import Rendering, read_rendering
from streamproc.memory import CPU_POOL_BYTES
from streamproc.prompts import Renderer, load_tokenizer
from streamproc.schedule.plan import STUCK, Chunk, Constraint, Plan
from streamproc.state.ending import finished_text

MIN_CONTEXT_TOKENS = 32
STEP_SHARE, LEAST_STEP_BYTES = 12, 2**30    # of a GPU's memory: for what a step computes with, beside weights and pool
TEXT = AnswerType()
SMALL_MODEL_WEIGHTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Engine:
    """What computes, and what turns records into token ids."""

    runner: ModelRunner
    renderer: Renderer
    loaded: LoadedModel
    rendering: Rendering    # what the model's folder says of records and questions
    constrainer: Constrainer

    @property
    def fingerprint(self) -> str:
        """Of weights, dtype, tokenizer, templates and what else changes an answer; 16 hex digits."""
        facts = (self.runner.fingerprint, self.renderer.fingerprint, self.constrainer.facts)
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]

    @property
    def model(self) -> str:
        """Of weights, dtype and configuration alone: the same on every machine; 16 hex digits."""
        return self.loaded.fingerprint

    def why_not(self, grammar: str) -> str | None:
        """The reason why answers cannot be held to this grammar (AnswerType.grammar), or None."""
        return self.constrainer.why_not(grammar)

    def close(self) -> None:
        self.runner.close()


def build_engine(config: Config, ranks: Ranks = ALONE) -> Engine:
    """Load the model and its tokenizer, make the KV pool. Raises Usage or Unavailable, in one line.

    ranks: the processes that share the model; this is the first of them.
    """
    check_block_size(config.engine.block_size)
    loaded = load_model(config.engine, ranks)
    rendering, tokenizer = read_rendering(loaded.folder), load_tokenizer(loaded.folder)
    try:
        renderer = Renderer(tokenizer, rendering.prompts_of(config), loaded.eos_ids)
    except Usage as problem:
        raise rendering.blame(config, loaded.folder, problem) from None
    check_fit(config, loaded, renderer)
    threads, lanes = share_threads(config.engine.threads, loaded)
    constrainer = Constrainer(renderer, loaded.vocab_size)
    runner = ModelRunner(loaded, make_cache(config, loaded), threads, lanes, constrainer)
    runner.forward.release()
    return Engine(runner, renderer, loaded, rendering, constrainer)


def share_threads(given: int, loaded: LoadedModel) -> tuple[int, int]:
    """Threads in every operation, and lanes beside each other; `given` 0: as many as torch would take.

    A model is small where waking a second thread costs more than it computes.
    """
    threads = given or torch.get_num_threads()
    num_weights = sum(weight.numel() for weight in loaded.model.parameters())
    is_small = loaded.device.type == "cpu" and loaded.ranks.size == 1 and num_weights < SMALL_MODEL_WEIGHTS
    return (1, threads) if is_small else (threads, 1)


def check_block_size(block_size: int) -> None:
    if block_size < 1 or KEY_TILE % block_size:
        raise Usage(f"engine.block_size: {block_size} does not divide {KEY_TILE}; use a power of two such as 16")


def check_fit(config: Config, loaded: LoadedModel, renderer: Renderer) -> None:
    """Raises Usage where the context, or the tokenizer, is too large for the model."""
    if loaded.max_positions is not None:
        check_positions(config, loaded.max_positions)
    if len(renderer.prefix_ids) >= config.engine.context_tokens:
        raise Usage(f"engine.context_tokens: {config.engine.context_tokens} leaves no room for records after the "
                    f"{len(renderer.prefix_ids)} tokens of the system text; raise it or shorten prompts.system")
    check_ids(loaded, renderer)


def check_ids(loaded: LoadedModel, renderer: Renderer) -> None:
    """Raises Usage where an id has no row in the embedding. Rows without an id are padding."""
    if renderer.max_id >= loaded.vocab_size:
        raise Usage(f"engine.model: its tokenizer has ids up to {renderer.max_id}, its embedding only "
                    f"{loaded.vocab_size} rows; use the tokenizer that belongs to the model")
    begin = loaded.model.config.get_text_config().bos_token_id
    for name, token_id in (("bos_token_id", begin), *(("eos_token_id", end) for end in sorted(loaded.eos_ids))):
        if isinstance(token_id, int) and token_id >= loaded.vocab_size:
            raise Usage(f"engine.model: its {name} is {token_id}, its embedding has only {loaded.vocab_size} rows; "
                        "use the config.json, generation_config.json and tokenizer that belong to the weights")


def check_positions(config: Config, max_positions: int) -> None:
    """Raises Usage where the longest sequence has more tokens than the model has positions."""
    longest, context = longest_sequence(config), config.engine.context_tokens
    if longest <= max_positions:
        return
    size = config.engine.block_size
    left = (max_positions - longest + context) // size * size
    mend = (f"use at most {left}" if left >= MIN_CONTEXT_TOKENS else
            "lower worker.max_question_tokens too, or use another model")
    raise Usage(f"engine.context_tokens: {context} with worker.max_question_tokens and worker.max_answer_tokens makes "
                f"{longest}, but {config.engine.model} has {max_positions} positions; {mend}")


def longest_sequence(config: Config) -> int:
    """Tokens of the longest sequence that can come up."""
    return config.engine.context_tokens + config.worker.max_question_tokens + config.worker.max_answer_tokens


def free_kv_bytes(config: Config, loaded: LoadedModel) -> int:
    """What the KV pool may take: on a GPU what the weights have left, less room for steps and their graphs."""
    if loaded.device.type == "cpu":
        return CPU_POOL_BYTES
    free, whole = torch.cuda.mem_get_info(loaded.device)
    room = max(int(whole) // STEP_SHARE, LEAST_STEP_BYTES)
    rows, longest = config.engine.step_tokens, longest_sequence(config)
    split = scratch_bytes(loaded, rows, longest)
    split += 2 * scratch_bytes(loaded, min(rows, GRAPH_ROWS), longest)      # in graphs, rounded up to powers of two
    room = max(room, room // 2 + split)
    if loaded.ranks.size > 1:       # each process's part of the weights is still to come
        weights = sum(weight.numel() for weight in loaded.model.parameters()) * loaded.dtype.itemsize
        free -= weights // loaded.ranks.size
    return max(int(free) - room, 0)


def make_cache(config: Config, loaded: LoadedModel) -> KVCache:
    """The pool of engine.kv_bytes. Raises Usage where it cannot hold the longest sequence or cannot be had."""
    layout = loaded.layout(config.engine.block_size)
    kv_bytes = config.engine.kv_bytes or free_kv_bytes(config, loaded) * loaded.ranks.size
    num_blocks = loaded.ranks.least(kv_bytes // (layout.block_bytes * loaded.ranks.size))
    needed = -(-longest_sequence(config) // layout.block_size) + 1      # and the copy of a partly filled block
    if num_blocks < needed:
        raise Usage(f"engine.kv_bytes: {kv_bytes} holds {num_blocks * layout.block_size} tokens of "
                    f"{loaded.kv_bytes_per_token} bytes, the longest sequence needs {needed * layout.block_size}; "
                    f"use at least {needed * layout.block_size * loaded.kv_bytes_per_token}")
    try:
        return KVCache(layout, num_blocks, loaded.device)
    except RuntimeError as problem:
        raise Usage(f"engine.kv_bytes: {kv_bytes} bytes cannot be had on {loaded.device.type}; "
                    "use fewer") from problem


def stateless_answer(engine: Engine, ids: Sequence[int], max_tokens: int, stop: Sequence[str] | None = None,
                     answer: AnswerType = TEXT) -> tuple[int, ...]:
    """The oracle: the greedy continuation of `ids`, from nothing, in one chunk and then token by token.

    Ends as every answer does (state/ending.py); stop None: the prompts' own. The token that ends it is part of the
    result. A type's masks are made from nothing for every token. Raises StreamprocError where it cannot be
    used, or followed to the end.
    """
    stop = tuple(engine.renderer.stop if stop is None else stop)
    grammar = answer.grammar(stop)
    return engine.runner.call(lambda: _continue(engine, tuple(ids), max_tokens, stop, grammar))


def _continue(engine: Engine, ids: tuple[int, ...], max_tokens: int, stop: tuple[str, ...],
              grammar: str | None) -> tuple[int, ...]:
    if not ids:
        raise StreamprocError("nothing to continue: the context is empty")
    loaded, renderer = engine.loaded, engine.renderer
    layout = loaded.layout(engine.runner.block_size)
    table = tuple(range(-(-(len(ids) + max_tokens) // layout.block_size)))
    kv = KVCache(layout, len(table), loaded.device, is_kept=False)
    answer: list[int] = []
    new, start = ids, 0
    while not answer or finished_text(renderer, answer, stop, max_tokens) is None:
        constraint = Constraint(grammar, tuple(answer)) if grammar else None
        plan = Plan((), (Chunk(0, start, new, table, 1, constraint=constraint),))
        masks = partial(engine.constrainer.fresh().masks, plan.chunks) if grammar else None
        token, = run_step(engine.runner.forward, kv, plan, masks)[0]
        if token == STUCK:
            raise StreamprocError(f"an answer's type cannot be followed beyond {len(answer)} tokens")
        start, new = start + len(new), (token,)
        answer.append(token)
    return tuple(answer)
