"""What every test of replayed steps holds to."""

import logging

import pytest


@pytest.fixture(autouse=True)
def no_fallback(request, caplog):
    """Fail every test whose steps were refused, unless it says that they are."""
    caplog.set_level(logging.INFO, "eagle")
    yield
    if "refusal" not in request.keywords:
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
