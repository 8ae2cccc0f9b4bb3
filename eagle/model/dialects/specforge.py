"""Heads of SpecForge, which SGLang serves: EAGLE-3 with `midlayer`, layer ids in `eagle_config`.

SGLang's own names of the norms before `fc` are understood as well: `aux_norm_low`, `aux_norm_mid`, `aux_norm_high`, and
`use_aux_norm` for `fc_norm`.
"""

import logging
from typing import Any

from eagle.model.dialects.keys import (
    COMMON,
    EAGLE3,
    FIRST,
    FREQUENCIES,
    FURTHER,
    MIDLAYER,
    Dialect,
    Key,
    architectures,
    same,
)

logger = logging.getLogger(__name__)


def flat(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the fields under one name each; say what `norm_output` is taken for."""
    if fields.pop("use_aux_norm", None):
        fields["fc_norm"] = True
    if fields.get("norm_output"):
        logger.warning(
            "%s: norm_output=true is read as EAGLE-3.1's; heads that SpecForge wrote before September 2026 carry it "
            "and are plain EAGLE-3: if few drafts are accepted, set it to false, or ask eagle doctor",
            path,
        )
    return fields


SPECFORGE = Dialect(
    name="SpecForge",
    writer="SpecForge or SGLang's users",
    is_of=lambda fields: "LlamaForCausalLMEagle3" in architectures(fields),
    keys=(
        MIDLAYER,
        FIRST,
        FURTHER,
        *(Key(f"aux_norm_{name}.weight", f"fc_norm.{n}.weight") for n, name in enumerate(("low", "mid", "high"))),
        *same(*COMMON, *EAGLE3),
        FREQUENCIES,
    ),
    flat=flat,
)
