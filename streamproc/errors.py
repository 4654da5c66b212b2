"""Every error of streamproc, named by its fate: what happens next, not what went wrong.

- StreamprocError         one clear line; the command line prints it and exits with `exit_code`
  - Usage                 nothing was done: a wrong setting, flag or file (exit 2)
  - Unavailable           something outside is missing or did not answer in time (exit 1)
  - Refused               the other side answered, and the answer is no (exit 1)
  - BadInput              goes to the dead topic or back to the asker; the worker goes on
    - BadRecord
      - PoisonRecord
    - BadQuery
    - BadAsk
  - OutOfMemory           the step is undone and tried once more with less in it
  - EpochAborted          the epoch did not commit: truncate, seek, go on from the committed offsets
  - Fenced                another worker owns our slot: drop everything and stop

Everything else stops the process. User mistakes are never asserts.
"""


class StreamprocError(Exception):
    """Base of all errors with a message meant for people: one line that says what, where and what would do."""

    code = "FAILED"
    exit_code = 1


class Usage(StreamprocError):
    """A wrong setting, flag, file or value; nothing was done."""

    code = "USAGE"
    exit_code = 2


class Unavailable(StreamprocError):
    """A broker, model, file or worker that is needed is not there or did not answer in time."""

    code = "UNAVAILABLE"


class Refused(StreamprocError):
    """The other side answered, and the answer is no."""

    code = "REFUSED"


class BadInput(StreamprocError):
    """Input that can never be processed; its bytes and this reason are kept for its sender."""

    code = "BAD_INPUT"
    exit_code = 2


class BadRecord(BadInput):
    """A record of market data that cannot become part of a session."""

    code = "BAD_RECORD"


class PoisonRecord(BadRecord):
    """A record that kills the worker whenever it is processed."""

    code = "POISON_RECORD"


class BadQuery(BadInput):
    """A standing question that cannot be registered."""

    code = "BAD_QUERY"


class BadAsk(BadInput):
    """An ad-hoc question that cannot be answered."""

    code = "BAD_ASK"


class OutOfMemory(StreamprocError):
    """A step did not fit the memory; nothing of it counts."""

    code = "OUT_OF_MEMORY"


class EpochAborted(StreamprocError):
    """The transaction did not commit; the committed offsets are the truth again."""

    code = "EPOCH_ABORTED"


class Fenced(StreamprocError):
    """Another process uses our transactional id or member id; this one must stop."""

    code = "FENCED"


def one_line(problem: BaseException) -> str:
    """An error's text, at most 200 characters."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__
