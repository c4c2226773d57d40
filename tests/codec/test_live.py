"""The live codec: lengths, levels, causality, chunks equal the whole, delay, the start from data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.config import EscLiveConfig
from codec.live import EscLive
from codec.losses import MelLoss, relative_error
from codec.start import start_from_data
from engine.errors import AudioError, ConfigError

TINY = EscLiveConfig(
    channels=(32, 32, 48, 64),
    encoder_depths=(1, 1, 1, 1),
    decoder_depths=(1, 1, 1, 1, 1, 1),
    codebook_dims=(4, 4, 4, 4, 4, 4),
    codebook_size=32,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> EscLive:
    """A model whose residual branches are not zero, so that attention and convolution take part."""
    torch.manual_seed(0)
    model = EscLive(TINY)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2 if "conv" in name else 0.1)
    return model.eval()


def test_configuration_is_checked():
    with pytest.raises(ConfigError, match="codebook_dims needs 6 entries"):
        EscLiveConfig(codebook_dims=(8, 8))
    with pytest.raises(ConfigError, match="never rise"):
        EscLiveConfig(level_scales=(3, 2, 3, 2, 1, 0))
    assert [EscLiveConfig().bitrate(levels) for levels in (1, 2, 6)] == [1500, 3000, 9000]
    assert EscLiveConfig().levels_for(4500) == 3
    with pytest.raises(ConfigError, match=r"offers 1.5, 3, 4.5, 6, 7.5, 9"):
        EscLiveConfig().levels_for(8000)


def test_published_budget_of_the_default():
    model = EscLive(EscLiveConfig())
    assert model.delay == 480  # 30 ms
    assert sum(p.numel() for p in model.parameters()) < 3.5e6


@pytest.mark.parametrize("length", [1, 2, 159, 160, 161, 319, 320, 321, 479, 480, 481, 1600, 5000])
def test_every_length_returns_with_its_length(model, length):
    codes = model.encode(noise(2, length))
    assert codes.shape == (2, 6, 3, model.num_frames(length)) and codes.dtype == torch.int64
    assert model.decode(codes, num_samples=length).shape == (2, length)


def test_fewer_levels_are_the_first_levels(model):
    wav = noise(1, 4000)
    full = model.encode(wav)
    for levels in range(1, 7):
        assert torch.equal(model.encode(wav, levels=levels), full[:, :levels])


def test_mixed_lengths_equal_the_singles(model):
    lengths = torch.tensor([5000, 1, 3217, 320])
    wav = noise(4, 5000)
    codes = model.encode(wav, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.encode(wav[row : row + 1, :length])
        assert torch.equal(codes[row : row + 1, ..., : alone.shape[-1]], alone)
        assert not codes[row, ..., alone.shape[-1] :].any()


@settings(max_examples=15)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_live_chunks_equal_offline(model, sizes):
    frames = sum(sizes)
    wav = noise(2, frames * 320)
    whole = model.encode(wav)[..., :frames]
    encoder, decoder = model.initial_encoder_state(2), model.initial_decoder_state(2)
    codes, audio = [], []
    for chunk in wav.split([s * 320 for s in sizes], dim=1):
        codes.append(model.encode(chunk, state=encoder))
        audio.append(model.decode(codes[-1], state=decoder))
    assert torch.equal(torch.cat(codes, dim=-1), whole)
    offline = model.decode(whole)
    torch.testing.assert_close(torch.cat(audio, dim=1)[:, 160:], offline, atol=1e-5, rtol=0)


def test_long_signals_go_through_in_chunks_unchanged(model, monkeypatch):
    wav = noise(1, 16_000)
    codes = model.encode(wav)
    audio = model.decode(codes)
    monkeypatch.setattr("codec.live.CHUNK_FRAMES", 7)
    assert torch.equal(model.encode(wav), codes)
    torch.testing.assert_close(model.decode(codes), audio, atol=1e-5, rtol=0)


def test_the_future_never_changes_the_past(model):
    wav, changed = noise(1, 6400), noise(1, 6400)
    changed[:, 3200:] = noise(1, 3200, seed=9)
    assert torch.equal(model.encode(wav)[..., :10], model.encode(changed)[..., :10])
    assert not torch.equal(model.encode(wav), model.encode(changed))
    codes = model.encode(wav)
    other = codes.clone()
    other[..., 10:] = (other[..., 10:] + 1) % TINY.codebook_size
    before = 10 * 320 - 160
    torch.testing.assert_close(model.decode(codes)[:, :before], model.decode(other)[:, :before], atol=1e-6, rtol=0)


def test_the_delay_is_what_the_model_says(model):
    """Input sample n can first be heard, live, when sample n + delay has arrived, and no later, for the worst n."""
    frame, frames = 320, 12
    codes = model.encode(torch.zeros(1, frames * frame))[..., :frames]
    other = codes.clone()
    changed_frame = 6  # complete once (changed_frame + 1) * frame samples have been pushed
    other[..., changed_frame] = (other[..., changed_frame] + 1) % TINY.codebook_size
    difference = (model.decode(codes) - model.decode(other)).abs()[0]
    first = int(torch.nonzero(difference > 1e-7)[0])  # offline output is aligned with the input
    assert (changed_frame + 1) * frame - first == model.delay


def test_sessions_do_not_touch_each_other(model):
    wav = noise(3, 3200)
    state = model.initial_encoder_state(3)
    model.encode(wav, state=state)
    state.reset([1])
    continued = model.encode(wav, state=state)
    assert torch.equal(continued[1:2], model.encode(wav[1:2])[..., :10])
    assert not torch.equal(continued[0:1], model.encode(wav[0:1])[..., :10])


@pytest.mark.parametrize(
    "wav,message",
    [
        (torch.zeros(1, 0), "N > 0"),
        (torch.zeros(100), "expected samples"),
        (torch.zeros(1, 100, dtype=torch.int16), "divide int16"),
        (torch.full((1, 100), float("nan")), "NaN"),
        (torch.zeros(1, 100).numpy(), "got ndarray; torch.from_numpy"),
    ],
)
def test_bad_audio_is_named(model, wav, message):
    with pytest.raises(AudioError, match=message):
        model.encode(wav)


def test_bad_codes_are_named(model):
    with pytest.raises(ConfigError, match="codes must be 0 to 31"):
        model.decode(torch.full((1, 6, 3, 4), 32))
    with pytest.raises(ConfigError, match="expected integer codes"):
        model.decode(torch.zeros(1, 7, 3, 4, dtype=torch.int64))
    for dtype in (torch.bool, torch.complex64, torch.float32):
        with pytest.raises(ConfigError, match="expected integer codes"):
            model.decode(torch.zeros(1, 6, 3, 4, dtype=dtype))
    with pytest.raises(ConfigError, match=r"got ndarray; torch\.from_numpy"):
        model.decode(torch.zeros(1, 6, 3, 4, dtype=torch.int64).numpy())
    with pytest.raises(AudioError, match="hold up to"):
        model.decode(torch.zeros(1, 6, 3, 4, dtype=torch.int64), num_samples=4 * 320)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_codes_of_any_integer_width_are_taken(model, dtype):
    codes = torch.arange(6 * 3 * 4).reshape(1, 6, 3, 4) % 32
    assert torch.equal(model.decode(codes.to(dtype)), model.decode(codes))


def test_double_precision_input_is_taken(model):
    wav = noise(1, 3200)
    assert torch.equal(model.encode(wav.double()), model.encode(wav))


def test_silence_and_loud_input_stay_finite(model):
    for wav in (torch.zeros(1, 3200), torch.ones(1, 3200), 1e4 * noise(1, 3200), torch.full((1, 3200), 1e-30)):
        assert torch.isfinite(model.decode(model.encode(wav))).all()


def test_training_reaches_every_parameter():
    torch.manual_seed(1)
    model = EscLive(TINY)
    for parameter in model.parameters():  # zero matrices stop the gradient of what stands before them
        if parameter.ndim >= 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    out = model(noise(3, 24 * 320), levels=torch.tensor([6, 6, 2]))
    assert [len(codes) for codes in out.codes] == [3, 3, 2, 2, 2, 2]
    loss = relative_error(out.spectrum, out.spectrum_target) + MelLoss(16_000)(
        out.wav[:, 160:], noise(3, 24 * 320 - 160)
    )
    (loss + out.commitment_loss + out.codebook_loss).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_bypass_equals_the_linear_codec_it_starts_as():
    """Without quantization and before training, what is lost is what the projections cannot hold: nothing, if wide."""
    config = EscLiveConfig(
        channels=(48, 96, 192, 384), head_channels=16, codebook_dims=(256, 256, 128, 8, 8, 8), codebook_size=16
    )
    model = EscLive(config)
    wav = noise(2, 40 * 320)
    start_from_data(model, wav)
    with torch.no_grad():
        out = model(wav, bypass=True)
    assert float(relative_error(out.spectrum, out.spectrum_target)) < 1e-3
    torch.testing.assert_close(out.wav[:, 160:], wav[:, :-160], atol=2e-2, rtol=0)


def test_the_start_from_data_beats_a_random_start():
    wav = torch.cumsum(noise(8, 50 * 320), dim=1)  # coloured, so that some directions matter more
    wav = wav / wav.abs().max()
    torch.manual_seed(0)
    errors = []
    for start in (False, True):
        model = EscLive(TINY).eval()
        if start:
            start_from_data(model, wav)
        with torch.no_grad():
            out = model(wav)
        errors.append(float(relative_error(out.spectrum, out.spectrum_target)))
    assert errors[1] < 0.6 < errors[0]
    spectrum = model.analyze(wav)
    assert float(torch.view_as_real(spectrum).square().mean()) == pytest.approx(1, rel=0.01)
