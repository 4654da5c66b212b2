"""The tokenizer of the market model: numbers two digits at a time, words of the questions whole, all else by character.

    BTCUSDT#7 buy 39432.48+ 0.000263\\n   ->   BTC USDT #7 " buy " 3 94 32 .48 "+ " 0 .00 02 63 "\\n"

Digits are paired from the decimal point outwards, so that equal places of two prices of one feed are equal tokens, and
the point is part of the first pair after it. What no token stands for is written in bytes, so any text can be read.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from streamproc.market.synthetic import ASSETS, MONEY

SPECIALS = ("<unk>", "<s>", "</s>")
CHARACTERS = ("\n", *map(chr, range(32, 127)))
PAIRS = tuple(f"{i:02}" for i in range(100))
FRACTIONS = (*(f".{i}" for i in range(10)), *(f".{pair}" for pair in PAIRS))
# between two fields
BETWEEN = (" buy ", " sell ", " - ", "+ ", "- ", "= ", " bid ", " ask ", " spread ", " of ", " above ")
NUMBERS = tuple(f"#{i}" for i in range(10))
FRAME = ("Q: ", "?\nA: ")
WORDS = ("What", "Which", "Is", "How", " was", " is", " the", " last", " price", " size", " side", " way", " did",
         " move", " highest", " lowest", " of", " 5", " prices", " many", " trades", " were", " buys", " spread",
         " bid", " ask", "buy", "sell", "up", "down", "flat", "yes", "no", "unknown")
NAMES = tuple(dict.fromkeys(name for name in (*ASSETS, *MONEY) if name))
MAX_DECIMALS = 20


def pattern() -> str:
    """What is one piece of text: the first alternative that fits; between them every character stands alone."""
    fraction = "|".join(rf"(?<=\.\d{{{n}}})\d\d?" for n in range(2, MAX_DECIMALS, 2))
    return "|".join((
        *(_escaped(text) for text in FRAME),
        *(_escaped(text) + (r"(?=\S)(?!the\b)" if text == " of " else r"(?=\S)") for text in BETWEEN),
        *(_escaped(text) + r"(?![A-Za-z0-9.])" for text in sorted(WORDS, key=len, reverse=True)),
        r"#\d(?!\d)", r"\.\d\d?", fraction, r"\d\d?(?=(?:\d\d)*(?!\d))",
        *sorted(NAMES, key=len, reverse=True),
        r"[\s\S]",
    ))


def _escaped(text: str) -> str:
    return "".join(rf"\{c}" if c in ".?-+" else r"\n" if c == "\n" else c for c in text)


def vocabulary() -> dict[str, int]:
    """Ids by token; a number's token never changes its id with the words."""
    tokens = (*SPECIALS, *(f"<0x{i:02X}>" for i in range(256)), *CHARACTERS, *PAIRS, *FRACTIONS, *NUMBERS, *FRAME,
              *BETWEEN, *WORDS, *NAMES)
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers' own; every text begins with <s>."""
    tokenizer = Tokenizer(models.BPE(vocabulary(), [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern()), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   clean_up_tokenization_spaces=False)
