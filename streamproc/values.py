"""Numbers, sizes and spans of time as people write them, and text from anywhere as people can read it.

What parses raises ValueError with a few words.

25.6k = 25600, 32K = 32768, 1M = 2**20       lower case counts in thousands, upper case in 1024s
256MB = 256_000_000, 1GiB = 2**30, 64K       bytes
500ms, 5s, 2m30s, 1h, 2d                     time
"""

import re
from decimal import Decimal

DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
BINARY = {"K": 2**10, "M": 2**20, "G": 2**30}
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SPAN_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

AMOUNT = re.compile(r"(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)")
ACCOUNT = re.compile(r"(?<=:)//(?:[^/@]*@|[^/@?]*:.*@)")  # a secret may have slashes
SPAN = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
SPAN_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_count(text: str) -> int:
    """A whole number such as 4096, 25.6k or 32K."""
    return scaled(text, DECIMAL | BINARY)


def parse_bytes(text: str) -> int:
    """A size in bytes such as 268435456, 256MB, 1GiB or 64K."""
    unit = text.strip().lstrip("-0123456789. ")
    return scaled(text.upper(), BYTES | {"": 1}) if len(unit) > 1 else scaled(text, DECIMAL | BINARY | BYTES)


def parse_span_ms(text: str) -> int:
    """A span of time in milliseconds such as 500ms, 5s or 2m30s; a bare number is milliseconds."""
    text = text.strip()
    if text.isdecimal():
        return int(text)
    if not SPAN.fullmatch(text):
        raise ValueError("not a span of time such as 500ms, 5s or 2m30s")
    return whole(sum((Decimal(number) * SPAN_MS[unit] for number, unit in SPAN_PART.findall(text)), Decimal(0)))


def parse_span_s(text: str) -> int:
    """A span of time in whole seconds such as 30s, 5m or 2d; a bare number is seconds."""
    text = text.strip()
    return int(text) if text.isdecimal() else whole(Decimal(parse_span_ms(text)) / 1000)


def scaled(text: str, units: dict[str, int]) -> int:
    found = AMOUNT.fullmatch(text.strip())
    if not found or found.group(2) not in units:
        raise ValueError("not a whole number")
    return whole(Decimal(found.group(1)) * units[found.group(2)])


def whole(number: Decimal) -> int:
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def printable(text: str, most: int | None = None) -> str:
    """A text with everything written out that a terminal would obey or cannot show; at most so many characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"


def without_account(text: str) -> str:
    """A URL, or a text with one, without the name and password that may stand before an @."""
    return ACCOUNT.sub("//", text)
