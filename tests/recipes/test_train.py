"""A real, small training run: it learns, resumes exactly, exports a model that loads."""

import csv
import json

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch

import codec
from engine.errors import ConfigError
from recipes import export, train
from recipes.esc_live import base
from recipes.tasks.codec import CodecTask

SETTINGS = [
    "model.channels=[16,16,16,32]", "model.codebook_dims=[4,4,4,4,4,4]", "model.codebook_size=16",
    "crop_frames=10", "batch_size=4", "start_seconds=4", "validation_percent=40", "validation_crops=2",
    "validation_frames=40", "validate_every=4", "warmup_steps=2", "decay_steps=2", "bypass_steps=2", "max_steps=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, recordings):
    folder = tmp_path_factory.mktemp("data")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "corpus", "speaker", "seconds", "language", "licence"])
        for i, recording in enumerate(recordings * 2):
            wav, rate = soundfile.read(recording)
            soundfile.write(folder / f"{i}.wav", wav, rate)
            writer.writerow([f"{i}.wav", "train", "demo", f"demo/{i}", len(wav) / rate, "en", "CC BY-SA"])
    return folder / "manifest.csv"


def run(manifest, out, *extra):
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    cache = manifest.parent / "cache"
    return train.main(
        ["esc_live:tiny", "--data", str(manifest), "--out", str(out), "--cache", str(cache), *settings, *extra]
    )


def weights(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(manifest, out) == 0
    return out


def test_interrupted_equals_uninterrupted(manifest, whole, tmp_path):
    out = tmp_path / "parts"
    assert run(manifest, out, "--stop-after", "3") == 0
    assert weights(out)["global_step"] == 3
    assert run(manifest, out, "--resume") == 0
    expected, got = weights(whole), weights(out)
    assert got["global_step"] == expected["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        for name, value in expected[key].items():
            torch.testing.assert_close(got[key][name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_end_is_saved_after_an_earlier_checkpoint(manifest, tmp_path, monkeypatch):
    """A clock that jumps once lets a timed checkpoint fall on step 2; the last is still that of step 4."""
    saved, clock, train_step = [], [0.0], CodecTask.training_step

    def step(task, batch, batch_idx):
        clock[0] = 1e6 if task.global_step >= 1 else 0.0
        return train_step(task, batch, batch_idx)

    def save(trainer, path, *arguments, **options):
        saved.append(trainer.global_step)
        return save_checkpoint(trainer, path, *arguments, **options)

    save_checkpoint = pl.Trainer.save_checkpoint
    monkeypatch.setattr(CodecTask, "training_step", step)
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    monkeypatch.setattr("lightning.pytorch.callbacks.model_checkpoint.time.monotonic", lambda: clock[0])
    assert run(manifest, tmp_path / "run", "--stop-after", "4") == 0
    assert saved[0] == 2 and saved[-1] == weights(tmp_path / "run")["global_step"] == 4


def test_a_run_is_never_overwritten_and_nothing_is_nothing_to_resume(manifest, whole, tmp_path, capsys):
    assert run(manifest, whole) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(manifest, tmp_path / "new", "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_metrics_are_written(whole):
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["4"]
    assert float(rows[0]["valid/spectrum6"]) < float(rows[0]["valid/spectrum1"]) < 2


def test_the_export_loads_and_encodes(whole, tmp_path, recordings):
    out = tmp_path / "small"
    assert export.main([str(whole), "--out", str(out), "--note", "Begun on a rainy day."]) == 0
    model = codec.load(out)
    wav = torch.from_numpy(soundfile.read(recordings[0], dtype="float32")[0])[None]
    decoded = model.decode(model.encode(wav), num_samples=wav.shape[1])
    assert decoded.shape == wav.shape and torch.isfinite(decoded).all()
    averaged = weights(whole)["state_dict"]
    assert torch.equal(model.state_dict()["embed.weight"], averaged["model.embed.weight"])
    card = (out / "README.md").read_text()
    assert (
        "- Begun on a rainy day.\n" in card
        and "| demo |" in card
        and "CC BY-SA" in card
        and "hours of audio seen" in card
    )


def test_export_of_no_run_is_an_error(tmp_path, capsys):
    assert export.main([str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "is it a run folder?" in capsys.readouterr().err.replace(str(tmp_path), "it").replace("is it a", "is it a")


def test_recipes_are_found_and_overridden():
    assert train.find_recipe("esc_live:base") == base()
    with pytest.raises(ConfigError, match="there are base, tiny"):
        train.find_recipe("esc_live:huge")
    with pytest.raises(ConfigError, match="there are esc_live"):
        train.find_recipe("nothing")
    changed = train.override(base(), ["max_steps=5", "model.exponent=0.3"])
    assert changed.max_steps == 5 and changed.model.exponent == 0.3
    with pytest.raises(ConfigError, match="no field 'model.width'"):
        train.override(base(), ["model.width=3"])


def test_levels_depend_on_the_step_and_never_rise():
    task = CodecTask(base())
    drawn = [task.draw_levels(8, step) for step in range(200)]
    assert all(bool((d[:-1] >= d[1:]).all()) and d.min() >= 1 and d.max() <= 6 for d in drawn)
    assert all(torch.equal(d, task.draw_levels(8, step)) for step, d in enumerate(drawn))
    shares = np.bincount(torch.cat(drawn).numpy(), minlength=7)[1:] / 1600
    assert shares[5] == pytest.approx(0.5, abs=0.05) and shares[:5] == pytest.approx(0.1, abs=0.04)


def test_the_recipe_is_saved(whole):
    saved = json.loads((whole / "recipe.json").read_text())
    assert saved["max_steps"] == 6 and saved["model"]["codebook_size"] == 16
