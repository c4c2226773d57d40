"""What losses do to speech: our packets and Opus with in-band redundancy, same files, same traces, same total rate.

    python -m benchmarks.stream_loss FOLDER... [--losses 0 5 10 20 30] [--burst 1] [--limit 20]
        [--write docs/streaming.md]

Opus is asked for 11 kbit/s, which makes as many bytes as our default choices. libopus leaves its redundancy out where
it finds the rate too low, whatever it was asked, hence a column with the share of packets that have it, and rows at 24
kbit/s, where it is there. Packets are 20 ms. Rates count every byte of a packet, headers and redundancy too, and no
network's headers. The traces are those of `codec stream channel` (Gilbert-Elliott), seeded by the number of the file;
the first packet arrives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import codec
from benchmarks import opus_fec, report
from benchmarks.coders import audio_files, evenly
from codec import metrics
from codec.channel import lost
from codec.jitter import JitterBuffer
from codec.live import EscLive
from codec.packets import PacketFormat
from codec.receive import ReceiveStage
from codec.send import SendStage
from codec.stream import live
from engine import audio
from engine.errors import SpeechError
from engine.pipeline import Rebuffer, run

Signal = NDArray[np.float32]


class Heard(NamedTuple):
    """What came out, and what was sent for it."""

    wav: Signal
    num_bytes: int
    redundant: list[bool]  # of each packet that was sent, whether others ride along in it


Coder = Callable[[Signal, NDArray[np.bool_], float], Heard]  # sound, which packets are lost, their share in per cent


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of speech")
    parser.add_argument("--losses", nargs="+", type=float, default=[0, 5, 10, 20, 30], help="per cent")
    parser.add_argument("--burst", type=float, default=1.0, help="packets lost in a row, on average")
    parser.add_argument("--limit", type=int, default=20, help="files, taken evenly (default: %(default)s)")
    parser.add_argument("--model", default="esc_live")
    parser.add_argument("--ours", nargs="+", default=["6:0", "5:1", "4:2"], help="levels:redundant frames")
    parser.add_argument(
        "--opus", nargs="*", type=int, default=[11_000, 24_000], help="bit/s asked of Opus; none: without"
    )
    parser.add_argument("--write", type=Path, help="document to write the table into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return report.publish("stream_loss", "loss", partial(compare, options), [options.write])


def compare(options: argparse.Namespace) -> str:
    """The table of the coders and files that the options name."""
    files = evenly([path for _, path in audio_files(options.folders)], options.limit)
    model = live(codec.load(options.model))
    coders: dict[str, Coder] = {}
    for choice in options.ours:
        levels, redundancy = map(int, choice.split(":"))
        coders[f"{model.name}, {levels} levels, {redundancy} redundant"] = _ours(model, levels, redundancy)
    about = "without Opus"
    try:
        coders |= {f"Opus {rate / 1000:g}, FEC asked for": _opus(rate) for rate in options.opus}
        about = opus_fec.version() if options.opus else about
    except SpeechError as error:
        print(f"Opus is left out: {error}", file=sys.stderr)
    text = measure(files, coders, options.losses, options.burst)
    return (
        f"{text}\n\n{len(files)} files; mean burst {options.burst:g} packet(s); model {model.name}, id "
        f"{model.model_id.hex()}; {about}."
    )


def measure(files: list[Path], coders: dict[str, Coder], losses: list[float], burst: float) -> str:
    """A table: a row for each coder and share of losses."""
    signals = [audio.load(path, 16000, mono=True)[0][0].numpy() for path in files]
    rows = []
    for name, coder in coders.items():
        for loss in losses:
            scores: dict[str, list[float]] = {"pesq_wb": [], "stoi": []}
            size, redundant = 0, list[bool]()
            for seed, signal in enumerate(signals):
                gone = lost(-(-len(signal) // 320) + 2, loss / 100, burst, seed)
                gone[0] = False
                heard = coder(signal, gone, loss)
                size += heard.num_bytes
                redundant += heard.redundant
                reference, decoded = torch.from_numpy(signal), torch.from_numpy(heard.wav)
                scores["pesq_wb"].append(metrics.pesq_wb(reference, decoded))
                scores["stoi"].append(metrics.stoi(reference, decoded))
            seconds = sum(map(len, signals)) / 16000
            means = {metric: metrics.bootstrap_interval(values) for metric, values in scores.items()}
            cells = [report.cell(metric, mean) for metric, mean in means.items()]
            cells += [f"{100 * np.mean(redundant):.0f} %", report.count(means.values())]
            rows.append([name, f"{8 * size / seconds / 1000:.1f}", f"{loss:g}", *cells])
            print(*rows[-1], sep="\t", file=sys.stderr)
    return report.table(["coder", "kbit/s in all", "loss %", "PESQ-WB", "STOI", "with redundancy", "n"], rows)


def _ours(model: EscLive, levels: int, redundancy: int) -> Coder:
    form = PacketFormat(model.config.num_groups, model.config.code_bits)
    size = model.config.samples_per_frame

    def code(signal: Signal, gone: NDArray[np.bool_], loss: float) -> Heard:
        wav = torch.from_numpy(signal)[None]
        packets = list(run([wav], Rebuffer(size, tail=model.istft.delay), SendStage(model, levels, redundancy)))
        buffer, stage = JitterBuffer(1, depth=max(0, redundancy - 1), first=0), ReceiveStage(model)
        slots = [s for p, g in zip(packets, gone, strict=False) if not g for s in buffer.push(form.unpack(p))]
        pieces = [wav for slot in slots + buffer.flush() for wav in stage.push(slot)]
        heard = torch.cat(pieces, dim=1)[0, : len(signal)]
        heard = torch.nn.functional.pad(heard, (0, len(signal) - len(heard)))  # lost at the very end
        return Heard(heard.numpy(), sum(map(len, packets)), [len(form.unpack(p).redundant) > 0 for p in packets])

    return code


def _opus(bitrate: int) -> Coder:
    opus_fec.library()

    def code(signal: Signal, gone: NDArray[np.bool_], loss: float) -> Heard:
        packets, lag = opus_fec.encode(signal, bitrate, round(loss), fec=loss > 0)
        gone = np.pad(gone, (0, max(0, len(packets) - len(gone))))
        heard = opus_fec.decode(packets, gone, lag, len(signal))
        return Heard(heard, sum(map(len, packets)), [opus_fec.has_redundancy(p) for p in packets])

    return code


if __name__ == "__main__":
    sys.exit(main())
