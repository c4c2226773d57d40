"""Encoders end to end: the numbers of the originals, padded batches, short input, folders."""

import json
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import speaker
from engine.errors import AudioError, CheckpointError, ConfigError
from engine.features import FrontEndConfig, kaldi_fbank, kaldi_mfcc, nemo_mel, speechbrain_fbank, taoruijie_fbank
from speaker import convert_ecapa, convert_nemo, convert_wespeaker_resnet, convert_wespeaker_xvector
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import ResNetConfig
from speaker.backbones.titanet import TitaNetConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.model import SpeakerConfig, SpeakerEncoder

HAMMING = kaldi_fbank(window="hamming")
ORIGINALS: dict[str, tuple[Callable, FrontEndConfig]] = {
    "speechbrain_ecapa": (convert_ecapa.speechbrain, speechbrain_fbank()),
    "taoruijie_ecapa": (convert_ecapa.taoruijie, taoruijie_fbank()),
    "wespeaker_ecapa_glob": (convert_ecapa.wespeaker, HAMMING),
    "wespeaker_resnet34": (convert_wespeaker_resnet.backbone, HAMMING),
    "wespeaker_xvec": (convert_wespeaker_xvector.backbone, HAMMING),
    "nemo_titanet": (convert_nemo.backbone, nemo_mel()),
    "nemo_titanet_small_epilog": (convert_nemo.backbone, nemo_mel()),
}


@pytest.fixture(scope="module", params=ORIGINALS)
def original(request, shared) -> tuple[SpeakerEncoder, list[Tensor], list[Tensor]]:
    """An encoder with the weights of an original, three utterances, and the original's embeddings of them."""
    convert, front_end = ORIGINALS[request.param]
    with safe_open(shared / "conformance" / "speaker" / f"{request.param}.safetensors", "pt") as file:
        weights = {name.removeprefix("weights."): file.get_tensor(name) for name in file.keys() if "weights." in name}  # noqa: SIM118
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
        inputs = [file.get_tensor(f"input.{i}") for i in range(3)]
        embeddings = [file.get_tensor(f"embedding.{i}") for i in range(3)]
        assert json.loads(file.metadata()["golden"])["sample_rate"] == 16000
    network, state = convert(weights)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=front_end, network=network)).eval()
    encoder.backbone.load_state_dict(state)
    return encoder, inputs, embeddings


@torch.no_grad()
def test_embeddings_of_the_originals(original):
    encoder, inputs, expected = original
    for wav, embedding in zip(inputs, expected, strict=True):
        found = encoder(wav[None])[0]
        torch.testing.assert_close(found, embedding, atol=1e-3, rtol=0)
        assert 1 - torch.cosine_similarity(found.double(), embedding.double(), dim=0) < 1e-6


@torch.no_grad()
def test_padded_batches_of_the_originals_equal_the_singles(original):
    encoder, inputs, _ = original
    lengths = torch.tensor([len(wav) for wav in inputs])
    batch = encoder(pad_sequence(inputs, batch_first=True), lengths)
    alone = torch.cat([encoder(wav[None]) for wav in inputs])
    torch.testing.assert_close(batch, alone, atol=1e-4 * float(alone.abs().max()), rtol=1e-4)


