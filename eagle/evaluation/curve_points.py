"""One point of a curve of step costs: a setting, and the milliseconds of a step with it."""

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setting:
    """Tree, rows and prompt tokens of one point."""

    total_token: int
    depth: int
    top_k: int
    batch: int
    context: int


@dataclass
class CurvePoint:
    """One point of one curve; a round adds its step of median length to the lists, in milliseconds."""

    swept: str
    setting: Setting
    nodes: int = 1
    steps: list[float] = field(default_factory=list)
    drafts: list[float] = field(default_factory=list)
    verifies: list[float] = field(default_factory=list)

    @property
    def value(self) -> int:
        """What the varied setting is here."""
        return int(getattr(self.setting, self.swept))

    @property
    def _middle(self) -> int:
        """The round of median length; of two the shorter one."""
        return self.steps.index(statistics.median_low(self.steps))

    @property
    def draft_ms(self) -> float:
        """Drafting, the head's reading of accepted tokens included."""
        return self.drafts[self._middle]

    @property
    def verify_ms(self) -> float:
        """The target's forward over the tree."""
        return self.verifies[self._middle]

    @property
    def step_ms(self) -> float:
        """The whole step."""
        return self.steps[self._middle]

    @property
    def rest_ms(self) -> float:
        """Acceptance, commit and the host's bookkeeping."""
        return max(0.0, self.step_ms - self.draft_ms - self.verify_ms)
