"""What everybody computes: one model of random weights, one stream of tokens, the same few methods."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# as in bench_forward.py
SHAPE: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32_000,
                         "max_position_embeddings": 32_768}  # fmt: skip
SMALL: dict[str, Any] = {**SHAPE, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
QUESTION, ANSWER, PORTION, ARRIVING = 24, 8, 512, 400      # tokens
VOCAB = int(SHAPE["vocab_size"])
Ids = tuple[int, ...]
OURS = "streamproc"


class Contender(Protocol):
    """A model with a kept context of one sequence. Greedy throughout."""

    name: str
    size: int       # tokens of the context

    def grow(self, ids: Sequence[int]) -> None:
        """Compute these tokens (at most PORTION) and keep them."""

    def ask(self, ids: Sequence[int], num_answer: int) -> Ids:
        """Compute these tokens after the context -> that many answer tokens. Nothing of it is kept.

        The last answer token is not computed: an answer of n tokens takes n - 1 steps after the question's.
        """

    def verify(self, ids: Sequence[int], draft: Sequence[int]) -> Ids | None:
        """-> the tokens after `ids` and after each one of the draft, in one forward; None where that cannot be had."""

    def cut(self, num_tokens: int) -> None:
        """Keep so many tokens of the context."""

    def close(self) -> None:
        """Let go of threads and memory."""


def make_weights(shape: dict[str, Any], context_weight: float = 1.0) -> dict[str, torch.Tensor]:
    """transformers' own initialisation from a fixed seed, in bfloat16.

    `context_weight` scales what attention adds: near zero an answer depends on its question alone.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(context_weight)
    return dict(model.to(torch.bfloat16).state_dict())


def make_model(shape: dict[str, Any], weights: dict[str, torch.Tensor], attention: str) -> Any:
    """transformers' model of these weights."""
    model = LlamaForCausalLM._from_config(LlamaConfig(**shape), attn_implementation=attention, dtype=torch.bfloat16)
    model.load_state_dict(weights)
    return model.eval()


def tokens(start: int, count: int, salt: int = 0) -> Ids:
    """A piece of an endless stream; another salt gives another stream."""
    return tuple((position * 7919 + salt * 104_729 + 17) % VOCAB for position in range(start, start + count))


def question(number: int) -> Ids:
    """One of many questions."""
    return tokens(0, QUESTION, 1_000_003 + number)


def num_parameters(weights: dict[str, torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())

