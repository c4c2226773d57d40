"""Checkpoints of the authors' ESC implementation (yzGuu830/efficient-speech-codec) -> our model folders.

Their files are pickled state dicts, bare or as "model_state_dict" inside a training checkpoint; they are read with
`weights_only=True`, which runs no code. Safetensors files are read too, with the configuration as JSON in the metadata
entry "config" if it is there. The configuration is the arguments of their constructor, from a .json or .yaml file
(their training configurations included); without one it is inferred from the shapes of the weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from codec.esc import Esc
from codec.esc_config import EscConfig
from engine import checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.foreign import load_pickle, state_dict

# Their name of a module -> ours. Names not listed are the same.
MODULES = {
    "patch_embed": "embed",
    "patch_deembed": "deembed",
    "pre_nn": "pre",
    "post_nn": "post",
    "blocks": "stages",
    "swint_blocks": "blocks",
    "attn": "attention",
    "relative_position_bias_table": "position_bias",
    "norm1": "norm_attention",
    "norm2": "norm_mlp",
    "linear_1": "0",
    "linear_2": "2",
    "subsample": "resample",
    "down": "linear",
    "up": "linear",
    "de_proj1": "expand",
    "de_proj2": "proj",
    "down_projs": "down",
    "up_projs": "up",
    "vqs": "codebooks",
}
# Follow from the configuration.
CONSTANTS = ("relative_position_index", "ft.window", "ift.window")

# The arguments of their constructors that we know, with their defaults ("codebook_dim", "num_rvqs": the ablation's).
ARGUMENTS: dict[str, Any] = {
    "in_dim": 2,
    "in_freq": 192,
    "h_dims": [45, 72, 96, 144, 192, 384],
    "max_streams": 6,
    "win_len": 20,
    "hop_len": 5,
    "sr": 16000,
    "patch_size": [3, 2],
    "swin_heads": [3, 6, 12, 24, 24],
    "swin_depth": 2,
    "window_size": 4,
    "mlp_ratio": 4.0,
    "overlap": 2,
    "group_size": 3,
    "codebook_size": 1024,
    "codebook_dims": [8] * 6,
    "codebook_dim": 8,
    "num_rvqs": 6,
    "l2norm": True,
    "backbone": "transformer",
    "kernel_size": [5, 2],
    "conv_depth": 1,
}
# What no shape shows, in the only front end they published: 16 kHz, 20 ms windows every 5 ms, 192 bins.
FRONT_END = {"sr": 16000, "win_len": 20, "hop_len": 5, "in_freq": 192, "overlap": 2, "l2norm": True}


def import_checkpoint(path: str | Path, config: str | Path | None, out: str | Path) -> Esc:
    """Convert the checkpoint `path` to the model folder `out` and return the model, in eval mode.

    Raises CheckpointError for a file that is no ESC checkpoint or does not fit its configuration, ConfigError for a
    configuration that we cannot build or infer.
    """
    state, arguments = read_weights(Path(path))
    if config is not None:
        arguments = read_arguments(Path(config))
    esc_config = infer_config(state) if arguments is None else convert_arguments(arguments)
    model = build(state, esc_config)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    card = (
        "# ESC\n\n"
        f"Imported from `{Path(path).name}`, a checkpoint of [efficient-speech-codec]"
        "(https://github.com/yzGuu830/efficient-speech-codec) (Gu and Diao, EMNLP 2024, arXiv 2404.19441).\n"
        f"{millions:.2f} M parameters, {esc_config.bitrate(1) / 1000:g} to {esc_config.bitrate() / 1000:g} kbit/s.\n"
    )
    checkpoint.save(out, model, kind=Esc.kind, config=esc_config, card=card)
    return model.eval()


def build(state: dict[str, Tensor], config: EscConfig) -> Esc:
    """Make our model from their state dict."""
    model = Esc(config)
    renamed = rename(state, config)
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - renamed.keys()]
    problems += [f"{name} is not part of the model" for name in renamed.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(renamed[name].shape)}, the configuration says {tuple(own[name].shape)}"
        for name in own.keys() & renamed.keys()
        if own[name].shape != renamed[name].shape
    ]
    window = state.get("ft.window")
    if window is not None and len(window) != config.win_length:
        problems.append(f"the STFT window has {len(window)} samples, the configuration says {config.win_length}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the weights do not fit the configuration: {'; '.join(sorted(problems)[:3])}{more}; "
            "give the configuration that the model was trained with (--config)"
        )
    model.load_state_dict(renamed)
    return model


def rename(state: dict[str, Tensor], config: EscConfig) -> dict[str, Tensor]:
    """Their state dict under our names, constants left out."""
    renamed = {}
    for name, tensor in state.items():
        if name.endswith(CONSTANTS):
            continue
        if config.quantization == "residual" and name.startswith("quantizers."):
            renamed[_residual_name(name)] = tensor
        else:
            renamed[".".join(["network", *(MODULES.get(part, part) for part in name.split("."))])] = tensor
    return renamed


def _residual_name(name: str) -> str:
    """quantizers.vqs.GROUP.proj_down.weight, quantizers.vqs.GROUP.vqs.LEVEL.embedding.weight -> ours."""
    if match := re.fullmatch(r"quantizers\.vqs\.(\d+)\.proj_(down|up)\.weight", name):
        return f"network.quantizers.0.{match[2]}.{match[1]}.weight"
    if match := re.fullmatch(r"quantizers\.vqs\.(\d+)\.vqs\.(\d+)\.embedding\.weight", name):
        return f"network.quantizers.0.codebooks.{match[2]}.{match[1]}.embedding.weight"
    return f"network.{name}"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Their state dict, and the constructor's arguments if the file carries them."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .pth or .safetensors file")
    if path.suffix != ".safetensors":
        return state_dict(load_pickle(path, str(path)), str(path)), None
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            arguments = json.loads((file.metadata() or {}).get("config", "null"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    return state_dict(content, str(path)), arguments


def read_arguments(path: Path) -> dict[str, Any]:
    """The constructor's arguments from .json or .yaml, bare or as the "model" part of a training configuration."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if path.suffix in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError as error:
            raise ConfigError(f"reading {path} needs pyyaml: pip install pyyaml, or write it as .json") from error
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
    else:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}; YAML files must end in .yaml") from error
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = values["model"]
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected the constructor's arguments by name, got {type(values).__name__}")
    return values


