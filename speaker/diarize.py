"""Who spoke when: speech, windows, embeddings, clusters, segments.

    encoder = speaker.load("ecapa")
    found = diarize(encoder, "meeting.flac")            # Diarization: .segments of (start, end, speaker)
    found.write_rttm(Path("meeting.rttm"))

The recording is read twice in pieces, once for voice activity, once for embeddings; what grows with it are the
decisions (100 bytes a second) and the embeddings (1.5 kB a window). One speaker at a time: in overlapping speech the
second one is missed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import audio, checkpoint
from engine.errors import AudioError, CheckpointError, ConfigError, ScoreError
from speaker import activity, clustering, windows
from speaker.calibration import Calibration
from speaker.evidence import calibration_of
from speaker.model import SpeakerEncoder
from speaker.rttm import Segment, write_rttm
from speaker.scoring import Floats, unit

if TYPE_CHECKING:
    from speaker.plda import Plda

__all__ = ["BackEnd", "DiarizationConfig", "Diarization", "back_end", "diarize"]

log = logging.getLogger(__name__)
BLOCK_SECONDS = 30.0
PLDA = "diarization.npz"  # in the folder of a model: PLDA of windows
Labels = NDArray[np.int64]
Source = str | Path | NDArray[np.float32] | Tensor


@dataclass(frozen=True, kw_only=True)
class DiarizationConfig:
    """Defaults were chosen on conversations of held-out training speakers (docs/diarization.md)."""

    vad: activity.Method = "energy"
    min_silence: float = 0.3  # seconds; shorter pauses are speech
    min_speech: float = 0.2
    window: float = 1.5  # seconds
    hop: float = 0.5
    cluster: clustering.Method = "spectral"
    threshold: float | None = None  # ahc: log-likelihood ratio at which two clusters are two speakers; 0
    cosine_threshold: float | None = None  # the same for a model without calibration
    min_speaker: float = 5.0  # seconds in windows, which overlap threefold; smaller clusters join others
    resegment: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.vad not in activity.DETECTORS:
            raise ConfigError(f"no voice activity detector {self.vad!r}; there are {', '.join(activity.DETECTORS)}")
        if self.cluster not in clustering.METHODS:
            raise ConfigError(f"no clustering {self.cluster!r}; there are {', '.join(clustering.METHODS)}")
        if self.cluster != "ahc" and (self.threshold is not None or self.cosine_threshold is not None):
            raise ConfigError(f"a threshold is for the clustering 'ahc', not for {self.cluster!r}")
        if not 0 < self.hop <= self.window:
            raise ConfigError(f"windows of {self.window} s every {self.hop} s leave gaps; hop must be in (0, window]")


@dataclass(frozen=True)
class BackEnd:
    """What belongs to a model beside its weights: the calibration of its scores, the PLDA of its windows."""

    calibration: Calibration | None = None
    plda: Plda | None = None


@dataclass
class Diarization:
    """Segments in order of time; for each speaker an embedding (D,) of unit length and, if enrolled, the ratio."""

    segments: list[Segment]
    name: str = "recording"
    embeddings: dict[str, Floats] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)  # of those that got an enrolled name
    duration: float = 0.0

    @property
    def speakers(self) -> list[str]:
        """Names, by first appearance."""
        return list(dict.fromkeys(segment.speaker for segment in self.segments))

    def write_rttm(self, path: str | Path) -> None:
        """Write as RTTM, the recording named as its file without suffix."""
        write_rttm(Path(path), {self.name: self.segments})


def back_end(encoder: SpeakerEncoder, folder: Path | None = None) -> BackEnd:
    """Read what lies in a model's folder; of a shipped model the folder is known. ScoreError if made for others."""
    from speaker import plda
    from speaker.store import same_model

    if folder is None:
        if encoder.name not in checkpoint.shipped():
            return BackEnd()
        folder = checkpoint.find(encoder.name)
        try:
            found = calibration_of(folder, encoder)
        except ScoreError:  # another model of the same name
            return BackEnd()
    else:
        found = calibration_of(folder, encoder)
    path = folder / PLDA
    if not path.is_file():
        return BackEnd(found)
    trained = plda.load(path)
    if trained.model and not same_model(trained.model, encoder.identity):
        raise ScoreError(f"{path} was trained on embeddings of {trained.model}, this is {encoder.identity}; "
                         "`python -m recipes.diarization` makes it anew")  # fmt: skip
    return BackEnd(found, trained)


