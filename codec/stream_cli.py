"""`codec stream encode | decode | channel`: live audio through pipes, a frame at a time."""

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from engine.errors import AudioError, ConfigError, SpeechError

if TYPE_CHECKING:
    from codec.stream import Live

log = logging.getLogger("codec")
T = TypeVar("T")
app = typer.Typer(
    name="stream",
    help="Live audio: PCM or wav on stdin, packets on stdout, and back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Model = Annotated[str | None, typer.Option(help="Name or folder of the model.", show_default=False)]
Backend = Annotated[
    str,
    typer.Option(help="torch, or onnx: some times faster, with the extra onnx. auto: onnx where installed."),
]
PACKET_MS = (20, 40, 60, 80, 100, 120)


@app.command()
def encode(
    bitrate: Annotated[float | None, typer.Option("--bitrate", "-b", help="kbit/s, 1.5 to 9 in steps of 1.5.")] = None,
    packet: Annotated[int, typer.Option(help="Milliseconds per packet: 20 to 120 in steps of 20.")] = 20,
    redundancy: Annotated[
        int,
        typer.Option(min=0, max=7, help="Frames before each packet whose lowest level rides along (1.5 kbit/s each)."),
    ] = 0,
    dtx: Annotated[bool, typer.Option("--dtx", help="Send next to nothing while nobody speaks.")] = False,
    rate: Annotated[int, typer.Option(help="Sample rate of raw input in Hz; wav says its own.")] = 16000,
    channels: Annotated[int, typer.Option(min=1, help="Channels of raw input, mixed to one.")] = 1,
    model: Model = None,
    backend: Backend = "auto",
) -> None:
    """PCM (raw 16 bit, or wav) on stdin -> packets on stdout, each as soon as its last sample is there."""
    from codec.packet_stream import PacketWriter, StreamHeader
    from codec.send import SendStage
    from engine.pcm import PcmFormat, open_stream
    from engine.pipeline import Pipeline, Rebuffer, Resample

    if packet not in PACKET_MS:
        raise ConfigError(f"--packet is one of {', '.join(map(str, PACKET_MS))} ms, not {packet}")
    if not 1000 <= rate <= 768_000:
        raise AudioError(f"--rate is a sample rate in Hz from 1000 to 768000, not {rate}")
    _refuse_terminal()
    live = _load(model or "esc_live", backend)
    config = live.config
    levels = config.levels if bitrate is None else config.levels_for(bitrate * 1000)
    form, chunks = open_stream(sys.stdin.buffer, PcmFormat(rate, channels))  # type: ignore[arg-type]
    frames = packet * round(config.frame_rate) // 1000
    unit = config.samples_per_frame
    counted = _Counted(chunks)
    rebuffer = Rebuffer(frames * unit, tail=live.istft.delay, unit=unit)
    sender = SendStage(live, levels, redundancy, dtx)
    pipeline = Pipeline(Resample(form.sample_rate, config.sample_rate), rebuffer, sender)
    header = StreamHeader(
        model_id=live.model_id, model_name=_name(live), sample_rate=form.sample_rate, frame_rate=config.frame_rate,
        frames_per_packet=frames, num_groups=config.num_groups, bits_per_code=config.code_bits,
    )  # fmt: skip
    writer = PacketWriter(sys.stdout.buffer, header)
    for chunk in _until_interrupted(counted):
        for out in pipeline.push(chunk):
            writer.write(out)
    writer.end(counted.num_samples)
    for out in pipeline.flush():
        writer.write(out)
    if dtx and sender.num_slots:
        log.info("silent: %d of %d packets", sender.num_silent, sender.num_slots)


@app.command()
def decode(
    rate: Annotated[
        int | None, typer.Option(help="Sample rate out, Hz. Default: that of the sound that went in.")
    ] = None,
    jitter: Annotated[
        int, typer.Option(min=0, max=50, help="Packets to wait for a missing one, where redundancy may still bring it.")
    ] = 0,
    model: Model = None,
    backend: Backend = "auto",
) -> None:
    """Packets on stdin -> raw 16 bit PCM, mono, on stdout; lost packets are concealed."""
    from codec.jitter import MAX_GAP, JitterBuffer, Slot
    from codec.packet_stream import PacketReader
    from codec.receive import ReceiveStage
    from engine import audio
    from engine.errors import BitstreamError
    from engine.pipeline import Limit, Pipeline, Resample

    _refuse_terminal()
    reader = PacketReader(sys.stdin.buffer)
    live = _model_of(reader.header.model_id, reader.header.model_name, model, backend)
    out_rate = rate or reader.header.sample_rate
    if not 1000 <= out_rate <= 768_000:
        raise AudioError(f"--rate is a sample rate in Hz from 1000 to 768000, not {out_rate}")
    form = reader.header.packet_format
    buffer = JitterBuffer(reader.header.frames_per_packet, jitter, first=0)
    limit = Limit()
    pipeline = Pipeline(ReceiveStage(live), Resample(live.config.sample_rate, out_rate), limit)
    num_bad = num_frames = 0

    def play(pieces: Iterable[Any]) -> None:
        if reader.num_samples is not None:
            limit.num_samples = -(-reader.num_samples * out_rate // reader.header.sample_rate)
        for wav in pieces:
            sys.stdout.buffer.write(audio.to_pcm16(wav[0]).numpy().astype("<i2").tobytes())
        sys.stdout.buffer.flush()

    for data in _until_interrupted(reader):
        try:
            packet = form.unpack(data)
            _check_packet(live.config, packet)
        except BitstreamError as error:
            num_bad += 1
            if num_bad == 1:
                log.warning("a packet is dropped: %s", error)
            continue
        slots = buffer.push(packet)
        num_frames += sum(slot.frames for slot in slots)
        play(wav for slot in slots for wav in pipeline.push(slot))
    slots = buffer.flush()
    num_frames += sum(slot.frames for slot in slots)
    if reader.num_samples is not None:  # the last packets may be lost, or were silence that is not sent
        config = live.config
        whole = -(-reader.num_samples * config.sample_rate // reader.header.sample_rate) + live.istft.delay
        missing = min(-(-whole // config.samples_per_frame) - num_frames, MAX_GAP * reader.header.frames_per_packet)
        slots += [Slot(1, None, buffer.silence)] * missing
    play(wav for slot in slots for wav in pipeline.push(slot))
    play(pipeline.flush())
    if num_bad or buffer.num_dropped:
        log.warning("dropped: %d damaged packets, %d that came twice or too late", num_bad, buffer.num_dropped)
    if reader.cut_off:
        log.warning("the stream was cut off before its end")


def _check_packet(config: Any, packet: Any) -> None:
    """BitstreamError for a packet of another model: more levels, or codes that this one has not."""
    from engine.errors import BitstreamError

    if packet.codes is None:
        return
    most = max(int(codes.max()) for codes in (packet.codes, packet.redundant) if codes.size)
    if len(packet.codes) > config.levels or most >= config.codebook_size:
        raise BitstreamError(f"{len(packet.codes)} levels and codes up to {most}; the model has {config.levels} levels "
                             f"and codes up to {config.codebook_size - 1}")  # fmt: skip


@app.command()
def channel(
    loss: Annotated[float, typer.Option(help="Per cent of packets that are lost.")] = 10.0,
    burst: Annotated[float, typer.Option(help="Packets lost in a row, on average.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed loses the same packets.")] = 0,
) -> None:
    """Packets on stdin -> those that a lossy network would deliver, on stdout (Gilbert-Elliott model)."""
    from codec import channel as network
    from codec.packet_stream import PacketReader, PacketWriter

    _refuse_terminal()
    if not 0 <= loss < 100:
        raise ConfigError(f"--loss is the per cent of packets that are lost, from 0 to below 100, not {loss:g}")
    network.lost(0, loss / 100, burst)  # bad numbers are refused before anything is read
    reader = PacketReader(sys.stdin.buffer)
    writer = PacketWriter(sys.stdout.buffer, reader.header)
    ended = False
    for packet in network.through(_until_interrupted(reader), loss / 100, burst, seed):
        if reader.num_samples is not None and not ended:
            writer.end(reader.num_samples)
            ended = True
        writer.write(packet)
    if reader.num_samples is not None and not ended:
        writer.end(reader.num_samples)


class _Counted:
    """Passes chunks (1, n) on and counts their samples."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self._chunks = chunks
        self.num_samples = 0

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._chunks:
            self.num_samples += chunk.shape[1]
            yield chunk


def _until_interrupted(items: Iterable[T]) -> Iterator[T]:
    """The items until the first Ctrl-C or SIGTERM, which ends a call as the end of the input does.

    What is being worked on is finished: only waiting for the next item is interrupted. A second signal kills.
    """
    waiting = stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        for kind, handler in before.items():
            signal.signal(kind, handler)
        if waiting:
            raise KeyboardInterrupt

    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
    source = iter(items)
    while not stopped:
        waiting = True
        try:
            item = next(source)
        except (StopIteration, KeyboardInterrupt):
            return
        finally:
            waiting = False
        yield item


def _load(name: str, backend: str) -> "Live":
    import torch

    from codec.files import load_model
    from codec.onnx_live import OnnxLive
    from codec.stream import live

    if backend not in ("auto", "torch", "onnx"):
        raise ConfigError(f"--backend is auto, torch or onnx, not {backend}")
    torch.set_num_threads(1)  # a frame is too small to share
    model = live(load_model(name))
    installed = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))
    if backend == "torch" or (backend == "auto" and not installed) or isinstance(model, OnnxLive):
        return model
    return OnnxLive(model)


def _model_of(model_id: bytes, name: str, choice: str | None, backend: str) -> "Live":
    """The model a stream was coded with; another one is an error that names both."""
    from codec.files import check_model, find_model

    model = _load(find_model(name, model_id, choice), backend)
    check_model(model, name, model_id)
    return model


def _name(model: "Live") -> str:
    from codec.header import fit_name

    return fit_name(model.name)


def _refuse_terminal() -> None:
    if os.isatty(sys.stdin.fileno()):
        raise SpeechError("stdin is the terminal; redirect it: ... < FILE, or arecord ... | codec stream encode")
    if os.isatty(sys.stdout.fileno()):
        raise SpeechError("binary output is not written to a terminal; redirect it: ... > FILE")
