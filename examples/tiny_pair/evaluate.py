"""Measure the tiny pair: perplexity and acceptance length τ with 95 % intervals, on prompts nobody trained on.

    python examples/tiny_pair/evaluate.py --json examples/tiny_pair/results.json

The interval is a bootstrap over prompts: τ of 2,000 resampled prompt sets.
"""

import argparse
import json
import math
import random
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from eagle.evaluation.bench import load_pair, provenance, read_prompts

PAIR = Path(__file__).parent


def interval(steps: list[tuple[int, int]], rng: random.Random) -> tuple[float, float, float]:
    """Return τ and its 95 % interval from (row steps, accepted) per prompt."""

    def tau(sample: list[tuple[int, int]]) -> float:
        return 1 + sum(a for _, a in sample) / sum(s for s, _ in sample)

    resampled = sorted(tau(rng.choices(steps, k=len(steps))) for _ in range(2000))
    return tau(steps), resampled[50], resampled[1949]


@torch.no_grad()
def perplexity(base: torch.nn.Module, prompts: list[torch.Tensor]) -> float:
    """Return the perplexity of the prompts' own tokens."""
    nats = [F.cross_entropy(base(ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum").item() for ids in prompts]
    return math.exp(sum(nats) / sum(ids.shape[1] - 1 for ids in prompts))


def main(argv: list[str] | None = None) -> int:
    """Measure every method on every kind of prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-new-token", type=int, default=64)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args(argv)
    # As many nodes and levels as the static tree has, so that the methods are compared and not the sizes.
    base, tokenizer, models = load_pair(PAIR, "--total-token", "26", "--depth", "4", "--top-k", "8")
    results = []
    for kind in ("held_out", "other"):
        prompts = read_prompts(PAIR / "prompts.jsonl", tokenizer, args.num_prompts, kind)
        print(f"{kind}: {len(prompts)} prompts, perplexity {perplexity(base, prompts):.2f}")
        for temperature, (name, model) in product((0.0, 1.0), models.items()):
            torch.manual_seed(0)
            steps = []
            for ids in tqdm(prompts, desc=name, leave=False, disable=None):
                model.eagenerate(ids, temperature=temperature, max_new_tokens=args.max_new_token)
                steps.append((model.stats.row_steps, sum(model.stats.accepted_per_step)))
            tau, low, high = interval(steps, random.Random(0))
            tree = model.ea_layer.tree
            print(
                f"  T={temperature:g}  {name}  τ {tau:.2f}  95 % [{low:.2f}, {high:.2f}]  {tree.nodes} nodes",
                flush=True,
            )
            row = {"prompts": kind, "temperature": temperature, "method": name, "tau": tau, "interval": [low, high]}
            results.append(row | {"nodes": tree.nodes, "levels": tree.levels - 1, "prompt_count": len(prompts)})
    if args.json is not None:
        document = {"provenance": provenance(), "max_new_token": args.max_new_token, "results": results}
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
