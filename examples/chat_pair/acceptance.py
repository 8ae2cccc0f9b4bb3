"""τ of the chat pair's heads on whole sets of questions, first turns, greedy, fp32; ids are held to `generate`'s.

    python examples/chat_pair/acceptance.py --questions mt_bench gsm8k

Rows run in batches, which changes no acceptance: for speeds see `eagle eval`.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from eagle.chat import choose_template
from eagle.data.samples import prompt_ids
from eagle.evaluation.intervals import estimate, ratio_of_sums
from eagle.evaluation.methods import GENERATE, methods
from eagle.evaluation.prompts import batched
from eagle.evaluation.questions import load_questions
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base

HEADS = [f"examples/chat_pair/{kind}_head" for kind in ("eagle", "eagle3")]
BATCH = 8


def main(argv: list[str] | None = None) -> int:
    """Measure every head on every set; return 1 where ids differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default="build/chat_pair/target")
    parser.add_argument("--ea-model-path", nargs="+", default=HEADS)
    parser.add_argument("--questions", nargs="+", default=["mt_bench", "gsm8k"])
    parser.add_argument("--total-token", type=int, default=26)
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--max-new-token", type=int, default=128)
    args = parser.parse_args(argv)
    base, tree = load_base(args.base_model_path, {"dtype": "float32"}), (args.total_token, args.depth, args.top_k)
    models = {head: EaModel(None, base, args.base_model_path, head, *tree) for head in args.ea_model_path}
    tokenizer = next(iter(models.values())).tokenizer
    template = choose_template(tokenizer)
    assert template is not None
    ways = methods(base, models, chosen=[GENERATE])
    differing = 0
    for name in args.questions:
        questions = load_questions(name).questions
        asked = [[{"role": "user", "content": question.turns[0]}] for question in questions]
        prompts = batched(
            [torch.tensor([prompt_ids(tokenizer, template, one)]) for one in asked], BATCH, tokenizer.pad_token_id
        )
        accepted: dict[str, list[list[int]]] = {head: [] for head in models}
        for prompt in tqdm(prompts, desc=name, unit="batch", disable=None):
            wanted = ways[0].run(prompt, args.max_new_token)
            for way in ways[1:]:
                differing += not torch.equal(way.run(prompt, args.max_new_token), wanted)
                stats = way.stats()
                assert stats is not None
                accepted[way.name] += [stats.accepted_per_row.get(row, []) for row in range(BATCH)]
        for head, rows in accepted.items():
            rows = rows[: len(questions)]
            found = estimate(lambda a, b: 1 + ratio_of_sums(a, b), [sum(r) for r in rows], [len(r) for r in rows])
            interval = f"[{found.low:.2f}, {found.high:.2f}]"
            sys.stdout.write(f"{name}, {Path(head).name}: τ {found.value:.2f} {interval} of {len(rows)} questions\n")
            sys.stdout.flush()
    sys.stdout.write(f"batches with other ids than generate's: {differing}\n")
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main())
