"""Training in fp32, whatever this processor multiplies faster: tests compare runs with each other."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # of its own: tests undo theirs
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        yield
