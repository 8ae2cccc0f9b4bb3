"""EAGLE, EAGLE-2 and EAGLE-3 speculative decoding for any Hugging Face causal LM.

`from eagle import EaModel` is the whole entry; `Prefix` keeps a conversation's caches. Importing this package loads
neither torch nor anything optional: names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle.model.cache_reuse import Prefix
    from eagle.model.ea_model import EaModel

__version__ = "0.1.0"
__all__ = ["EaModel", "Prefix", "__version__"]
_HOMES = {"EaModel": "eagle.model.ea_model", "Prefix": "eagle.model.cache_reuse"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ImportError as problem:
            raise ImportError(_explained(problem)) from problem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _explained(problem: ImportError) -> str:
    """Return why a name cannot be imported; a transformers newer than the tests' may have moved what it needs."""
    from eagle.model.support.releases import is_untested_release, release_in_words, remedy

    return f"{problem} ({release_in_words()}: {remedy()})" if is_untested_release() else str(problem)
