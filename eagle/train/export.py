"""Heads that leave a run, or a checkpoint of one: gathered whole, written as users load them, with a model card."""

import shutil
from dataclasses import asdict, dataclass, fields
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

BEST, CANDIDATE = "best", "candidate"


@dataclass(frozen=True)
class Origin:
    """What a head is and how it came about: all that its card says, and its configuration.

    Attributes:
        kind: "eagle" or "eagle3".
        config: fields of its configuration that are not the default.
        base: its target.
        template: of the chats it learnt from, None for plain texts.
        parameters: their number, counted while they were whole.
        tokens_per_step: that were read, on average.
        settings: of its training, those that are not the default.
        tree: nodes of the tree that acceptance lengths are measured with.
        dtype: of what is written, as torch calls it.
    """

    kind: str
    config: dict[str, Any]
    base: str
    template: str | None
    parameters: int
    tokens_per_step: float
    settings: dict[str, Any]
    tree: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of what is written."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[self.dtype]


def changed(settings: Settings) -> dict[str, Any]:
    """Return the settings that are not the default."""
    defaults = {each.name: getattr(Settings(), each.name) for each in fields(Settings)}
    return {name: value for name, value in asdict(settings).items() if value != defaults[name]}


class HeadExporter:
    """Writes the head of a run.

    Args:
        folder: of the run.
        accelerator: gathers what is sharded.
        model: the wrapped recipe.
        head: the bare head.
        origin: of the head.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, model: Any, head: DraftHead, origin: Origin) -> None:
        self.folder, self.accelerator, self.model, self.head, self.origin = folder, accelerator, model, head, origin

    def write(self, place: Path) -> None:
        """Write the head as it is now; every process takes part."""
        state = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            write_head(self.head, state or {}, place, self.origin.torch_dtype)
        self.accelerator.wait_for_everyone()

    def best(self, step: int) -> Path:
        """The place of the best head, if that is the one after so many steps."""
        return self.folder / BEST / f"step_{step:08d}"

    def keep_best(self, steps: set[int]) -> None:
        """Remove the heads that were best once, but for those after these steps."""
        if self.accelerator.is_main_process and (self.folder / BEST).is_dir():
            for place in set((self.folder / BEST).iterdir()) - {self.best(step) for step in steps}:
                shutil.rmtree(place)

    def finish(self, point: RunPoint) -> Path:
        """Put the best head, or the last where none was measured, into the run's folder, with its card."""
        last = self.folder / CANDIDATE
        if point.best_step is None:
            self.write(last)
        if self.accelerator.is_main_process:
            for file in (self.best(point.best_step) if point.best_step is not None else last).iterdir():
                with whole_file(self.folder / file.name) as unfinished:
                    shutil.copyfile(file, unfinished)
            shutil.rmtree(last, ignore_errors=True)
            write_card(self.folder, self.head, self.origin, point)
        self.accelerator.wait_for_everyone()
        return self.folder


def write_head(head: DraftHead, state: dict[str, torch.Tensor], place: Path, dtype: torch.dtype) -> None:
    """Write a head's tensors whole or not at all.

    Args:
        head: of the same kind and shape.
        state: of a recipe, wrapped or not: names may begin with "module." and "head.".
        place: the folder.
        dtype: of what is written, where it is no number of a token.
    """
    own = {name.removeprefix("module.").removeprefix("head."): value for name, value in state.items()}
    with torch.device("meta"):
        copy = type(head)(head.config, "embed_tokens.weight" in own)
    kinds = {name: dtype if value.is_floating_point() else value.dtype for name, value in copy.state_dict().items()}
    cast = {name: value.detach().cpu().to(kinds.get(name, dtype)).contiguous() for name, value in own.items()}
    copy.load_state_dict(cast, assign=True)
    unfinished = unfinished_folder(place)
    save_head(copy, unfinished)
    finish_folder(unfinished, place)


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


def write_card(folder: Path, head: DraftHead, origin: Origin, point: RunPoint) -> None:
    """Write `README.md` for a head.

    Args:
        folder: of the head.
        head: the head.
        origin: how it came about.
        point: the end of its training, and the best acceptance length.
    """
    rows: dict[str, Any] = {
        "parameters": f"{origin.parameters:,}",
        "draft vocabulary": f"{head.draft_size:,} of {head.config.vocab_size:,} tokens",
        "training": f"{point.step:,} steps, {int(origin.tokens_per_step * point.step):,} tokens",
    }
    if origin.template:
        rows["chat template"] = origin.template
    if point.best_tau is not None:
        rows["acceptance length"] = (
            f"{point.best_tau:.2f} tokens per forward on held-out texts, greedy, tree of {origin.tree}, "
            f"after {point.best_step:,} steps"
        )
    base = origin.base
    local = is_local(base)
    text = CARD.format(
        base=base,
        base_model="" if local else f"\nbase_model: {base}",
        link=f"`{base}`" if local else f"[{base}](https://huggingface.co/{base})",
        here=folder.name,
        kind=head.kind,
        version=eagle.__version__,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        settings="\n".join(f"{name}: {value}" for name, value in origin.settings.items()),
    )
    write_text(folder / "README.md", text)
