"""What goes to the dead topic must fit there: else the epoch that carries it fails for ever."""

import hashlib

from streamproc.state.epoch import LETTER_KEY_BYTES, LETTER_VALUE_BYTES, Bad, Message


def test_a_letter_holds_the_original_bytes() -> None:
    letter = Bad(Message("t", 1, 2, b"key", b"v" * LETTER_VALUE_BYTES, 3), "BAD_RECORD", "why").letter("dead")
    assert (letter.key, letter.value) == (b"key", b"v" * LETTER_VALUE_BYTES)
    assert {name for name, _ in letter.headers} == {"code", "reason", "topic", "partition", "offset", "timestamp_ms"}


def test_of_what_no_topic_takes_a_letter_holds_the_first_bytes_and_says_what_is_missing() -> None:
    key, value = b"k" * LETTER_KEY_BYTES + b"!", bytes(range(256)) * 2**13
    letter = Bad(Message("t", 1, 2, key, value, 3), "BAD_RECORD", "why").letter("dead")
    assert (letter.key, letter.value) == (key[:-1], value[:LETTER_VALUE_BYTES])
    headers = dict(letter.headers)
    assert headers["value_bytes"] == b"2097152"
    assert headers["value_sha256"].decode() == hashlib.sha256(value).hexdigest()
    assert headers["key_bytes"] == str(len(key)).encode()


def test_a_message_without_key_or_value_stays_without() -> None:
    letter = Bad(Message("t", 1, 2, None, None, 3), "BAD_RECORD", "why").letter("dead")
    assert (letter.key, letter.value) == (None, None)
