"""Train a draft head on token ids, with the target in the loop.

python -m eagle.train.main --basepath TARGET --trainpath ids.npy --cpdir HEAD --kind eagle3 --tokens 5000000
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from eagle.model.checkpoint import save_head
from eagle.model.configs import tapped_layers
from eagle.model.head import Eagle3Head, EagleHead
from eagle.model.target import Taps, TargetModel
from eagle.train.features import lesson
from eagle.train.loop import Schedule, train
from eagle.train.recipe import Outcome, eagle3_recipe, eagle_recipe, frequent_tokens, new_head


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m eagle.train.main", description=__doc__.split("\n")[0])
    parser.add_argument("--basepath", required=True, help="folder or Hub id of the target")
    parser.add_argument("--trainpath", type=Path, required=True, help=".npy file with the training ids in one row")
    parser.add_argument("--cpdir", type=Path, required=True, help="where the head goes; its checkpoint too")
    parser.add_argument("--kind", choices=("eagle", "eagle3"), default="eagle3")
    parser.add_argument("--tokens", type=int, default=5_000_000, help="tokens to train on")
    parser.add_argument("--bs", type=int, default=16, help="rows per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=7, help="unrolled steps of EAGLE-3's training-time test")
    parser.add_argument("--draft-vocab-size", type=int, default=None, help="tokens an EAGLE-3 head drafts")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train, then save the head in bf16."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.trainpath.is_file():
        raise FileNotFoundError(f"--trainpath {args.trainpath} does not exist")
    schedule = Schedule(tokens=args.tokens, batch=args.bs, length=args.length, rate=args.lr, seed=args.seed)
    torch.manual_seed(args.seed)
    ids_T = np.load(args.trainpath)
    base = AutoModelForCausalLM.from_pretrained(args.basepath, attn_implementation="eager", dtype=torch.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    target = TargetModel(base.to(device).eval().requires_grad_(False))
    draft_tokens = None
    if args.draft_vocab_size is not None:
        draft_tokens = frequent_tokens(ids_T, target.vocabulary, args.draft_vocab_size)
    head = new_head(args.kind, target, draft_tokens).to(device)
    taps: Taps = "last" if args.kind == "eagle" else tapped_layers(head.config, len(target.layers))
    if isinstance(head, Eagle3Head):
        recipe = eagle3_recipe(head, target, args.steps)
    else:
        assert isinstance(head, EagleHead)
        recipe = eagle_recipe(head, target)

    def run(ids_BT: torch.Tensor) -> Outcome:
        with torch.autocast(target.device.type, dtype=torch.bfloat16):
            return recipe(lesson(target, ids_BT.to(device), taps))

    args.cpdir.mkdir(parents=True, exist_ok=True)
    described = f"{args.kind} head, {args.steps} steps, {args.draft_vocab_size} draft tokens, {args.trainpath}"
    train(head, torch.from_numpy(ids_T.astype(np.int32)), schedule, run, args.cpdir / "training.pt", described)
    save_head(head.to(torch.bfloat16), args.cpdir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