def diarize(
    encoder: SpeakerEncoder, source: Source, num_speakers: int | None = None, *,
    config: DiarizationConfig | None = None, models: BackEnd | None = None,
    enrolled: Mapping[str, Floats] | None = None, enrolled_seconds: Mapping[str, float] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Diarization:  # fmt: skip
    """Find who speaks when in a file, or in samples (N,) in [-1, 1] at the encoder's rate.

    `num_speakers`: if known. `models`: the calibration and PLDA of the encoder, those that are shipped with it unless
    given. `enrolled`: names and embeddings (D,), which name the speakers that match; `enrolled_seconds` of speech are
    what these rest on. `progress` gets the share done.
    Raises AudioError where there is no speech, ScoreError for more speakers than windows.
    """
    config, models = config or DiarizationConfig(), models or back_end(encoder)
    rate = encoder.config.front_end.sample_rate
    name = Path(source).stem if isinstance(source, str | Path) else "recording"
    named = f"{source}" if isinstance(source, str | Path) else "the samples"
    num_samples, active = _activity(source, rate, config.vad)
    duration = num_samples / rate
    if num_samples < encoder.min_samples:
        raise AudioError(f"{named}: {duration:.2f} s are too short; {encoder.min_samples / rate:.2f} s are needed")
    stretches = activity.segments(active, config.min_silence, config.min_speech)
    if not len(stretches):
        raise AudioError(f"{named}: no speech found in {duration:.1f} s by the detector {config.vad!r}")
    progress(0.05)
    cuts = windows.cut(stretches, config.window, config.hop, max(0.5, encoder.min_samples / rate), duration)
    if num_speakers is not None and not 1 <= num_speakers <= len(cuts.spans):
        raise ScoreError(f"{named}: {num_speakers} speakers are more than the {len(cuts.spans)} windows of speech "
                         f"({float(np.diff(stretches).sum()):.1f} s)")  # fmt: skip
    vectors = windows.embed(encoder, _blocks(source, rate), cuts, config.bfloat16,
                            lambda seconds: progress(0.05 + 0.9 * seconds / duration))  # fmt: skip
    labels = speakers_of(vectors, cuts, config, models, num_speakers)
    return described(stretches, cuts, vectors, labels, models, enrolled, name, duration, enrolled_seconds)


def speakers_of(
    vectors: Floats, cuts: windows.Windows, config: DiarizationConfig, models: BackEnd, num_speakers: int | None = None
) -> Labels:
    """Embeddings (W, D) of windows -> (W,) speakers from 0."""
    threshold = config.threshold or 0.0
    if config.cluster == "ahc" and num_speakers is None and models.calibration is None:
        if config.cosine_threshold is None:
            raise CheckpointError("this model has no calibration to count speakers by; leave --cluster ahc out, tell "
                                  "--num-speakers, or a cosine (--threshold)")  # fmt: skip
        threshold = config.cosine_threshold
    labels = clustering.assign(
        vectors, cuts.seconds, config.cluster, calibration=models.calibration, threshold=threshold,
        num_speakers=num_speakers, min_seconds=config.min_speaker,
    )  # fmt: skip
    if not config.resegment:
        return labels
    if models.plda is None:
        raise CheckpointError(f"resegmentation needs the PLDA of windows, {PLDA} in the model's folder; "
                              "`python -m recipes.diarization` makes it")  # fmt: skip
    from speaker.vbx import vbx

    gamma, _ = vbx(models.plda.prepare(vectors), models.plda.psi, labels)
    refined = np.unique(gamma.argmax(1), return_inverse=True)[1].astype(np.int64)
    if num_speakers is not None and len(np.unique(refined)) < len(np.unique(labels)):
        log.warning("resegmentation finds fewer than the %d speakers that were told; it is left out", num_speakers)
        return labels
    return refined


def described(
    stretches: Floats, cuts: windows.Windows, vectors: Floats, labels: Labels, models: BackEnd,
    enrolled: Mapping[str, Floats] | None, name: str, duration: float,
    enrolled_seconds: Mapping[str, float] | None = None,
) -> Diarization:  # fmt: skip
    """Labels (W,) of windows -> segments and names; speakers are numbered by first appearance."""
    order = list(dict.fromkeys(labels.tolist()))
    means = unit(np.stack([unit(vectors)[labels == label].mean(0) for label in order]))
    # Numbers that nobody is enrolled under: two people of one name would be one.
    free = (each for each in map("speaker_{}".format, count(1)) if each not in (enrolled or {}))
    names, found = list(islice(free, len(order))), dict[str, float]()
    if enrolled:
        from speaker.naming import match

        seconds = np.array([_spoken(stretches, cuts, labels == label) for label in order])
        matches = match(means, seconds, enrolled, models.calibration, enrolled_seconds)
        for row, (known, ratio) in matches.items():
            names[row], found[known] = known, ratio
    of = dict(zip(order, names, strict=True))
    # The last frame of voice activity is a whole one, the recording may end within it.
    segments = [
        Segment(start, min(end, duration), of[label]) for start, end, label in timeline(stretches, cuts, labels)
    ]
    return Diarization(segments, name, dict(zip(names, means, strict=True)), found, duration)


def timeline(stretches: Floats, cuts: windows.Windows, labels: Labels) -> list[tuple[float, float, int]]:
    """Start, end, label: in a stretch of speech a window decides up to half way to its neighbours' centres."""
    found: list[tuple[float, float, int]] = []
    centres = cuts.spans.mean(1)
    for number, (start, end) in enumerate(stretches):
        rows = np.flatnonzero(cuts.stretch == number)
        edges = [start, *((centres[rows[1:]] + centres[rows[:-1]]) / 2), end]
        first = 0
        for at in range(1, len(rows) + 1):
            if at == len(rows) or labels[rows[at]] != labels[rows[first]]:
                found.append((float(edges[first]), float(edges[at]), int(labels[rows[first]])))
                first = at
    return found


def _spoken(stretches: Floats, cuts: windows.Windows, mine: NDArray[np.bool_]) -> float:
    return sum(end - start for start, end, label in timeline(stretches, cuts, mine.astype(np.int64)) if label)


def _activity(source: Source, rate: int, method: str) -> tuple[int, NDArray[np.bool_]]:
    """Number of samples at the encoder's rate, and decisions (T,)."""
    if isinstance(source, str | Path):
        told = audio.probe(source)
        if told.channels > 1:
            log.warning("%s: %d channels are mixed to one", source, told.channels)
        if told.sample_rate < rate:
            log.warning("%s: recorded at %d Hz; speakers are told apart less well than at %d Hz", source,
                        told.sample_rate, rate)  # fmt: skip
    detector, num_samples = activity.detector_of(method)(rate), 0
    for block in _blocks(source, rate):
        detector.push(block[0].numpy())
        num_samples += block.shape[1]
    return num_samples, detector.finish()


def _blocks(source: Source, rate: int) -> Iterable[Tensor]:
    """Pieces (1, n)."""
    if isinstance(source, str | Path):
        return audio.blocks(source, rate, BLOCK_SECONDS, mono=True)
    wav = torch.as_tensor(source)
    if wav.ndim != 1 or not wav.is_floating_point():
        raise AudioError(f"expected samples (N,) in floating point, got {wav.dtype} of shape {tuple(wav.shape)}")
    if not torch.isfinite(wav).all():
        raise AudioError("the samples contain NaN or infinity")
    return wav.float()[None].split(round(BLOCK_SECONDS * rate), dim=1)
