"""What discontinuous transmission saves on speech with its own pauses, and what it costs.

    python -m benchmarks.stream_silence FOLDER... [--limit 40] [--write docs/streaming.md]

Each file is a call: read speech pauses for breath only, so this is the least that DTX saves; who listens half of the
time saves nearly half more. Active share: frames that the detector takes for speech, hang-over included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import codec
from benchmarks import report
from benchmarks.coders import audio_files, evenly
from codec import metrics
from codec.jitter import JitterBuffer
from codec.packets import PacketFormat
from codec.receive import ReceiveStage
from codec.send import SendStage
from codec.stream import Live, live
from engine import audio
from engine.pipeline import Rebuffer, run


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of speech")
    parser.add_argument("--limit", type=int, default=40, help="files of each folder, taken evenly")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--model", default="esc_live")
    parser.add_argument("--write", type=Path, help="document to write the table into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def made() -> str:
        found = {folder: [path for _, path in audio_files([folder])] for folder in options.folders}
        return measure(live(codec.load(options.model)), found, options.limit, options.levels)

    return report.publish("stream_silence", "silence", made, [options.write])


def measure(model: Live, found: dict[Path, list[Path]], limit: int, levels: int) -> str:
    """A row for each folder and its files."""
    config = model.config
    form, rows = PacketFormat(config.num_groups, config.code_bits), []
    for folder, paths in found.items():
        sizes, slots, silent = {False: 0, True: 0}, 0, 0
        scores: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in ("pesq_wb", "stoi")}
        files = evenly(paths, limit)
        for path in files:
            wav = audio.load(path, config.sample_rate, mono=True)[0]
            for dtx in (False, True):
                sender = SendStage(model, levels, dtx=dtx)
                packets = list(run([wav], Rebuffer(config.samples_per_frame, tail=model.istft.delay), sender))
                sizes[dtx] += sum(map(len, packets))
                buffer, stage = JitterBuffer(1), ReceiveStage(model)
                played = [slot for packet in packets for slot in buffer.push(form.unpack(packet))] + buffer.flush()
                heard = torch.cat([piece for slot in played for piece in stage.push(slot)], dim=1)[0, : wav.shape[1]]
                heard = torch.nn.functional.pad(heard, (0, wav.shape[1] - len(heard)))  # silence at the very end
                for name, values in scores.items():
                    values[dtx].append(getattr(metrics, name)(wav[0], heard))
            slots, silent = slots + sender.num_slots, silent + sender.num_silent
        means = [(name, metrics.bootstrap_interval(values[dtx]))
                 for name, values in scores.items() for dtx in (False, True)]  # fmt: skip
        cells = [report.cell(name, mean) for name, mean in means]
        num_files = report.count(mean for _, mean in means)
        saved = 1 - sizes[True] / sizes[False]
        rows.append([folder.name, f"{100 * (1 - silent / slots):.0f} %", f"{100 * saved:.0f} %", *cells, num_files])
    heading = ["speech", "active", "bytes saved", "PESQ-WB without", "with", "STOI without", "with", "n"]
    told = f"{model.name} with {levels} levels, id {model.model_id.hex()}, packets of 20 ms."
    return f"{report.table(heading, rows)}\n\n{told}"


if __name__ == "__main__":
    sys.exit(main())
