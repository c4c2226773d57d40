"""Importing the authors' checkpoints: both layouts, configurations given and inferred, and what must be refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from codec.esc import Esc
from codec.esc_config import EscConfig, base, base_yaml, large, residual, tiny
from codec.import_esc import convert_arguments, import_checkpoint, infer_config
from engine import checkpoint
from engine.errors import CheckpointError, ConfigError

# Constructor's arguments of the model in these tests, as the authors write them.
ARGUMENTS = {
    "in_dim": 2,
    "in_freq": 192,
    "h_dims": [12, 16, 24, 32, 40, 48],
    "max_streams": 6,
    "win_len": 20,
    "hop_len": 5,
    "sr": 16000,
    "patch_size": [3, 2],
    "swin_heads": [2, 4, 4, 8, 8],
    "swin_depth": 2,
    "window_size": 4,
    "mlp_ratio": 4.0,
    "overlap": 2,
    "group_size": 3,
    "codebook_size": 64,
    "codebook_dims": [8, 8, 8, 6, 6, 6],
    "l2norm": True,
    "backbone": "transformer",
}
RESIDUAL_ARGUMENTS = {k: v for k, v in ARGUMENTS.items() if k != "codebook_dims"} | {"num_rvqs": 6, "codebook_dim": 8}

# Our names -> the authors', by pattern; the importer goes the other way, part by part.
PATTERNS = [
    (r"^network\.", ""),
    (r"\.blocks\.", ".swint_blocks."),
    (r"\.stages\.", ".blocks."),
    (r"\.pre\.", ".pre_nn."),
    (r"\.post\.", ".post_nn."),
    (r"\.embed\.", ".patch_embed."),
    (r"\.deembed\.", ".patch_deembed."),
    (r"\.expand\.", ".de_proj1."),
    (r"deembed\.proj\.", "deembed.de_proj2."),
    (r"\.attention\.position_bias", ".attn.relative_position_bias_table"),
    (r"\.attention\.", ".attn."),
    (r"norm_attention", "norm1"),
    (r"norm_mlp", "norm2"),
    (r"mlp\.0", "mlp.linear_1"),
    (r"mlp\.2", "mlp.linear_2"),
    (r"^encoder(.*)resample\.linear", r"encoder\1resample.down"),
    (r"^decoder(.*)resample\.linear", r"decoder\1resample.up"),
    (r"resample", "subsample"),
]
CROSS_SCALE = [(r"\.down\.(\d)\.", r".down_projs.\1."), (r"\.up\.(\d)\.", r".up_projs.\1."), ("codebooks", "vqs")]
RESIDUAL = [
    (r"^quantizers\.0\.(down|up)\.(\d)\.", r"quantizers.vqs.\2.proj_\1."),
    (r"^quantizers\.0\.codebooks\.(\d)\.(\d)\.", r"quantizers.vqs.\2.vqs.\1."),
]


def authors_state(model: Esc) -> dict[str, Tensor]:
    """The state dict as the authors' code would save it."""
    state = {"ft.window": torch.hann_window(320), "ift.window": torch.hann_window(320)}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in PATTERNS:
            name = re.sub(pattern, replacement, name)
        if name.startswith("quantizers"):
            for pattern, replacement in RESIDUAL if model.config.quantization == "residual" else CROSS_SCALE:
                name = re.sub(pattern, replacement, name)
        state[name] = tensor.clone()
        if name.endswith("qkv.weight"):
            state[name.replace("qkv.weight", "relative_position_index")] = torch.zeros(16, 16, dtype=torch.int64)
    return state


@pytest.fixture(scope="module")
def model() -> Esc:
    torch.manual_seed(0)
    return Esc(tiny()).eval()


@pytest.fixture(scope="module")
def ablation() -> Esc:
    torch.manual_seed(0)
    return Esc(tiny("residual")).eval()


def same(a: Esc, b: Esc) -> bool:
    states = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_the_names_are_the_authors(model: Esc, ablation: Esc) -> None:
    """A few of theirs, literally; all of them are checked by the conformance tests."""
    names, others = authors_state(model), authors_state(ablation)
    for name in (
        "encoder.patch_embed.proj.weight",
        "encoder.pre_nn.swint_blocks.1.attn.relative_position_bias_table",
        "encoder.blocks.4.subsample.down.weight",
        "decoder.blocks.0.subsample.up.weight",
        "decoder.post_nn.swint_blocks.0.mlp.linear_2.bias",
        "decoder.patch_deembed.de_proj2.weight",
    ):
        assert name in names and name in others
    assert names["quantizers.5.down_projs.2.weight"].shape == (6, 342)
    assert names["quantizers.0.vqs.1.embedding.weight"].shape == (64, 8)
    assert others["quantizers.vqs.2.proj_down.weight"].shape == (8, 64)
    assert others["quantizers.vqs.2.vqs.5.embedding.weight"].shape == (64, 8)


@pytest.mark.parametrize("layout", ["bare", "training", "wrapped", "safetensors"])
def test_every_layout_is_read(model: Esc, tmp_path: Path, layout: str) -> None:
    state = authors_state(model)
    path = tmp_path / "model.pth"
    if layout == "bare":
        torch.save(state, path)
    elif layout == "training":
        torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}, path)
    elif layout == "wrapped":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(state, path, metadata={"config": json.dumps(ARGUMENTS)})
    assert same(import_checkpoint(path, None, tmp_path / "out"), model)
    kind, values, saved, _ = checkpoint.read(tmp_path / "out")
    assert (kind, checkpoint.load_config(EscConfig, values)) == ("esc", model.config)
    assert saved.keys() == model.state_dict().keys()
    card = (tmp_path / "out" / "README.md").read_text()
    assert path.name in card and "0.33 M parameters" in card and "kbit/s" in card


