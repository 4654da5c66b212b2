"""A training that was stopped goes on as if it had not been, and a cycle begins afresh."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from streamproc.training.cycles import MATRIX_LR, NEW_LAYER, OTHER_LR, Cycle, Phase, place_of
from streamproc.training.examples import EVEN, Batch, Stage
from streamproc.training.model import FIRST_LAYERS, LAYERS, grown, layer_types, sights
from streamproc.training.train import Trainer, export, means, train

SMALL, OTHER = Stage(64, 1, 2), Stage(128, 1, 2)
CYCLES = (Cycle((Phase(2, (SMALL,), EVEN),), 1.0, 0.5, FIRST_LAYERS, ("signs", "steps")),
          Cycle((Phase(3, (OTHER, SMALL), EVEN),), 0.5, 0.5, LAYERS, ("signs", "steps", "pointers")))  # fmt: skip
STOP = 3  # after a step of the second cycle


def trainer(seed: int) -> Trainer:
    """Not compiled: that takes longer than these steps."""
    return Trainer(CYCLES, seed, compiled=False)


def state(found: Trainer) -> dict[str, torch.Tensor]:
    """Weights of the model and of the hints, as they are now."""
    return {name: value.clone() for part in (found.model, found.hints) for name, value in part.state_dict().items()}


def ages(found: Trainer) -> set[int]:
    """How many steps AdamW has taken with each of its parameters."""
    return {int(value["step"]) for value in found.optimizers[1].state.values()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[dict[str, object]]]:
    """A checkpoint in the middle of the second cycle; and of every step of a training what can be seen of it."""
    path, found, seen = tmp_path_factory.mktemp("run") / "checkpoint.pt", trainer(1), []
    while found.step < found.num_steps:
        losses, batch, _ = found.train_step()
        rates = [group["lr"] for optimizer in found.optimizers for group in optimizer.param_groups]
        seen.append({"losses": losses, "batch": batch, "state": state(found), "ages": ages(found), "rates": rates})
        if found.step == STOP:
            found.save(path)
    return path, seen


def test_a_resumed_training_gives_the_batches_and_weights_of_one_that_never_stopped(whole):
    path, seen = whole
    resumed = trainer(2)
    resumed.load(path)
    for step in seen[STOP:]:
        losses, batch, _ = resumed.train_step()
        assert losses == step["losses"]
        assert all(np.array_equal(getattr(batch, name), getattr(step["batch"], name)) for name in Batch.__slots__)
        assert all(torch.equal(value, step["state"][name]) for name, value in state(resumed).items())
    assert resumed.step == len(seen)


def test_optimizers_begin_afresh_with_every_cycle(whole):
    _, seen = whole
    assert [step["ages"] for step in seen] == [{1}, {2}, {1}, {2}, {3}]


def test_steps_are_taken_at_the_rates_of_the_schedule(whole):
    _, seen = whole
    factors = [place_of(CYCLES, step).rate for step in range(len(seen))]
    assert [step["rates"] for step in seen] == [[MATRIX_LR * factor, OTHER_LR * factor] for factor in factors]


def test_a_hint_is_learned_only_in_the_cycles_that_give_it(whole):
    _, seen = whole
    for number, step in enumerate(seen):
        assert tuple(step["losses"]) == ("loss", *place_of(CYCLES, number).cycle.hints)
    heads = [step["state"]["pointers.weight"] for step in seen]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])


@pytest.mark.parametrize(("steps", "layers"), [(0, FIRST_LAYERS), (2, FIRST_LAYERS), (3, LAYERS)])
def test_a_model_is_exported_with_the_layers_that_it_was_trained_with(tmp_path: Path, steps: int, layers):
    found = trainer(1)
    for _ in range(steps):
        found.train_step()
    export(found, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.layer_types == layer_types(layers)
    assert config.num_hidden_layers == len(layers)


def test_a_layer_more_changes_nothing_until_it_is_trained():
    model, batch = trainer(1).model, trainer(1).examples.batch(random.Random(1), OTHER)
    deeper = grown(model, LAYERS, NEW_LAYER)
    assert len(deeper.model.layers) == len(model.model.layers) + 1
    ids, positions = torch.from_numpy(batch.ids), torch.from_numpy(batch.positions)
    before = [*FIRST_LAYERS[:NEW_LAYER], *LAYERS[NEW_LAYER + 1:]]
    with torch.no_grad():
        logits = [found(input_ids=ids, position_ids=positions, use_cache=False,
                        sights=sights(batch, torch.float32, tuple(layers))).logits
                  for found, layers in ((model, before), (deeper, LAYERS))]  # fmt: skip
    assert torch.equal(*logits)


def test_the_log_says_what_each_stretch_was_trained_on_and_forgets_what_is_done_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("streamproc.training.train.LOG_EVERY", 1)
    log = tmp_path / "train.jsonl"
    log.write_text('{"step": 1}\n')
    train(trainer(1), tmp_path, 1e6)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["stream_tokens"] for line in lines] == [64, 64, 128, 128, 128]
    assert ["pointers" in line for line in lines] == [False, False, True, True, True]


def test_means_are_over_the_steps_that_had_a_loss():
    assert means([{"loss": 1.0}, {"loss": 2.0, "pointers": 3.0}]) == {"loss": 1.5, "pointers": 3.0}
