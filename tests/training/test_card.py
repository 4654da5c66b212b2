"""The card and the picture tell of both cycles what was done."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from streamproc.market.questions import KINDS
from streamproc.training.card import card, cycles_text
from streamproc.training.cycles import CYCLES, LEARN
from streamproc.training.plot import LEFT, RIGHT, WIDTH, accuracy_svg, context_labels

ALL = sum(cycle.steps for cycle in CYCLES)
SHARES = dict.fromkeys(KINDS, 0.5)
FIGURES = {"overall": 0.5, "asked": 1000, "by_question": SHARES, "by_context": {"256": 0.5, "512": 0.25},
           "by_question_and_context": {kind: {"256": 0.5} for kind in KINDS}}  # fmt: skip


def log(last: int) -> list[dict[str, object]]:
    """As a training writes it; an old line did not know the contexts after the last step."""
    return [
        {"step": step, "seconds": step, "tokens": 6000 * step, "stream_tokens": None if step == LEARN.steps else 2048,
         **SHARES}
        for step in range(50, last + 1, 50)
    ]  # fmt: skip


def written(last: int) -> str:
    return card(log(last), {"synthetic": FIGURES}, {"machine": "two cores", "seed": "7", "parameters": "1.4"})


def test_the_card_leaves_no_place_of_its_template_empty():
    text = written(ALL)
    assert not re.findall(r"<[a-z]+>", text)
    assert re.search(rf"{ALL:,} steps, [0-9]+ million tokens, [0-9]+ minutes on two cores", text)
    assert "--seed 7" in text


def test_the_card_tells_contexts_steps_rates_and_windows_of_every_cycle():
    first, second, third, fourth = cycles_text(CYCLES, ALL).splitlines()
    assert first.startswith("1. 6,850 steps. Streams of 128 tokens (1,200 steps), 256 tokens (1,300 steps)")
    assert "2,048 tokens (350 steps)" in first
    assert "0.004 (matrices) and 0.003" in first
    assert "last 30% of the steps" in first
    assert "layers 1, 2 and 4. Hints: signs, steps." in first
    assert second.startswith("2. 4,400 steps. Streams of 512 / 2,048 / 1,024 / 2,048 tokens in turn (4,400 steps)")
    assert "0.003 (matrices) and 0.00225, after a rise of 100 steps. A window in layers 1 and 4; layer 2 had" in second
    assert second.endswith("Hints: signs, steps, pointers.")
    assert "A window in layer 1; layer 4 had one before" in third
    assert "last 50% of the steps they fall to nothing. A window in layers 1 and 2; layer 2 is new, a copy" in fourth
    assert fourth.endswith("Hints: signs, steps, pointers, lags, orders.")


@pytest.mark.parametrize(
    ("last", "windows", "told"),
    [(LEARN.steps, "layers 1, 2 and 4", []), (LEARN.steps + 50, "layers 1 and 4", ["50"]), (ALL, "layers 1 and 2", [])],
)
def test_a_training_that_was_stopped_is_told_as_far_as_it_came(last: int, windows: str, told: list[str]):
    text = written(last)
    assert f"a sliding window of 64 tokens in {windows};" in text
    assert re.findall("stopped after (.*?)[.]", text) == told
    assert ("\n2. " in text) == (last > LEARN.steps)


def test_labels_name_the_contexts_from_the_step_on_which_they_come():
    assert list(context_labels(CYCLES)) == [
        (0, "128"), (1_200, "256"), (3_500, "512"), (5_700, "1024"), (6_500, "2048"), (6_850, "512 to 2048"),
    ]  # fmt: skip


@pytest.mark.parametrize("last", [1_000, LEARN.steps, 8_000, ALL])
def test_labels_of_the_picture_do_not_overlap_and_stay_in_it(last: int):
    image = ElementTree.fromstring(accuracy_svg(log(last), list(KINDS), "Title <&>", CYCLES))
    texts = [found for found in image.iter("{http://www.w3.org/2000/svg}text") if found.get("font-size") == "11"]
    labels = [found for found in texts if not (found.text or "").startswith("cycle")]
    assert [found.text for found in labels] == [label for step, label in context_labels(CYCLES) if step < last]
    assert len(texts) - len(labels) == sum(
        sum(cycle.steps for cycle in CYCLES[:number]) < last for number in range(len(CYCLES)))
    for row in {found.get("y") for found in labels}:
        own = [(float(found.get("x") or 0), 6 * len(found.text or "")) for found in labels if found.get("y") == row]
        assert all(x + width < following for (x, width), (following, _) in pairwise(own))
        assert all(LEFT <= x <= WIDTH - RIGHT and x + width < WIDTH for x, width in own)


def test_the_picture_has_a_line_for_every_kind():
    image = ElementTree.fromstring(accuracy_svg(log(ALL), list(KINDS), "", CYCLES))
    assert len(list(image.iter("{http://www.w3.org/2000/svg}polyline"))) == len(KINDS)