NETWORKS = {
    "ecapa paper": (HAMMING, EcapaTdnnConfig(channels=32, mfa_channels=48, attention_channels=16)),
    "ecapa reflect": (
        speechbrain_fbank(),
        EcapaTdnnConfig(
            channels=32, mfa_channels=48, padding="reflect", passthrough="first", dense_skip=False, eps=1e-12
        ),
    ),
    "titanet": (nemo_mel(), TitaNetConfig(channels=32, epilog_channels=48, attention_channels=16)),
    "resnet": (HAMMING, ResNetConfig(channels=4, blocks=(1, 1, 1, 1), embedding_dim=16)),
    "xvector": (kaldi_mfcc(30), XvectorConfig(num_bins=30, channels=32, stats_channels=48, embedding_dim=16)),
    "sliding": (
        kaldi_fbank(40, normalization="sliding_mean"),
        XvectorConfig(num_bins=40, channels=32, stats_channels=48),
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def encoder(request) -> SpeakerEncoder:
    """Small, with random weights and statistics."""
    torch.manual_seed(0)
    front_end, network = NETWORKS[request.param]
    encoder = SpeakerEncoder(SpeakerConfig(front_end=front_end, network=network))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


def noise(num_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_an_item_of_a_padded_batch_equals_the_item_alone(encoder):
    """From 0.2 s (or what the network needs) to 6 s, with noise in place of the padding: nothing of it may count."""
    lengths = [max(3200, encoder.min_samples), 5000, 9601, 16000, 47999, 96000]
    items = [noise(n, seed=n) for n in lengths]
    padded = 10 * torch.randn(len(items), 96000, generator=torch.Generator().manual_seed(5))
    for row, item in zip(padded, items, strict=True):
        row[: len(item)] = item
    batch = encoder(padded, torch.tensor(lengths))
    alone = torch.cat([encoder(item[None]) for item in items])
    torch.testing.assert_close(batch, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-5)


@torch.no_grad()
def test_the_shortest_input_works_and_less_says_how_much(encoder):
    shortest = encoder.min_samples
    assert shortest <= 3600 and encoder(noise(shortest)[None]).isfinite().all()
    with pytest.raises(AudioError, match=rf"needs at least .* s \({shortest} samples\)"):
        encoder(noise(shortest - 1)[None])
    with pytest.raises(AudioError, match="too short"):
        encoder(noise(2 * shortest)[None], torch.tensor([shortest - 1]))


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.zeros(100), "expected samples"),
        (torch.zeros(1, 16000, dtype=torch.int16), "divide int16"),
        (torch.full((1, 16000), float("nan")), "NaN"),
        (torch.zeros(1, 16000).numpy(), "torch.from_numpy"),
    ],
)
def test_bad_audio_is_named(encoder, wav, message):
    with pytest.raises(AudioError, match=message):
        encoder(wav)
    with pytest.raises(AudioError, match="lengths must be 1 values up to 16000"):
        encoder(torch.zeros(1, 16000), torch.tensor([20000]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_samples_are_taken(encoder, dtype):
    wav = noise(16000)[None].to(dtype)
    torch.testing.assert_close(encoder(wav), encoder(wav.float()), atol=1e-2, rtol=1e-2)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(encoder, tmp_path):
    speaker.save(tmp_path / "mine", encoder, "# mine")
    loaded = speaker.load(tmp_path / "mine")
    assert loaded.config == encoder.config and loaded.name == "mine"
    wav = noise(16000)[None]
    assert torch.equal(loaded(wav), encoder(wav))
    values = json.loads((tmp_path / "mine" / "config.json").read_text())
    values["kind"] = "esc_live"
    (tmp_path / "mine" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="no speaker encoder"):
        speaker.load(tmp_path / "mine")


def test_front_end_and_network_must_fit():
    with pytest.raises(ConfigError, match="takes 80 features a frame, the front end gives 30"):
        SpeakerConfig(front_end=kaldi_mfcc(30), network=EcapaTdnnConfig())
    with pytest.raises(ConfigError, match="configures none of"):
        SpeakerConfig(network=object())


def test_the_receptive_field_is_what_a_vector_before_pooling_depends_on():
    from speaker.cost import receptive_field

    torch.manual_seed(0)
    front = kaldi_mfcc(30, normalization="none")
    encoder = SpeakerEncoder(SpeakerConfig(front_end=front, network=XvectorConfig(num_bins=30))).eval()
    wav = (0.1 * torch.randn(1, 32000)).requires_grad_()
    frames = encoder.backbone.frames(encoder.front_end(wav)[0])[0]
    frames[0, :, frames.shape[-1] // 2].square().sum().backward()
    touched = wav.grad[0].nonzero().flatten()
    assert receptive_field(encoder) == (int(touched[-1] - touched[0]) + 1) / 16000