def convert_arguments(arguments: dict[str, Any]) -> EscConfig:
    """The arguments of their constructor (`ESC` or `RVQCodecs`) -> our configuration."""
    unknown = sorted(arguments.keys() - ARGUMENTS.keys())
    if unknown:
        raise ConfigError(f"unknown argument(s) {', '.join(unknown)}; known are {', '.join(ARGUMENTS)}")
    value = {**ARGUMENTS, **arguments}
    if value["backbone"] != "transformer":
        raise ConfigError(f"only the transformer backbone can be imported, not {value['backbone']!r}")
    if not value["l2norm"] or value["in_dim"] != 2:
        raise ConfigError("only models with l2norm=true and in_dim=2 can be imported, as all published ones are")
    residual = "num_rvqs" in arguments or "codebook_dim" in arguments
    try:
        patch_bins, patch_frames = value["patch_size"]
        hop_length = int(value["hop_len"] * value["sr"] * 1e-3)
        levels = value["num_rvqs"] if residual else value["max_streams"]
        if value["max_streams"] != len(value["h_dims"]):
            raise ConfigError(f"max_streams {value['max_streams']} must be the number of h_dims {value['h_dims']}")
        return EscConfig(
            sample_rate=value["sr"],
            samples_per_frame=hop_length * patch_frames * value["overlap"],
            levels=levels,
            num_groups=value["group_size"],
            codebook_size=value["codebook_size"],
            num_bins=value["in_freq"],
            win_length=int(value["win_len"] * value["sr"] * 1e-3),
            hop_length=hop_length,
            patch_bins=patch_bins,
            patch_frames=patch_frames,
            channels=tuple(value["h_dims"]),
            heads=tuple(value["swin_heads"]),
            depth=value["swin_depth"],
            window=value["window_size"],
            mlp_ratio=float(value["mlp_ratio"]),
            codebook_dims=(value["codebook_dim"],) * levels if residual else tuple(value["codebook_dims"]),
            quantization="residual" if residual else "cross_scale",
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the constructor's arguments make no model: {error}") from error


def infer_config(state: dict[str, Tensor]) -> EscConfig:
    """The configuration from the shapes of their weights.

    Rates and bins do not show in any shape; they are those of the published front end if window and vectors have its
    sizes, and a ConfigError otherwise.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if "encoder.patch_embed.proj.weight" not in shapes:
        raise CheckpointError("the weights are not those of an ESC model: encoder.patch_embed.proj.weight is missing")
    if "encoder.pre_nn.swint_blocks.0.attn.qkv.weight" not in shapes:
        raise ConfigError("only the transformer backbone can be imported; this model has another one")
    try:
        arguments = {**FRONT_END, **_backbone(shapes), **_quantizers(shapes)}
    except KeyError as error:
        raise CheckpointError(f"the weights are not those of a whole ESC model: {error} is missing") from error
    vector_dim = arguments.pop("vector_dim")
    config = convert_arguments(arguments)
    window = shapes.get("ft.window", (config.win_length,))
    if window != (config.win_length,) or vector_dim != config.vector_dim(len(config.channels) - 1):
        raise ConfigError(
            f"the weights have a window of {window[0]} samples and vectors of {vector_dim} numbers at the bottleneck, "
            f"the published front end has {config.win_length} and {config.vector_dim(len(config.channels) - 1)}: "
            f"sr, win_len, hop_len, in_freq and overlap cannot be told from the shapes; give them with --config"
        )
    return config


def _backbone(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Constructor's arguments for the encoder; the decoder mirrors it."""
    width, _, *patch = shapes["encoder.patch_embed.proj.weight"]
    stages = _count(shapes, r"encoder\.blocks\.(\d+)\.subsample\.down\.weight")
    first = [f"encoder.blocks.{i}.swint_blocks.0" for i in range(stages)]
    tables = [shapes[f"{name}.attn.relative_position_bias_table"] for name in first]
    hidden = [shapes[f"{name}.mlp.linear_1.weight"] for name in first]
    ratios = {rows / columns for rows, columns in hidden}
    if len(ratios) > 1:
        raise ConfigError("mlp_ratio is not a whole number everywhere; give the configuration with --config")
    return {
        "h_dims": [width] + [shapes[f"encoder.blocks.{i}.subsample.down.weight"][0] for i in range(stages)],
        "max_streams": stages + 1,
        "patch_size": patch,
        "swin_heads": [heads for _, heads in tables],
        "swin_depth": _count(shapes, r"encoder\.pre_nn\.swint_blocks\.(\d+)\.norm1\.weight"),
        "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        "mlp_ratio": ratios.pop(),
    }


def _quantizers(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Constructor's arguments for the quantizers, and the dimension of the vectors at the bottleneck."""
    if "quantizers.vqs.0.proj_down.weight" in shapes:
        groups = _count(shapes, r"quantizers\.vqs\.(\d+)\.proj_down\.weight")
        size, dim = shapes["quantizers.vqs.0.vqs.0.embedding.weight"]
        return {
            "group_size": groups,
            "codebook_size": size,
            "codebook_dim": dim,
            "num_rvqs": _count(shapes, r"quantizers\.vqs\.0\.vqs\.(\d+)\.embedding\.weight"),
            "vector_dim": sum(shapes[f"quantizers.vqs.{g}.proj_down.weight"][1] for g in range(groups)),
        }
    groups = _count(shapes, r"quantizers\.0\.down_projs\.(\d+)\.weight")
    levels = _count(shapes, r"quantizers\.(\d+)\.down_projs\.0\.weight")
    return {
        "group_size": groups,
        "codebook_size": shapes["quantizers.0.vqs.0.embedding.weight"][0],
        "codebook_dims": [shapes[f"quantizers.{i}.vqs.0.embedding.weight"][1] for i in range(levels)],
        "vector_dim": sum(shapes[f"quantizers.0.down_projs.{g}.weight"][1] for g in range(groups)),
    }


def _count(shapes: dict[str, tuple[int, ...]], pattern: str) -> int:
    """How many different numbers stand in the place of (\\d+)."""
    return len({match[1] for name in shapes if (match := re.fullmatch(pattern, name))})
