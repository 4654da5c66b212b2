"""Trains the market model: synthetic feeds, questions at record boundaries, contexts that grow from stage to stage.

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from streamproc.market.questions import KINDS
from streamproc.training.examples import NAMES, Batch, Examples, Stage
from streamproc.training.model import Hints, make_model, sights
from streamproc.training.tokenizer import make_tokenizer, vocabulary

LOG_EVERY, SAVE_EVERY = 50, 500
MATRIX_LR, OTHER_LR = 4e-3, 3e-3
WARMUP = 100
HINT_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the training on rows of one shape."""

    steps: int
    stage: Stage
    weights: Mapping[str, float]    # how often each kind of question is asked


WEIGHTS = {"last_price": 1.0, "last_size": 0.7, "last_side": 0.7, "move": 1.5, "above": 2.0, "high5": 2.0, "low5": 2.0,
           "buys5": 1.5, "spread": 0.6, "bid": 0.4, "ask": 0.4}
LATER_WEIGHTS = {"last_price": 1.0, "last_size": 1.2, "last_side": 0.5, "move": 0.5, "above": 2.0, "high5": 3.0,
                 "low5": 3.0, "buys5": 1.2, "spread": 0.4, "bid": 0.5, "ask": 0.5}     # more of what comes late
PHASES = (
    Phase(1_200, Stage(128, 2, 32, 3), WEIGHTS),
    Phase(1_300, Stage(256, 4, 12, 4), WEIGHTS),
    Phase(1_000, Stage(256, 4, 12, 4), LATER_WEIGHTS),
    Phase(2_200, Stage(512, 8, 6, 6), LATER_WEIGHTS),
    Phase(800, Stage(1024, 12, 3, 6), LATER_WEIGHTS),
    Phase(350, Stage(2048, 16, 1, 6), LATER_WEIGHTS),
)
DECAY = 0.3         # share of all steps in which the learning rate falls to nothing


class Trainer:
    """The whole state of a training, and its one step."""

    def __init__(self, phases: tuple[Phase, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.phases = phases
        tokenizer = make_tokenizer()
        self.tokenizer = tokenizer
        self.examples = Examples(tokenizer.backend_tokenizer, tokenizer.bos_token_id)
        self.model = make_model(vocabulary(), tokenizer.bos_token_id, tokenizer.eos_token_id, seed)
        self.hints = Hints()
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        others += self.hints.parameters()
        self.optimizers = (torch.optim.Muon(matrices, MATRIX_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
                           torch.optim.AdamW(others, OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0))
        self.forward = torch.compile(self.model, dynamic=False)
        self.step = 0
        self.seconds = 0.0
        self.num_tokens = 0

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self) -> Phase:
        end = 0
        for phase in self.phases:
            end += phase.steps
            if self.step < end:
                return phase
        raise IndexError(self.step)

    def rate(self) -> float:
        """Factor of the learning rates at this step: warm-up, constant, decay to nothing."""
        left = (self.num_steps - self.step) / (DECAY * self.num_steps)
        return min(1.0, (self.step + 1) / WARMUP, left)

    def train_step(self) -> tuple[list[float], Batch, np.ndarray]:
        """-> losses of answers, signs and steps, the batch, and which target tokens were right"""
        started, phase = time.perf_counter(), self.phase()
        stage = phase.stage
        batch = self.examples.batch(self.rng, stage, phase.weights)
        targets = torch.from_numpy(batch.targets)
        learned = targets >= 0
        with torch.autocast("cpu", torch.bfloat16):
            out = self.forward(
                input_ids=torch.from_numpy(batch.ids), position_ids=torch.from_numpy(batch.positions), use_cache=False,
                output_hidden_states=True, sights=sights(batch, stage.stream_tokens, torch.bfloat16))
        logits = out.logits[learned].float()
        loss = F.cross_entropy(logits, targets[learned])
        hints = self.hints(out.hidden_states, torch.from_numpy(batch.signs), torch.from_numpy(batch.steps))
        (loss + HINT_WEIGHT * sum(hints)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, (MATRIX_LR, OTHER_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.rate()
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.num_tokens += batch.ids.size
        self.seconds += time.perf_counter() - started
        return [loss.item(), *(hint.item() for hint in hints)], batch, (logits.argmax(-1) == targets[learned]).numpy()

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "hints": self.hints.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                 "rng": self.rng.getstate(), "torch": torch.get_rng_state(), "step": self.step,
                 "seconds": self.seconds, "num_tokens": self.num_tokens}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=False)
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
    started, losses, score = time.monotonic(), [], Score()
    forget(out / "train.jsonl", trainer.step)
    with (out / "train.jsonl").open("a") as log:
        while trainer.step < trainer.num_steps and time.monotonic() - started < stop_after_s:
            loss, batch, hits = trainer.train_step()
            losses.append(loss)
            score.add(batch, hits)
            if trainer.step % LOG_EVERY == 0:
                mean = np.mean(losses, 0).tolist()
                line: dict[str, Any] = {
                    "step": trainer.step, "seconds": round(trainer.seconds), "tokens": trainer.num_tokens,
                    "stream_tokens": trainer.phase().stage.stream_tokens if trainer.step < trainer.num_steps else None,
                    "rate": round(trainer.rate(), 3), "loss": round(mean[0], 4), "signs": round(mean[1], 4),
                    "steps": round(mean[2], 4), **score.shares()}
                print(json.dumps(line), file=log, flush=True)
                losses, score = [], Score()
            if trainer.step % SAVE_EVERY == 0:
                trainer.save(out / "checkpoint.pt")
    trainer.save(out / "checkpoint.pt")


def export(trainer: Trainer, folder: Path) -> None:
    """Model and tokenizer in transformers' format."""
    trainer.model.save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint, log and model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many, to be resumed")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(PHASES, given.seed)
    if (given.out / "checkpoint.pt").exists():
        trainer.load(given.out / "checkpoint.pt")
    train(trainer, given.out, given.minutes * 60)
    export(trainer, given.out / "model")


if __name__ == "__main__":
    main()
