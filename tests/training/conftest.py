"""The market model's tokenizer, and what draws its examples."""

import pytest

from streamproc.training.examples import Examples
from streamproc.training.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def examples(tokenizer):
    return Examples(tokenizer.backend_tokenizer, tokenizer.bos_token_id)
