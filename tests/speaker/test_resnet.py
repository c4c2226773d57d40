"""speaker/backbones/resnet.py and the conversions to it, against the originals' numbers where they are available."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import CheckpointError, ConfigError
from engine.features import vbx_fbank
from speaker import convert_vbx, convert_wespeaker_resnet
from speaker.backbones.resnet import DEPTHS, ResNet, ResNetConfig, resnet
from speaker.model import SpeakerConfig, SpeakerEncoder

FILES = {
    "wespeaker_resnet34": convert_wespeaker_resnet,
    "vbx_resnet34": convert_vbx,
    "vbx_resnet101": convert_vbx,
}


def tiny(**options: object) -> ResNet:
    """In eval mode, with random weights and statistics."""
    torch.manual_seed(0)
    values = {"num_bins": 16, "channels": 4, "blocks": (1, 2, 1, 1), "embedding_dim": 8} | options
    model = ResNet(ResNetConfig(**values))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("depth", "options", "expected"),
    [
        (34, {}, 6_634_336),
        (221, {}, 23_792_224),
        (293, {}, 28_626_016),
        (34, {"num_bins": 40}, 5_978_976),
        (101, {"num_bins": 64, "unbiased": False, "eps": 1e-10}, 14_843_872),
    ],
)
def test_published_parameter_counts(depth: int, options: dict, expected: int) -> None:
    with torch.device("meta"):
        model = ResNet(resnet(depth, **options))
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_weight_layers(depth: int) -> None:
    with torch.device("meta"):
        model = ResNet(resnet(depth))
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name]
    assert len(layers) == depth


@pytest.mark.parametrize("bottleneck", [False, True])
@torch.no_grad()
def test_padding_changes_nothing(bottleneck: bool) -> None:
    model, x = tiny(bottleneck=bottleneck), noise(8, 16, 131)
    lengths = torch.tensor([131, 9, 16, 17, 18, 19, 64, 127])
    batch = model(x, lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(batch[i], model(x[i : i + 1, :, :length])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bottleneck": True}, {"blocks": (3, 4, 6, 3)}], ids=str)
@torch.no_grad()
def test_halo_is_as_far_as_frames_reach(options: dict) -> None:
    model, x = tiny(**options).double(), noise(1, 16, 480).double()
    before = model.frames(x)[0]
    reach = []
    for frame in range(240, 248):
        changed = x.clone()
        changed[..., frame] += 1000
        differs = (model.frames(changed)[0] != before).any(1)[0].nonzero() * model.stride
        reach += [frame - int(differs.min()), int(differs.max()) - frame]
    assert model.halo - model.stride < max(reach) <= model.halo


@pytest.mark.parametrize("num_bins", [16, 20, 23])
def test_any_number_of_bins(num_bins: int) -> None:
    assert tiny(num_bins=num_bins)(noise(2, num_bins, 30)).shape == (2, 8)


@pytest.mark.parametrize("second_layer", [False, True])
def test_training_reaches_every_weight(second_layer: bool) -> None:
    model = tiny(second_layer=second_layer).train()
    model(noise(4, 16, 50)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_impossible_configurations() -> None:
    with pytest.raises(ConfigError, match="there is no ResNet35; there are 18, 34"):
        resnet(35)
    for options, message in [
        ({"channels": 0}, "channels"),
        ({"blocks": (1, 0, 1, 1)}, "blocks"),
        ({"eps": 0.0}, "eps"),
    ]:
        with pytest.raises(ConfigError, match=message):
            tiny(**options)  # type: ignore[arg-type]


# Conversion and conformance


def in_their_names(model: ResNet, embed: str) -> dict[str, Tensor]:
    """Our state dict under the names of VBx or WeSpeaker, from the list of names alone."""
    theirs = {ours: name for name, ours in convert_vbx.modules(list(model.config.blocks), embed).items()}
    return {
        f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("second_layer", [False, True])
def test_conversion_finds_the_configuration(bottleneck: bool, second_layer: bool) -> None:
    model = tiny(bottleneck=bottleneck, second_layer=second_layer)
    state = in_their_names(model, "seg_1")
    for prefix in ("", "resnet."):  # WeSpeaker's own, and pyannote's
        named = {prefix + name: value for name, value in state.items() if "num_batches" not in name}
        config, converted = convert_wespeaker_resnet.backbone(named | {"projection.weight": torch.zeros(3, 8)})
        assert config == model.config
        assert all(torch.equal(converted[name], value) for name, value in model.state_dict().items())
        ResNet(config).load_state_dict(converted)


def test_conversion_of_the_training_recipe_drops_its_classifier() -> None:
    model = tiny(unbiased=False, eps=1e-10)
    state = in_their_names(model, "embedding") | {"metric.weight": torch.zeros(3, 8)}
    assert convert_vbx.backbone(state)[0] == model.config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer2.1.bn2.weight", None, "layer2.1.bn2.weight missing"),
        ("embedding.weight", None, "embedding.weight is missing"),
        ("layer2.0.shortcut.0.weight", None, "layer2.0.shortcut.0.weight missing"),
        ("layer1.0.se.fc.0.weight", torch.zeros(3), "unknown layer1.0.se.fc.0.weight"),
        ("layer1.0.conv3.bias", torch.zeros(3), "unknown layer1.0.conv3.bias"),
        ("conv1.weight", torch.zeros(4, 1, 5, 5), r"conv1.weight is \(4, 1, 5, 5\), expected \(4, 1, 3, 3\)"),
    ],
)
def test_conversion_names_what_does_not_fit(name: str, value: Tensor | None, message: str) -> None:
    state = in_their_names(tiny(), "embedding")
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(CheckpointError, match=message):
        convert_vbx.backbone(state)


def test_conversion_refuses_other_networks() -> None:
    for state in ({}, {"conv1.weight": torch.zeros(4, 1, 3, 3)}, {"layer1.0.conv1.weight": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="the weights are not those of VBx's ResNet: layer. *"):
            convert_vbx.backbone(state)


@pytest.fixture(scope="module", params=FILES)
def published(request: pytest.FixtureRequest, shared: Path) -> tuple[ResNet, dict[str, Tensor], str]:
    """The original's weights in our model, and what the original made of three utterances."""
    origin: ModuleType = FILES[request.param]
    tensors = load_file(shared / "conformance" / "speaker" / f"{request.param}.safetensors")
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    config, state = origin.backbone(weights)
    model = ResNet(config).eval()
    model.load_state_dict(state)
    return model, tensors, request.param


