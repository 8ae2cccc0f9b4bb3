"""Where the milliseconds of one step on a GPU go, kernel by kernel, for a synthetic pair.

    python examples/benchmarks/profile_step.py --synthetic 8b --kind eagle3 --draft-vocabulary 32000

Plain decoding first, then drafting, both in CUDA graphs, under torch's profiler; the longest kernels of a step each.
"""

from collections import Counter
from types import SimpleNamespace

import torch

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine
from eagle.commands.running import run
from eagle.evaluation.pairs import check_pair, opened
from eagle.evaluation.prompts import random_prompts

PROMPT, WARM_UP, TOKENS, SHOWN = 64, 40, 64, 25
COMMAND = CommandLine(
    "profile_step.py",
    "profile_step",
    __doc__ or "",
    options.pair_options(dtype="bfloat16"),
    Section("The tree", options.tree(60, 7, 10)),
    fixed=options.NO_ASSISTANT,
)


def check(args: SimpleNamespace) -> None:
    """Check the options before anything is made."""
    args.cuda_graphs = True
    if args.synthetic is None or not torch.cuda.is_available():
        raise ValueError("needs --synthetic, and a CUDA device")
    check_pair(args)


def work(args: SimpleNamespace) -> int:
    """Profile a pair and print its kernels."""
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


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
