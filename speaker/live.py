"""Embeddings of signals that are still going on: after every piece, that of all there is so far.

    live = LiveEncoder(encoder)
    alice, bob = live.open(), live.open()
    alice.push(samples); bob.push(samples)
    embeddings = live.embed([alice, bob])        # (2, D): one call of the network for both

The network runs over what is new and over what new frames still change, with as much context as its convolutions
reach; what is settled is kept as moments (:mod:`speaker.moments`), so time and memory for a piece do not depend on how
long a signal has been going on. Without anything that looks at the whole utterance before the pooling (x-vector,
ResNet, with a sliding mean or none) the embedding equals that of the file up to this point.

ECAPA-TDNN and TitaNet scale channels by means over the utterance, and most front ends take off its mean. Then a frame
counts as it was with the means known when it came, and the embedding is an approximation: equal for the first
`warm_seconds`, near afterwards (`benchmarks/live_embedding.py` measures how near).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.errors import AudioError
from speaker.live_features import LiveFeatures
from speaker.long import Backbone, count_squeezes
from speaker.model import SpeakerEncoder
from speaker.moments import Moments
from speaker.pooling import StatisticsPooling

__all__ = ["LiveEncoder", "LiveSession"]

WARM_SECONDS = 4.0


class LiveSession:
    """One signal: features that are still needed, and moments of all frames that are settled."""

    def __init__(self, features: LiveFeatures) -> None:
        self.features = features
        self.embedded = 0  # samples when it was last embedded
        self.settled = 0  # network outputs in `moments` and `weighted`
        self.moments = Moments()
        self.weighted = Moments()
        self.sums: list[Tensor] = []  # (C,) of each squeeze's input, over the settled outputs

    def push(self, wav: Tensor) -> None:
        """Take in samples (n,) at the encoder's rate; AudioError if they are not finite."""
        self.features.push(wav)

    @property
    def num_samples(self) -> int:
        """Samples so far."""
        return self.features.num_samples


class LiveEncoder:
    """An encoder for live signals, any number of them at a time."""

    def __init__(self, encoder: SpeakerEncoder, warm_seconds: float = WARM_SECONDS) -> None:
        """`encoder` in eval mode; until `warm_seconds` any embedding is exact, at a cost that grows with the signal."""
        self.encoder = encoder
        self.backbone: Backbone = encoder.backbone
        config = encoder.config.front_end
        self.warm_frames = math.ceil(warm_seconds * config.sample_rate / config.hop_length)

    @property
    def exact(self) -> bool:
        """Whether embeddings equal those of the file up to the same point, however long."""
        pool = self.backbone.pool
        looks_around = not isinstance(pool, StatisticsPooling) and pool.global_context
        if looks_around or not LiveFeatures(self.encoder.config.front_end, 0).exact:
            return False
        like = next(self.encoder.backbone.parameters())
        num_features = self.encoder.config.front_end.num_features
        return not count_squeezes(self.backbone, like.new_zeros(num_features, self.backbone.min_frames))

    def open(self) -> LiveSession:
        """Begin a signal."""
        return LiveSession(LiveFeatures(self.encoder.config.front_end, self.warm_frames))

    @torch.inference_mode()
    def embed(self, sessions: Sequence[LiveSession]) -> Tensor:
        """(B, D): embeddings of the signals so far, not normalized. AudioError if one is too short for any."""
        for session in sessions:
            if session.features.num_frames < self.backbone.min_frames:
                raise AudioError(
                    f"{session.num_samples} samples are too few for an embedding; {self.encoder.name} needs "
                    f"{self.encoder.min_samples}"
                )
        windows = [_Window(session, self.backbone) for session in sessions]
        device = next(self.encoder.backbone.parameters()).device
        features = [window.features.to(device) for window in windows]
        lengths = torch.tensor([each.shape[1] for each in features], device=device)
        padded = pad_sequence([each.mT for each in features], batch_first=True).mT
        num_frames = None if len(set(lengths.tolist())) == 1 else lengths
        squeezes = 0

        def squeeze(x: Tensor, mask: Tensor | None) -> Tensor:
            nonlocal squeezes
            squeezes += 1
            return torch.stack([window.mean(x[i], squeezes - 1) for i, window in enumerate(windows)])[..., None]

        outputs, _ = self.backbone.frames(padded, num_frames, squeeze)
        pooled = [window.pool(outputs[i]) for i, window in enumerate(windows)]
        return self.backbone.head(torch.cat(pooled))


class _Window:
    """What of one signal goes through the network now: the outputs that are not settled, and their context.

    Of its outputs the first `skip` are context, the next `fresh` are settled from now on, the others provisional.
    """

    def __init__(self, session: LiveSession, backbone: Backbone) -> None:
        self.session, self.backbone = session, backbone
        features, stride, halo, shrink = session.features, backbone.stride, backbone.halo, backbone.shrink
        start = max(0, session.settled * stride - halo)
        self.features = features(start, features.num_frames)
        self.total = math.ceil((features.num_frames - shrink) / stride)
        settled = max(session.settled, (features.settled - halo - shrink) // stride)
        self.skip = session.settled - start // stride
        self.fresh = min(settled, self.total) - session.settled
        self.stop = self.total - start // stride

    def mean(self, x: Tensor, squeeze: int) -> Tensor:
        """Input (C, T) of a squeeze -> its mean over the signal so far (C,)."""
        sums = self.session.sums
        if squeeze == len(sums):
            sums.append(torch.zeros(len(x), dtype=torch.float64, device=x.device))
        ours = x[:, self.skip : self.stop].double()
        mean = (sums[squeeze] + ours.sum(1)) / self.total
        sums[squeeze] = sums[squeeze] + ours[:, : self.fresh].sum(1)
        return mean.to(x.dtype)

    def pool(self, outputs: Tensor) -> Tensor:
        """Outputs (C, T) of the network -> (1, 2 C), and what is settled goes to the session."""
        pool, session = self.backbone.pool, self.session
        outputs = outputs[:, self.skip : self.stop]
        here = outputs.cpu()  # moments are sums in double precision, which not every device has
        session.moments, so_far = _merged(session.moments, here, None, self.fresh)
        mean, variance = (each.to(outputs.device) for each in so_far.result(outputs.dtype))
        if isinstance(pool, StatisticsPooling):
            pooled = pool.finish(mean, variance, self.total)
        else:
            context = pool.context(mean, variance, self.total) if pool.global_context else None
            scores = pool.scores(outputs[None], context)[0].cpu()
            session.weighted, so_far = _merged(session.weighted, here, scores, self.fresh)
            pooled = pool.finish(*(each.to(outputs.device) for each in so_far.result(outputs.dtype)))
        session.embedded = session.num_samples
        session.settled += self.fresh
        session.features.forget(max(0, session.settled * self.backbone.stride - self.backbone.halo))
        return pooled


def _merged(moments: Moments, x: Tensor, scores: Tensor | None, fresh: int) -> tuple[Moments, Moments]:
    """Moments with the first `fresh` frames of x (C, T) besides, and with all of them."""
    settled = _added(moments, x[:, :fresh], None if scores is None else scores[:, :fresh])
    return settled, _added(settled, x[:, fresh:], None if scores is None else scores[:, fresh:])


def _added(moments: Moments, x: Tensor, scores: Tensor | None) -> Moments:
    moments = copy.copy(moments)
    if x.shape[1]:
        moments.add(x, scores)
    return moments
