"""The experiments on the tiny pair's heads: what every variant changes, one thing at a time, and in which order.

Rates come first. Whatever does not name one is trained at the rate that served its kind best, and is compared with the
head of that rate.
"""

from dataclasses import dataclass, field
from typing import Any

LAYERS = 14  # of the target; tap 14 is what its last layer puts out
RATES = (1e-3, 2e-3, 5e-3, 1e-2)
USUAL = 5e-3  # what the shipped heads were trained at
# Equal for all of a kind.
SETTINGS: dict[str, dict[str, Any]] = {
    "eagle": {},
    "eagle3": {"ttt_length": 4, "draft_vocab_size": 3840, "norm_before_residual": False},
}
NAMES = {"eagle": "EAGLE-2", "eagle3": "EAGLE-3"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A head to train.

    Attributes:
        name: of its folder.
        kind: eagle or eagle3.
        changes: settings that are not its kind's usual ones; None takes one away.
        rate: learning rate; None means the best of its kind's `RATES`.
        output_rate: learning rate of the output matrix, as a part of the rate.
        base: what it is compared with; None means the head of its rate.
        times: tokens, as a multiple of the others'.
        data: which texts.
    """

    name: str
    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None
    output_rate: float | None = None
    base: str | None = None
    times: int = 1
    data: str = "train"


def rate_name(kind: str, rate: float) -> str:
    """Return the name of the variant that is its kind's usual head at a rate."""
    return f"{kind}-lr-{rate:g}"


def variants() -> list[Variant]:
    """Return all variants, the most telling ones first; long ones are begun early."""
    kinds = tuple(SETTINGS)
    made = [Variant(name=f"{kind}-tokens-x4", kind=kind, rate=USUAL, times=4) for kind in kinds]
    for rate in sorted(RATES, key=lambda rate: abs(rate - USUAL)):
        for kind in kinds:
            # The two kinds at their usual rate: the question that all of this is about.
            base = rate_name("eagle" if kind == "eagle3" and rate == USUAL else kind, USUAL)
            made.append(Variant(name=rate_name(kind, rate), kind=kind, rate=rate, base=base))
    made += [Variant(name=f"{kind}-seed-1", kind=kind, rate=USUAL, changes={"seed": 1}) for kind in kinds]
    made += [Variant(name=f"{kind}-tokens-x2", kind=kind, rate=USUAL, times=2) for kind in kinds]

    def eagle3(name: str, **changes: Any) -> Variant:
        return Variant(name=f"eagle3-{name}", kind="eagle3", changes=changes)

    def eagle(name: str, **changes: Any) -> Variant:
        return Variant(name=f"eagle-{name}", kind="eagle", changes=changes)

    def taps(*layers: int) -> Variant:
        return eagle3("taps-" + "-".join(map(str, layers)), tap_layers=list(layers))

    last = LAYERS
    made += [taps(2, 7, last), taps(2, 7, last - 1), taps(last - 2, last - 1, last), taps(last)]
    # From EAGLE-1 to EAGLE-3, rung by rung; the last rungs are `taps(last)` and the usual head.
    made += [eagle("ttt-4", ttt_length=4), eagle("ttt-4-no-feature-loss", ttt_length=4, feature_weight=0.0)]
    made += [eagle3("ttt-7", ttt_length=7), eagle3("ttt-1", ttt_length=1), eagle3("tv-0.9", tv_weight=0.9)]
    made += [Variant(name=f"{kind}-own-mixed", kind=kind, data="own_mixed") for kind in reversed(kinds)]
    made += [eagle("no-noise", feature_noise=0.0), eagle3("noise-0.1", feature_noise=0.1)]
    norms = ("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output")
    made.append(eagle3("all-norms", **dict.fromkeys(norms, True)))
    made += [eagle3(name.replace("_", "-"), **{name: True}) for name in norms]
    made += [eagle("tv-0.9", tv_weight=0.9), eagle3("decay-1", ttt_decay=1.0)]
    made += [Variant(name=f"eagle3-output-lr-x{part:g}", kind="eagle3", output_rate=part) for part in (0.3, 3.0)]
    made += [eagle3("feature-loss", feature_weight=1.0), eagle3("all-tokens", draft_vocab_size=None)]
    made += [eagle3("ttt-3", ttt_length=3), eagle("no-feature-loss", feature_weight=0.0)]
    made += [Variant(name=f"{kind}-own-sampled", kind=kind, data="own_sampled") for kind in reversed(kinds)]
    made.append(eagle3("taps-2-7-14-seed-1", tap_layers=[2, 7, last], seed=1))
    made.append(eagle3("taps-2-7-14-all-norms", tap_layers=[2, 7, last], **dict.fromkeys(norms, True)))
    made.append(eagle3("taps-2-7-14-tv-0.9", tap_layers=[2, 7, last], tv_weight=0.9))
    made.append(eagle3("taps-2-7-14-noise-0.1", tap_layers=[2, 7, last], feature_noise=0.1))
    return made
