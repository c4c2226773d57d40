"""The published codec: sizes, lengths, batches, tiles, delay, training, conformance."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from codec import esc_config
from codec.config import CodecConfig
from codec.esc import Esc
from codec.esc_config import EscConfig
from codec.import_esc import build, convert_arguments
from engine import checkpoint
from engine.errors import AudioError, ConfigError

RATE = 1_000
QUANTIZATIONS = ("cross_scale", "residual")


def micro(quantization: str = "cross_scale", **changes: object) -> EscConfig:
    """Three scales on an eighth of the published front end: everything is there, and a second takes milliseconds."""
    values: dict = dict(
        sample_rate=RATE,
        samples_per_frame=40,
        num_bins=24,
        win_length=40,
        hop_length=10,
        channels=(8, 12, 16),
        heads=(2, 4),
        levels=3,
        codebook_size=32,
        codebook_dims=(4, 4, 4),
        quantization=quantization,
    )
    return EscConfig(**{**values, **changes})


def randomized(config: EscConfig, seed: int = 0) -> Esc:
    """A model whose every parameter matters, in eval mode."""
    torch.manual_seed(seed)
    model = Esc(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Sizes and configuration


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (esc_config.base(), 8_386_373),
        (esc_config.base_yaml(), 8_736_581),
        (esc_config.large(), 15_580_931),
        (esc_config.residual(), 8_177_477),
        (esc_config.tiny(), 333_086),
    ],
)
def test_parameter_counts_are_the_published_ones(config: EscConfig, parameters: int) -> None:
    model = Esc(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_base_has_the_published_rates() -> None:
    config = esc_config.base()
    assert [config.bitrate(levels) for levels in range(1, 7)] == [1500, 3000, 4500, 6000, 7500, 9000]
    assert config.frame_rate == 50
    assert [config.vector_dim(scale) for scale in range(1, 6)] == [4608, 3072, 2304, 1536, 1536]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"win_length": 400}, "exceeds n_fft 382"),
        ({"samples_per_frame": 240}, "multiple of hop_length x patch_frames"),
        ({"samples_per_frame": 160}, "half the n_fft"),
        ({"num_bins": 189}, "halved 5 times"),
        ({"heads": (3, 6, 12, 24)}, "one entry fewer"),
        ({"heads": (3, 6, 12, 24, 36)}, r"heads\[4\] = 36 must divide"),
        ({"window": 3}, "even"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"codebook_dims": (8,) * 5}, "needs 6 entries"),
        ({"levels": 5, "codebook_dims": (8,) * 5}, "one level a scale"),
        ({"quantization": "residual", "codebook_dims": (8, 8, 8, 8, 8, 6)}, "one codebook dimension"),
        ({"quantization": "none"}, 'got "none"'),
        ({"codebook_size": 1}, "codebook_size"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EscConfig(**changes)


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    model = randomized(micro())
    checkpoint.save(tmp_path, model, kind=Esc.kind, config=model.config, card="# micro")
    kind, values, state, _ = checkpoint.read(tmp_path)
    again = Esc(checkpoint.load_config(EscConfig, values)).eval()
    again.load_state_dict(state)
    assert (kind, again.config) == ("esc", model.config) and isinstance(again.config, CodecConfig)
    wav = noise(1, 500)
    assert torch.equal(again.encode(wav), model.encode(wav))


# Lengths and batches


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_length_comes_back(quantization: str) -> None:
    model = randomized(micro(quantization))
    for num_samples in (*range(1, 85), 397, 398):  # more than two code frames, every phase of the window grid
        wav = noise(1, num_samples, seed=num_samples)
        codes = model.encode(wav)
        assert codes.shape == (1, 3, 3, model.num_frames(num_samples)) and codes.dtype == torch.int64
        decoded = model.decode(codes, num_samples)
        assert decoded.shape == wav.shape and torch.isfinite(decoded).all()


def test_the_published_lengths_are_not_padded() -> None:
    """80 (4 k - 1) samples have 4 k STFT frames; one sample more needs another code frame."""
    model = Esc(esc_config.tiny())
    for k in range(1, 200):
        assert model.padded_length(k) == 80 * (4 * k - 1)
        assert [model.num_frames(80 * (4 * k - 1) + i) for i in (0, 1, 320)] == [k, k + 1, k + 1]
    wav = noise(1, 80 * 59)
    expected = torch.stft(wav, 382, 80, 320, torch.hann_window(320), center=True, return_complex=True)
    spectrum = model.analyze(wav, 0, 15, 15)
    torch.testing.assert_close(torch.complex(spectrum[:, 0], spectrum[:, 1]), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.synthesize(spectrum), wav, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_fewer_levels_are_the_first_levels(quantization: str) -> None:
    model, wav = randomized(micro(quantization)), noise(2, 700)
    codes = model.encode(wav)
    for levels in (1, 2, 3):
        assert torch.equal(model.encode(wav, levels=levels), codes[:, :levels])
    assert not torch.equal(model.decode(codes[:, :1]), model.decode(codes[:, :2]))


@pytest.mark.parametrize("tile_frames", [256, 8])
def test_a_batch_of_mixed_lengths_equals_its_items(tile_frames: int) -> None:
    model = randomized(micro())
    lengths = torch.tensor([1, 30, 31, 500, 510, 999, 1500, 1500, 1777])
    wav = noise(len(lengths), 1800)
    model.tile_frames = tile_frames
    codes = model.encode(wav, lengths)
    decoded = model.decode(codes, 1800, lengths)
    assert codes.shape[-1] == model.num_frames(1800) and decoded.shape == wav.shape
    model.tile_frames = None
    for i, length in enumerate(lengths.tolist()):
        alone = model.encode(wav[i : i + 1, :length])[0]
        frames = alone.shape[-1]
        assert torch.equal(codes[i, ..., :frames], alone) and not codes[i, ..., frames:].any()
        torch.testing.assert_close(decoded[i, :length], model.decode(alone[None], length)[0], atol=1e-6, rtol=0)
        assert not decoded[i, length:].any()


# Tiles


@pytest.mark.parametrize(
    "config",
    [
        micro(),
        micro("residual"),
        micro(depth=1),
        micro(depth=3),
        micro(window=2),
        micro(samples_per_frame=60, num_bins=36),
    ],
    ids=["base", "residual", "depth1", "depth3", "window2", "three_columns"],
)
@pytest.mark.parametrize("num_samples", [3_190, 3_200])  # 80 and 81 frames: a latent of whole windows, and one not
def test_tiles_change_nothing(config: EscConfig, num_samples: int) -> None:
    model, wav = randomized(config), noise(1, num_samples)
    model.tile_frames = None
    expected = {levels: model.encode(wav, levels=levels) for levels in (1, 3)}
    audio = model.decode(expected[3], num_samples)
    for model.tile_frames in (6, 13, 40):
        for levels, codes in expected.items():
            assert torch.equal(model.encode(wav, levels=levels), codes), (model.tile_frames, levels)
        torch.testing.assert_close(model.decode(expected[3], num_samples), audio, atol=1e-6, rtol=0)


@torch.no_grad()
def test_halos_are_as_long_as_needed_and_no_longer() -> None:
    model, wav = randomized(micro()).double(), noise(1, 4_790)  # double: influence fades with distance
    network, frames, size = model.network, model.num_frames(4_790), model.config.samples_per_frame
    codes = torch.randint(32, (1, 3, 3, frames), generator=torch.Generator().manual_seed(0))
    features = network.encoder(model.analyze(wav, 0, frames, frames))[-1]
    audio = model.synthesize(network.decode(codes))
    for left, right in [(40, frames), (0, 80)]:
        piece = network.encoder(model.analyze(wav, left, right, frames))[-1]
        sound = model.synthesize(network.decode(codes[..., left:right]))
        for shorter in (0, 1):
            halo = model._encoder_halo(1) - shorter
            start, stop = left + halo * (left > 0), right - halo * (right < frames)
            found = piece[:, 2 * (start - left) : 2 * (stop - left)]
            same = torch.allclose(found, features[:, 2 * start : 2 * stop], atol=1e-12)
            assert same == (not shorter), ("encoder", left, halo)
            halo = model._decoder_halo() - shorter
            start, stop = left + halo * (left > 0), right - halo * (right < frames)
            found = sound[:, size * (start - left) : size * (stop - left)]
            same = torch.allclose(found, audio[:, size * start : size * stop], atol=1e-12)
            assert same == (not shorter), ("decoder", left, halo)


def test_no_tile_is_wider_than_its_core_and_halos(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wav = randomized(micro()), noise(2, 8_000)
    model.tile_frames = 30
    widths = []
    for name in ("encode", "decode"):
        original = getattr(model.network, name)

        def spy(x: Tensor, *rest: int, original=original) -> Tensor:  # type: ignore[no-untyped-def]
            widths.append(x.shape)
            return original(x, *rest)

        monkeypatch.setattr(model.network, name, spy)
    model.decode(model.encode(wav))
    assert max(shape[0] for shape in widths) == 2
    assert max(shape[-1] for shape in widths if len(shape) == 4 and shape[1] == 2) == 4 * (30 + 2 * 8)


# Delay and training


def test_delay_is_what_a_changed_future_shows() -> None:
    """The output before (change - delay) stays, to the last bit but rounding; one sample later it may not."""
    model = randomized(micro()).double()
    wav = noise(1, 4_000).double()
    spans = []
    with torch.no_grad():
        before = model(wav, bypass=True).wav
        for change in range(2_000, 2_000 + model.config.grid_frames * 40, 10):
            changed = wav.clone()
            changed[:, change:] += 1
            differs = (model(changed, bypass=True).wav - before).abs()[0] > 1e-12
            spans.append(change - int(differs.nonzero()[0]))
    assert max(spans) <= model.delay
    assert max(spans) > model.delay - 20  # the STFT window is too close to zero at its very ends to show


def test_delay_of_base_is_half_a_second() -> None:
    assert Esc(esc_config.tiny()).delay == 8_638  # depths, windows and front end are those of the base model


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_forward_equals_encode_and_decode(quantization: str) -> None:
    model, wav = randomized(micro(quantization)), noise(4, 777)
    codes = model.encode(wav)
    for mode in (model.eval(), model.train()):
        levels = torch.tensor([3, 2, 2, 1])
        output = mode(wav, levels)
        assert [len(c) for c in output.codes] == [4, 3, 1]
        for level, code in enumerate(output.codes):
            assert torch.equal(code, codes[: len(code), level])
        for i, count in enumerate(levels.tolist()):
            expected = model.decode(codes[i : i + 1, :count], 777)[0]
            torch.testing.assert_close(output.wav[i], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_bypass_trains_all_but_the_codebooks(quantization: str) -> None:
    model, wav = randomized(micro(quantization)).train(), noise(2, 400)
    output = model(wav, levels=1, bypass=True)
    assert output.commitment_loss == 0 == output.codebook_loss and len(output.codes) == 3
    (output.wav.square().mean() + (output.spectrum - output.spectrum_target).square().mean()).backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert untouched == {name for name, _ in model.named_parameters() if "codebooks" in name}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_losses_are_means_over_groups_and_sums_over_levels(quantization: str) -> None:
    model, wav = randomized(micro(quantization)).train(), noise(2, 400)
    losses = [model(wav, levels=levels).commitment_loss for levels in (1, 2, 3)]
    assert 0 < losses[0] < losses[1] < losses[2]
    seen: list[Tensor] = []
    if quantization == "cross_scale":
        for book in model.network.quantizers[0].codebooks:
            book.register_forward_hook(lambda _, __, quantized: seen.append(quantized.commitment_loss))
        model(wav, levels=1)
        torch.testing.assert_close(losses[0], torch.stack(seen).mean())
    output = model(wav)
    (output.wav.square().mean() + output.commitment_loss + output.codebook_loss).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# Errors


def test_errors_say_what_is_possible() -> None:
    model = randomized(micro())
    codes = model.encode(noise(2, 400))
    with pytest.raises(AudioError, match="11 frames hold up to 430 samples, 431 were asked for"):
        model.decode(codes, 431)
    with pytest.raises(AudioError, match="expected 2 lengths"):
        model.decode(codes, 400, torch.tensor([400]))
    with pytest.raises(ConfigError, match="levels must be 1 to 3"):
        model.encode(noise(1, 400), levels=4)
    with pytest.raises(ConfigError, match="0 to 31"):
        model.decode(codes + 32)
    with pytest.raises(AudioError, match="between 1 and 400"):
        model.encode(noise(2, 400), torch.tensor([400, 0]))
    with pytest.raises(AudioError, match="NaN"):
        model.encode(torch.full((1, 400), torch.nan))


# Conformance


@pytest.fixture(scope="module")
def published(shared: Path) -> tuple[Esc, dict[str, Tensor]]:
    """The authors' tiny model and what it made of two utterances."""
    folder = shared / "conformance" / "esc"
    with safe_open(str(folder / "tiny_weights.safetensors"), framework="pt") as file:
        arguments = json.loads(file.metadata()["config"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return build(state, convert_arguments(arguments)).eval(), load_file(folder / "tiny_io.safetensors")


@pytest.mark.parametrize("utterance", ["even", "ragged"])
def test_conformance(published: tuple[Esc, dict[str, Tensor]], utterance: str) -> None:
    model, reference = published
    wav = reference[f"{utterance}.wav"][None]
    frames = model.num_frames(wav.shape[1])
    spectrum = model.analyze(wav, 0, frames, frames)[0]
    torch.testing.assert_close(spectrum, reference[f"{utterance}.spectrum"], atol=1e-4, rtol=0)
    for levels in (1, 3, 6):
        codes = reference[f"{utterance}.codes.{levels}"].long()
        assert (model.encode(wav, levels=levels)[0] == codes).float().mean() >= 0.999
        decoded = model.decode(codes[None], wav.shape[1])[0]
        torch.testing.assert_close(decoded, reference[f"{utterance}.decoded.{levels}"], atol=1e-4, rtol=0)


def test_conformance_in_tiles(published: tuple[Esc, dict[str, Tensor]]) -> None:
    model, reference = published
    model.tile_frames = 30
    codes = reference["ragged.codes.6"].long()[None]
    wav = reference["ragged.wav"][None]
    assert (model.encode(wav) == codes).float().mean() >= 0.999
    torch.testing.assert_close(model.decode(codes, wav.shape[1])[0], reference["ragged.decoded.6"], atol=1e-4, rtol=0)
    model.tile_frames = 256


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_codebooks_started_on_a_signal_fit_it(quantization: str) -> None:
    """Every level takes something off the error on the signal that the codebooks were started on."""
    model, wav = randomized(micro(quantization)).eval(), noise(6, 4_000)
    frames = model.num_frames(wav.shape[1])
    spectrum = model.analyze(wav, 0, frames, frames)
    before = float(model(wav).commitment_loss.detach())
    model.network.start_codebooks(spectrum)
    assert float(model(wav).commitment_loss.detach()) < before / 2
