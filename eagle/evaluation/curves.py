"""What a step costs: time of drafting and of verification over tree size, depth, batch size and context length.

    eagle curves --base-model-path TARGET --ea-model-path HEAD
    eagle curves --synthetic 7b --dtype bfloat16 --plots FOLDER

One setting is varied at a time, the others stay where `--total-token`, `--depth`, `--batch-size` and
`--context-length` put them. Rounds visit every point in turn; a round is its step of median length, a point its
round of median length, so that what a step is made of adds up. A tree of one node is plain decoding.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace

from eagle import progress
from eagle.commands import running
from eagle.commands.curves import COMMAND
from eagle.evaluation.curve_points import CurvePoint, Setting
from eagle.evaluation.pairs import (
    TINY_HEADS,
    BenchPair,
    at_least,
    check_pair,
    check_prompts,
    check_tree,
    opened,
)
from eagle.evaluation.plots import check_plotting, draw_curves
from eagle.evaluation.prompts import Prompt, batched
from eagle.evaluation.report import aligned, check_json, write_json
from eagle.model.configs import tree_config
from eagle.model.ea_model import EaModel

WARM_STEPS = 2
# What can be varied, and the options that say over which values.
SWEEPS = {"total_token": "total_tokens", "depth": "depths", "batch": "batch_sizes", "context": "context_lengths"}


def points_of(args: SimpleNamespace) -> list[CurvePoint]:
    """Return the points of all curves that were asked for."""
    base = Setting(args.total_token, args.depth, args.top_k, args.batch_size, args.context_length)
    return [
        CurvePoint(swept, replace(base, **{swept: value}))
        for swept, option in SWEEPS.items()
        for value in getattr(args, option)
    ]


def run(model: EaModel, setting: Setting, prompt: Prompt, steps: int) -> list[tuple[float, float, float]]:
    """Take up to `steps` steps; return (whole, draft, verify) of each, in seconds."""
    drafts = setting.total_token > 1
    if drafts:
        # The limit is out of reach: near it trees are cut short.
        model.ea_layer.tree = tree_config(setting.total_token, setting.depth, setting.top_k, 1.0)
    generate = model.ea_generate if drafts else model.naive_generate
    new = (steps + 1) * (setting.depth + 2)
    stream = generate(prompt.ids_BS, attention_mask=prompt.mask_BS, max_new_tokens=new, max_length=prompt.width + new)
    taken, before = [], (0.0, 0.0, 0.0)
    for _ in stream:
        stats = model.stats
        now = (stats.decode_seconds, stats.stage_seconds["draft"], stats.stage_seconds["verify"])
        if stats.steps:
            taken.append(tuple(a - b for a, b in zip(now, before, strict=True)))
        before = now
        if len(taken) == steps:
            break
    return taken  # type: ignore[return-value]


def measure(
    model: EaModel, points: Sequence[CurvePoint], prompts: dict[tuple[int, int], Prompt], steps: int, rounds: int
) -> None:
    """Fill the points in alternating rounds, after a warm-up of each."""
    for point in points:
        run(model, point.setting, _prompt(point, prompts), WARM_STEPS)
        point.nodes = model.ea_layer.tree.nodes if point.setting.total_token > 1 else 1
    for point in progress.bar(list(points) * rounds, unit="point", leave=False):
        taken = run(model, point.setting, _prompt(point, prompts), steps)
        middle = sorted(taken)[(len(taken) - 1) // 2]
        for seconds, kept in zip(middle, (point.steps, point.drafts, point.verifies), strict=True):
            kept.append(1000 * seconds)


def _prompt(point: CurvePoint, prompts: dict[tuple[int, int], Prompt]) -> Prompt:
    return prompts[point.setting.batch, point.setting.context]


def prompts_of(pair: BenchPair, points: Sequence[CurvePoint], args: SimpleNamespace) -> dict[tuple[int, int], Prompt]:
    """Return a prompt for every batch size and context length of the points."""
    shapes = {(point.setting.batch, point.setting.context) for point in points}
    return {
        (batch, context): batched(pair.prompts(args, batch, context), batch)[0] for batch, context in sorted(shapes)
    }


def table(points: Sequence[CurvePoint]) -> str:
    """Return the points as aligned text."""
    header = ["varied", "value", "nodes", "draft ms", "verify ms", "rest ms", "step ms", "to plain"]
    plain = next((p.step_ms for p in points if p.setting.total_token == 1), None)
    lines = [
        [
            point.swept.replace("_", " "),
            str(point.value),
            str(point.nodes),
            *(f"{value:.2f}" for value in (point.draft_ms, point.verify_ms, point.rest_ms, point.step_ms)),
            f"{point.step_ms / plain:.2f}x" if plain and point.swept in ("total_token", "depth") else "–",
        ]
        for point in points
    ]
    return aligned(header, lines)


def check(args: SimpleNamespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
        ImportError: `--plots` without matplotlib.
    """
    at_least(
        1, args, "total_tokens", "batch_sizes", "context_lengths", "batch_size", "context_length", "steps", "rounds"
    )
    at_least(2, args, "total_token")
    check_pair(args)
    check_prompts(args)
    for depth in [args.depth, *args.depths]:
        check_tree([args.total_token, *(size for size in args.total_tokens if size > 1)], depth, args.top_k)
    if len(args.ea_model_path or ()) > 1:
        raise ValueError("--ea-model-path: one head at a time")
    if not points_of(args):
        raise ValueError("nothing is varied: give values to one of --total-tokens, --depths, …")
    check_json(args)
    if args.plots is not None:
        check_plotting()


def work(args: SimpleNamespace) -> int:
    """Measure and report."""
    points = points_of(args)
    with opened(args, TINY_HEADS[1:]) as pair:
        model = pair.model(pair.heads[0], args.total_token, args.depth, args.top_k)
        measure(model, points, prompts_of(pair, points, args), args.steps, args.rounds)
    sys.stdout.write(table(points) + "\n")
    if args.plots is not None:
        sys.stdout.write(f"{draw_curves(points, args.plots / 'curves.png')}\n")
    derived = ("value", "draft_ms", "verify_ms", "rest_ms", "step_ms")
    write_json(args, {"points": [asdict(p) | {name: getattr(p, name) for name in derived} for p in points]})
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return running.run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
