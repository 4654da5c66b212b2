"""The training sees what the product computes: the same tokens, the same sight, questions whose answers are true."""

import random

import numpy as np
import pytest
import torch

from streamproc.answertypes import UNKNOWN
from streamproc.training.examples import UNIT, Batch, Stage
from streamproc.training.hints import IGNORED
from streamproc.training.model import FIRST_LAYERS, LAYERS, SECOND_LAYERS, SEGMENTS, make_model, segments, sights
from streamproc.training.tokenizer import vocabulary

STAGE = Stage(256, 2, 3)
LONG = Stage(11 * UNIT, 1, 3)  # in two segments, of six units and of five
TEXTS = (
    "BTCUSDT#7 buy 39432.48+ 0.000263\n",
    "USDJPY bid 86.655 ask 86.728 spread 0.073\nQ: What is the spread of USDJPY?\nA: 0.073\n",
    "Q: Is the price of brk.b above 1234567.12345678?\nA: yes\n",
    "naïve — <s> \t 漢字 00.5.. 7",
)


@pytest.fixture(scope="module")
def batch(examples) -> Batch:
    return examples.batch(random.Random(4), STAGE)


def sequences(batch: Batch, row: int):
    """Every question of a row with what it sees, as one plain sequence -> places of its tokens, all ids."""
    stream = batch.ids[row][batch.branches[row] == 0]
    for number in range(1, batch.branches[row].max() + 1):
        places = np.nonzero(batch.branches[row] == number)[0]
        yield places, [*stream[: batch.bases[row][places[0]]], *batch.ids[row][places]]


@pytest.mark.parametrize("layers", [FIRST_LAYERS, SECOND_LAYERS, LAYERS], ids=["first", "second", "last"])
@pytest.mark.parametrize("stage", [STAGE, LONG], ids=["one segment", "two segments"])
def test_a_row_of_forks_gives_the_logits_of_plain_sequences(examples, tokenizer, stage: Stage, layers: tuple[str, ...]):
    batch = examples.batch(random.Random(4), stage)
    torch.manual_seed(0)
    model = make_model(vocabulary(), tokenizer.bos_token_id, tokenizer.eos_token_id, 0, layers).eval()
    with torch.no_grad():
        packed = model(input_ids=torch.from_numpy(batch.ids), position_ids=torch.from_numpy(batch.positions),
                       use_cache=False, sights=sights(batch, torch.float32, layers)).logits  # fmt: skip
        model.set_attn_implementation("eager")
        for row, found in enumerate(batch.ids):
            stream = np.nonzero(batch.branches[row] == 0)[0]
            asked = list(sequences(batch, row))
            assert len(asked) > 2 * stage.stream_tokens / UNIT
            for places, ids in [(stream, found[stream].tolist()), *asked[:: len(asked) // 5], asked[-1]]:
                plain = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -len(places) :]
                torch.testing.assert_close(packed[row, torch.from_numpy(places)], plain, atol=1e-4, rtol=1e-4)


def test_segments_are_equal_parts_that_cover_the_stream():
    for units in range(1, 40):
        parts = segments(units)
        assert [unit for part in parts for unit in range(part.start, part.stop)] == list(range(units))
        assert len({part.stop - part.start for part in parts[:-1]}) <= 1
        assert len(parts) <= SEGMENTS
    assert [part.stop for part in segments(11)] == [6, 11]


def test_every_unit_has_questions_asked_within_it(batch):
    """So long streams have as many questions for their tokens as short ones."""
    for row in range(STAGE.rows):
        stream_end = np.count_nonzero(batch.branches[row] == 0)
        for unit in range(0, stream_end - UNIT // 2, UNIT):
            own = slice(STAGE.stream_tokens + unit, STAGE.stream_tokens + unit + UNIT)
            asked = batch.branches[row][own] > 0
            assert asked.any()
            assert set(np.ceil(batch.bases[row][own][asked] / UNIT)) == {unit // UNIT + 1}


def test_a_pointer_is_the_number_of_the_trade_that_holds_the_answer(batch, tokenizer):
    """Read back from the text alone."""
    seen = set()
    for row in range(STAGE.rows):
        for places, ids in sequences(batch, row):
            stream, _, question = tokenizer.decode(ids).removeprefix("<s>").partition("Q: ")
            pointed = set(batch.pointers[row][places]) - {IGNORED}
            learned = batch.targets[row][places] != IGNORED
            assert not pointed or np.array_equal(batch.pointers[row][places] != IGNORED, learned)
            trades = [line for line in stream.splitlines() if "#" in line]
            if " of " in question.split("?")[0].replace("of the last", ""):
                sym = question.split("?")[0].split(" of ")[-1].split(" ")[0]
                trades = [line for line in trades if line.startswith(sym + "#")]
            answer = tokenizer.decode([t for t in batch.targets[row][places] if t >= 0]).strip()
            if "highest" in question or "lowest" in question or "last price" in question:
                holding = [line for line in trades[-5:] if line.split(" ")[2].rstrip("+-=") == answer]
                expected = {int(holding[-1].split("#")[1][0])} if holding else set()
                assert pointed == expected, (question, trades[-5:])
                seen.add(question.split(" ")[3])
            elif "bid" in question or "spread" in question:
                assert not pointed
    assert len(seen) > 1


def test_no_question_crosses_a_bin_and_every_answer_is_learned_whole(batch, tokenizer):
    for row in range(STAGE.rows):
        for places, ids in sequences(batch, row):
            assert len({(place - STAGE.stream_tokens) // UNIT for place in places}) == 1
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


def test_the_same_seed_gives_the_same_batch(examples):
    first, second = (examples.batch(random.Random(9), STAGE) for _ in range(2))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in Batch.__slots__)
