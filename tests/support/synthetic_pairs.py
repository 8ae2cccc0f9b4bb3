"""Pairs whose heads are perfect, or as bad as noise makes them."""

import torch

from eagle.evaluation.synthetic import BOS, Shape, synthetic_eagle3_head, synthetic_eagle_head, synthetic_target
from eagle.model.dialects.checkpoint import save_head
from eagle.model.ea_model import EaModel

DEPTH = 5
CHAIN = [[0] * n for n in range(1, DEPTH + 2)]


def synthetic_pair(folder, kind, noise=0.0, draft_vocabulary=None, **options):
    target = synthetic_target(Shape(vocab_size=160), kind, generated=draft_vocabulary)
    if kind == "eagle":
        head = synthetic_eagle_head(target, noise=noise)
    else:
        head = synthetic_eagle3_head(target, noise=noise, draft_vocabulary=draft_vocabulary)
    save_head(head, folder)
    return EaModel(kind == "eagle3", target, "none", str(folder), **{"depth": DEPTH, **options})


def synthetic_prompt(batch=1):
    ids = torch.randint(1, 100, (batch, 12), generator=torch.Generator().manual_seed(4))
    ids[:, 0] = BOS
    return ids
