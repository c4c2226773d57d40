"""Decode training data ahead of a run: python -m recipes.cache --data MANIFEST [--data ...] --cache DIR [--workers N].

`recipes.train` with the same manifests, in the same order, and the same `--cache` then starts at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import SpeechError
from recipes.harness.data import data_digest, open_cache


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipes.cache", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", action="append", required=True, help="manifest (docs/training_data.md); repeatable")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder for the decoded audio")
    parser.add_argument("--sample-rate", type=int, default=16_000, help="Hz, that of the model to train")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        cache = open_cache(options.data, options.cache, options.sample_rate, options.workers)
    except (SpeechError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"cache: error: {error}", file=sys.stderr)
        return 2
    hours = len(cache.samples) / options.sample_rate / 3600
    speakers = len({utterance.speaker for utterance in cache.utterances})
    print(f"{hours:.2f} h, {len(cache.utterances)} recordings, {speakers} speakers, {len(cache.skipped)} skipped")
    print(f"{cache.path}, data {data_digest(cache.utterances)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
