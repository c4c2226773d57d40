"""Stages: ragged in, even out; composition; rates; limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import audio
from engine.pipeline import Limit, Pipeline, Rebuffer, Resample, run


def ragged(wav, sizes):
    """Cut (C, N) into chunks of the given sizes, the rest at the end."""
    chunks, start = [], 0
    for size in sizes:
        chunks.append(wav[:, start : start + size])
        start += size
    return [*chunks, wav[:, start:]]


sizes = st.lists(st.integers(0, 700), max_size=12)


@given(sizes=sizes, num_samples=st.integers(1, 3000), size=st.integers(1, 400), tail=st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_rebuffer_gives_even_pieces_and_pads_the_end(sizes, num_samples, size, tail):
    wav = torch.arange(1.0, num_samples + 1)[None]
    rebuffer = Rebuffer(size, tail)
    pieces = list(run(ragged(wav, sizes), rebuffer))
    assert {p.shape for p in pieces} == {(1, size)} and rebuffer.num_samples == num_samples
    joined = torch.cat(pieces, dim=1)
    assert joined.shape[1] == -(-(num_samples + tail) // size) * size
    assert torch.equal(joined[:, :num_samples], wav) and not joined[:, num_samples:].any()


def test_rebuffer_rounds_the_end_to_its_unit():
    pieces = list(run([torch.ones(2, 1234)], Rebuffer(500, tail=3, unit=10)))
    assert [p.shape[1] for p in pieces] == [500, 500, 240]


def test_nothing_in_nothing_out():
    assert list(run([], Rebuffer(10, 5))) == [] and list(run([], Resample(8000, 16000))) == []
    assert list(run([torch.zeros(1, 0)], Rebuffer(10, 5))) == []


def test_rebuffer_does_not_keep_whole_chunks_alive():
    rebuffer = Rebuffer(1000)
    rebuffer.push(torch.zeros(1, 1_000_001))
    assert rebuffer._held[0].untyped_storage().nbytes() == 4


@pytest.mark.parametrize("size", [100, 160, 250])
def test_rebuffer_keeps_nothing_of_a_buffer_that_is_filled_again(size):
    wav = torch.arange(1.0, 801)[None]

    def microphone():
        buffer = torch.zeros(1, 160)
        for chunk in wav.split(160, dim=1):
            yield buffer.copy_(chunk)

    assert torch.equal(torch.cat(list(run(microphone(), Rebuffer(size))), dim=1)[:, :800], wav)


@pytest.mark.parametrize("rates", [(48000, 16000), (16000, 44100), (8000, 16000), (16000, 16000)])
def test_resampling_in_pieces_equals_the_whole(rates):
    wav = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    pieces = run(ragged(wav, [1, 0, 317, 4000, 2]), Resample(*rates, num_channels=2))
    assert torch.equal(torch.cat(list(pieces), dim=1), audio.resample(wav, *rates))


def test_flush_goes_through_the_stages_behind():
    pipeline = Pipeline(Rebuffer(4), Pipeline(Rebuffer(3), Limit(5)))
    out = pipeline.push(torch.ones(1, 2))
    assert out == []
    assert torch.cat(pipeline.flush(), dim=1).tolist() == [[1, 1, 0, 0, 0]]


def test_limit_passes_until_its_number():
    limit = Limit()
    assert limit.push(torch.ones(1, 3))[0].shape == (1, 3)
    limit.num_samples = 5
    assert limit.push(torch.ones(1, 3))[0].shape == (1, 2) and limit.push(torch.ones(1, 3)) == []
    assert limit.passed == 5 and limit.flush() == []
