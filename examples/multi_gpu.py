"""Spread a base model over several GPUs; its head goes where ids go in.

    python examples/multi_gpu.py --base-model-path BASE --ea-model-path HEAD --gpus 2

Without GPUs all of it is on the CPU, and the same lines run.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch

from eagle import EaModel

PAIR = Path(__file__).parent / "tiny_pair"


def main(argv: list[str] | None = None) -> int:
    """Load, say where everything is, and generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default=str(PAIR / "target"))
    parser.add_argument("--ea-model-path", default=str(PAIR / "eagle3_head"))
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count(), help="how many to use (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args(argv)
    there = torch.cuda.device_count()
    if not 0 <= args.gpus <= there:
        parser.error(f"--gpus={args.gpus}: this machine has {there}")
    paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
    # "balanced" gives every GPU its share; "auto" would fill the first one first.
    memory = {number: torch.cuda.mem_get_info(number)[0] for number in range(args.gpus)}
    placement = {"device_map": "balanced", "max_memory": memory} if args.gpus else {"device_map": "cpu"}
    model = EaModel.from_pretrained(**paths, dtype="auto", total_token=-1, **placement).eval()
    if not args.gpus:
        print("no GPU is used: everything is on the CPU")
    layers = Counter(str(next(layer.parameters()).device) for layer in model.target.layers)
    head = next(model.ea_layer.head.parameters()).device
    print(f"layers by device: {dict(layers)}; ids go in at {model.device}, the head is on {head}")
    ids = model.tokenizer("def read_lines(path):\n    ", return_tensors="pt").input_ids.to(model.device)
    out = model.generate(ids, max_new_tokens=args.max_new_tokens)
    print(model.tokenizer.decode(out[0], skip_special_tokens=True))
    print(f"τ = {model.stats.acceptance_length:.2f}, {model.stats.tokens_per_second:.0f} tokens/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
