"""What is odd about a trial list, told before hours of work and not after."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from speaker.trials import Trials

VOXCELEB1 = re.compile(r"id1(\d{4})(?=[-_.]|$)")  # id10001 to id11251 (Nagrani et al. 2017)
EVERY, HELD_OUT = range(1, 1252), range(270, 310)  # the latter are those of the list -O, -E and -H are of all
# Trials of each list as first published, and since the recordings with wrong labels were taken out.
CLEANED = {37_720: ("-O", 37_611), 581_480: ("-E", 579_818), 552_536: ("-H", 550_894)}


def audit(
    trials: Trials, trained_on: Collection[str] = (), models: Mapping[str, Sequence[str]] = MappingProxyType({}),
    root: Path | None = None,
) -> list[str]:  # fmt: skip
    """What is odd about a list, in sentences: trials that stand twice, against themselves, or with both labels, models
    that are enrolled from what they are tried with, and speakers, as `corpus/speaker`, that a model was `trained_on`.

    `models` are those of spk2utt, their recordings by name. Speakers are known by the folders of a recording, below
    `root` and above: one that begins like the corpus (LibriSpeech is librispeech-100), and further down one named like
    the speaker. Of VoxCeleb1's lists it tells which are of speakers that are meant for training, where nobody knows
    what a model was trained on, and which are those with wrong labels.
    """
    found = []
    listed = [name for name in trials.recordings() if name not in models]
    recordings = [*listed, *(name for utterances in models.values() for name in utterances)]
    above = () if root is None else root.resolve().parts
    known = _known({(*above, *PurePosixPath(name).parts[:-1]) for name in recordings}, trained_on)
    if known:
        found.append(f"the model was trained on {len(known)} of the speakers, such as {min(known)}: its error rates "
                     "on this list say nothing about other speakers")  # fmt: skip
    found += _voxceleb(len(trials), recordings, known_training=bool(trained_on))
    pairs = [tuple(sorted(pair)) for pair in zip(trials.enrol, trials.test, strict=True)]
    alone = sum(first == second for first, second in pairs)
    labels: dict[tuple[str, ...], set[bool]] = {}
    for pair, label in zip(pairs, trials.labels or [False] * len(pairs), strict=True):
        labels.setdefault(pair, set()).add(label)
    both = [pair for pair, kinds in labels.items() if len(kinds) == 2]
    if alone:
        found.append(f"{alone} trials compare a recording with itself")
    own = sum(test in models.get(enrol, ()) for enrol, test in zip(trials.enrol, trials.test, strict=True))
    if own:
        found.append(f"{own} trials compare a model with a recording that it is enrolled from")
    if len(labels) < len(pairs):
        found.append(f"{len(pairs) - len(labels)} trials stand more than once, order of the sides aside")
    if both:
        found.append(f"{len(both)} pairs are a target in one line and none in another, such as {' and '.join(both[0])}")
    return found


def _known(folders: Iterable[tuple[str, ...]], speakers: Collection[str]) -> set[str]:
    """Which of the `speakers`, corpus/speaker, have recordings in such folders."""
    of_family: dict[str, dict[str, str]] = {}
    for name in speakers:
        corpus, _, speaker = name.partition("/")
        letters = re.match(r"[a-z]+", corpus.lower())
        of_family.setdefault(letters[0] if letters else corpus.lower(), {})[speaker] = name
    found: set[str] = set()
    for parts in folders:
        for place, part in enumerate(parts):
            for family in (family for family in of_family if part.lower().startswith(family)):
                found.update(of_family[family][below] for below in parts[place + 1 :] if below in of_family[family])
    return found


def _voxceleb(count: int, recordings: Iterable[str], *, known_training: bool) -> Iterator[str]:
    """Sentences on one of VoxCeleb1's lists; none where any recording is of another corpus."""
    speakers = set()
    for name in recordings:
        number = next((m for part in PurePosixPath(name).parts if (m := VOXCELEB1.match(part))), None)
        if number is None or int(number[1]) not in EVERY:
            return
        speakers.add(int(number[1]))
    if count in CLEANED:
        kind, cleaned = CLEANED[count]
        yield (f"as long as VoxCeleb1{kind} before wrong labels were taken out; published error rates are mostly of "
               f"the cleaned list, of {cleaned:,} trials")  # fmt: skip
    trained = [number for number in speakers if number not in HELD_OUT]
    if trained and not known_training:
        yield (f"{len(trained)} of the speakers are of VoxCeleb1's training part, as in its lists -E and -H: models "
               "trained on VoxCeleb1, such as those of SpeechBrain and NeMo, have heard them; -O has none")  # fmt: skip
