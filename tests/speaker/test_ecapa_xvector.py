"""ECAPA-TDNN and x-vector: published sizes, conversions strict in both directions."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.errors import CheckpointError, ConfigError
from speaker import convert_ecapa, convert_wespeaker_xvector
from speaker.backbones.ecapa_tdnn import EcapaTdnn, EcapaTdnnConfig, speechbrain, taoruijie, wespeaker
from speaker.backbones.xvector import Xvector, XvectorConfig, extended

SIZES = [
    (EcapaTdnn, speechbrain(), 20_767_552),
    (EcapaTdnn, speechbrain(512, 1536), 6_194_048),
    (EcapaTdnn, speechbrain(1024, 1536), 14_660_416),
    (EcapaTdnn, taoruijie(512), 6_978_176),
    (EcapaTdnn, taoruijie(), 15_444_544),
    (EcapaTdnn, wespeaker(512), 6_190_720),
    (EcapaTdnn, wespeaker(), 14_657_088),
    (Xvector, XvectorConfig(tap="second"), 4_610_524),
]


@pytest.mark.parametrize(("network", "config", "expected"), SIZES)
def test_published_parameter_counts(network: type[nn.Module], config: object, expected: int) -> None:
    with torch.device("meta"):
        model = network(config)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_contexts_as_published() -> None:
    """ECAPA-TDNN sees 131 frames, x-vector 15, the extended one 23."""
    with torch.device("meta"):
        assert 2 * EcapaTdnn(EcapaTdnnConfig()).halo + 1 == 131
        assert Xvector(XvectorConfig()).shrink + 1 == 15 and Xvector(extended()).shrink + 1 == 23


CASES = {
    "speechbrain_ecapa": convert_ecapa.speechbrain,
    "taoruijie_ecapa": convert_ecapa.taoruijie,
    "wespeaker_ecapa_glob": convert_ecapa.wespeaker,
    "wespeaker_xvec": convert_wespeaker_xvector.backbone,
}


@pytest.mark.parametrize("name", CASES)
def test_networks_equal_the_originals_in_float64(name: str, shared) -> None:
    """The network alone, on the stored features."""
    tensors = load_file(shared / "conformance" / "speaker" / f"{name}.safetensors")
    weights = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
    weights = {n: t for n, t in weights.items() if not n.startswith("classifier.")}
    config, state = CASES[name](weights)
    model = (Xvector if isinstance(config, XvectorConfig) else EcapaTdnn)(config).eval()
    model.load_state_dict(state)
    model.double()
    # Of TaoRuijie's the clamp of the pooled variance is met in float32 by the original.
    tolerance = 1e-5 if name == "taoruijie_ecapa" else 1e-9
    for i in range(3):
        features = tensors[f"features.{i}"].double()
        features = features if name == "taoruijie_ecapa" else features.T
        with torch.no_grad():
            found = model(features[None])[0]
        torch.testing.assert_close(found, tensors[f"embedding_f64.{i}"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_weights_that_do_not_fit_are_named(name: str, shared) -> None:
    tensors = load_file(shared / "conformance" / "speaker" / f"{name}.safetensors")
    weights = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
    weights = {n: t for n, t in weights.items() if not n.startswith("classifier.")}
    with pytest.raises(CheckpointError, match="unknown strange.weight"):
        CASES[name](weights | {"strange.weight": torch.zeros(1)})
    missing = dict(weights)
    gone = next(n for n in weights if n.endswith(("fc.conv.bias", "fc6.bias", "linear.bias", "seg_2.bias")))
    del missing[gone]
    with pytest.raises(CheckpointError, match="missing"):
        CASES[name](missing)
    with pytest.raises(CheckpointError, match="those of"):
        CASES[name]({"a.weight": torch.zeros(1)})


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 equal parts"):
        EcapaTdnnConfig(channels=100)
    with pytest.raises(ConfigError, match="odd"):
        EcapaTdnnConfig(kernel=4)
    with pytest.raises(ConfigError, match="odd kernel"):
        XvectorConfig(layers=((4, 1),))
