"""Which models this engine computes right, checked before and after their weights are loaded.

Before: what the configuration tells. After: one short forward in which our attention function records how it was
called, and its logits beside those of the model's own attention. What fails either is refused, never guessed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from streamproc.engine import attention
from streamproc.engine.attention import Heads, attended
from streamproc.errors import Usage, one_line

NO_INTERFACE = "its attention, if it has any, does not go through transformers' attention interface"
PROBE_TOKENS = 24
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}     # of the logits' norm
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
UNSUPPORTED_EXTRAS = {"s_aux": "its attention has sinks", "position_bias": "its attention adds a position bias"}

CONFIG_CHECKS: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (lambda c: c.is_encoder_decoder, "it is an encoder-decoder"),
    (lambda c: getattr(c, "quantization_config", None), "its weights are quantised"),
    (lambda c: getattr(c, "kv_lora_rank", None), "its attention compresses K and V (MLA)"),
    (lambda c: getattr(c, "num_kv_shared_layers", 0), "its layers share K and V"),
    (lambda c: set(getattr(c, "layer_types", None) or ()) - KNOWN_LAYERS, "it has layers other than attention over "
                                                                          "all or the newest tokens"),
    (lambda c: not heads_fit(c), "its attention heads are no multiple of its heads of K and V"),
    (lambda c: "dynamic" in rope_types(c), "its rotary frequencies change with the length of the context"),
)


def refuse(model: str, reason: str) -> Usage:
    return Usage(f"engine.model: {model} is not supported: {reason}; "
                 "use a decoder-only model with standard attention, such as Llama, Qwen3, Mistral, Gemma or Phi3")


def check_config(config: Any, model: str) -> None:
    """Raises Usage where the configuration alone rules the model out."""
    for is_unsupported, reason in CONFIG_CHECKS:
        if is_unsupported(config):
            raise refuse(model, reason)
    classes = AutoModelForCausalLM._model_mapping
    if type(config) in classes and not classes[type(config)]._can_set_attn_implementation():
        raise refuse(model, NO_INTERFACE)


def heads_fit(config: Any) -> bool:
    """Whether every head of K and V serves as many heads."""
    heads, kv_heads = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    return not (isinstance(heads, int) and isinstance(kv_heads, int)) or (kv_heads > 0 and heads % kv_heads == 0)


def rope_types(config: Any) -> set[str]:
    """The kinds of rotary embedding of all layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [rope, *(table for table in rope.values() if isinstance(table, dict))]
    return {table["rope_type"] for table in tables if table.get("rope_type")}


@dataclass(frozen=True, slots=True)
class Shapes:
    """The attention's shapes as its calls showed them; equal in all layers."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]     # by layer
    softcap: float | None               # of the scaled scores


@dataclass(slots=True)
class Recorder:
    """A step without cells: causal attention over the rows at hand, and a list of the calls."""

    calls: list[Heads] = field(default_factory=list)

    def attend(self, heads: Heads) -> torch.Tensor:
        self.calls.append(heads)
        rows = torch.arange(heads.query.shape[1], device=heads.query.device)
        visible = rows[None, :] <= rows[:, None]
        if heads.window is not None:
            visible &= rows[None, :] > rows[:, None] - heads.window
        groups = heads.query.shape[0] // heads.key.shape[0]
        key, value = (x.repeat_interleave(groups, 0) for x in (heads.key, heads.value))
        mask = torch.zeros(visible.shape, dtype=key.dtype, device=key.device).masked_fill_(~visible, float("-inf"))
        return attended(heads.query, key, value, mask, heads).transpose(0, 1)


def probe(model: Any, config: Any, name: str) -> Shapes:
    """One forward with our attention and one with the model's own. Raises Usage where they disagree."""
    if not type(model)._can_set_attn_implementation():
        raise refuse(name, NO_INTERFACE)
    num_ids = model.get_input_embeddings().num_embeddings
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] * 7 % num_ids
    arguments = {"input_ids": ids, "position_ids": torch.arange(PROBE_TOKENS, device=model.device)[None],
                 "use_cache": False}
    recorder = Recorder()
    try:
        with torch.inference_mode():
            ours = model(**arguments, streamproc_step=recorder).logits
            shapes = shapes_of(recorder.calls, config, name)
            model.set_attn_implementation("eager")
            theirs = model(**arguments).logits
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as problem:
        raise refuse(name, f"its forward fails with an attention from outside ({one_line(problem)})") from problem
    finally:
        model.set_attn_implementation(attention.NAME)
    if not theirs.isfinite().all():
        raise Usage(f"engine.dtype: the logits of {name} are not finite in {str(theirs.dtype).removeprefix('torch.')}; "
                    "try engine.dtype=float32, or another model")
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
    if not error <= TOLERANCE[ours.dtype]:
        raise refuse(name, f"its own attention gives other logits than plain causal attention (by {error:.0%})")
    return shapes


def shapes_of(calls: list[Heads], config: Any, name: str) -> Shapes:
    """What the calls of one forward have in common. Raises Usage where they differ."""
    if [call.layer for call in calls] != list(range(config.num_hidden_layers)):
        raise refuse(name, f"{len(calls)} of its {config.num_hidden_layers} layers use the attention interface")
    extras = {extra for call in calls for extra, value in call.extras.items() if value is not None}
    if unsupported := sorted(extras & UNSUPPORTED_EXTRAS.keys()):
        raise refuse(name, UNSUPPORTED_EXTRAS[unsupported[0]])
    found = {(call.query.shape[0], call.key.shape[0], call.query.shape[2], call.key.shape[2], call.value.shape[2])
             for call in calls}
    heads, kv_heads, *dims = found.pop()
    if found or len(set(dims)) > 1:
        raise refuse(name, "the shapes of Q, K and V differ, or differ between layers")
    windows = tuple(call.window for call in calls)
    expected = getattr(config, "layer_types", None) or []
    if any(kind == "sliding_attention" and window is None for kind, window in zip(expected, windows, strict=False)):
        raise refuse(name, "its sliding window does not reach the attention interface")
    softcaps = {call.softcap for call in calls}
    if len(softcaps) > 1:
        raise refuse(name, "some of its layers cap their attention scores, others do not or differ")
    return Shapes(len(calls), heads, kv_heads, dims[0], windows, softcaps.pop())
