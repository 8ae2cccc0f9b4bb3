"""Training data: sources become samples, samples shards of a folder, shards batches; the command is `eagle.data`.

What users import is found here: its names are resolved on first use, so that reading a folder loads no model.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle.data.batches import Batch, Batches, Bucketed, Packed
    from eagle.data.command import main
    from eagle.data.folder import Prepared, load
    from eagle.data.preparation import prepare
    from eagle.data.regenerate import Regeneration
    from eagle.data.samples import Sample, token_counts

_HOMES = {
    **dict.fromkeys(("Batch", "Batches", "Bucketed", "Packed"), "batches"),
    **dict.fromkeys(("Prepared", "load"), "folder"),
    "main": "command",
    "prepare": "preparation",
    "Regeneration": "regenerate",
    **dict.fromkeys(("Sample", "token_counts"), "samples"),
}
__all__ = [
    "Batch",
    "Batches",
    "Bucketed",
    "Packed",
    "Prepared",
    "Regeneration",
    "Sample",
    "load",
    "main",
    "prepare",
    "token_counts",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"eagle.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
