"""Where things of this project lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "examples" / "tiny_pair"
