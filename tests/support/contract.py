"""Which architectures the oldest supported transformers must run: those it has, where `generate` is right."""

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

# Before 5.20 `generate` forgets the prompt where a longrope model crosses its switch: nothing there to be equal to.
# May go when 5.20 is the oldest version.
WRONG = {"phi3"}


def contract(name: str) -> list[Any]:
    """Return the marks of a case about this architecture."""
    return [pytest.mark.contract] if name in CONFIG_MAPPING_NAMES and name not in WRONG else []
