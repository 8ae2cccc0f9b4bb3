"""Write a head as vLLM reads it, and say how it is served there.

    python examples/export_to_vllm.py --base-model-path BASE --ea-model-path HEAD --out head-vllm

The same without loading the base model: eagle convert --base BASE --head HEAD --to speculators --out head-vllm
"""

import argparse
import json
from pathlib import Path

from eagle import EaModel

PAIR = Path(__file__).parent / "tiny_pair"


def main(argv: list[str] | None = None) -> int:
    """Write the folder and print the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default=str(PAIR / "target"))
    parser.add_argument("--ea-model-path", default=str(PAIR / "eagle3_head"))
    parser.add_argument("--out", type=Path, default=Path("build/head-vllm"), help="empty or not there")
    parser.add_argument("--num-speculative-tokens", type=int, default=3)
    args = parser.parse_args(argv)
    paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
    model = EaModel.from_pretrained(**paths, dtype="auto")
    model.save_pretrained(args.out, layout="speculators")
    again = EaModel.attach(model.base_model, args.out)  # what was written is read here as well
    assert again.use_eagle3 == model.use_eagle3
    files = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in sorted(args.out.iterdir()))
    print(f"{args.out}: {files}\n\nServe it:\n")
    method = "eagle3" if model.use_eagle3 else "eagle"
    how = {"method": method, "model": str(args.out), "num_speculative_tokens": args.num_speculative_tokens}
    print(f"vllm serve {args.base_model_path} \\\n    --speculative-config '{json.dumps(how)}'")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
