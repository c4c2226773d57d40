import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import nn

from engine import checkpoint
from engine.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    dims: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: int = 16000
    scale: float = 0.5
    causal: bool = True
    name: str = "x"
    kind: Literal["a", "b"] = "a"
    patch: tuple[int, int] = (3, 2)
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    later: "str" = "annotations may be strings"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].weight = nn.Parameter(model[0].weight.T)  # not contiguous, and the memory of another tensor
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "deep" / "model", network(), kind="esc", config=Config(rate=8000), card="# Card")
    return tmp_path / "deep" / "model"


def rewrite(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_a_model_comes_back(folder: Path) -> None:
    kind, values, state, sha256 = checkpoint.read(folder)
    assert kind == "esc"
    assert checkpoint.load_config(Config, values) == Config(rate=8000)
    expected = network().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) and state[name].dtype == expected[name].dtype for name in state)
    fresh = network(seed=1)
    fresh.load_state_dict(state)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "# Card\n"
    assert json.loads((folder / "config.json").read_text())["sha256"] == sha256


def test_equal_weights_have_equal_sums_and_others_replace_them(folder: Path, tmp_path: Path) -> None:
    first = checkpoint.read(folder)[3]
    assert checkpoint.save(tmp_path / "again", network(), kind="esc", config=Config(), card="") == first
    second = checkpoint.save(folder, network(seed=1), kind="esc", config=Config(), card="new")
    assert second != first
    assert checkpoint.read(folder)[3] == second


def test_altered_weights_are_refused(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        checkpoint.read(folder)


def test_weights_that_are_not_safetensors_are_refused(folder: Path) -> None:
    import hashlib

    for data in (b"", b"PK\x03\x04 a zip", (2**60).to_bytes(8, "little") + b"{}"):
        (folder / "model.safetensors").write_bytes(data)
        rewrite(folder, sha256=hashlib.sha256(data).hexdigest())
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            checkpoint.read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2.*update voxcode"),
        ({"version": 0}, "no version 0"),
        ({"version": "1"}, "version must be int"),
        ({"extra": 1}, "expected exactly kind, version, sha256, config"),
        ({"kind": None}, "expected exactly"),
        ({"config": [1]}, "config must be dict"),
        ({"sha256": 5}, "sha256 must be str"),
    ],
)
def test_a_wrong_config_file_is_a_clear_error(folder: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "valid JSON"), ("[]", "an object"), ("\udcff", "valid JSON")])
def test_a_config_file_that_is_not_an_object(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        checkpoint.read(folder)


def values(**changes: Any) -> dict[str, Any]:
    plain = {"rate": 16000, "scale": 0.5, "causal": True, "name": "x", "kind": "a", "patch": [3, 2], "limit": None}
    return plain | {"inner": {"dims": [1, 2]}, "later": "s"} | changes


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({"scale": 2}, "scale", 2.0),
        ({"limit": 7}, "limit", 7),
        ({"patch": [5, 6]}, "patch", (5, 6)),
        ({"inner": {"dims": []}}, "inner", Inner(dims=())),
        ({"kind": "b"}, "kind", "b"),
    ],
)
def test_values_take_the_type_of_their_field(changes: dict[str, Any], name: str, expected: object) -> None:
    value = getattr(checkpoint.load_config(Config, values(**changes)), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": "16000"}, "Config.rate: expected int, got '16000'"),
        ({"rate": True}, "expected int"),
        ({"rate": 1.5}, "expected int"),
        ({"causal": 1}, "expected bool"),
        ({"scale": "big"}, "expected float"),
        ({"kind": "c"}, "'c' is not one of 'a', 'b'"),
        ({"patch": [1, 2, 3]}, "expected 2 values, got 3"),
        ({"patch": 3}, "expected tuple"),
        ({"patch": [1, "2"]}, r"patch\[1\]: expected int"),
        ({"limit": "no"}, "limit: 'no' is not"),
        ({"inner": {"dims": [1], "more": 2}}, "Inner: unknown field.* more; it has exactly: dims"),
        ({"inner": 3}, "Inner: expected its fields"),
        ({"extra": 1, "other": 2}, r"Config: unknown field\(s\) extra, other; it has exactly: rate, scale"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoint.load_config(Config, values(**changes))


def test_missing_fields_are_listed_even_with_defaults() -> None:
    few = values()
    del few["rate"], few["kind"]
    with pytest.raises(ConfigError, match=r"missing field\(s\) kind, rate"):
        checkpoint.load_config(Config, few)


def test_find_by_path_and_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_roots", lambda: [folder.parent / "none", folder.parent])
    (folder.parent / "notes").mkdir()
    assert checkpoint.shipped() == ["model"]
    assert checkpoint.find("model") == folder
    assert checkpoint.find(folder) == checkpoint.find(str(folder)) == folder
    # A folder that happens to have a shipped name does not hide the model, unless it is asked for as a path.
    (folder.parent / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(folder.parent / "here")
    assert checkpoint.find("model") == folder
    with pytest.raises(CheckpointError, match="not a model folder: it has no config.json"):
        checkpoint.find("./model")
    with pytest.raises(CheckpointError, match=r"no model 'modle'.*shipped names \(model\)"):
        checkpoint.find("modle")
    with pytest.raises(CheckpointError, match="no model"):
        checkpoint.find("../nowhere/model")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PTH"])
@pytest.mark.parametrize("exists", [True, False])
def test_pickles_are_refused(tmp_path: Path, suffix: str, exists: bool) -> None:
    path = tmp_path / f"model{suffix}"
    if exists:
        path.write_bytes(b"\x80\x04N.")
    for read in (checkpoint.find, checkpoint.read):
        with pytest.raises(CheckpointError, match="pickles"):
            read(path)


def test_the_weights_file_instead_of_its_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        checkpoint.find(folder / "model.safetensors")


def hub(monkeypatch: pytest.MonkeyPatch, result: Path | Exception) -> list[Any]:
    """A stand-in for huggingface_hub, which would need a network; the list takes the calls."""

    class HubError(Exception):
        pass

    calls: list[Any] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append((repo_id, options))
        if isinstance(result, Exception):
            raise result
        return str(result)

    package, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    package.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    package.errors = errors  # type: ignore[attr-defined]
    errors.HfHubHTTPError = HubError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return calls


def test_find_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub(monkeypatch, folder)
    assert checkpoint.find("hf://someone/some-model@v1") == folder
    files = ["config.json", "model.safetensors", "README.md", *checkpoint.EXTRAS]
    assert calls == [("someone/some-model", {"revision": "v1", "allow_patterns": files})]
    with pytest.raises(CheckpointError, match="expected hf://owner/name"):
        checkpoint.find("hf://only-one")
    hub(monkeypatch, ConnectionError("offline"))
    with pytest.raises(CheckpointError, match="cannot be downloaded: offline"):
        checkpoint.find("hf://someone/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'voxcode\[hub\]'"):
        checkpoint.find("hf://someone/model")


def test_every_shipped_model_is_whole() -> None:
    for name in checkpoint.shipped():
        kind, _, state, _ = checkpoint.read(checkpoint.find(name))
        assert kind
        assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())
