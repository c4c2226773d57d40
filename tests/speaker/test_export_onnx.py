"""The exported graph on ONNX Runtime against the model itself: every backbone, any batch, 0.3 s to 60 s."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import speaker
from engine.features import kaldi_fbank, kaldi_mfcc, nemo_mel
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import resnet
from speaker.backbones.titanet import TitaNetConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.cli import app
from speaker.model import SpeakerConfig, SpeakerEncoder

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODELS = {
    "ecapa": (kaldi_fbank(40), EcapaTdnnConfig(num_bins=40, channels=32, mfa_channels=48, embedding_dim=24)),
    "titanet": (nemo_mel(80), TitaNetConfig(channels=32, epilog_channels=48, embedding_dim=16)),
    "resnet": (kaldi_fbank(64), resnet(18, channels=4, num_bins=64)),
    "xvector": (kaldi_mfcc(30), XvectorConfig(num_bins=30)),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    front_end, network = MODELS[request.param]
    torch.manual_seed(0)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=front_end, network=network)).eval()
    path = tmp_path_factory.mktemp("export")
    speaker.save(path / "mine", encoder, "# mine")
    result = CliRunner().invoke(app, ["export", str(path / "mine"), "--onnx", str(path / "mine.onnx")])
    assert result.exit_code == 0 and "wav (batch, samples) at 16000 Hz" in result.stdout
    return path


def test_the_graph_equals_the_model(folder):
    encoder, session = speaker.load(folder / "mine"), runtime.InferenceSession(folder / "mine.onnx")
    for lengths in ([4800], [16000, 48000], [37123, 8000, 16001], [960000]):
        wav = 0.1 * torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
        (found,) = session.run(None, {"wav": wav.numpy(), "lengths": np.array(lengths)})
        expected = F.normalize(encoder(wav, torch.tensor(lengths)))
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    facts = json.loads(onnx.load(folder / "mine.onnx").metadata_props[0].value)
    assert facts["min_samples"] == encoder.min_samples and facts["weights"] == encoder.digest


def test_an_existing_file_stays(folder):
    with pytest.raises(Exception, match="--force overwrites it"):
        CliRunner().invoke(app, ["export", str(folder / "mine"), "--onnx", str(folder / "mine.onnx")],
                           catch_exceptions=False)  # fmt: skip
