"""Embeddings a second for utterances of 3 s: ours beside SpeechBrain's ECAPA-TDNN and a WeSpeaker-like ResNet34.

    python -m benchmarks.speaker_speed [--utterances 32] [--threads 1 2] [--rounds 3]

The same architecture at the same size on both sides, random weights, the same waveforms, taking turns in one process;
the figure is the median of the rounds. SpeechBrain gets batches of 16, as its encode_batch allows; WeSpeaker's command
embeds one utterance at a time, with torchaudio's Kaldi features. What is not installed is left out and said to be.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import report
from engine.features import kaldi_fbank, speechbrain_fbank
from speaker.backbones import ecapa_tdnn
from speaker.backbones.resnet import resnet
from speaker.model import SpeakerConfig, SpeakerEncoder

RATE, SECONDS, BATCH, PEER_BATCH = 16_000, 3, 8, 16
Run = Callable[[Tensor], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    wav = 0.1 * torch.randn(options.utterances, SECONDS * RATE)
    rows = []
    for name, ours, theirs in pairs():
        for threads in options.threads:
            torch.set_num_threads(threads)
            runs = [ours, half(ours)] if theirs is None else [ours, half(ours), theirs]
            times: list[list[float]] = [[] for _ in runs]
            with torch.inference_mode():
                for run in runs:
                    run(wav[:BATCH])  # warm
                for _ in range(options.rounds):
                    for run, taken in zip(runs, times, strict=True):
                        start = time.perf_counter()
                        run(wav)
                        taken.append(time.perf_counter() - start)
            speeds = [options.utterances / statistics.median(taken) for taken in times]
            cells = [f"{speeds[0]:.1f}", f"{speeds[1]:.1f}"]
            if theirs is None:
                cells += ["not installed", "", ""]
            else:
                cells += [f"{speeds[2]:.1f}", f"{speeds[0] / speeds[2]:.2f}", f"{speeds[1] / speeds[2]:.2f}"]
            rows.append([name, str(threads), *cells])
    print(report.table(["model", "threads", "ours, embeddings/s", "in bfloat16", "peer", "ratio", "in bfloat16"], rows))
    return 0


def batched(encoder: SpeakerEncoder) -> Run:
    """Ours, as `speaker embed` runs it."""
    lengths = torch.full((BATCH,), SECONDS * RATE)
    return lambda wav: [encoder(part, lengths[: len(part)]) for part in wav.split(BATCH)]


def half(run: Run) -> Run:
    """The same with `speaker embed --bfloat16`."""

    def inner(wav: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return run(wav)

    return inner


def pairs() -> list[tuple[str, Run, Run | None]]:
    """Name, ours, theirs."""
    ecapa = SpeakerEncoder(SpeakerConfig(front_end=speechbrain_fbank(80), network=ecapa_tdnn.speechbrain())).eval()
    net = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(80), network=resnet(34))).eval()
    return [
        ("ECAPA-TDNN C=1024, SpeechBrain's", batched(ecapa), speechbrain()),
        ("ResNet34, WeSpeaker's", batched(net), wespeaker_like(net)),
    ]


def speechbrain() -> Run | None:
    """SpeechBrain's front end, normalization and network, with its own defaults."""
    try:
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
        from speechbrain.processing.features import InputNormalization
    except ImportError as error:
        print(f"speechbrain: {error}", file=sys.stderr)
        return None
    features, normalize = Fbank(n_mels=80).eval(), InputNormalization(norm_type="sentence", std_norm=False).eval()
    network = ECAPA_TDNN(80, channels=[1024, 1024, 1024, 1024, 3072], kernel_sizes=[5, 3, 3, 3, 1],
                         dilations=[1, 2, 3, 4, 1], attention_channels=128, lin_neurons=192).eval()  # fmt: skip

    def run(wav: Tensor) -> list[Tensor]:
        lengths = torch.ones(PEER_BATCH)
        return [
            network(normalize(features(part), lengths[: len(part)]), lengths[: len(part)])
            for part in wav.split(PEER_BATCH)
        ]

    return run


def wespeaker_like(encoder: SpeakerEncoder) -> Run | None:
    """One utterance at a time: torchaudio's Kaldi features, mean normalization, the same network."""
    try:
        from torchaudio.compliance.kaldi import fbank
    except (ImportError, OSError) as error:
        print(f"torchaudio: {error}", file=sys.stderr)
        return None

    def run(wav: Tensor) -> list[Tensor]:
        out = []
        for item in wav:
            frames = fbank(item[None] * 32768, num_mel_bins=80, sample_frequency=RATE, window_type="hamming")
            out.append(encoder.backbone((frames - frames.mean(0)).T[None]))
        return out

    return run


if __name__ == "__main__":
    sys.exit(main())
