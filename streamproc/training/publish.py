"""Makes a training's result the built-in model: weights, figures on held-out feeds, plot and model card.

    python -P -m streamproc.training.publish --run build/market

The figures come from `streamproc.evaluate`: the real processor, records that no training has seen, exact oracles.
`figures.json` keeps them, and the quality test holds every later version of the engine to its smaller sets.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from streamproc.config import Config
from streamproc.engine.build import build_engine
from streamproc.evaluate import Report, Settings, evaluate
from streamproc.evaluate.plan import bound_of
from streamproc.evaluate.report import grouped, share
from streamproc.market.questions import KINDS
from streamproc.market.rendering import MARKET_MODEL, market_model
from streamproc.training.card import card
from streamproc.training.cycles import CYCLES
from streamproc.training.plot import accuracy_svg, read_log
from streamproc.training.train import Trainer
from streamproc.training.train import export as export_model

SETS = {  # name: feed, number of questions, seed, what owns a session
    "synthetic": Settings("synthetic", asks=4_000, seed=1),
    "sample": Settings("sample", asks=4_000, seed=1),
    "sample, three symbols in a session": Settings("sample", "partition", asks=2_000, seed=1),
}
QUALITY = {  # smaller ones for the quality test
    "synthetic": Settings("synthetic", asks=1_100, seed=2),
    "sample": Settings("sample", asks=550, seed=2),
}


def measure(settings: Settings, dtype: str) -> Report:
    """One evaluation of the built-in model as it lies in the package."""
    config = Config()
    return evaluate(build_engine, replace(config, engine=replace(config.engine, model=MARKET_MODEL, dtype=dtype)),
                    settings, print)  # fmt: skip


def figures(report: Report) -> dict[str, Any]:
    """Shares by question, by context and by both."""
    by_both = {
        kind: {str(bound): share(found) for bound, found in sorted(grouped(outcomes, _bound).items())}
        for kind, outcomes in report.by_question.items()
    }
    doc = report.doc()
    names = ("overall", "by_question", "by_context", "after_hop", "asked", "seed", "feed", "session_by")
    return {**{name: doc[name] for name in names}, "by_question_and_context": by_both}


def _bound(outcome: Any) -> int:
    return bound_of(outcome.context_tokens)


def export(run: Path, folder: Path, dtype: torch.dtype) -> int:
    """Weights and tokenizer of a run's checkpoint in transformers' own format -> number of parameters."""
    trainer = Trainer(CYCLES, seed=0)
    trainer.load(run / "checkpoint.pt")
    trainer.model.to(dtype)
    export_model(trainer, folder)
    shutil.copy(run / "train.jsonl", folder / "train.jsonl")
    return int(trainer.model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a training")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--seed", default="1", help="what the training was given, for the card")
    parser.add_argument("--machine", default="two cores", help="what it was trained on, for the card")
    given = parser.parse_args()
    folder = market_model()
    num_parameters = export(given.run, folder, getattr(torch, given.dtype))
    log = read_log(folder / "train.jsonl")
    title = "Share of right answers while it trained"
    (folder / "accuracy.svg").write_text(accuracy_svg(log, list(KINDS), title, CYCLES))
    sets = {name: figures(measure(settings, given.dtype)) for name, settings in SETS.items()}
    quality = {name: figures(measure(settings, given.dtype)) for name, settings in QUALITY.items()}
    (folder / "figures.json").write_text(json.dumps({"sets": sets, "quality": quality}, indent=1) + "\n")
    facts = {"machine": given.machine, "seed": given.seed, "parameters": f"{num_parameters / 1e6:.1f}"}
    (folder / "README.md").write_text(card(log, sets, facts))


if __name__ == "__main__":
    main()
