"""Models from folders, codes from and to files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import codec
from codec.live import EscLive
from engine import checkpoint
from engine.errors import BitstreamError, CheckpointError, ConfigError

TINY = codec.EscLiveConfig(
    channels=(16, 16, 16, 32),
    encoder_depths=(1, 1, 1, 1),
    decoder_depths=(1, 1, 1, 1, 1, 1),
    codebook_dims=(4, 4, 4, 4, 4, 4),
    codebook_size=16,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "small"
    checkpoint.save(path, EscLive(TINY), kind="esc_live", config=TINY, card="# small")
    return path


def test_a_saved_model_loads_as_itself(folder):
    model = codec.load(folder)
    assert isinstance(model, EscLive) and model.config == TINY and not model.training
    assert model.name == "small" and len(model.model_id) == 6
    assert model.model_id.hex() == json.loads((folder / "config.json").read_text())["sha256"][:12]
    assert not any(p.requires_grad for p in model.parameters())


def test_the_default_is_the_shipped_live_model():
    model = codec.load()
    assert model.name == "esc_live" and model.config.bitrate() == 9000
    wav = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    assert model.decode(model.encode(wav), num_samples=4000).shape == wav.shape


def test_what_does_not_fit_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="esc_live"):  # lists what is shipped
        codec.load("no_such_model")
    kind, values, state, _ = checkpoint.read(folder)
    other = EscLive(TINY)
    checkpoint.save(tmp_path / "kind", other, kind="titanet", config=TINY, card="")
    with pytest.raises(CheckpointError, match="'titanet' is no codec"):
        codec.load(tmp_path / "kind")
    wrong = codec.EscLiveConfig(**{**values, "channels": (16, 16, 16, 16)})
    checkpoint.save(tmp_path / "shape", other, kind=kind, config=wrong, card="")
    with pytest.raises(CheckpointError, match="do not fit config.json"):
        codec.load(tmp_path / "shape")
    checkpoint.save(tmp_path / "field", other, kind=kind, config=TINY, card="")
    text = json.loads((tmp_path / "field" / "config.json").read_text())
    text["config"]["colour"] = 3
    (tmp_path / "field" / "config.json").write_text(json.dumps(text))
    with pytest.raises((CheckpointError, ConfigError), match="colour"):
        codec.load(tmp_path / "field")


@pytest.mark.parametrize("device", ["meta", "cuda:99", "xpu:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(folder, device):
    with pytest.raises(ConfigError, match=f"no computing on '{device}' here"):
        codec.load(folder, device)


def test_altered_weights_are_refused(folder, tmp_path):
    for name in ("config.json", "README.md"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="sha256"):
        codec.load(tmp_path)


def test_files_return_their_codes(tmp_path):
    codes = np.random.default_rng(0).integers(0, 1024, (2, 3, 3, 70))
    header = codec.Header(
        sample_rate=44_100, num_samples=60_000, num_frames=70, channels=2, levels=3, num_groups=3, bits_per_code=10,
        frame_rate=50.0, model_id=b"abcdef", model_name="esc_live",
    )  # fmt: skip
    codec.write(tmp_path / "x.esc", header, codes)
    file = codec.read(tmp_path / "x.esc")
    assert file.header == header and np.array_equal(file.codes, codes)
    (tmp_path / "x.esc").write_bytes(b"something else")
    with pytest.raises(BitstreamError):
        codec.read(tmp_path / "x.esc")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, codec; codec.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing_like_it"):
        codec.nothing_like_it  # noqa: B018
