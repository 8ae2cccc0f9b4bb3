"""Force an answer into a form, JSON here: any logits processor does, and the ids stay those of `generate`.

    python examples/structured_output.py --pattern '\\{"name": "[a-z_]{1,12}", "lines": [0-9]{1,3}\\}'

It tries every token's text at every step: for large vocabularies, and JSON schemas, take a library's processor.
"""

import argparse
from pathlib import Path

import regex
import torch
from transformers import LogitsProcessor

from eagle import EaModel

PAIR = Path(__file__).parent / "tiny_pair"


class Pattern(LogitsProcessor):
    """Allows what can still become a full match of a regular expression, and the end once it is one."""

    def __init__(self, pattern: str, tokenizer: object, vocabulary: int, prompt: int) -> None:
        self.pattern, self.tokenizer, self.prompt = regex.compile(pattern), tokenizer, prompt
        self.end, (first,) = tokenizer.eos_token_id, tokenizer("x", add_special_tokens=False).input_ids
        self.texts = [tokenizer.decode([first, token])[1:] for token in range(vocabulary)]  # "x" keeps leading spaces

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        allowed = torch.stack([self._allowed(text) for text in said])
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _allowed(self, said: str) -> torch.Tensor:
        fits = [bool(text and self.pattern.fullmatch(said + text, partial=True)) for text in self.texts]
        fits[self.end] = bool(self.pattern.fullmatch(said))
        return torch.tensor(fits)


def main(argv: list[str] | None = None) -> int:
    """Answer in the form, with and without drafts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, folder in (("--base-model-path", "target"), ("--ea-model-path", "eagle3_head")):
        parser.add_argument(option, default=str(PAIR / folder))
    parser.add_argument("--pattern", default=r'\{"name": "[a-z_]{1,12}", "lines": [0-9]{1,3}\}')
    args = parser.parse_args(argv)
    options = {"total_token": 12, "dtype": torch.float32}
    model = EaModel.from_pretrained(None, args.base_model_path, args.ea_model_path, **options).eval()
    ids = model.tokenizer("# What read_lines returns, as JSON:\n", return_tensors="pt").input_ids
    form = Pattern(args.pattern, model.tokenizer, model.config.vocab_size, ids.shape[1])
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 64, "logits_processor": [form]}
    out = model.generate(ids, **given)
    assert torch.equal(out, model.base_model.generate(ids, **given))
    print(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    print(f"τ = {model.stats.acceptance_length:.2f}, ids equal to generate's with the same processor")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
