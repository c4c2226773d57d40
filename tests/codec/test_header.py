"""What a header refuses to hold."""

import dataclasses

import pytest

from codec.header import Header, fit_name
from engine.errors import ConfigError

HEADER = Header(sample_rate=16000, num_samples=22 * 320, num_frames=22)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 0},
        {"channels": 256},
        {"levels": 2.0},
        {"bits_per_code": 25},
        {"num_groups": 256},
        {"frames_per_chunk": 256},
        {"sample_rate": 1 << 24},
        {"num_samples": 0},
        {"num_samples": 22 * 320 * 3},
        {"num_frames": 1 << 32},
        {"frame_rate": 0.5},
        {"frame_rate": float("nan")},
        {"model_id": b"12345"},
        {"model_name": "a" * 14},
        {"model_name": "line\nbreak"},
        {"model_name": "\udc80"},
    ],
)
def test_headers_that_cannot_be_written(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(HEADER, **change)


def test_fit_name() -> None:
    assert fit_name("esc_live") == "esc_live"
    assert fit_name("my_finetuned_model") == "my_finetuned_"
    assert fit_name("abcdefghijkl\u00e9") == "abcdefghijkl"
    assert fit_name("a\nb\udc80") == "a?b?"
