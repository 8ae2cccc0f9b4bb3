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
        middles = (EDGES[1:] + EDGES[:-1]) / 2
        self._seen = np.full(len(middles), TRUST)
        self._accepted = TRUST * middles
        self._points = np.concatenate([[0.0], middles, [1.0]])
        self._rates = np.zeros(len(self._points))
        self._average()

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Return the expected rate of acceptance of every score, of any shape; 0 for NaN."""
        return np.interp(_probabilities(scores), self._points, self._rates)

    def learn(self, scores_N: np.ndarray, accepted_N: np.ndarray) -> None:
        """Take note of nodes that were verified, and which of them the target accepted."""
        bins_N = EDGES[1:-1].searchsorted(_probabilities(scores_N), side="right")
        self._seen += np.bincount(bins_N, minlength=len(self._seen))
        self._accepted += np.bincount(bins_N[accepted_N], minlength=len(self._seen))
        kept = np.minimum(1.0, MOST / self._seen)
        self._seen *= kept
        self._accepted *= kept
        self._average()

    def _average(self) -> None:
        self._rates[1:-1] = self._accepted / self._seen
        self._rates[-1] = self._rates[-2]


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """Return probabilities, 0 for NaN."""
    return np.fmax(np.exp(np.minimum(scores, 0.0)), 0.0)
