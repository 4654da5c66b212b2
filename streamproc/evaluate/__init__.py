"""How right a model is: questions with known answers, asked through the real processor.

    report = evaluate(build_engine, config, Settings(feed="sample", asks=500))
    report.overall, report.doc(), report.text(), report.outcomes
"""

from streamproc.evaluate.report import Outcome, Report
from streamproc.evaluate.run import evaluate, evaluate_engine
from streamproc.evaluate.settings import Settings

__all__ = ["Outcome", "Report", "Settings", "evaluate", "evaluate_engine"]
