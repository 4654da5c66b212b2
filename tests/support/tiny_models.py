"""Tiny random models of several architectures."""

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
    "mistral": MistralConfig(**SHAPE, sliding_window=48),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=64,
                               layer_types=["sliding_attention", "full_attention"]),
    "phi3": Phi3Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, head_dim=32, sliding_window=64, query_pre_attn_scalar=24,
                           attn_logit_softcapping=20.0, final_logit_softcapping=30.0,
                           layer_types=["sliding_attention", "full_attention"]),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layers=[1, 0]),
    "smollm2": LlamaConfig(**{**SHAPE, "tie_word_embeddings": True, "num_attention_heads": 9, "num_key_value_heads": 3,
                              "hidden_size": 144}),
    "qwen2": Qwen2Config(**SHAPE),
}
NAMES = (*CONFIGS, "random-tiny")


def tiny(name: str, dtype: torch.dtype = torch.float32, attention: str = "streamproc") -> Any:
    """A model of this architecture whose greedy text varies; the same weights at every call."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation=attention)
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    return model.to(dtype).eval()
