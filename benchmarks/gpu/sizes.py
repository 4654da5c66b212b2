"""How large everything is: for a GPU, and for trying the suite itself on two cores of a CPU (`--tiny`)."""

from dataclasses import dataclass, field
from typing import Any

LLAMA_8B: dict[str, Any] = {    # meta-llama/Llama-3.1-8B
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}  # fmt: skip
LLAMA_50M: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 16000, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths are tokens."""

    model: dict[str, Any] = field(default_factory=lambda: LLAMA_8B)
    oracle_model: dict[str, Any] = field(default_factory=lambda: LLAMA_50M)
    block_size: int = 16
    contexts: tuple[int, ...] = (2_000, 8_000, 19_000, 32_000)
    middle: int = 19_000            # the context of the targets, of many sessions, and of decode steps
    batches: tuple[int, ...] = (1, 4, 16, 64)
    portion: int = 2_048            # of a prefill step
    question: int = 24
    answer: int = 8
    arriving: int = 400             # since the last question, in S1
    repeats: int = 7
    standing: int = 8               # questions of a session
    record: int = 16
    records: int = 4                # of a session, until its questions are due again
    fleet: int = 64                 # sessions
    mixed: tuple[int, int] = (32, 1_000)    # S4: sessions, and how long they are
    mixed_rounds: int = 3
    asks: int = 200                 # S3
    # kernels
    head_dims: tuple[int, ...] = (64, 80, 96, 128, 256)
    heads: tuple[int, int] = (8, 2)
    attention_rows: int = 150
    attention_start: int = 900
    attention_ways: int = 100
    cuts: tuple[int, ...] = (1, 3, 8, 40)
    max_rows: int = 300             # of products whose rows are compared bit by bit
    widths: tuple[int, ...] = (4096, 80, 8192)
    products: tuple[tuple[int, int], ...] = ((6144, 4096), (4096, 14336), (1000, 1600))     # columns, depth
    vocab: int = 128256
    decode_contexts: tuple[int, ...] = (2_000, 8_000, 19_000, 32_000)
    prefill_contexts: tuple[int, ...] = (2_048, 4_096, 8_192)
    product_rows: tuple[int, ...] = (1, 4, 16, 64, 2_048)
    # ceilings and moves of blocks
    moved_bytes: int = 2**30
    product_size: int = 8_192
    flushed_bytes: int = 2**28      # more than any chip's last cache
    oracle_tokens: int = 1_100
    compared: int = 64              # contexts whose greedy tokens are compared


FULL = Sizes()
TINY = Sizes(
    model=LLAMA_TINY, oracle_model=LLAMA_TINY, contexts=(40, 96), middle=40, batches=(1, 3), portion=32, question=5,
    answer=3, arriving=9, repeats=2, standing=2, record=4, records=2, fleet=3, mixed=(2, 24), mixed_rounds=1, asks=5,
    head_dims=(16, 24), heads=(4, 2), attention_rows=14, attention_start=50, attention_ways=4, cuts=(1, 8), max_rows=70,
    widths=(64, 24), products=((96, 128), (40, 200)), vocab=5000, decode_contexts=(40,), prefill_contexts=(48,),
    product_rows=(1, 20), moved_bytes=2**22, product_size=256, flushed_bytes=2**20, oracle_tokens=90,
    compared=6)  # fmt: skip
