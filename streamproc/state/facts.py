"""Live facts of a generation, rendered into a question's tail: {last}, {high}, {vwap} and the others.

A fact is a function of the generation's records in log order, so it is the same live, after a restart and in a replay.
Where nothing is known yet it reads "unknown".
"""

from streamproc.records import Bar, Quote, Record, Trade

UNKNOWN = "unknown"


class Facts:
    """Updated record by record. Prices keep the text of the record they come from."""

    def __init__(self) -> None:
        self._text: dict[str, str] = {}
        self._high = float("-inf")
        self._low = float("inf")
        self._turnover = self._volume = 0.0
        self._num_decimals = 0  # the most that a price has had

    def update(self, record: Record) -> None:
        match record:
            case Trade(px=px, sz=sz):
                self._price(px, px, px, sz)
            case Bar(close=close, high=high, low=low, volume=volume):
                self._price(close, high, low, volume or "0")
            case Quote(bid_px=bid, ask_px=ask):
                decimals = max(_decimals(bid), _decimals(ask))
                self._text.update(
                    bid=bid,
                    ask=ask,
                    mid=f"{(float(bid) + float(ask)) / 2:.{decimals + 1}f}",
                    spread=f"{float(ask) - float(bid):.{decimals}f}",
                )

    def _price(self, last: str, high: str, low: str, size: str) -> None:
        self._text["last"] = last
        if float(high) > self._high:
            self._high, self._text["high"] = float(high), high
        if float(low) < self._low:
            self._low, self._text["low"] = float(low), low
        self._turnover += float(last) * float(size)
        self._volume += float(size)
        if self._volume:
            self._num_decimals = max(self._num_decimals, _decimals(last))
            self._text["vwap"] = f"{self._turnover / self._volume:.{self._num_decimals}f}"
            self._text["volume"] = f"{self._volume:.10g}"

    def render(self, question: str, session: str, count: int) -> str:
        """The question with its placeholders filled in; `count` is the session's number of records."""
        if "{" not in question and "}" not in question:
            return question
        return question.format_map(_Known(self._text, session=session, count=str(count)))


class _Known(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return UNKNOWN


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])
