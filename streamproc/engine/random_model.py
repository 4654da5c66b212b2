"""The built-in model: small, llama-shaped, seeded random weights, one token a character. Its words are noise.

It is written once into the user's state folder in transformers' own format and then loaded like any other model. The
same version has the same bytes everywhere.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from streamproc.config import state_dir
from streamproc.errors import Unavailable

NAME = "random-tiny"
VERSION = 1
SEED = 0
SPECIALS = ("<unk>", "<s>", "</s>")
CHARACTERS = ("\n", *map(chr, range(32, 127)))
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}
SCALES = {"embed_tokens": 0.5, "q_proj": 0.2, "k_proj": 0.2, "v_proj": 0.15, "o_proj": 0.15, "gate_proj": 0.2,
          "up_proj": 0.2, "down_proj": 0.2, "lm_head": 0.3}     # large enough that answers depend on the context


def folder() -> Path:
    """Where the built-in model lies; writes it at the first call, safe for two processes at once."""
    target = state_dir() / "models" / f"{NAME}-{VERSION}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as parent:
            made = Path(parent) / NAME
            write(made)
            made.rename(target)
    except (OSError, SafetensorError) as problem:
        if not target.is_dir():     # else another process was first, with the same bytes
            raise Unavailable(f"{target.parent}: the model {NAME} cannot be written there: {problem}; "
                              "make room, or set STREAMPROC_STATE_DIR to another folder") from problem
    return target


def write(path: Path) -> None:
    """Model and tokenizer in transformers' format."""
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)


def make_model() -> LlamaForCausalLM:
    """Weights from the seed alone, whatever the process has drawn before."""
    unk, bos, eos = range(len(SPECIALS))
    config = LlamaConfig(**SHAPE, vocab_size=len(SPECIALS) + len(CHARACTERS), bos_token_id=bos, eos_token_id=eos,
                         pad_token_id=None)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if scale := SCALES.get(name.split(".")[-2]):
                weight.normal_(0, scale, generator=generator)
        model.lm_head.weight[[unk, bos, eos]] = 0     # never the greedy token
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII and newline, a token each; everything else is <unk>."""
    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   clean_up_tokenization_spaces=False)
