"""The market model's shape, and an attention for its training: a stream and the questions forked off it in one row.

The model is transformers' own Qwen3; only its attention function is ours while it trains. It works unit by unit. The
queries of a unit are those of its tokens in the stream and of its questions; they see the stream up to the unit's end,
in a layer with a window only this unit and the one before; the questions see themselves too. What lies after a unit is
not computed, but for the rest of its segment, a quarter of a long stream.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Qwen3Config, Qwen3ForCausalLM

from streamproc.training.examples import UNIT, Batch
from streamproc.training.hints import IGNORED, LAGS, NUMBERS, SIGNS, STEPS

NAME = "streamproc_training"
WINDOW = UNIT               # so it never reaches beyond the unit before, and never cuts a question, which fits a unit
STD = 0.02                  # of fresh weights
LAG_LAYERS, SIGN_LAYERS, ORDER_LAYERS, STEP_LAYERS, POINTER_LAYERS = -4, -3, -3, -2, -1     # before the last: the hints
HIDDEN = -1e4               # added to the score of a key that is not seen
SEGMENTS, LEAST_UNITS = 4, 4    # the most parts of a stream, each of which sees the stream up to its own end
FIRST_LAYERS = ("sliding", "sliding", "full", "sliding", "full", "full")
SECOND_LAYERS = ("sliding", "full", "full", "sliding", "full", "full")
THIRD_LAYERS = ("sliding", "full", "full", "full", "full", "full")
LAYERS = ("sliding", "sliding", "full", "full", "full", "full", "full")
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "use_sliding_window": True, "sliding_window": WINDOW,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "initializer_range": STD, "max_window_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


@dataclass(frozen=True, slots=True)
class Sights:
    """What is added to the scores, 0 where a key is seen. Queries: a unit's tokens in the stream, then its questions.

    Under its window a query's keys are of the unit before, of its own unit and of its questions.
    """

    stream: Tensor              # [rows, 1, units, 1, 2 * UNIT, stream]
    questions: Tensor           # [rows, 1, units, 1, 2 * UNIT, UNIT]
    window: Tensor              # [rows, 1, units, 1, 2 * UNIT, 3 * UNIT]
    layers: tuple[str, ...]     # "sliding" or "full"


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
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(5))
        self.signs = nn.Linear(width, SIGNS)
        self.steps = nn.ModuleList(nn.Linear(width, size) for size in STEPS)
        self.pointers = nn.Linear(width, NUMBERS)
        self.lags = nn.ModuleList(nn.Linear(width, SIGNS) for _ in range(LAGS))
        self.orders = nn.ModuleList(nn.Linear(width, SIGNS) for _ in range(LAGS))

    def forward(self, hidden: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """hidden: [rows, length, width] after each layer -> mean losses by the hint's name; 0 where there is none."""
        hidden = hidden[:-1]        # the last has been normed
        return {"signs": self._loss(hidden[SIGN_LAYERS], 0, [self.signs], batch.signs[..., None]),
                "steps": self._loss(hidden[STEP_LAYERS], 1, self.steps, batch.steps),
                "pointers": self._loss(hidden[POINTER_LAYERS], 2, [self.pointers], batch.pointers[..., None]),
                "lags": self._loss(hidden[LAG_LAYERS], 3, self.lags, batch.lags),
                "orders": self._loss(hidden[ORDER_LAYERS], 4, self.orders, batch.orders)}

    def _loss(self, hidden: Tensor, norm: int, heads: Iterable[nn.Module], targets: np.ndarray) -> Tensor:
        """Mean over the heads, one for each of the targets' last dimension. targets: [rows, tokens, heads]"""
        losses = []
        for i, head in enumerate(heads):
            wanted = torch.from_numpy(targets[..., i])
            given = wanted != IGNORED
            at = self.norms[norm](hidden[:, :wanted.shape[1]][given].float())
            losses.append(mean_loss(head(at), wanted[given]))
        return torch.stack(losses).mean()


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


def layer_types(layers: tuple[str, ...]) -> list[str]:
    """As transformers names them."""
    return [f"{kind}_attention" for kind in layers]


def make_model(vocab: dict[str, int], bos_id: int, eos_id: int, seed: int,
               layers: tuple[str, ...] = LAYERS) -> Qwen3ForCausalLM:
    """Fresh weights from torch's global seed."""
    config = Qwen3Config(**SHAPE, num_hidden_layers=len(layers), layer_types=layer_types(layers),
                         vocab_size=len(vocab), bos_token_id=bos_id, eos_token_id=eos_id, pad_token_id=None)
    config._attn_implementation = NAME
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for i, row in digit_rows(vocab, config.hidden_size, generator).items():
            model.get_input_embeddings().weight[i] = row
    return model


