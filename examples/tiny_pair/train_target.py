"""Train the tiny pair's target: a deep and narrow Llama on the ids that `corpus.py` wrote.

    python examples/tiny_pair/train_target.py --minutes 60

The learning rate follows the clock: warm-up, constant, then a linear decay over the last 30 % of the minutes, so the
run ends when you asked whatever the machine. The last fifth reads windows of 1024 tokens instead of 256. A checkpoint
every two minutes holds model, optimisers, elapsed time and the random state: after Ctrl-C the same command goes on.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

SHORT, LONG, TOKENS_PER_STEP = 256, 1024, 8192
LEARNING_RATE = 4e-3


def build(vocabulary: int) -> LlamaForCausalLM:
    """Return the untrained target: 14 layers of width 256, 11.0 M parameters."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=576,
        num_hidden_layers=14,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.num_hidden_layers))
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, output head and norms."""
    inner = [p for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
    outer = [p for n, p in model.named_parameters() if "layers" not in n or p.ndim != 2]
    return [
        torch.optim.Muon(inner, lr=LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def rate(done: float, step: int) -> float:
    """Return the share of the full learning rate after `done` (0 to 1) of the time."""
    return min(1.0, (step + 1) / 40) * min(1.0, max(0.02, (1 - done) / 0.3))


def windows(ids_T: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """Return [TOKENS_PER_STEP / length, length] ids from random places."""
    starts_B = torch.randint(0, len(ids_T) - length, (TOKENS_PER_STEP // length, 1), generator=generator)
    return ids_T[starts_B + torch.arange(length)].long()


def mean_loss(model: LlamaForCausalLM, ids_BS: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BSV = model(input_ids=ids_BS, use_cache=False).logits
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), ids_BS[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, ids_T: torch.Tensor, length: int = 512) -> float:
    """Return nats per token over all held-out ids, in windows of `length`."""
    rows_RS = ids_T[: len(ids_T) // length * length].view(-1, length).long()
    losses = [mean_loss(model, chunk).item() * len(chunk) for chunk in rows_RS.split(16)]
    return sum(losses) / len(rows_RS)


def main(argv: list[str] | None = None) -> int:
    """Train for the minutes asked, then write bf16 safetensors and the held-out perplexity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/tiny_pair"))
    parser.add_argument("--out", type=Path, default=Path("examples/tiny_pair/target"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train_T, held_out_T = (torch.from_numpy(np.load(args.data / f"{n}.npy")) for n in ("train", "held_out"))
    report = json.loads((args.data / "corpus.json").read_text())
    vocabulary = json.loads((args.data / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    model = build(len(vocabulary))
    optims, step, elapsed = optimizers(model), 0, 0.0
    checkpoint = args.data / "target.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        generator.set_state(state["generator"])
        step, elapsed = state["step"], state["elapsed"]

    def save() -> None:
        state = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "step": step}
        torch.save(state | {"generator": generator.get_state(), "elapsed": elapsed}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    budget, saved_at, ema = args.minutes * 60, elapsed, 0.0
    bar = tqdm(total=round(budget), initial=round(elapsed), unit="s", mininterval=10)
    while elapsed < budget:
        started = time.monotonic()
        length = SHORT if elapsed < 0.8 * budget else LONG
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = LEARNING_RATE * rate(elapsed / budget, step)
        # Micro-batches of 2048 tokens stay in the cache of a small machine.
        chunks = windows(train_T, length, generator).split(2048 // length)
        loss = 0.0
        for chunk in chunks:
            part = mean_loss(model, chunk) / len(chunks)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step += 1
        ema = loss if ema == 0.0 else 0.95 * ema + 0.05 * loss
        seconds = time.monotonic() - started
        elapsed += seconds
        bar.n = round(elapsed)
        bar.set_postfix_str(f"step {step} loss {loss:.3f} ema {ema:.3f} {TOKENS_PER_STEP / seconds:.0f} tok/s")
        if elapsed - saved_at > 120:
            save()
            saved_at = elapsed
    save()
    perplexity = math.exp(held_out_loss(model, held_out_T))
    model.config._attn_implementation = "sdpa"
    model.to(torch.bfloat16).save_pretrained(args.out)
    result = {"steps": step, "tokens": step * TOKENS_PER_STEP, "minutes": round(elapsed / 60, 1)}
    result |= {"held_out_perplexity": round(perplexity, 3), "corpus_tokens": report["tokens"]}
    (args.data / "target.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
