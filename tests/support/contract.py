"""Which architectures the oldest supported transformers must run: those it has."""

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


def contract(name: str) -> list[Any]:
    """Return the marks of a case about this architecture."""
    return [pytest.mark.contract] if name in CONFIG_MAPPING_NAMES else []
