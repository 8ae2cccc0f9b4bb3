"""EAGLE, EAGLE-2 and EAGLE-3 speculative decoding for any Hugging Face causal LM.

`from eagle import EaModel` is the whole entry. Importing this package loads neither torch nor anything optional:
`EaModel` is resolved on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle.model.ea_model import EaModel

__version__ = "0.1.0"
__all__ = ["EaModel", "__version__"]


def __getattr__(name: str) -> object:
    if name == "EaModel":
        from eagle.model.ea_model import EaModel

        return EaModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
