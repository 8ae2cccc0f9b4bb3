"""EAGLE, EAGLE-2 and EAGLE-3 speculative decoding for any Hugging Face causal LM.

`from eagle import EaModel` is the whole entry; `Prefix` keeps a conversation's caches. Importing this package loads
neither torch nor anything optional: names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle.model.ea_model import EaModel
    from eagle.model.prefix import Prefix

__version__ = "0.1.0"
__all__ = ["EaModel", "Prefix", "__version__"]
_HOMES = {"EaModel": "eagle.model.ea_model", "Prefix": "eagle.model.prefix"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