@pytest.mark.parametrize("form", ["json", "yaml", "training.yaml"])
def test_the_configuration_is_read(model: Esc, tmp_path: Path, form: str) -> None:
    yaml = pytest.importorskip("yaml")
    torch.save(authors_state(model), tmp_path / "model.pth")
    config = tmp_path / f"config.{form}"
    if form == "json":
        config.write_text(json.dumps(ARGUMENTS))
    elif form == "yaml":
        config.write_text(yaml.safe_dump(ARGUMENTS))
    else:
        config.write_text(
            yaml.safe_dump({"model_name": "csvq+swinT", "model": ARGUMENTS, "loss": {"mel_weight": 0.25}})
        )
    assert same(import_checkpoint(tmp_path / "model.pth", config, tmp_path / "out"), model)


def test_the_ablation_is_read(ablation: Esc, tmp_path: Path) -> None:
    torch.save(authors_state(ablation), tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps(RESIDUAL_ARGUMENTS))
    for config in (None, tmp_path / "config.json"):
        assert same(import_checkpoint(tmp_path / "model.pth", config, tmp_path / "out"), ablation)


@pytest.mark.parametrize(
    "config", [base(), base_yaml(), large(), residual()], ids=["base", "yaml", "large", "residual"]
)
def test_published_configurations_are_inferred(config: EscConfig) -> None:
    assert infer_config(authors_state(Esc(config))) == config


def test_constructor_defaults_are_the_base_model() -> None:
    assert convert_arguments({}) == base()
    assert convert_arguments({"codebook_dim": 8}) == residual()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "convolution"}, "only the transformer backbone"),
        ({"l2norm": False}, "l2norm"),
        ({"dropout": 0.1}, "unknown argument.*dropout; known are"),
        ({"max_streams": 5}, "must be the number of h_dims"),
        ({"swin_heads": [5, 4, 4, 8, 8]}, r"heads\[0\]"),
        ({"h_dims": 12}, "make no model"),
        ({"patch_size": [3]}, "make no model"),
    ],
)
def test_arguments_that_make_no_model_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert_arguments(ARGUMENTS | changes)


def test_a_front_end_that_shapes_do_not_show_must_be_given(model: Esc, tmp_path: Path) -> None:
    """8 ms hops look like 5 ms hops, but another window or other vectors do show that it is not the published one."""
    state = authors_state(model)
    with pytest.raises(ConfigError, match="window of 512 samples.*--config"):
        infer_config(state | {"ft.window": torch.hann_window(512)})
    half = ARGUMENTS | {"in_freq": 96, "win_len": 10, "hop_len": 2.5, "overlap": 2}
    state = authors_state(Esc(convert_arguments(half))) | {"ft.window": torch.hann_window(160)}
    with pytest.raises(ConfigError, match="in_freq and overlap cannot be told"):
        infer_config(state)
    torch.save(state, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps(half))
    assert import_checkpoint(tmp_path / "model.pth", tmp_path / "config.json", tmp_path / "out").config.num_bins == 96


def test_weights_that_do_not_fit_are_refused(model: Esc, tmp_path: Path) -> None:
    torch.save(authors_state(model), tmp_path / "model.pth")
    config = tmp_path / "config.json"
    for changes, message in [
        ({"codebook_size": 128}, r"embedding.weight is \(64, 8\), the configuration says \(128, 8\)"),
        ({"swin_depth": 4}, "is missing.* more; give the configuration"),
        ({"win_len": 15}, "window has 320 samples, the configuration says 240"),
    ]:
        config.write_text(json.dumps(ARGUMENTS | changes))
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(tmp_path / "model.pth", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(model: Esc) -> None:
    with pytest.raises(CheckpointError, match="not those of an ESC model"):
        infer_config({"conv.weight": torch.zeros(3)})
    state = {name: tensor for name, tensor in authors_state(model).items() if "quantizers" not in name}
    with pytest.raises(CheckpointError, match="not those of a whole ESC model: 'quantizers.0"):
        infer_config(state)
    convolutional = {
        "encoder.patch_embed.proj.weight": torch.zeros(12, 2, 3, 2),
        "encoder.pre_nn.conv.weight": torch.ones(1),
    }
    with pytest.raises(ConfigError, match="only the transformer backbone"):
        infer_config(convolutional)


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "executed")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model_state_dict": Exploit(tmp_path / "executed")}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights") as refused:
        import_checkpoint(tmp_path / "model.pth", None, tmp_path / "out")
    # What torch says of it is how to run the code.
    assert "state dict alone" in str(refused.value) and "weights_only" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_damaged_files_are_refused(model: Esc, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="no such file"):
        import_checkpoint(path, None, tmp_path / "out")
    for content in (b"", b"not weights", bytes(range(256)) * 8):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            import_checkpoint(path, None, tmp_path / "out")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3)])
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        import_checkpoint(tmp_path / "model.pth", None, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "not valid JSON"),
        ("c.yaml", "a: [", "not valid YAML"),
        ("c.json", "[1]", "expected the constructor's arguments"),
        ("absent.json", None, "cannot be read"),
    ],
)
def test_unreadable_configurations_are_refused(
    model: Esc, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    torch.save(authors_state(model), tmp_path / "model.pth")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(tmp_path / "model.pth", tmp_path / name, tmp_path / "out")
