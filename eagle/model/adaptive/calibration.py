"""How often nodes of a draft tree are accepted, by the probability that the head gives them."""

import numpy as np

# Probabilities between which nodes count as alike: finer where many lie, and where they decide.
EDGES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
# Nodes that the head's own word counts for, and at which older nodes begin to count less.
TRUST, MOST = 5.0, 200.0


class Calibration:
    """Turns cumulative log-probabilities under the head into how often such nodes are accepted.

    At first the head is taken at its word. A head that is too sure, or unsure of what is always right, is found out
    within some dozen nodes.
    """

    def __init__(self) -> None:
        self._middles = (EDGES[1:] + EDGES[:-1]) / 2
        self._seen = np.full(len(self._middles), TRUST)
        self._accepted = TRUST * self._middles

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Return the expected rate of acceptance of every score, of any shape; 0 for NaN."""
        rates = self._accepted / self._seen
        ends = (0.0, *self._middles, 1.0), (0.0, *rates, rates[-1])
        return np.interp(_probabilities(scores), *ends)

    def learn(self, scores_N: np.ndarray, accepted_N: np.ndarray) -> None:
        """Take note of nodes that were verified, and which of them the target accepted."""
        bins_N = np.clip(EDGES.searchsorted(_probabilities(scores_N), side="right") - 1, 0, len(self._middles) - 1)
        self._seen += np.bincount(bins_N, minlength=len(self._middles))
        self._accepted += np.bincount(bins_N[accepted_N], minlength=len(self._middles))
        kept = np.minimum(1.0, MOST / self._seen)
        self._seen *= kept
        self._accepted *= kept


def _probabilities(scores: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.exp(np.minimum(scores, 0.0)))
