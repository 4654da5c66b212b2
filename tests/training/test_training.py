"""The training sees what the product computes: the same tokens, the same sight, questions whose answers are true."""

import random

import numpy as np
import pytest
import torch

from streamproc.market.questions import UNKNOWN
from streamproc.training.examples import BIN, Batch, Examples, Stage
from streamproc.training.hints import IGNORED, signs
from streamproc.training.model import Hints, make_model, sights
from streamproc.training.tokenizer import make_tokenizer, vocabulary

STAGE = Stage(200, 3, 2, 3)
TEXTS = (
    "BTCUSDT#7 buy 39432.48+ 0.000263\n",
    "USDJPY bid 86.655 ask 86.728 spread 0.073\nQ: What is the spread of USDJPY?\nA: 0.073\n",
    "Q: Is the price of brk.b above 1234567.12345678?\nA: yes\n",
    "naïve — <s> \t 漢字 00.5.. 7",
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def examples(tokenizer):
    return Examples(tokenizer.backend_tokenizer, tokenizer.bos_token_id)


@pytest.fixture(scope="module")
def batch(examples) -> Batch:
    return examples.batch(random.Random(4), STAGE)


def sequences(batch: Batch, row: int):
    """Every question of a row with what it sees, as one plain sequence -> places of its tokens, all ids."""
    stream = batch.ids[row][batch.branches[row] == 0]
    for number in range(1, batch.branches[row].max() + 1):
        places = np.nonzero(batch.branches[row] == number)[0]
        yield places, [*stream[: batch.bases[row][places[0]]], *batch.ids[row][places]]


def test_a_row_of_forks_gives_the_logits_of_plain_sequences(batch, tokenizer):
    torch.manual_seed(0)
    model = make_model(vocabulary(), tokenizer.bos_token_id, tokenizer.eos_token_id, 0).eval()
    with torch.no_grad():
        packed = model(input_ids=torch.from_numpy(batch.ids), position_ids=torch.from_numpy(batch.positions),
                       use_cache=False, sights=sights(batch, STAGE.stream_tokens, torch.float32)).logits  # fmt: skip
        model.set_attn_implementation("eager")
        num_checked = 0
        for row in range(STAGE.rows):
            for places, ids in sequences(batch, row):
                plain = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -len(places) :]
                torch.testing.assert_close(packed[row, torch.from_numpy(places)], plain, atol=1e-4, rtol=1e-4)
                num_checked += 1
    assert num_checked > 15


def test_no_question_crosses_a_bin_and_every_answer_is_learned_whole(batch, tokenizer):
    for row in range(STAGE.rows):
        for places, ids in sequences(batch, row):
            assert len({(place - STAGE.stream_tokens) // BIN for place in places}) == 1
            text = tokenizer.decode(ids[batch.bases[row][places[0]] :])
            learned = [t for t in batch.targets[row][places] if t >= 0]
            assert text.startswith("Q: ")
            assert tokenizer.decode(learned).endswith("\n")
            assert tokenizer.decode(learned).startswith(text.rpartition("A: ")[2])
    stream = slice(None), slice(0, STAGE.stream_tokens)
    learned = tokenizer.convert_ids_to_tokens(batch.targets[stream][batch.targets[stream] >= 0])
    assert learned
    assert all(token[0] == "#" for token in learned)


def test_the_answers_of_examples_are_those_of_the_stream_up_to_the_base(batch, tokenizer):
    """Read back from the text alone: the newest trade's price, size and side before the question."""
    num_checked = 0
    for row in range(STAGE.rows):
        for places, ids in sequences(batch, row):
            text = tokenizer.decode(ids)
            stream, _, question = text.removeprefix("<s>").partition("Q: ")
            if "last size" not in question or " of " not in question:
                continue
            sym = question.split(" of ")[1].split("?")[0]
            own = [line for line in stream.splitlines() if line.startswith(sym + "#")]
            answer = tokenizer.decode([t for t in batch.targets[row][places] if t >= 0]).strip()
            assert answer == (own[-1].split(" ")[-1] if own else UNKNOWN)
            num_checked += 1
    assert num_checked


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_its_tokens(tokenizer, text: str):
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert backend.decode(ids, skip_special_tokens=False) == text
    finally:
        backend.encode_special_tokens = False


def test_digits_are_paired_from_the_point_outwards(tokenizer):
    def pieces(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)

    assert pieces("39432.48") == ["3", "94", "32", ".48"]
    assert pieces("0.00027625") == ["0", ".00", "02", "76", "25"]
    assert pieces("105433.6") == ["10", "54", "33", ".6"]
    assert pieces("12.34567") == ["12", ".34", "56", "7"]


def test_tokens_of_two_prices_are_compared_at_equal_places():
    assert signs(["3", "94", "32", ".48"], ["3", "94", "39", ".44"]) == [1, 1, 0, 2]
    assert signs(["1", "00", ".5"], ["99", ".45"]) == [2, 0, 2]
    assert signs([".6"], [".62"]) == [0]


def test_the_same_seed_gives_the_same_batch(examples):
    first, second = (examples.batch(random.Random(9), STAGE) for _ in range(2))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in Batch.__slots__)


def test_a_stream_without_trades_gives_hints_of_nothing():
    hidden = tuple(torch.randn(1, 8, 128) for _ in range(7))
    nothing = Hints()(hidden, torch.full((1, 8), IGNORED), torch.full((1, 8, 3), IGNORED))
    assert [loss.item() for loss in nothing] == [0.0, 0.0]
