"""The market model's shape, and an attention for its training: a stream and the questions forked off it in one row.

The model is transformers' own Qwen3; only its attention function is ours while it trains. Queries of the stream see the
stream, queries of the questions see the stream up to their base and their own bin: three small products instead of one
over the whole row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Qwen3Config, Qwen3ForCausalLM

from streamproc.training.examples import BIN, Batch
from streamproc.training.hints import IGNORED, SIGNS, STEPS

NAME = "streamproc_training"
WINDOW = 64
STD = 0.02                  # of fresh weights
SIGN_LAYERS, STEP_LAYERS = 3, 4     # layers below the hints
HIDDEN = -1e4       # added to the score of a key that is not seen
LAYERS = ("sliding", "sliding", "full", "sliding", "full", "full")
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "num_hidden_layers": len(LAYERS), "layer_types": [f"{kind}_attention" for kind in LAYERS],
    "use_sliding_window": True, "sliding_window": WINDOW, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "initializer_range": STD, "max_window_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


@dataclass(frozen=True, slots=True)
class Sight:
    """What is added to the scores: 0 where a key is seen. For one kind of layer."""

    stream: Tensor      # [stream, stream]
    forks: Tensor       # [rows, 1, 1, bins, BIN, stream]
    bins: Tensor        # [rows, 1, 1, bins, BIN, BIN]


@dataclass(frozen=True, slots=True)
class Sights:
    full: Sight
    sliding: Sight


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy; a stream of quotes alone has no trades to give hints of."""
    return F.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)


class Hints(nn.Module):  # type: ignore[misc]
    """Reads hints.py's targets off the middle of the model; gone after the training.

    A question sees what the layers below have made of each record, so what is computed there, once, is recalled by all
    questions; without hints a comparison is learned from the answers alone, and late.
    """

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE["hidden_size"]
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.signs = nn.Linear(width, SIGNS)
        self.steps = nn.ModuleList(nn.Linear(width, size) for size in STEPS)

    def forward(self, hidden: tuple[Tensor, ...], signs: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """hidden: [rows, length, width] after each layer -> mean losses of signs and of steps; 0 of none."""
        compared, known = signs != IGNORED, steps[..., 0] != IGNORED
        sign_logits = self.signs(self.norms[0](hidden[SIGN_LAYERS][compared].float()))
        after = self.norms[1](hidden[STEP_LAYERS][:, :steps.shape[1]][known].float())
        losses = [mean_loss(head(after), steps[known][:, i]) for i, head in enumerate(self.steps)]
        return mean_loss(sign_logits, signs[compared]), torch.stack(losses).mean()


def digit_rows(vocab: dict[str, int], width: int, generator: torch.Generator) -> dict[int, Tensor]:
    """Embeddings for the tokens of numbers, made of their digits and their size, so that near numbers start near."""
    tens, units, single, fraction, size = (torch.randn(n, width, generator=generator) for n in (10, 10, 1, 1, 1))
    rows = {}
    for token, i in vocab.items():
        digits = token.removeprefix(".")
        if not digits.isdecimal() or len(digits) > 2:
            continue
        is_fraction, is_single = token[0] == ".", len(digits) == 1
        value = int(digits) * (10 if is_fraction and is_single else 1)
        row = tens[value // 10] + units[value % 10] + 2 * (value / 50 - 1) * size[0]
        rows[i] = (row + is_fraction * fraction[0] + is_single * single[0]) * STD
    return rows


def make_model(vocab: dict[str, int], bos_id: int, eos_id: int, seed: int) -> Qwen3ForCausalLM:
    """Fresh weights from torch's global seed."""
    config = Qwen3Config(**SHAPE, vocab_size=len(vocab), bos_token_id=bos_id, eos_token_id=eos_id, pad_token_id=None)
    config._attn_implementation = NAME
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for i, row in digit_rows(vocab, config.hidden_size, generator).items():
            model.get_input_embeddings().weight[i] = row
    return model


def sights(batch: Batch, stream_tokens: int, dtype: torch.dtype) -> Sights:
    """What every query of a batch sees."""
    place = torch.arange(stream_tokens)
    causal, near = place <= place[:, None], place[:, None] - place < WINDOW
    arrays = (batch.positions, batch.bases, batch.branches)
    positions, bases, branches = (_bins(array, stream_tokens) for array in arrays)
    sees = place < bases[..., None]
    close = positions[..., None] - place < WINDOW
    order = torch.arange(BIN)
    own = (branches[..., :, None] == branches[..., None, :]) & (order <= order[:, None])
    own_close = positions[..., :, None] - positions[..., None, :] < WINDOW

    def sight(stream: Tensor, forks: Tensor, bins: Tensor) -> Sight:
        return Sight(*(torch.where(seen, 0.0, HIDDEN).to(dtype)
                       for seen in (stream, forks[:, None, None], bins[:, None, None])))

    return Sights(sight(causal, sees, own), sight(causal & near, sees & close, own & own_close))


def _bins(array: np.ndarray, stream_tokens: int) -> Tensor:
    return torch.from_numpy(array[:, stream_tokens:]).unflatten(1, (-1, BIN))


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' interface: [rows, heads, length, head_dim] each -> [rows, length, heads, head_dim]."""
    seen: Sights = kwargs["sights"]
    sight = seen.sliding if kwargs.get("sliding_window") else seen.full
    rows, heads, _, dim = query.shape
    kv_heads, tokens = key.shape[1], sight.stream.shape[0]
    groups, bins = heads // kv_heads, sight.bins.shape[3]
    query = query * kwargs["scaling"]
    keys, values = key[:, :, :tokens], value[:, :, :tokens]

    own = query[:, :, :tokens].reshape(rows, kv_heads, groups * tokens, dim)
    scores = (own @ keys.transpose(-1, -2)).view(rows, kv_heads, groups, tokens, tokens) + sight.stream
    weights = torch.softmax(scores.float(), -1).to(value.dtype)
    stream = (weights.view(rows, kv_heads, groups * tokens, tokens) @ values).view(rows, heads, tokens, dim)

    asked = query[:, :, tokens:]
    far = asked.reshape(rows, kv_heads, groups * bins * BIN, dim) @ keys.transpose(-1, -2)
    far = far.view(rows, kv_heads, groups, bins, BIN, tokens) + sight.forks
    folded = asked.reshape(rows, kv_heads, groups, bins, BIN, dim).transpose(2, 3)
    own_keys, own_values = (x[:, :, tokens:].reshape(rows, kv_heads, bins, BIN, dim) for x in (key, value))
    near = folded.reshape(rows, kv_heads, bins, groups * BIN, dim) @ own_keys.transpose(-1, -2)
    near = near.view(rows, kv_heads, bins, groups, BIN, BIN).transpose(2, 3) + sight.bins
    weights = torch.softmax(torch.cat((far, near), -1).float(), -1).to(value.dtype)
    far, near = weights[..., :tokens], weights[..., tokens:].transpose(2, 3)
    from_stream = (far.reshape(rows, kv_heads, groups * bins * BIN, tokens) @ values).view(
        rows, kv_heads, groups, bins, BIN, dim)
    from_bins = (near.reshape(rows, kv_heads, bins, groups * BIN, BIN) @ own_values).view(
        rows, kv_heads, bins, groups, BIN, dim).transpose(2, 3)
    forks = (from_stream + from_bins).reshape(rows, heads, bins * BIN, dim)
    return torch.cat((stream, forks), 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
