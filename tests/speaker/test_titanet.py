"""speaker/backbones/titanet.py and speaker/convert_nemo.py, against NeMo's own numbers where they are available."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import CheckpointError, ConfigError
from speaker import convert_nemo
from speaker.backbones import titanet
from speaker.backbones.titanet import TitaNet, TitaNetConfig

FILES = ["nemo_titanet", "nemo_titanet_small_epilog"]
SPEAKERS = 16_681  # that the published models were trained on, one row of a classifier without bias each


def tiny() -> TitaNet:
    """In eval mode, with random weights and statistics."""
    torch.manual_seed(0)
    model = TitaNet(TitaNetConfig(num_bins=10, channels=16, epilog_channels=24, embedding_dim=8, attention_channels=8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "expected"), [("small", 6_478_320), ("medium", 13_423_088), ("large", 25_325_040)], ids=str
)
def test_published_parameter_counts(size: str, expected: int) -> None:
    config = getattr(titanet, size)()
    with torch.device("meta"):
        model = TitaNet(config)
    assert sum(p.numel() for p in model.parameters()) + SPEAKERS * config.embedding_dim == expected


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model, x = tiny(), noise(5, 10, 120)
    lengths = torch.tensor([120, 2, 18, 19, 77])
    batch = model(x, lengths)
    for i, length in enumerate(lengths):
        alone = model(x[i : i + 1, :, :length])[0]
        torch.testing.assert_close(batch[i], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_halo_is_as_far_as_frames_reach() -> None:
    model, x = tiny().double(), noise(1, 10, 200).double()

    def frames(x: Tensor) -> Tensor:  # with constant means, since those of squeeze-and-excitation reach everywhere
        return model.frames(x, squeeze=lambda x, mask: torch.ones_like(x[..., :1]))[0]

    changed = x.clone()
    changed[..., 100] += 10
    differs = (frames(x) != frames(changed)).any(1)[0].nonzero()
    assert (int(differs.min()), int(differs.max())) == (100 - model.halo, 100 + model.halo) and model.halo == 46


def test_training_reaches_every_weight() -> None:
    model = tiny().train()
    model(noise(4, 10, 50)).square().sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {"pool.score.bias"}  # the softmax cancels it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": (3, 8, 1)}, "odd"),
        ({"kernels": (3,)}, "two or more"),
        ({"epilog_channels": 0}, "epilog_channels must be at least 1"),
        ({"squeeze_reduction": 2000}, "squeeze_reduction"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_configurations(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TitaNetConfig(**options)


# Conversion and conformance


def in_nemo_names(model: TitaNet) -> dict[str, Tensor]:
    """Our state dict under the names of NeMo, from the list of names alone."""
    config = model.config
    repeats = [1] + [config.repeats] * (len(config.kernels) - 2) + [1]
    theirs = {ours: name for name, ours in convert_nemo.modules(repeats).items()}
    state = {
        f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value
        for name, value in model.state_dict().items()
    }
    state["decoder.emb_layers.0.1.weight"] = state["decoder.emb_layers.0.1.weight"][..., None]
    return state | {"decoder.final.weight": torch.zeros(3, 8), "preprocessor.featurizer.window": torch.zeros(400)}


def test_conversion_finds_the_configuration() -> None:
    model = tiny()
    state = in_nemo_names(model)
    config, converted = convert_nemo.backbone({k: v for k, v in state.items() if "num_batches" not in k})
    assert config == model.config
    model.load_state_dict(converted)
    assert all(torch.equal(converted[name], value) for name, value in tiny().state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.encoder.2.mconv.5.conv.weight", None, "encoder.encoder.2.mconv.5.conv.weight missing"),
        ("decoder._pooling.attention_layer.2.weight", None, "decoder._pooling.attention_layer.2.weight is missing"),
        ("decoder.emb_layers.1.0.weight", torch.zeros(3), "unknown decoder.emb_layers.1.0.weight"),
        ("encoder.encoder.1.mconv.2.scale", torch.zeros(3), "unknown encoder.encoder.1.mconv.2.scale"),
        ("encoder.encoder.1.mconv.1.conv.weight", torch.zeros(4, 16, 1), r"mconv.1.conv.weight is \(4, 16, 1\), exp"),
        ("encoder.encoder.5.mconv.0.conv.weight", torch.zeros(24, 1, 3), "found 1, 3, 3, 3, 1, 1"),
    ],
)
def test_conversion_names_what_does_not_fit(name: str, value: Tensor | None, message: str) -> None:
    state = in_nemo_names(tiny())
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(CheckpointError, match=message):
        convert_nemo.backbone(state)


def test_conversion_refuses_other_networks() -> None:
    for state in ({}, {"encoder.encoder.0.mconv.0.conv.weight": torch.zeros(80, 1, 3)}, {"a.weight": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="NeMo's TitaNet"):
            convert_nemo.backbone(state)


@pytest.fixture(scope="module", params=FILES)
def published(request: pytest.FixtureRequest, shared: Path) -> tuple[TitaNet, dict[str, Tensor]]:
    """The original's weights in our model, and what the original made of three utterances."""
    tensors = load_file(shared / "conformance" / "speaker" / f"{request.param}.safetensors")
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    config, state = convert_nemo.backbone(weights)
    model = TitaNet(config).eval()
    model.load_state_dict(state)
    return model, tensors


@torch.no_grad()
def test_conformance(published: tuple[TitaNet, dict[str, Tensor]]) -> None:
    model, tensors = published
    for i in range(3):
        embedding = model(tensors[f"features.{i}"][None], tensors[f"feature_length.{i}"][None])[0]
        torch.testing.assert_close(embedding, tensors[f"embedding.{i}"], atol=5e-5, rtol=1e-4)
    batch = model(tensors["batch_features"], tensors["batch_feature_lengths"])
    torch.testing.assert_close(batch, tensors["batch_embedding"], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_conformance_in_double_precision(published: tuple[TitaNet, dict[str, Tensor]]) -> None:
    model, tensors = published
    double = TitaNet(model.config).eval().double()
    double.load_state_dict(model.state_dict())
    for i in range(3):
        embedding = double(tensors[f"features.{i}"][None].double(), tensors[f"feature_length.{i}"][None])[0]
        # The original rounds to single precision in each squeeze-and-excitation, whatever comes in.
        torch.testing.assert_close(embedding, tensors[f"embedding_f64.{i}"], atol=5e-6, rtol=0)
