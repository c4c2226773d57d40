"""Files of other projects: recognized, read as data, refused by name."""

import io
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import speaker
from engine.errors import CheckpointError, ConfigError
from speaker.convert import ORIGINS, convert, read_weights

FILES = {
    "speechbrain_ecapa": "speechbrain",
    "taoruijie_ecapa": "taoruijie",
    "wespeaker_ecapa_glob": "wespeaker",
    "wespeaker_resnet34": "wespeaker",
    "wespeaker_xvec": "wespeaker",
    "nemo_titanet": "nemo",
}


def original(shared: Path, name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights as their project saves them, an utterance, its embedding."""
    with safe_open(shared / "conformance" / "speaker" / f"{name}.safetensors", "pt") as file:
        weights = {n.removeprefix("weights."): file.get_tensor(n) for n in file.keys() if "weights." in n}  # noqa: SIM118
        weights = {n: tensor for n, tensor in weights.items() if not n.startswith("classifier.")}
        return weights, file.get_tensor("input.1"), file.get_tensor("embedding.1")


def nemo(weights: dict[str, Tensor], path: Path, member: str = "./model_weights.ckpt") -> Path:
    data = io.BytesIO()
    torch.save(weights, data)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in ((member, data.getvalue()), ("./model_config.yaml", b"a: 1\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", FILES)
def test_recognized_converted_and_equal(name, shared, tmp_path):
    weights, wav, expected = original(shared, name)
    if FILES[name] == "nemo":
        source = nemo(weights, tmp_path / "x.nemo")
    else:
        source = tmp_path / "x.ckpt"
        torch.save({"state_dict": {f"module.{n}": t for n, t in weights.items()}}, source)
    _, origin = convert(source, tmp_path / "out")
    assert origin == FILES[name]
    found = speaker.load(tmp_path / "out")(wav[None])[0]
    assert 1 - torch.cosine_similarity(found.double(), expected.double(), dim=0) < 1e-6
    assert origin in (tmp_path / "out" / "README.md").read_text()


def test_what_is_no_encoder_says_why(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_weights(tmp_path / "text.ckpt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(tmp_path / "text.safetensors")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match="holds no state dict.*got epoch"):
        read_weights(tmp_path / "epoch.pt")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="SpeechBrain.*TaoRuijie.*WeSpeaker.*NeMo"):
        convert(tmp_path / "other.pt", tmp_path / "out")
    with pytest.raises(ConfigError, match=f"there are auto, {', '.join(ORIGINS)}"):
        convert(tmp_path / "other.pt", tmp_path / "out", "kaldi")
    assert not (tmp_path / "out").exists()


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_weights(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_nemo_files_write_nothing_and_must_hold_weights(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    weights = read_weights(nemo({"a": torch.ones(2)}, inside / "x.nemo", member="../../model_weights.ckpt"))
    assert torch.equal(weights["a"], torch.ones(2)) and sorted(tmp_path.rglob("*")) == [inside, inside / "x.nemo"]
    with pytest.raises(CheckpointError, match="holds 0 model_weights.ckpt, expected one"):
        read_weights(nemo({"a": torch.ones(2)}, inside / "y.nemo", member="weights.ckpt"))
    (inside / "z.nemo").write_text("hello")
    with pytest.raises(CheckpointError, match="which is a tar"):
        read_weights(inside / "z.nemo")


@pytest.mark.parametrize("origin", ["auto", "vbx"])
def test_vbx(origin, tmp_path, shared):
    tensors = safetensors.torch.load_file(shared / "conformance" / "speaker" / "vbx_resnet34.safetensors")
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    torch.save(weights, tmp_path / "raw.pth")
    encoder, found = convert(tmp_path / "raw.pth", tmp_path / "mine", origin)
    assert found == "vbx"
    embedding = encoder(tensors["input.1"][None])[0]
    assert torch.cosine_similarity(embedding, tensors["embedding_nodither.1"], dim=0) > 1 - 1e-6
