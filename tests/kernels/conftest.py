"""Kernels run in Triton's interpreter, or on a GPU where TRITON_INTERPRET=0 says so. What they must not touch is
looked at after every test.
"""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _bands_stay_untouched() -> Iterator[None]:
    from guarded import check, forget

    forget()
    yield
    check()