def grown(model: Qwen3ForCausalLM, layers: tuple[str, ...], at: int) -> Qwen3ForCausalLM:
    """The same function with a layer more: a copy of the one below, which adds nothing until it is trained."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.layer_types = len(layers), layer_types(layers)
    config._attn_implementation = NAME
    with torch.random.fork_rng(devices=[]):
        new = Qwen3ForCausalLM(config)
    state = {}
    for name, value in model.state_dict().items():
        head, _, rest = name.partition("model.layers.")
        number, _, part = rest.partition(".")
        if head or not rest:
            state[name] = value
            continue
        if int(number) == at - 1:
            adds = part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            state[f"model.layers.{at}.{part}"] = torch.zeros_like(value) if adds else value.clone()
        state[f"model.layers.{int(number) + (int(number) >= at)}.{part}"] = value
    new.load_state_dict(state)
    return new


def sights(batch: Batch, dtype: torch.dtype, layers: tuple[str, ...] = LAYERS) -> Sights:
    """What every query of a batch sees, in layers of these kinds."""
    stream_tokens = batch.steps.shape[1]
    units = stream_tokens // UNIT
    asked, bases, branches = (      # of the questions, [rows, units, UNIT]
        torch.from_numpy(array[:, stream_tokens:]).unflatten(1, (units, UNIT))
        for array in (batch.positions, batch.bases, batch.branches))
    places = torch.arange(stream_tokens).view(units, UNIT).expand_as(asked)
    positions = torch.cat((places, asked), 2)[..., None]        # of the queries, [rows, units, 2 * UNIT, 1]
    ends = torch.cat((places + 1, bases), 2)[..., None]         # how much of the stream they see

    stream = torch.arange(stream_tokens) < ends
    itself = (branches[..., :, None] == branches[..., None, :]).tril()
    questions = torch.cat((torch.zeros_like(itself), itself), 2)
    near = (torch.arange(units)[:, None] * UNIT + torch.arange(-UNIT, UNIT))[:, None]       # places of keys
    is_near = (near >= 0) & (near < ends) & (near > positions - WINDOW)
    window = torch.cat((is_near, questions), 3)
    added = [torch.where(seen, 0.0, HIDDEN).to(dtype)[:, None, :, None] for seen in (stream, questions, window)]
    return Sights(added[0], added[1], added[2], layers)


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' interface: [rows, heads, length, head_dim] each -> [rows, length, heads, head_dim]."""
    seen: Sights = kwargs["sights"]
    rows, heads, length, dim = query.shape
    kv_heads, units = key.shape[1], length // (2 * UNIT)
    groups = heads // kv_heads
    queries = (query * kwargs["scaling"]).view(rows, kv_heads, groups, 2, units, UNIT, dim)
    queries = queries.permute(0, 1, 4, 2, 3, 5, 6).reshape(rows, kv_heads, units, groups * 2 * UNIT, dim)
    # keys and values, each of the stream and of the questions: [rows, kv_heads, units, UNIT, head_dim]
    keys, values = (x.view(rows, kv_heads, 2, units, UNIT, dim).unbind(2) for x in (key, value))
    attend = attend_window if seen.layers[module.layer_idx] == "sliding" else attend_all
    out = attend(queries, keys, values, seen).view(rows, kv_heads, units, groups, 2, UNIT, dim)
    return out.permute(0, 4, 2, 5, 1, 3, 6).reshape(rows, length, heads, dim), None


Both = tuple[Tensor, Tensor]    # of the stream, of the questions


def attend_window(queries: Tensor, keys: Both, values: Both, seen: Sights) -> Tensor:
    """Every unit over the unit before, itself and its questions: three tiles side by side."""
    tiles, contents = (torch.cat((F.pad(stream[:, :, :-1], (0, 0, 0, 0, 1, 0)), stream, questions), 3)
                       for stream, questions in (keys, values))
    scores = by_group(queries @ tiles.transpose(-1, -2)) + seen.window
    return weights_of(scores, contents.dtype) @ contents


def attend_all(queries: Tensor, keys: Both, values: Both, seen: Sights) -> Tensor:
    """Every unit over the stream up to its segment's end, and over its questions."""
    outs = []
    for part in segments(queries.shape[2]):
        some, end = queries[:, :, part], part.stop * UNIT
        stream_keys, stream_values = (x[0].flatten(2, 3)[:, :, :end] for x in (keys, values))
        far = (some.flatten(2, 3) @ stream_keys.transpose(-1, -2)).unflatten(2, some.shape[2:4])
        near = some @ keys[1][:, :, part].transpose(-1, -2)
        scores = torch.cat((by_group(far) + seen.stream[:, :, part, :, :, :end],
                            by_group(near) + seen.questions[:, :, part]), -1)
        weights = weights_of(scores, stream_values.dtype)
        from_stream = weights[..., :end].flatten(2, 3) @ stream_values
        outs.append(from_stream.view_as(some) + weights[..., end:] @ values[1][:, :, part])
    return torch.cat(outs, 2)


def segments(units: int) -> list[slice]:
    """A stream's units in up to SEGMENTS parts, of LEAST_UNITS or more but for the last."""
    size = -(-units // max(1, min(SEGMENTS, units // LEAST_UNITS)))
    return [slice(first, min(first + size, units)) for first in range(0, units, size)]


def by_group(scores: Tensor) -> Tensor:
    """[rows, kv_heads, units, groups * 2 * UNIT, keys] -> [rows, kv_heads, units, groups, 2 * UNIT, keys]"""
    return scores.unflatten(3, (-1, 2 * UNIT))


def weights_of(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """by_group's scores -> weights, without the groups again."""
    return torch.softmax(scores.float(), -1).to(dtype).flatten(3, 4)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
