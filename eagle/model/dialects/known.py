"""All dialects, and which one a `config.json` is in."""

from collections.abc import Mapping
from typing import Any

from eagle.model.dialects.angelslim import ANGELSLIM
from eagle.model.dialects.keys import Dialect, architectures
from eagle.model.dialects.model_optimizer import MODEL_OPTIMIZER
from eagle.model.dialects.safeailab import SAFEAILAB
from eagle.model.dialects.specforge import SPECFORGE
from eagle.model.dialects.speculators import SPECULATORS
from eagle.model.dialects.vllm_eagle import VLLM_EAGLE

# The first that claims a configuration has it.
DIALECTS = (SPECULATORS, VLLM_EAGLE, MODEL_OPTIMIZER, SPECFORGE, ANGELSLIM, SAFEAILAB)
# Heads that draft in another way and share tensors' names with those here.
OTHERS = ("DFlash", "DSpark", "Medusa", "PEagle", "Peagle", "MTP", "Domino", "XPress")


def dialect_of(fields: Mapping[str, Any], path: str) -> Dialect:
    """Return the dialect that a head's configuration is in.

    Raises:
        NotImplementedError: a head that is no EAGLE head.
    """
    for name in architectures(fields):
        if any(other in name for other in OTHERS):
            raise NotImplementedError(f"{path}: {name} drafts in another way than EAGLE, and is not supported")
    return next(dialect for dialect in DIALECTS if dialect.is_of(fields))
