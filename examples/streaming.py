"""Print an answer as it comes, a burst a step, and stop when there is enough.

    python examples/streaming.py

`pieces` is what a server would hand on. Closing it ends the call at once, and the next one may begin.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from eagle import EaModel
from eagle.application.session import TokenText

PAIR = Path(__file__).parent / "tiny_pair"


def pieces(model: EaModel, text: str, **settings: object) -> Iterator[str]:
    """Yield the continuation of a text, what one step adds at a time; no character comes in halves."""
    ids = model.tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    stream, words = model.generate_steps(ids, **settings), TokenText(model.tokenizer)
    try:
        for step in stream:
            yield "".join(words.add(token) for token in step.tokens[0])
    finally:
        stream.close()


def main(argv: list[str] | None = None) -> int:
    """Stream one continuation, then the beginning of another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default=str(PAIR / "target"))
    parser.add_argument("--ea-model-path", default=str(PAIR / "eagle3_head"))
    parser.add_argument("--prompt", default="def read_lines(path):\n    ")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args(argv)
    paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
    model = EaModel.from_pretrained(**paths, total_token=12, dtype="auto", device_map="auto").eval()
    started = time.perf_counter()
    print(args.prompt, end="", flush=True)
    for piece in pieces(model, args.prompt, max_new_tokens=args.max_new_tokens):
        print(piece, end="", flush=True)
    taken = time.perf_counter() - started
    stats = model.stats
    print(f"\n\n{stats.new_tokens} tokens in {stats.steps} bursts after the first token, {1000 * taken:.0f} ms")

    stream = pieces(model, args.prompt, max_new_tokens=args.max_new_tokens)
    first_line = ""
    while "\n" not in first_line and (piece := next(stream, None)) is not None:
        first_line += piece
    stream.close()
    print(f"stopped by hand after {model.stats.new_tokens} tokens: {first_line.partition(chr(10))[0]!r}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
