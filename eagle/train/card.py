"""The model card beside a trained head: what it is, how to use it, how it came about."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import eagle
from eagle.model.head import DraftHead
from eagle.train.checkpoints import Point
from eagle.train.settings import Settings

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
    point: Point,
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
    local = Path(base).exists()
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
    (folder / "README.md").write_text(text, encoding="utf-8")
