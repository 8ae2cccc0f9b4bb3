"""Heads that leave a run: gathered whole, written as users load them, with a model card of how they were made."""

import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import eagle
from eagle.files import finish_folder, is_local, unfinished_folder, whole_file, write_text
from eagle.model.dialects.checkpoint import save_head
from eagle.model.head import DraftHead
from eagle.train.checkpoints import RunPoint
from eagle.train.settings import Settings

BEST = "best"


class HeadExporter:
    """Writes the head of a run.

    Args:
        folder: of the run.
        accelerator: gathers what is sharded.
        model: the wrapped recipe.
        head: the bare head.
        dtype: of what is written.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, model: Any, head: DraftHead, dtype: torch.dtype) -> None:
        self.folder, self.accelerator, self.model, self.head, self.dtype = folder, accelerator, model, head, dtype

    def write(self, place: Path) -> None:
        """Write the head as it is now; every process takes part."""
        state = self.accelerator.get_state_dict(self.model)
        own = {name.removeprefix("head."): value for name, value in (state or {}).items()}
        if self.accelerator.is_main_process:
            with torch.device("meta"):
                copy = type(self.head)(self.head.config, "embed_tokens.weight" in own)
            cast = {name: _cast(value, self.dtype) for name, value in own.items()}
            copy.load_state_dict(cast, assign=True)
            unfinished = unfinished_folder(place)
            save_head(copy, unfinished)
            finish_folder(unfinished, place)
        self.accelerator.wait_for_everyone()

    def finish(self, point: RunPoint) -> Path:
        """Put the best head, or the last where none was measured, into the run's folder."""
        if point.best_tau is None:
            self.write(self.folder / BEST)
        if self.accelerator.is_main_process:
            for file in (self.folder / BEST).iterdir():
                with whole_file(self.folder / file.name) as unfinished:
                    shutil.copyfile(file, unfinished)
        self.accelerator.wait_for_everyone()
        return self.folder


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()


CARD = """---
library_name: eagle-decoding{base_model}
tags: [speculative-decoding, eagle]
---

# {kind} draft head for {base}

Drafts tokens for {link}; with [eagle](https://pypi.org/project/eagle-decoding/) the target generates the same
text in fewer forward passes.

```python
from eagle import EaModel

model = EaModel.from_pretrained(base_model_path="{base}", ea_model_path="{here}", dtype="auto")
```

| | |
|---|---|
{rows}

Made with `eagle` {version}, settings that are not the default:

```yaml
{settings}
```
"""


def write_card(
    folder: Path,
    head: DraftHead,
    size: int,
    base: str,
    settings: Settings,
    point: RunPoint,
    tokens: int,
    template: str | None,
) -> None:
    """Write `README.md` for a head.

    Args:
        folder: of the head.
        head: the head.
        size: its parameters, counted while they were whole.
        base: its target.
        settings: of its training.
        point: its end, and the best acceptance length.
        tokens: that were read.
        template: of the chats, None for plain texts.
    """
    rows: dict[str, Any] = {
        "parameters": f"{size:,}",
        "draft vocabulary": f"{head.draft_size:,} of {head.config.vocab_size:,} tokens",
        "training": f"{point.step:,} steps, {tokens:,} tokens",
    }
    if template:
        rows["chat template"] = template
    if point.best_tau is not None:
        rows["acceptance length"] = (
            f"{point.best_tau:.2f} tokens per forward on held-out texts, greedy, tree of {settings.eval_total_token}, "
            f"after {point.best_step:,} steps"
        )
    defaults = {each.name: getattr(Settings(), each.name) for each in fields(Settings)}
    changed = {name: value for name, value in asdict(settings).items() if value != defaults[name]}
    local = is_local(base)
    text = CARD.format(
        base=base,
        base_model="" if local else f"\nbase_model: {base}",
        link=f"`{base}`" if local else f"[{base}](https://huggingface.co/{base})",
        here=folder.name,
        kind=head.kind,
        version=eagle.__version__,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        settings="\n".join(f"{name}: {value}" for name, value in changed.items()),
    )
    write_text(folder / "README.md", text)
