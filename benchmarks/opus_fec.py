"""libopus through ctypes, for what opusenc and opusdec can't do: in-band redundancy (LBRR) against a given trace of
losses. One packet is 20 ms. The receiver uses the redundancy of the next packet where there is one, and Opus's own
concealment elsewhere (RFC 6716, section 2.1.7).
"""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
from numpy.typing import NDArray

from engine.errors import SpeechError

RATE, FRAME = 16000, 320
VOIP = 2048
SET_BITRATE, SET_FEC, SET_LOSS, SET_COMPLEXITY, GET_LOOKAHEAD = 4002, 4012, 4014, 4010, 4027


def library() -> ctypes.CDLL:
    """libopus of the system; SpeechError if there is none."""
    name = ctypes.util.find_library("opus")
    if name is None:
        raise SpeechError("there is no libopus on this machine; install it (apt install libopus0) or leave Opus out")
    opus = ctypes.CDLL(name)
    opus.opus_encoder_create.restype = opus.opus_decoder_create.restype = ctypes.c_void_p
    opus.opus_get_version_string.restype = ctypes.c_char_p
    return opus


def encode(wav: NDArray[np.float32], bitrate: int, loss_percent: int, fec: bool = True) -> tuple[list[bytes], int]:
    """Samples (n,) at 16 kHz -> packets of 20 ms (VBR), and the samples by which decoded sound lags."""
    opus, error = library(), ctypes.c_int()
    encoder = ctypes.c_void_p(opus.opus_encoder_create(RATE, 1, VOIP, ctypes.byref(error)))
    settings = ((SET_BITRATE, bitrate), (SET_FEC, int(fec)), (SET_LOSS, loss_percent), (SET_COMPLEXITY, 10))
    for request, value in settings:
        if opus.opus_encoder_ctl(encoder, request, ctypes.c_int(value)):
            raise SpeechError(f"libopus refuses the setting {request} = {value}")
    lookahead = ctypes.c_int()
    opus.opus_encoder_ctl(encoder, GET_LOOKAHEAD, ctypes.byref(lookahead))
    total = len(wav) + lookahead.value
    pcm = np.zeros(-(-total // FRAME) * FRAME, dtype=np.int16)
    pcm[: len(wav)] = np.clip(np.round(wav * 32768), -32768, 32767)
    packets, buffer = [], ctypes.create_string_buffer(1500)
    for frame in pcm.reshape(-1, FRAME):
        samples = np.ascontiguousarray(frame)
        size = opus.opus_encode(encoder, samples.ctypes.data_as(ctypes.c_void_p), FRAME, buffer, len(buffer))
        if size < 0:
            raise SpeechError(f"libopus could not encode (error {size})")
        packets.append(buffer.raw[:size])
    opus.opus_encoder_destroy(encoder)
    return packets, lookahead.value


def decode(packets: list[bytes], lost: NDArray[np.bool_], lag: int, num_samples: int) -> NDArray[np.float32]:
    """Packets, those `lost` missing -> (num_samples,), aligned with what was encoded."""
    opus, error = library(), ctypes.c_int()
    decoder = ctypes.c_void_p(opus.opus_decoder_create(RATE, 1, ctypes.byref(error)))
    pcm = np.zeros((len(packets), FRAME), dtype=np.int16)
    for i, packet in enumerate(packets):
        out = pcm[i].ctypes.data_as(ctypes.c_void_p)
        if not lost[i]:
            size = opus.opus_decode(decoder, packet, len(packet), out, FRAME, 0)
        elif i + 1 < len(packets) and not lost[i + 1]:
            size = opus.opus_decode(decoder, packets[i + 1], len(packets[i + 1]), out, FRAME, 1)
        else:
            size = opus.opus_decode(decoder, None, 0, out, FRAME, 0)
        if size != FRAME:
            raise SpeechError(f"libopus could not decode (error {size})")
    opus.opus_decoder_destroy(decoder)
    return (pcm.reshape(-1)[lag : lag + num_samples] / 32768).astype(np.float32)


def has_redundancy(packet: bytes) -> bool:
    """Whether a mono packet of 20 ms carries the frame before it once more.

    The first two bits of a SILK frame are voice activity and LBRR (RFC 6716, sections 3.1 and 4.2.3). libopus puts
    nothing there, whatever it was asked, where it finds the bitrate too low.
    """
    return len(packet) > 1 and packet[0] >> 3 < 16 and bool(packet[1] & 0x40)


def version() -> str:
    """What libopus calls itself."""
    return library().opus_get_version_string().decode()
