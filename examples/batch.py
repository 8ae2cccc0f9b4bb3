"""Answer a file of prompts in batches; a row may accept more tokens than its neighbours.

    python examples/batch.py --prompts prompts.jsonl --out answers.jsonl     # a line: {"text": "..."}

Prompts of like length share a batch, so that few pads are run. Lines come out in the order of the file.
"""

import argparse
import json
from pathlib import Path

from eagle import EaModel

PAIR = Path(__file__).parent / "tiny_pair"


def main(argv: list[str] | None = None) -> int:
    """Read prompts, write answers, say how fast that was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default=str(PAIR / "target"))
    parser.add_argument("--ea-model-path", default=str(PAIR / "eagle3_head"))
    parser.add_argument("--prompts", type=Path, default=PAIR / "prompts.jsonl")
    parser.add_argument("--num-prompts", type=int, default=8, help="the first so many of the file")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("build/answers.jsonl"))
    args = parser.parse_args(argv)
    paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
    model = EaModel.from_pretrained(**paths, total_token=-1, dtype="auto", device_map="auto").eval()
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with args.prompts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][: args.num_prompts]
    answers, tokens, seconds = {}, 0, 0.0
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), args.batch_size):
        rows = order[start : start + args.batch_size]
        batch = tokenizer([texts[row] for row in rows], return_tensors="pt", padding=True).to(model.device)
        ids, mask = batch.input_ids, batch.attention_mask
        out = model.generate(ids, attention_mask=mask, max_new_tokens=args.max_new_tokens)
        new = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        answers.update(zip(rows, new, strict=True))
        stats = model.stats
        tokens, seconds = tokens + stats.new_tokens, seconds + stats.prefill_seconds + stats.decode_seconds
        print(f"{len(answers)} of {len(texts)}: τ {stats.acceptance_length:.2f}, {tokens / seconds:.0f} tokens/s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    answered = [json.dumps({"text": text, "answer": answers[row]}) + "\n" for row, text in enumerate(texts)]
    args.out.write_text("".join(answered), encoding="utf-8")
    print(f"{len(texts)} answers in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
