"""transformers as a peer, at its strongest here: the same weights, a kept cache, no `generate` around its forward.

    static      a StaticCache exactly as long as needed; its forwards captured in CUDA graphs where that works
    dynamic     a DynamicCache, cropped after each question
    batching    its continuous batching, prefixes shared by pages
"""

import importlib.util
import itertools
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

import torch
from asking import Asking
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from gpu.models import Ids
from gpu.timing import Clock

PAGE = 32       # tokens: prefixes are shared by whole pages
WARM = 2        # forwards before one is captured


class KeptCache(Asking):
    """A context of one sequence."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device, self.size = model, device, 0
        model.set_attn_implementation("sdpa")

    def fill(self, size: int) -> None:
        """A context of random keys and values: how long a question takes does not depend on them."""
        raise NotImplementedError

    def grow(self, ids: Sequence[int]) -> None:
        self._step(self.size, ids, 1)
        self.size += len(ids)

    def cut(self, size: int) -> None:
        self.size = size
        self._crop()

    def close(self) -> None:
        """Free its cache."""


class Dynamic(KeptCache):
    name = "transformers dynamic"

    def __init__(self, model: Any, device: torch.device) -> None:
        super().__init__(model, device)
        self._cache: Any = DynamicCache(config=model.config)

    def close(self) -> None:
        self._cache = None

    def fill(self, size: int) -> None:
        config = self.model.config
        shape = 1, config.num_key_value_heads, size, config.head_dim
        for layer in range(config.num_hidden_layers):
            self._cache.update(*(torch.randn(shape, dtype=self.model.dtype, device=self.device) for _ in range(2)),
                               layer)
        self.size = size

    def _step(self, start: int, ids: Sequence[int], num_samples: int) -> Ids:
        with torch.inference_mode():
            places = torch.arange(start, start + len(ids), device=self.device)[None]
            logits = self.model(input_ids=torch.tensor([ids], device=self.device), position_ids=places, use_cache=True,
                                past_key_values=self._cache, logits_to_keep=num_samples).logits
            return tuple(logits[0].argmax(-1).tolist())

    def _crop(self) -> None:
        self._cache.crop(self.size - self._cache.get_seq_length())


class Static(KeptCache):
    """`how` tells whether its forwards are graphs; a mask of its own, since making one waits for the device."""

    name = "transformers static"

    def __init__(self, model: Any, device: torch.device, num_tokens: int) -> None:
        super().__init__(model, device)
        self._cache: Any = StaticCache(model.config, max_cache_len=num_tokens)
        self._keys = torch.arange(num_tokens, device=device)
        self._steps: dict[tuple[int, int], Any] = {}
        self._length: int | None = None     # that the cache has, where it is known
        self.how = "CUDA graphs" if device.type == "cuda" else "launched"

    def close(self) -> None:
        self._steps.clear()
        self._cache = None

    def fill(self, size: int) -> None:
        self._step(0, (0,), 1)      # it makes its tensors when it sees the first ones
        with torch.inference_mode():
            for layer in self._cache.layers:
                layer.keys.normal_()
                layer.values.normal_()
        self.size = size

    def _step(self, start: int, ids: Sequence[int], num_samples: int) -> Ids:
        key = len(ids), num_samples
        with torch.inference_mode():
            if key not in self._steps:
                self._steps[key] = self._prepared(*key, start)
            token_ids, places, replay, out = self._steps[key]
            token_ids.copy_(torch.tensor([ids]))
            places.copy_(torch.arange(start, start + len(ids)))
            self._set_length(start)
            if replay is None:
                out = self._forward(token_ids, places, num_samples)
            else:
                replay()
            self._length = start + len(ids)
            return tuple(out.tolist())

    def _prepared(self, count: int, num_samples: int, start: int) -> tuple[Any, ...]:
        """Where a forward of so many tokens reads its input, what repeats it, and where its result lies then."""
        token_ids = torch.zeros(1, count, dtype=torch.int64, device=self.device)
        places = torch.arange(start, start + count, device=self.device)
        if self.how != "CUDA graphs" or count > PAGE * 2:       # long ones compute for longer than they launch
            return token_ids, places, None, None
        try:
            for _ in range(WARM):
                self._set_length(start)
                self._forward(token_ids, places, num_samples)
            self._set_length(start)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = self._forward(token_ids, places, num_samples)
        except RuntimeError as problem:
            self.how = f"launched: {str(problem).split(chr(10), 1)[0][:80]}"
            torch.cuda.synchronize()
            return token_ids, places, None, None
        return token_ids, places, graph.replay, out

    def _forward(self, token_ids: torch.Tensor, places: torch.Tensor, num_samples: int) -> torch.Tensor:
        self._length = None
        mask = (self._keys[None] <= places[:, None])[None, None]
        logits = self.model(input_ids=token_ids, position_ids=places[None], attention_mask=mask, use_cache=True,
                            past_key_values=self._cache, logits_to_keep=num_samples).logits
        return logits[0].argmax(-1)

    def _set_length(self, size: int) -> None:
        """A step leaves it as the next one needs it."""
        if self._length != size:
            for layer in self._cache.layers:
                layer.cumulative_length.fill_(size)

    def _crop(self) -> None:
        """Nothing: every step says where it begins."""


def batching_settings(known: Collection[str], num_tokens: int, portion: int) -> dict[str, Any]:
    """Of continuous batching, by what this transformers calls them: 5.17 has blocks where later ones have pages."""
    settings = {"page_size" if "page_size" in known else "block_size": PAGE, "num_blocks": -(-num_tokens // PAGE),
                "max_batch_tokens": portion}
    if "auto_switch_to_flash" in known:
        settings["auto_switch_to_flash"] = importlib.util.find_spec("flash_attn") is not None   # else it is downloaded
    return settings


class Batching:
    """transformers' continuous batching: a request carries all its tokens, whole pages of which are known already."""

    name = "transformers continuous batching"

    def __init__(self, model: Any, num_tokens: int, portion: int, clock: Clock) -> None:
        self._clock, self._numbers = clock, itertools.count()
        model.set_attn_implementation("sdpa")
        generation = GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=model.config.vocab_size,
                                      pad_token_id=0)
        settings = batching_settings({each.name for each in fields(ContinuousBatchingConfig)}, num_tokens, portion)
        self.manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=ContinuousBatchingConfig(**settings))
        self.manager.start()

    def answers(self, requests: Sequence[Sequence[int]], num_answer: int) -> list[Ids]:
        """Of all requests, asked at once. RuntimeError: it gives none, or not in time."""
        names = [self.manager.add_request(list(ids), f"r{next(self._numbers)}", max_new_tokens=num_answer)
                 for ids in requests]
        found: dict[str, Ids] = {}
        while len(found) < len(names):
            result = self.manager.get_result(timeout=max(self._clock.left, 1.0))
            if result is None or result.error:
                problem = result.error if result else self.manager.background_thread_status.fatal_error
                raise RuntimeError(f"continuous batching: {problem or 'no result in time'}")
            found[result.request_id] = tuple(result.generated_tokens)
        return [found[name] for name in names]

    def close(self) -> None:
        self.manager.stop(block=True, timeout=10)
