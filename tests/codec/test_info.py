"""`codec.info`: the levels of a bitrate among those that a file has."""

import pytest

from codec.bitstream import Header
from codec.info import levels_for
from engine.errors import SpeechError


def test_levels_for_a_bitrate_lists_what_there_is():
    header = Header(
        sample_rate=16_000, num_samples=320, num_frames=1, channels=1, levels=3, num_groups=3, bits_per_code=10,
        frame_rate=50.0, model_id=b"abcdef", model_name="esc_live",
    )  # fmt: skip
    assert [levels_for(header, rate) for rate in (1.5, 3, 4.499)] == [1, 2, 3]
    for rate in (float("nan"), float("inf"), 0, 2, 6):
        with pytest.raises(SpeechError, match=f"can't be cut to {rate:g} kbit/s; it holds 1.5, 3, 4.5"):
            levels_for(header, rate)
