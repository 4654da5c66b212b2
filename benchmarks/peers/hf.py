"""transformers twice: forwards on a kept cache; its continuous batching, paged attention and shared prefixes."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from asking import Asking
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from peers.subject import PORTION, VOCAB, Ids

PAGE = 32       # tokens: prefixes are shared by whole pages
PATIENCE_S = 600.0


class KeptCache(Asking):
    """The model's forward on a DynamicCache, or a StaticCache, cropped after each question. No `generate` around it."""

    def __init__(self, model: Any, num_tokens: int, kind: str = "dynamic") -> None:
        self.name = "transformers"
        self.size = 0
        self.model = model
        self.kind, self.num_tokens = kind, num_tokens
        self.cache = self._empty()

    def _empty(self) -> Any:
        if self.kind == "static":
            return StaticCache(self.model.config, max_cache_len=self.num_tokens)
        return DynamicCache(config=self.model.config)

    def grow(self, ids: Sequence[int]) -> None:
        with torch.inference_mode():
            self.model.model(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True,
                             **self._places(self.size, len(ids)))  # fmt: skip
        self.size += len(ids)

    def cut(self, num_tokens: int) -> None:
        self.size = num_tokens
        if num_tokens:
            self._crop()
        else:
            self.cache = self._empty()

    def close(self) -> None:
        self.cache = None

    def _step(self, start: int, ids: Sequence[int], num_samples: int) -> Ids:
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True,
                                logits_to_keep=num_samples, **self._places(start, len(ids))).logits  # fmt: skip
            return tuple(logits[0].argmax(-1).tolist())

    def _places(self, start: int, count: int) -> dict[str, Any]:
        return {"position_ids": torch.arange(start, start + count)[None]}

    def _crop(self) -> None:
        if self.kind == "static":
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(self.size)
        else:
            self.cache.crop(self.size - self.cache.get_seq_length())


class Batching:
    """transformers' continuous batching: every request carries all its tokens, whole pages of it are known already."""

    def __init__(self, model: Any, num_tokens: int) -> None:
        self.name = "transformers continuous batching"
        self.context: list[int] = []
        self._numbers = itertools.count()
        generation = GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=VOCAB, pad_token_id=0)
        self.manager = model.init_continuous_batching(
            generation_config=generation,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE, num_blocks=2 * -(-num_tokens // PAGE), max_batch_tokens=PORTION,
                auto_switch_to_flash=False))  # fmt: skip
        self.manager.start()

    @property
    def size(self) -> int:
        return len(self.context)

    def grow(self, ids: Sequence[int]) -> None:
        self.context += ids
        self._request(self.context, 1)

    def ask(self, ids: Sequence[int], num_answer: int) -> Ids:
        return self._request([*self.context, *ids], num_answer)

    def verify(self, ids: Sequence[int], draft: Sequence[int]) -> None:
        """It has no call for that."""

    def cut(self, num_tokens: int) -> None:
        del self.context[num_tokens:]

    def close(self) -> None:
        self.manager.stop(block=True)

    def _request(self, ids: list[int], num_answer: int) -> Ids:
        name = self.manager.add_request(ids, f"r{next(self._numbers)}", max_new_tokens=num_answer)
        found = self.manager.get_result(name, timeout=PATIENCE_S)
        if found is None or found.error:
            problem = self.manager.background_thread_status.fatal_error
            raise RuntimeError(f"continuous batching: {found.error if found else problem or 'no result'}")
        return tuple(found.generated_tokens)
