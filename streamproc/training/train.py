"""Trains the market model on synthetic feeds, with questions at record boundaries; cycles.py says what and how long.

    python -P -m streamproc.training.train --out build/market

Resumable: a checkpoint holds weights, optimizers, the generators' states and the step; the same seed gives the same
examples. The log has one JSON line every LOG_EVERY steps: loss and accuracy (the whole answer right, without help from
the true tokens before it being wrong) by kind, over the rows just trained on, which no row before resembled.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM

from streamproc.market.questions import KINDS
from streamproc.training.cycles import CYCLES, MATRIX_LR, NEW_LAYER, OTHER_LR, Cycle, place_of
from streamproc.training.examples import NAMES, Batch, Examples
from streamproc.training.model import Hints, grown, layer_types, make_model, sights
from streamproc.training.tokenizer import make_tokenizer, vocabulary

LOG_EVERY, SAVE_EVERY = 50, 250
HINT_WEIGHT = 0.3


class Trainer:
    """The whole state of a training, and its one step."""

    def __init__(self, cycles: tuple[Cycle, ...], seed: int, compiled: bool = True) -> None:
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.cycles = cycles
        self.tokenizer = make_tokenizer()
        bos_id, eos_id = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.examples = Examples(self.tokenizer.backend_tokenizer, bos_id)
        self.compiled = compiled
        self._use(make_model(vocabulary(), bos_id, eos_id, seed, cycles[0].layers))
        self.hints = Hints()
        self.optimizers = self._optimizers()
        self.step = 0
        self.seconds = 0.0
        self.num_tokens = 0

    def _use(self, model: Qwen3ForCausalLM) -> None:
        self.model = model
        self.forward = torch.compile(model, dynamic=False) if self.compiled else model

    def _deepen(self, cycle: Cycle) -> None:
        """Give the model as many layers as the cycle has."""
        if len(cycle.layers) > len(self.model.model.layers):
            self._use(grown(self.model, cycle.layers, NEW_LAYER))

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Fresh ones: of matrices and of everything else."""
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        others += self.hints.parameters()
        return (torch.optim.Muon(matrices, MATRIX_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(others, OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0))

    @property
    def num_steps(self) -> int:
        return sum(cycle.steps for cycle in self.cycles)

    @property
    def layers(self) -> tuple[str, ...]:
        """What the weights were last trained with."""
        return place_of(self.cycles, max(0, self.step - 1)).cycle.layers

    def train_step(self) -> tuple[dict[str, float], Batch, np.ndarray]:
        """-> the loss of the answers and those of the hints, the batch, and which target tokens were right"""
        started, place = time.perf_counter(), place_of(self.cycles, self.step)
        if place.step == 0:
            self._deepen(place.cycle)
            self.optimizers = self._optimizers()
        batch = self.examples.batch(self.rng, place.stage, place.phase.weights)
        losses, hits = self._losses(batch, place.cycle)
        (losses["loss"] + HINT_WEIGHT * sum(losses[name] for name in place.cycle.hints)).backward()
        self._descend(place.rate)
        self.step += 1
        self.num_tokens += batch.ids.size
        self.seconds += time.perf_counter() - started
        return {name: loss.item() for name, loss in losses.items()}, batch, hits

    def _losses(self, batch: Batch, cycle: Cycle) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        """-> the loss of the answers and those of the cycle's hints, and which target tokens were right"""
        targets = torch.from_numpy(batch.targets)
        learned = targets >= 0
        with torch.autocast("cpu", torch.bfloat16):
            out = self.forward(
                input_ids=torch.from_numpy(batch.ids), position_ids=torch.from_numpy(batch.positions), use_cache=False,
                output_hidden_states=True, sights=sights(batch, torch.bfloat16, cycle.layers))
        logits = out.logits[learned].float()
        hints = self.hints(out.hidden_states, batch)
        losses = {"loss": F.cross_entropy(logits, targets[learned]), **{name: hints[name] for name in cycle.hints}}
        return losses, (logits.argmax(-1) == targets[learned]).numpy()

    def _descend(self, factor: float) -> None:
        """One step of the optimizers, at learning rates of this factor."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, (MATRIX_LR, OTHER_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "hints": self.hints.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                 "rng": self.rng.getstate(), "torch": torch.get_rng_state(), "step": self.step,
                 "seconds": self.seconds, "num_tokens": self.num_tokens}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=False)
        self._deepen(place_of(self.cycles, max(0, state["step"] - 1)).cycle)
        self.optimizers = self._optimizers()
        self.model.load_state_dict(state["model"])
        self.hints.load_state_dict(state["hints"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch"])
        self.step, self.seconds, self.num_tokens = state["step"], state["seconds"], state["num_tokens"]


class Score:
    """Share of answers of which every token was right, by kind."""

    def __init__(self) -> None:
        self.right: dict[str, int] = defaultdict(int)
        self.total: dict[str, int] = defaultdict(int)

    def add(self, batch: Batch, hits: np.ndarray) -> None:
        learned = batch.targets >= 0
        rows = np.nonzero(learned)[0]
        answers = rows * batch.ids.shape[1] + batch.branches[learned]       # one number an answer
        _, first, index = np.unique(answers, return_index=True, return_inverse=True)
        whole = np.ones(len(first), bool)
        np.logical_and.at(whole, index, hits)
        for kind, right in zip(batch.kinds[learned][first], whole, strict=True):
            if kind >= 0:
                self.total[NAMES[kind]] += 1
                self.right[NAMES[kind]] += bool(right)

    def shares(self) -> dict[str, float]:
        return {name: round(self.right[name] / self.total[name], 4) for name in KINDS if self.total[name]}


def forget(log: Path, step: int) -> None:
    """Take out of the log what was done after this step: a resumed training does it again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in lines))


def train(trainer: Trainer, out: Path, stop_after_s: float) -> None:
    started = time.monotonic()
    losses: list[dict[str, float]] = []
    score = Score()
    forget(out / "train.jsonl", trainer.step)
    with (out / "train.jsonl").open("a") as log:
        while trainer.step < trainer.num_steps and time.monotonic() - started < stop_after_s:
            place = place_of(trainer.cycles, trainer.step)
            loss, batch, hits = trainer.train_step()
            losses.append(loss)
            score.add(batch, hits)
            if trainer.step % LOG_EVERY == 0:
                line: dict[str, Any] = {
                    "step": trainer.step, "seconds": round(trainer.seconds), "tokens": trainer.num_tokens,
                    "stream_tokens": max(stage.stream_tokens for stage in place.phase.stages),
                    "rate": round(place.rate, 3), **means(losses), **score.shares()}
                print(json.dumps(line), file=log, flush=True)
                losses, score = [], Score()
            if trainer.step % SAVE_EVERY == 0:
                trainer.save(out / "checkpoint.pt")
    trainer.save(out / "checkpoint.pt")


def means(losses: list[dict[str, float]]) -> dict[str, float]:
    """Of every loss over the steps that had it: a new cycle may bring a hint."""
    return {name: round(float(np.mean([loss[name] for loss in losses if name in loss])), 4) for name in losses[-1]}


def export(trainer: Trainer, folder: Path) -> None:
    """Model and tokenizer in transformers' format."""
    trainer.model.config.layer_types = layer_types(trainer.layers)
    trainer.model.save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint, log and model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many, to be resumed")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(CYCLES, given.seed)
    if (given.out / "checkpoint.pt").exists():
        trainer.load(given.out / "checkpoint.pt")
    train(trainer, given.out, given.minutes * 60)
    export(trainer, given.out / "model")


if __name__ == "__main__":
    main()
