"""Heads out: written whole in a layout that others read, read back and compared, with a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import eagle
from eagle.files import finish_folder, is_local, unfinished_folder, write_text
from eagle.model.dialects import specforge, speculators
from eagle.model.dialects.checkpoint import build_head, describe, save_head
from eagle.model.dialects.keys import Verifier
from eagle.model.dialects.token_maps import write_token_map
from eagle.model.dialects.weights import read_weights
from eagle.model.head import DraftHead, EagleHead

WRITERS = {"speculators": speculators.saved, "sglang": specforge.saved}
LAYOUTS = ("eagle", *WRITERS)

CARD = """---
library_name: {library}{base_model}
tags: [speculative-decoding, eagle]
---

# {kind} draft head for {base}

Drafts tokens for {link}, which generates the same text in fewer forward passes. Written by
[eagle](https://pypi.org/project/eagle-decoding/) {version} in the `{layout}` layout{source}.

```{language}
{command}
```

| | |
|---|---|
| parameters | {parameters:,} |
| draft vocabulary | {draft:,} of {vocabulary:,} tokens |
| reads | {reads} |
"""
LOADED = """from eagle import EaModel

model = EaModel.from_pretrained(base_model_path="{base}", ea_model_path="{here}", dtype="auto")"""
SERVED = {
    "speculators": """vllm serve {base} \\
    --speculative-config '{{"method": "eagle3", "model": "{here}", "num_speculative_tokens": 3}}'""",
    "sglang": """python -m sglang.launch_server --model-path {base} --speculative-algorithm {algorithm} \\
    --speculative-draft-model-path {here} --speculative-num-steps 3 --speculative-eagle-topk 1 \\
    --speculative-num-draft-tokens 4""",
}


def check_layout(layout: str) -> str:
    """Return the name of a layout.

    Raises:
        ValueError: there is none of this name.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    return layout


def write_layout(
    head: DraftHead,
    folder: str | Path,
    layout: str,
    verifier: Verifier,
    target: Any,
    *,
    source: str | None = None,
    here: str | None = None,
    tokens: torch.Tensor | None = None,
) -> Path:
    """Write a head in a layout, with a model card, and make sure that it is read back as it is.

    Args:
        head: the head, in the dtype to write.
        folder: where; what is there has to be empty.
        layout: one of `LAYOUTS`.
        verifier: its target.
        target: the target's text configuration.
        source: where the head came from.
        here: what the model card calls it; None means the folder's name.
        tokens: a token map [W] to lie with an EAGLE-1/2 head; None means the one that it drafts from, if any.

    Raises:
        ValueError: an unknown layout, or a folder that holds something.
        NotImplementedError: whoever reads the layout would read another head.
    """
    check_layout(layout)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already: name a folder that is empty or not there")
    unfinished = unfinished_folder(folder)
    try:
        _write(head, unfinished, layout, verifier)
        if tokens is None and isinstance(head, EagleHead) and hasattr(head, "d2t"):
            tokens = head.target_ids(torch.arange(head.draft_size, device=head.device)).cpu()
        if tokens is not None:
            write_token_map(unfinished, tokens)
        write_text(unfinished / "README.md", _card(head, layout, verifier, here or folder.name, source))
        _check_written(head, unfinished, verifier, target)
        finish_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(head: DraftHead, folder: Path, layout: str, verifier: Verifier) -> None:
    if layout == "eagle":
        save_head(head, folder)
        return
    fields, state = WRITERS[layout](head.config, head.state_dict(), head.taps(verifier.layers), verifier)
    fields |= {"dtype": str(state["fc.weight"].dtype).removeprefix("torch.")}
    fields.pop("transformers_version", None)
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _check_written(head: DraftHead, folder: Path, verifier: Verifier, target: Any) -> None:
    described = describe(str(folder))
    again = build_head(described.config, read_weights(str(folder)), target, dialect=described.dialect)
    before, after = head.state_dict(), again.state_dict()
    if "embed_tokens.weight" in after and verifier.embeddings_VD is not None:
        before.setdefault("embed_tokens.weight", verifier.embeddings_VD.cpu())
    lost = {name for name in before if name not in after} - {"embed_tokens.weight"}
    changed = [name for name in after if name not in before or not torch.equal(after[name], before[name].cpu())]
    assert not lost and not changed, f"{folder}: {sorted(lost)} are lost, {changed} differ"
    assert again.taps(target.num_hidden_layers) == head.taps(target.num_hidden_layers), folder


def _card(head: DraftHead, layout: str, verifier: Verifier, here: str, source: str | None) -> str:
    taps, local = head.taps(verifier.layers), is_local(verifier.name)
    algorithm = "EAGLE" if taps == "last" and layout == "sglang" else "EAGLE3"
    command = SERVED.get(layout, LOADED).format(base=verifier.name, here=here, algorithm=algorithm)
    return CARD.format(
        library={"eagle": "eagle-decoding", "sglang": "sglang"}.get(layout, "speculators"),
        base_model="" if local else f"\nbase_model: {verifier.name}",
        link=f"`{verifier.name}`" if local else f"[{verifier.name}](https://huggingface.co/{verifier.name})",
        base=verifier.name,
        kind=head.kind,
        layout=layout,
        version=eagle.__version__,
        source=f", from `{source}`" if source else "",
        language="python" if layout == "eagle" else "bash",
        command=command,
        parameters=sum(weight.numel() for weight in head.parameters()),
        draft=head.draft_size,
        vocabulary=head.config.vocab_size,
        reads="the last hidden state, after the final norm" if taps == "last" else f"the inputs of layers {list(taps)}",
    )
