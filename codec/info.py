"""`codec info`: the facts about a coded file or a model, as a dict for machines and as lines for people."""

from pathlib import Path
from typing import Any

from codec.bitstream import Header, read_header, unpack
from codec.paths import STDIO, read_bytes
from engine.errors import BitstreamError, CheckpointError, SpeechError

MEASURED_SECONDS = 4  # cost is counted over this much audio, so that the edges of the signal weigh little


def describe(what: str) -> dict[str, Any]:
    """Describe a coded file (path or `-`), or else a model (folder or name)."""
    if what == STDIO or Path(what).is_file():
        return describe_file(read_bytes(what))
    try:
        return describe_model(what)
    except CheckpointError as error:
        if Path(what).suffix == ".esc":
            raise SpeechError(f"no such file: {what}") from error
        raise


def describe_file(data: bytes) -> dict[str, Any]:
    """Read header and checksums; a damaged file is described too, with what is wrong. No model is loaded."""
    header = read_header(data)
    problem, lost = None, []
    try:
        unpack(data)
    except BitstreamError as error:
        problem = str(error)
        try:
            lost = unpack(data, recover=True)[2]
        except BitstreamError:  # nothing can be recovered, `problem` says why
            lost = [(0, header.num_frames)]
    return {
        "kind": "file",
        "model": header.model_name,
        "model_id": header.model_id.hex(),
        "sample_rate": header.sample_rate,
        "channels": header.channels,
        "num_samples": header.num_samples,
        "seconds": header.duration,
        "levels": header.levels,
        "bitrate": header.bitrate * header.channels,
        "bytes": len(data),
        "bitrate_on_disk": 8 * len(data) / header.duration,
        "frames": header.num_frames,
        "chunks": header.num_chunks,
        "intact": problem is None,
        "problem": problem,
        "lost_seconds": [[header.seconds(first), header.seconds(first + count)] for first, count in lost],
    }


def describe_model(name: str) -> dict[str, Any]:
    """Load a model and count its parameters and multiply-accumulates."""
    from codec.files import load_model

    model = load_model(name)
    encode_macs, decode_macs = count_macs(model)
    config = model.config
    return {
        "kind": "model",
        "model": model.name,
        "model_id": model.model_id.hex(),
        "architecture": model.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sample_rate": config.sample_rate,
        "frame_rate": config.frame_rate,
        "delay_samples": model.delay,
        "delay_ms": 1000 * model.delay / config.sample_rate,
        "encode_macs_per_second": encode_macs,
        "decode_macs_per_second": decode_macs,
        "bitrates": [config.bitrate(levels) for levels in range(1, config.levels + 1)],
    }


def count_macs(model: Any) -> tuple[float, float]:
    """Multiply-accumulates per second of audio of `encode` and of `decode` at all levels.

    Counted by torch's own counter over matrix products, convolutions and attention; transforms (FFT) and elementwise
    operations are not in it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    rate = model.config.sample_rate
    wav = 0.1 * torch.randn(1, MEASURED_SECONDS * rate, generator=torch.Generator().manual_seed(0))
    macs = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            codes = model.encode(wav)
        macs.append(counter.get_total_flops() / 2 / MEASURED_SECONDS)
        with FlopCounterMode(display=False) as counter:
            model.decode(codes)
        macs.append(counter.get_total_flops() / 2 / MEASURED_SECONDS)
    return macs[0], macs[1]


def levels_for(header: Header, bitrate: float) -> int:
    """Levels of a bitrate in kbit/s per channel among those that the file has."""
    rates = [header.bitrate / header.levels / 1000 * levels for levels in range(1, header.levels + 1)]
    for levels, rate in enumerate(rates, start=1):
        if abs(rate - bitrate) <= 0.005:
            return levels
    offered = ", ".join(f"{rate:g}" for rate in rates)
    raise SpeechError(f"the file can't be cut to {bitrate:g} kbit/s; it holds {offered}")


def to_text(facts: dict[str, Any]) -> str:
    """Lines of `name: value` in the order of the facts, with units that people read."""
    lines = _file_lines(facts) if facts["kind"] == "file" else _model_lines(facts)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _file_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    nominal, disk = facts["bitrate"] / 1000, facts["bitrate_on_disk"] / 1000
    lines = [
        ("model", f"{facts['model']} (id {facts['model_id']})"),
        ("duration", f"{facts['seconds']:.3f} s"),
        ("samples", f"{facts['num_samples']} at {facts['sample_rate']} Hz"),
        ("channels", str(facts["channels"])),
        ("bitrate", f"{nominal:g} kbit/s ({facts['levels']} levels), {disk:.3f} on disk"),
        ("size", f"{facts['bytes']} bytes"),
        ("chunks", str(facts["chunks"])),
        ("intact", "yes" if facts["intact"] else f"no: {facts['problem']}"),
    ]
    return lines + [("lost", f"{start:.2f} to {end:.2f} s") for start, end in facts["lost_seconds"]]


def _model_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    encode, decode = (facts[f"{side}_macs_per_second"] / 1e9 for side in ("encode", "decode"))
    return [
        ("model", f"{facts['model']} (id {facts['model_id']}), {facts['architecture']}"),
        ("parameters", f"{facts['parameters'] / 1e6:.2f} M"),
        ("sample rate", f"{facts['sample_rate']} Hz"),
        ("frame rate", f"{facts['frame_rate']:g} Hz"),
        ("delay", f"{facts['delay_ms']:g} ms ({facts['delay_samples']} samples)"),
        ("encode", f"{encode:.3f} GMAC per second of audio"),
        ("decode", f"{decode:.3f} GMAC per second of audio"),
        ("bitrates", ", ".join(f"{rate / 1000:g}" for rate in facts["bitrates"]) + " kbit/s"),
    ]
