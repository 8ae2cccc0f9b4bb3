"""Models under test: a base with a random head, or with a drafter of the test's own."""

from pathlib import Path
from typing import Any

import torch
from architectures import base_model

from eagle.model.configs import EConfig
from eagle.model.dialects.checkpoint import save_head
from eagle.model.ea_model import EaModel
from eagle.model.head import DraftHead, Eagle3Head, EagleHead


def random_head(base: Any, kind: str, seed: int = 0, **fields: Any) -> DraftHead:
    """Return a head of random weights that fits the base; an EAGLE-3 head drafts two thirds of the vocabulary."""
    target = base.config.get_text_config(decoder=True)
    torch.manual_seed(seed)
    config = {
        "hidden_size": target.hidden_size,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": target.vocab_size,
        "max_position_embeddings": 16,  # never caps a position
        "initializer_range": 0.3,
    }
    if kind == "eagle3":
        config["draft_vocab_size"] = target.vocab_size * 2 // 3
    own_output = fields.pop("own_output", True)
    config = EConfig(**{**config, **fields})
    head = Eagle3Head(config, own_output=own_output) if kind == "eagle3" else EagleHead(config)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.15)
        if hasattr(head, "d2t"):
            chosen = torch.randperm(config.vocab_size)[: config.draft_vocab_size].sort().values
            head.d2t.copy_(chosen - torch.arange(len(chosen)))
            head.t2d[chosen] = True
    return head.eval()


def ea_model(folder: Path, name: str | Any = "llama", kind: str = "eagle3", **options: Any) -> EaModel:
    """Return an `EaModel` on a tiny base with a random head that was written to disk and read back."""
    base = base_model(name) if isinstance(name, str) else name
    fields = options.pop("head_fields", {})
    save_head(random_head(base, kind, **fields), folder / kind)
    options = {"total_token": 10, "depth": 3, "top_k": 3, **options}
    return EaModel(None, base, "none", str(folder / kind), **options)
