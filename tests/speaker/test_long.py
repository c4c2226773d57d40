"""speaker/long.py: chunk by chunk is the same as in one go, and takes no more memory for more hours."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import AudioError
from speaker.backbones.resnet import ResNet, ResNetConfig
from speaker.backbones.titanet import TitaNet, TitaNetConfig
from speaker.long import Backbone, embed_features
from speaker.moments import Moments

BACKBONES = {
    "titanet": lambda: TitaNet(TitaNetConfig(num_bins=10, channels=16, epilog_channels=24, embedding_dim=8)),
    "resnet": lambda: ResNet(ResNetConfig(num_bins=10, channels=4, embedding_dim=8)),
    "bottleneck": lambda: ResNet(ResNetConfig(num_bins=10, channels=4, blocks=(1, 2, 1, 1), bottleneck=True)),
}


def built(name: str) -> nn.Module:
    """In eval mode and double precision, with random weights and statistics."""
    torch.manual_seed(0)
    model = BACKBONES[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval().double()


def speech(num_frames: int) -> Tensor:
    """Features (10, T) that change in the course of the file, as a wrong mean or weight would show otherwise not."""
    noise = torch.randn(10, num_frames, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * torch.linspace(0.5, 3, num_frames) + torch.linspace(-2, 2, num_frames)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("num_frames", "chunk"), [(9, 8), (130, 1000), (401, 8), (700, 97), (1000, 500)])
@torch.no_grad()
def test_chunks_change_nothing(name: str, num_frames: int, chunk: int) -> None:
    model, features = built(name), speech(num_frames)
    direct = model(features[None])[0]
    found = embed_features(model, lambda a, b: features[:, a:b], num_frames, chunk)  # type: ignore[arg-type]
    torch.testing.assert_close(found, direct, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_single_precision_is_enough(name: str) -> None:
    model, features = built(name).float(), speech(3000).float()
    direct = model.double()(features[None].double())[0]
    found = embed_features(model.float(), lambda a, b: features[:, a:b], 3000)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert 1 - torch.cosine_similarity(found.double(), direct, dim=0) < 1e-9


@pytest.mark.parametrize("name", BACKBONES)
def test_memory_does_not_grow(name: str) -> None:
    model = built(name)

    def largest(num_frames: int) -> int:
        sizes = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                result = func(*args, **(kwargs or {}))
                sizes.extend(each.numel() for each in [result] if isinstance(each, Tensor))
                return result

        def features(start: int, stop: int) -> Tensor:
            return torch.ones(10, stop - start, dtype=torch.float64)

        with Watch():
            embed_features(model, features, num_frames, 64)  # type: ignore[arg-type]
        return max(sizes)

    assert largest(2_000) == largest(1_000)


def test_backbones_tell_what_is_needed() -> None:
    for name in BACKBONES:
        model = built(name)
        for attribute in Backbone.__annotations__:
            assert hasattr(model, attribute), (name, attribute)
        assert model.halo % model.stride == 0 == model.chunk_frames % model.stride  # type: ignore[operator]


def test_too_little_says_how_much_is_needed() -> None:
    for name, needed in [("titanet", 2), ("resnet", 9)]:
        with pytest.raises(AudioError, match=f"{needed - 1} frames are too few; this model needs at least {needed}"):
            embed_features(built(name), lambda a, b: speech(b)[:, a:], needed - 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 100.0])  # scores that far apart overflow and vanish where not shifted
def test_moments_merge_exactly(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(3, 500, generator=generator, dtype=torch.float64)
    scores = scale * torch.randn(3, 500, generator=generator, dtype=torch.float64).cumsum(-1)
    weighted, plain = Moments(), Moments()
    for start, stop in [(0, 1), (1, 200), (200, 203), (203, 500)]:
        weighted.add(x[:, start:stop], scores[:, start:stop])
        plain.add(x[:, start:stop])
    weights = scores.softmax(-1)
    mean = (weights * x).sum(-1)
    for found, expected in zip(
        [*weighted.result(x.dtype), *plain.result(x.dtype)],
        [mean, (weights * (x - mean[:, None]) ** 2).sum(-1), x.mean(-1), x.var(-1, unbiased=False)],
        strict=True,
    ):
        torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-12)
