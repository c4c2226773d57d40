"""`make demo`, second half: are two bundled recordings of one speaker?

python -m speaker.demo
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

from engine import audio
from engine.errors import SpeechError
from speaker.verify import compare

RECORDINGS = Path(audio.__file__).parent / "recordings"


def main() -> int:
    """Compare every bundled recording with every other; returns the exit status."""
    try:
        for first, second in combinations(sorted(RECORDINGS.glob("*.flac")), 2):
            print(f"{first.stem:<10} {second.stem:<10} {compare(first, second).as_text()}")
    except SpeechError as error:
        print(f"speaker.demo: error: {error}", file=sys.stderr)
        return 2
    print("Compare your own: speaker verify a.wav b.wav")
    return 0


if __name__ == "__main__":
    sys.exit(main())
