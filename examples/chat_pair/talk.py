"""Talk to the chat pair: answers appear as they are accepted, and a turn runs only what is new in the conversation.

    python examples/chat_pair/talk.py

An empty line ends it. Any chat model and its head will do: --base-model-path, --ea-model-path.
"""

import argparse

import torch
from transformers import TextStreamer

from eagle import EaModel


def main(argv: list[str] | None = None) -> int:
    """Read questions and stream answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default="build/chat_pair/target")
    parser.add_argument("--ea-model-path", default="examples/chat_pair/eagle3_head")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    args = parser.parse_args(argv)
    paths = {"base_model_path": args.base_model_path, "ea_model_path": args.ea_model_path}
    model = EaModel.from_pretrained(**paths, total_token=-1, dtype="auto").eval()
    tokenizer, messages = model.tokenizer, []
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature else {"do_sample": False}
    while question := input("> ").strip():
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        out = model.generate(ids, max_new_tokens=args.max_new_tokens, streamer=streamer, reuse_prefix=True, **sampling)
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        stats = model.stats
        print(
            f"[{stats.tokens_per_second:.0f} tokens/s, τ {stats.acceptance_length:.2f}, {stats.prefilled_tokens} run]"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
