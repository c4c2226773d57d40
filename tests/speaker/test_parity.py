"""A converted encoder beside the original package."""

import sys

import pytest
import torch

from speaker import parity
from speaker.convert import convert, read_weights


@pytest.fixture(autouse=True)
def no_lazy_modules_left():
    """SpeechBrain leaves modules behind that fail when they are looked at, as hypothesis looks at all there are."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechbrain"]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")  # of SpeechBrain's own code
def test_speechbrain(tmp_path, monkeypatch):
    pytest.importorskip("speechbrain")
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    torch.manual_seed(0)
    theirs = ECAPA_TDNN(40, lin_neurons=24, channels=[32, 32, 32, 32, 48], attention_channels=16, se_channels=16).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "embedding_model.ckpt")
    encoder, origin = convert(tmp_path / "embedding_model.ckpt", tmp_path / "mine")
    weights = read_weights(tmp_path / "embedding_model.ckpt")
    found = parity.compare(encoder, origin, weights)
    assert isinstance(found, parity.Parity) and found.signals == 4
    assert found.difference < 1e-3 and found.cosine > 1 - 1e-6 and "4 signals beside the original" in str(found)
    with torch.no_grad():
        encoder.backbone.embed.weight[0] += 0.1  # a difference is seen
    assert parity.compare(encoder, origin, weights).difference > 10 * found.difference
    monkeypatch.setitem(sys.modules, "speechbrain.lobes.features", None)
    assert "install speechbrain to compare" in parity.compare(encoder, origin, weights)
    assert "not compared: nemo" in parity.compare(encoder, "nemo", weights)
