"""Where the milliseconds of one step on a GPU go, kernel by kernel, for a synthetic pair.

    python examples/benchmarks/profile_step.py --synthetic 8b --kind eagle3 --draft-vocabulary 32000

Plain decoding first, then drafting, both in CUDA graphs, under torch's profiler; the longest kernels of a step each.
"""

import argparse
from collections import Counter

import torch

from eagle.commands.memory import COMMAND
from eagle.evaluation.pairs import check_pair, check_prompts, opened
from eagle.evaluation.prompts import random_prompts

PROMPT, WARM_UP, TOKENS, SHOWN = 64, 40, 64, 25


def main(argv: list[str] | None = None) -> int:
    """Profile a pair and print its kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", required=True, help="shape of the pair, as eagle bench names them")
    parser.add_argument("--kind", default="eagle", choices=("eagle", "eagle3"))
    parser.add_argument("--draft-vocabulary", help="tokens that the head drafts")
    for name, default in (("--dtype", "bfloat16"), ("--total-token", "60"), ("--depth", "7"), ("--top-k", "10")):
        parser.add_argument(name, default=default)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    words = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), value)]
    args = COMMAND.arguments([*words, "--cuda-graphs"])
    check_pair(args)
    check_prompts(args)
    with opened(args) as pair:
        model = pair.model(pair.heads[0], args.total_token, args.depth, args.top_k)
        (ids,) = random_prompts(1, PROMPT, model.config.vocab_size)
        for name, decode in (("plain", model.naivegenerate), ("drafting", model.eagenerate)):
            device_ids = ids.to(model.target.device)
            decode(device_ids, max_new_tokens=WARM_UP)
            with torch.profiler.profile() as profile:
                decode(device_ids, max_new_tokens=TOKENS)
            microseconds, calls = Counter[str](), Counter[str]()
            on_device = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
            for event in on_device:
                microseconds[event.name] += event.device_time
                calls[event.name] += 1
            steps = model.stats.row_steps
            total, kernels = sum(microseconds.values()) / steps / 1000, sum(calls.values()) / steps
            print(f"{name}: {steps} steps, {total:.2f} ms and {kernels:.0f} kernels each")
            for kernel, spent in microseconds.most_common(SHOWN):
                print(f"{spent / steps / 1000:9.3f} ms {calls[kernel] / steps:8.1f} times  {kernel[:90]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
