"""Training texts that the target continues itself: what its training texts say first, and what it says after that.

Two prepared folders, as `python -m eagle.data` would write them for documents if it continued those: `own_sampled`,
where every token is drawn at temperature 1, and `own_mixed`, where every other text goes on with the likeliest tokens.
Only the target's own tokens count in the loss.

Shapes: B texts, S tokens of a prompt.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig

from eagle.data.folder import Counts, Prepared, load, write_shard, write_summary
from eagle.data.samples import Sample
from eagle.model.support.loading import load_base

PROMPT, LENGTH = 32, 256  # tokens that are given, tokens of a text
KEPT = ("target", "template", "vocabulary", "vocabulary_hash", "max_length", "limit", "by_paragraph", "sources")


def continued(base: torch.nn.Module, prompts_BS: torch.Tensor, sampled: bool) -> list[Sample]:
    """Continue prompts of one length up to `LENGTH` tokens, or to the token that ends a text."""
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    end = base.config.eos_token_id
    settings = GenerationConfig(max_new_tokens=LENGTH - PROMPT, eos_token_id=end, pad_token_id=end, **how)
    base.generation_config = GenerationConfig()
    ids_BT = base.generate(prompts_BS, attention_mask=torch.ones_like(prompts_BS), generation_config=settings)
    samples = []
    for ids_T in ids_BT.cpu().numpy().astype(np.int32):
        ends = np.flatnonzero(ids_T[PROMPT:] == end)
        ids_T = ids_T[: PROMPT + ends[0] + 1] if len(ends) else ids_T
        samples.append(Sample(ids_T, np.arange(len(ids_T)) >= PROMPT))
    return samples


def write(folder: Path, like: Prepared, samples: Sequence[Sample], how: str) -> None:
    """Write a prepared folder for the target of another one."""
    settings = {name: like.summary[name] for name in KEPT} | {"regeneration": {"continued": how, "prompt": PROMPT}}
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counts(rows=len(samples))
    for sample in samples:
        counts.add(sample)
    write_shard(folder, 0, samples, settings=settings, counts=counts)
    write_summary(folder, settings, counts, 1)


def own_answers(target: Path, data: Path, out: Path, device: str, most: int, batch: int) -> None:
    """Write `own_sampled` and `own_mixed` below `out`.

    Args:
        target: folder of the target.
        data: prepared folder whose texts begin.
        out: where the two folders go.
        device: where the target runs.
        most: texts that are wanted.
        batch: texts that are written side by side.
    """
    texts = load(data)
    chosen = [place for place, length in enumerate(texts.lengths_N) if length >= 2 * PROMPT][:most]
    prompts_BS = torch.from_numpy(np.stack([texts[place].ids[:PROMPT] for place in chosen])).long().to(device)
    base = load_base(str(target), {"dtype": "auto"}).to(device).eval()
    torch.manual_seed(0)
    sampled = [each for part in prompts_BS.split(batch) for each in continued(base, part, sampled=True)]
    likeliest = [each for part in prompts_BS[::2].split(batch) for each in continued(base, part, sampled=False)]
    mixed = [likeliest[place // 2] if place % 2 == 0 else each for place, each in enumerate(sampled)]
    write(out / "own_sampled", texts, sampled, "temperature 1")
    write(out / "own_mixed", texts, mixed, "temperature 1, every other text greedily")
