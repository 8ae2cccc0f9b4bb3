"""Put a draft head on a quantised base model: the ids of that base alone, in less memory.

    pip install 'eagle-decoding[quant]'
    python examples/quantised.py --scheme torchao-int8     # or torchao-int4, bnb-int8, bnb-nf4

The head keeps its own precision. docs/targets.md says how exact each scheme is: torchao's two are, in fp32 to the id.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from eagle import EaModel

PAIR = Path(__file__).parent / "tiny_pair"


def quantisation(scheme: str) -> object:
    """Return what `from_pretrained` is told; the library is needed for its own schemes only."""
    if scheme.startswith("bnb"):
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        return BitsAndBytesConfig(**(four if scheme == "bnb-nf4" else {"load_in_8bit": True}))
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

    weights = Int8WeightOnlyConfig() if scheme == "torchao-int8" else IntxWeightOnlyConfig(weight_dtype=torch.int4)
    return TorchAoConfig(weights)


def size(weight: torch.Tensor) -> int:
    """Return the bytes of a weight; torchao's hold several tensors."""
    if hasattr(weight, "__tensor_flatten__"):
        return sum(size(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
    return weight.nbytes


def main(argv: list[str] | None = None) -> int:
    """Compare the quantised base alone with the same base and its head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, folder in (("--base-model-path", "target"), ("--ea-model-path", "eagle3_head")):
        parser.add_argument(option, default=str(PAIR / folder))
    schemes = ("torchao-int8", "torchao-int4", "bnb-int8", "bnb-nf4")
    parser.add_argument("--scheme", choices=schemes, default=schemes[0])
    args = parser.parse_args(argv)
    options = {"dtype": torch.float32, "quantization_config": quantisation(args.scheme), "device_map": "cpu"}
    base = AutoModelForCausalLM.from_pretrained(args.base_model_path, **options).eval()
    model = EaModel.attach(base, args.ea_model_path, total_token=12)
    ids = model.tokenizer("def read_lines(path):\n    ", return_tensors="pt").input_ids
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 48, "do_sample": False}
    same = torch.equal(model.generate(ids, **given), base.generate(ids, **given))
    sizes = [sum(map(size, base.parameters())) / 1e6, 4 * base.num_parameters() / 1e6]
    print(f"{args.scheme}: weights of {sizes[0]:.1f} MB, in fp32 they are {sizes[1]:.1f} MB")
    print(f"τ = {model.stats.acceptance_length:.2f}, ids equal: {'yes' if same else 'no, see docs/targets.md'}")
    return 0 if same or args.scheme.startswith("bnb") else 1


if __name__ == "__main__":
    raise SystemExit(main())