@torch.no_grad()
def test_conformance(published: tuple[ResNet, dict[str, Tensor], str]) -> None:
    model, tensors, name = published
    # Its pooling cancels: E[x^2] - mean^2 in single precision.
    atol = 1e-3 if name == "vbx_resnet101" else 5e-5
    for i in range(3):
        embedding = model(tensors[f"features.{i}"].T[None])[0]
        torch.testing.assert_close(embedding, tensors[f"embedding.{i}"], atol=atol, rtol=1e-4)
    model = model.double()
    for i in range(3):
        embedding = model(tensors[f"features.{i}"].T[None].double())[0]
        torch.testing.assert_close(embedding, tensors[f"embedding_f64.{i}"], atol=1e-9, rtol=0)
    model.float()


@pytest.mark.parametrize("name", ["vbx_resnet34", "vbx_resnet101"])
@torch.no_grad()
def test_vbx_from_samples(name: str, shared: Path) -> None:
    """Their front end in ours, the three utterances in one padded batch; the originals have no batches."""
    tensors = load_file(shared / "conformance" / "speaker" / f"{name}.safetensors")
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    config, state = convert_vbx.backbone(weights)
    front_end = vbx_fbank(config.num_bins)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=front_end, network=config)).eval()
    encoder.backbone.load_state_dict(state)
    wavs = [tensors[f"input.{i}"] for i in range(3)]
    embeddings = encoder(nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.tensor([len(w) for w in wavs]))
    for i in range(3):
        expected = tensors[f"embedding_nodither.{i}"]  # of the features without the noise that they add
        # The narrow bottleneck network magnifies what single precision leaves out of a quiet bin.
        torch.testing.assert_close(embeddings[i], expected, atol=5e-3 if name == "vbx_resnet101" else 1e-3, rtol=1e-3)
        assert 1 - torch.cosine_similarity(embeddings[i].double(), expected.double(), dim=0) < 1e-6
