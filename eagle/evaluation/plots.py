"""Pictures of measurements; the only file that imports matplotlib, which the extra `plots` installs."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eagle.evaluation.curve_points import CurvePoint
from eagle.evaluation.measure import Row
from eagle.evaluation.methods import BASELINES, GENERATE, PLAIN
from eagle.evaluation.report import PARTS, at, parts_of
from eagle.evaluation.scores import DEPTHS, MethodScore, SetScore

# Paul Tol's bright scheme: told apart in print and by colour-blind readers.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
MARKERS = "osD^vPX"
PART_COLOURS = dict(zip(("draft", "verify", "accept", "commit", "host"), COLOURS, strict=False)) | {
    "capture": COLOURS[6],
    "replay": COLOURS[5],
    "read": "#DDDDDD",
    "rest": COLOURS[3],
}
SWEPT = {"total_token": "nodes of the tree", "depth": "depth", "batch": "batch size", "context": "context, tokens"}


def check_plotting() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install 'eagle-decoding[plots]'")


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure with a flat list of axes, drawn without a display."""
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def _tokens(length: int | None) -> str:
    return "prompts as they are" if length is None else f"{length} prompt tokens"


def draw_bench(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw speed-ups over whatever was varied, and where a step's time goes; return the files."""
    batches, lengths = ({getattr(row, name) for row in rows} for name in ("batch_size", "prompt_length"))
    drawn = []
    if len(batches) > 1:
        drawn.append(_speedup_lines(rows, "batch_size", "prompt_length", folder / "speedup_over_batch.png"))
    if len(lengths) > 1:
        drawn.append(_speedup_lines(rows, "prompt_length", "batch_size", folder / "speedup_over_prompt.png"))
    if not drawn:
        drawn.append(_speedup_bars(rows, folder / "speedup.png"))
    return [*drawn, _split_bars(rows, folder / "split.png")]


def _speedup_lines(rows: Sequence[Row], x: str, panel: str, path: Path) -> Path:
    """Draw one line per method over `x`, one panel for every value of the other setting."""
    values = list(dict.fromkeys(getattr(row, panel) for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    figure, axes = _panels(1, len(values), 4.6, 3.8)
    for axis, value in zip(axes, values, strict=True):
        for number, name in enumerate(names):
            points = sorted((getattr(r, x), r.speedup) for r in rows if r.name == name and getattr(r, panel) == value)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name) if points else None
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        ticks = sorted({getattr(row, x) for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.set_xlabel("batch size" if x == "batch_size" else "prompt tokens")
        axis.set_title(_tokens(value) if x == "batch_size" else f"batch of {value}", fontsize=10)
        axis.set_ylim(bottom=0, top=1.1 * max(row.speedup for row in rows))
    axes[0].set_ylabel("speed-up over the faster baseline")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return _save(figure, path)


def _speedup_bars(rows: Sequence[Row], path: Path) -> Path:
    """Draw one bar per method."""
    figure, (axis,) = _panels(1, 1, 1.6 + 1.1 * len(rows), 3.8)
    colours = ["#BBBBBB" if row.name in BASELINES else COLOURS[0] for row in rows]
    bars = axis.bar([_wrapped(row.name) for row in rows], [row.speedup for row in rows], color=colours, width=0.65)
    axis.bar_label(bars, fmt="%.2f×", padding=4, fontsize=9, bbox={"color": "white", "pad": 0.5})
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylim(top=1.12 * max(row.speedup for row in rows))
    axis.set_ylabel("speed-up over the faster baseline")
    return _save(figure, path)


def _wrapped(name: str) -> str:
    """Break a method's name over two lines."""
    return name.replace(" ", "\n", 1)


def _split_bars(rows: Sequence[Row], path: Path) -> Path:
    """Draw a step's parts on top of one another, one panel for every batch size and prompt length."""
    timed = [row for row in rows if row.step_ms]
    settings = list(dict.fromkeys((row.batch_size, row.prompt_length) for row in timed))
    most = max(sum((row.batch_size, row.prompt_length) == one for row in timed) for one in settings)
    columns = 2 if len(settings) == 4 else min(len(settings), 3)
    figure, axes = _panels(-(-len(settings) // columns), columns, 1.2 + 1.0 * most, 3.6)
    for axis, (batch, length) in zip(axes, settings, strict=False):
        chosen = [row for row in timed if (row.batch_size, row.prompt_length) == (batch, length)]
        names, floor = [_wrapped(row.name) for row in chosen], [0.0] * len(chosen)
        for part in parts_of(timed):
            heights = [row.step_ms.get(part, 0.0) for row in chosen]
            axis.bar(names, heights, bottom=floor, color=PART_COLOURS[part], label=part, width=0.65)
            floor = [low + high for low, high in zip(floor, heights, strict=True)]
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(f"batch of {batch}, {_tokens(length)}", fontsize=10)
        axis.set_ylabel("milliseconds per step")
    for axis in axes[len(settings) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    return _save(figure, path)


def draw_curves(points: Sequence[CurvePoint], path: Path) -> Path:
    """Draw step time over each setting that was varied, draft and verify and the rest on top of one another."""
    swept, parts = list(dict.fromkeys(point.swept for point in points)), ("draft", "verify", "rest")
    columns = min(2, len(swept))
    figure, axes = _panels(-(-len(swept) // columns), columns, 4.8, 3.4)
    for axis, name in zip(axes, swept, strict=False):
        chosen = sorted((p for p in points if p.swept == name), key=lambda point: point.value)
        x = [point.value for point in chosen]
        layers = [[getattr(point, f"{part}_ms") for point in chosen] for part in parts]
        axis.stackplot(x, layers, labels=parts, colors=[PART_COLOURS[part] for part in parts])
        axis.plot(
            x, [sum(c) for c in zip(*layers, strict=True)], color="black", marker="o", markersize=3.5, clip_on=False
        )
        axis.set_xlabel(SWEPT[name])
        axis.set_xticks(x, [str(value) for value in x], fontsize=8)
        axis.set_xlim(x[0], x[-1])
        axis.set_ylim(bottom=0)
        axis.set_ylabel("milliseconds per step")
    for axis in axes[len(swept) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    return _save(figure, path)


def draw_eval(scores: Sequence[SetScore], folder: Path) -> list[Path]:
    """Draw speed-ups by set, acceptance by depth, and where a step's time goes; return the files."""
    temperatures = list(dict.fromkeys(score.temperature for score in scores))
    by_temperature = [[score for score in scores if score.temperature == one] for one in temperatures]
    drawn = [_eval_bars(by_temperature, folder / "speedup.png")]
    means = [of_one[-1] for of_one in by_temperature]
    if any(one.acceptance_by_depth for score in means for one in score.methods):
        drawn.append(_depth_lines(means, folder / "acceptance.png"))
    if any(one.step_ms for one in means[0].methods):
        drawn.append(_stage_bars(means[0], folder / "split.png"))
    return drawn


def _colours(methods: Sequence[MethodScore]) -> dict[str, str]:
    """Return a colour for every method, greys for the baselines."""
    greys, names = {GENERATE: "#BBBBBB", PLAIN: "#888888"}, [one.name for one in methods]
    others = [name for name in names if name not in greys]
    return greys | {name: COLOURS[place % 6] for place, name in enumerate(others)}


def _eval_bars(by_temperature: Sequence[Sequence[SetScore]], path: Path) -> Path:
    """Draw a group of bars for every set, one panel below the other for every temperature, with intervals."""
    most = max(map(len, by_temperature))
    methods = by_temperature[0][0].methods
    figure, axes = _panels(len(by_temperature), 1, 2.2 + 0.32 * most * len(methods), 3.2)
    top = max(one.speedup.high for scores in by_temperature for score in scores for one in score.methods)
    for axis, scores in zip(axes, by_temperature, strict=True):
        width, colours = 0.84 / len(methods), _colours(methods)
        for place, method in enumerate(methods):
            found = [score.methods[place].speedup for score in scores]
            x = [group + (place - (len(methods) - 1) / 2) * width for group in range(len(scores))]
            errors = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
            axis.bar(
                x,
                [one.value for one in found],
                width * 0.92,
                yerr=errors,
                color=colours[method.name],
                label=method.name,
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            )
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(scores)), [score.questions for score in scores])
        axis.set_ylim(0, 1.08 * top)
        axis.set_ylabel("speed-up")
        axis.set_title(at(scores[0].temperature), fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return _save(figure, path)


def _depth_lines(means: Sequence[SetScore], path: Path) -> Path:
    """Draw the share of drafts that go on, by how many tokens were accepted so far."""
    figure, axes = _panels(1, len(means), 4.4, 3.4)
    for axis, score in zip(axes, means, strict=True):
        colours = _colours(score.methods)
        drafting = [one for one in score.methods if len(one.acceptance_by_depth) > 0 and one.name not in BASELINES]
        for place, one in enumerate(drafting):
            marker = MARKERS[place % len(MARKERS)]
            shares = one.acceptance_by_depth
            errors = [[share.value - share.low for share in shares], [share.high - share.value for share in shares]]
            axis.errorbar(
                range(len(shares)),
                [share.value for share in shares],
                yerr=errors,
                color=colours[one.name],
                marker=marker,
                elinewidth=0.8,
                label=one.name,
            )
        axis.set_xticks(range(DEPTHS), [f"{depth}-α" for depth in range(DEPTHS)])
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(at(score.temperature), fontsize=10)
    axes[0].set_ylabel("share of drafts that go on")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return _save(figure, path)


def _stage_bars(score: SetScore, path: Path) -> Path:
    """Draw a step's stages on top of one another, a bar a method."""
    timed = [one for one in score.methods if one.step_ms]
    figure, (axis,) = _panels(1, 1, 2.2 + 0.9 * len(timed), 3.6)
    floor = [0.0] * len(timed)
    for part in [name for name in PARTS if any(name in one.step_ms for one in timed)]:
        heights = [one.step_ms.get(part, 0.0) for one in timed]
        names = [_wrapped(one.name) for one in timed]
        axis.bar(names, heights, bottom=floor, color=PART_COLOURS[part], label=part, width=0.65)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    axis.tick_params(axis="x", labelsize=8)
    axis.set_ylabel("milliseconds per step")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    return _save(figure, path)
