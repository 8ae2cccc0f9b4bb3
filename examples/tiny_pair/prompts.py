"""Cut prompts from code that neither the target nor the heads have seen, for the demo and for measuring τ.

    python examples/tiny_pair/prompts.py

writes `prompts.jsonl`: `held_out` prompts from the held-out packages of the standard library, `other` ones from
installed packages outside it. Every prompt ends with a line.
"""

import argparse
import importlib.util
import json
import random
import sysconfig
from pathlib import Path

from corpus import collect
from transformers import AutoTokenizer

OTHER = ("huggingface_hub", "accelerate", "safetensors")
TOKENS = 96


def cut(texts: dict[str, str], count: int, tokenizer: object, rng: random.Random) -> list[tuple[str, str]]:
    """Return (file, prompt) pairs: at most TOKENS tokens of whole lines from random places."""
    names, found = sorted(texts), []
    while len(found) < count:
        name = rng.choice(names)
        lines = texts[name].splitlines(keepends=True)
        start = rng.randrange(len(lines))
        prompt = ""
        for line in lines[start:]:
            if len(tokenizer(prompt + line)["input_ids"]) > TOKENS:
                break
            prompt += line
        if len(tokenizer(prompt)["input_ids"]) >= TOKENS // 2:
            found.append((name, prompt))
    return found


def other_code() -> dict[str, str]:
    """Read installed packages that are not the standard library."""
    texts = {}
    for package in OTHER:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            if path.stat().st_size > 2000:
                texts[str(path.relative_to(root.parent))] = path.read_text(encoding="utf-8")
    return texts


def main(argv: list[str] | None = None) -> int:
    """Cut and write the prompts."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path("build/tiny_pair/tokenizer"))
    parser.add_argument("--out", type=Path, default=here / "prompts.jsonl")
    parser.add_argument("--count", type=int, default=64, help="prompts of each kind")
    args = parser.parse_args(argv)
    tokenizer, rng = AutoTokenizer.from_pretrained(args.tokenizer), random.Random(0)
    sources = {"held_out": collect(Path(sysconfig.get_path("stdlib"))).held_out, "other": other_code()}
    with args.out.open("w", encoding="utf-8") as file:
        for kind, texts in sources.items():
            for name, text in cut(texts, args.count, tokenizer, rng):
                file.write(json.dumps({"kind": kind, "file": name, "text": text}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
