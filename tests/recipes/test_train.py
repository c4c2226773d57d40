"""A real, small training run: it learns, stops and resumes exactly, exports a model that loads."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch

import codec
from engine.errors import ConfigError
from recipes import export, train
from recipes.esc_live import base
from recipes.harness.record import load_recipe
from recipes.recipe import CodecRecipe
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


def arguments(manifest, out, *extra):
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    cache = str(manifest.parent / "cache")
    begin = ["esc_live:tiny", "--data", str(manifest), "--out", str(out), "--cache", cache, "--no-tensorboard"]
    return [*begin, *settings, *extra]


def run(manifest, out, *extra):
    return train.main(arguments(manifest, out, *extra))


def resume(manifest, out, *extra):
    """Go on with nothing but the run folder: recipe and data are in it."""
    cache = str(manifest.parent / "cache")
    return train.main(["--out", str(out), "--cache", cache, "--no-tensorboard", "--resume", *extra])


def weights(out, name="last"):
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same_end(out, whole):
    expected, got = weights(whole), weights(out)
    assert got["global_step"] == expected["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        for name, value in expected[key].items():
            torch.testing.assert_close(got[key][name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(manifest, out) == 0
    return out


def test_interrupted_equals_uninterrupted(manifest, whole, tmp_path):
    out = tmp_path / "parts"
    assert run(manifest, out, "--stop-after", "3") == 0
    assert weights(out)["global_step"] == 3
    assert resume(manifest, out) == 0
    assert_same_end(out, whole)
    begun, resumed = json.loads((out / "run.json").read_text())["starts"]
    assert (begun["step"], resumed["step"]) == (0, 3) and resumed["recipe"] == "esc_live:tiny"
    assert begun["data_digest"] == resumed["data_digest"] and len(begun["data_digest"]) == 64
    assert begun["versions"]["torch"] == version("torch")
    assert begun["machine"]["cores"] >= begun["machine"]["cores_allowed"] >= 1
    assert "history" not in json.loads((out / "recipe.json").read_text())


def test_sigterm_stops_with_a_checkpoint(manifest, whole, tmp_path, root):
    """A process of its own, told to stop as soon as it trains; crops from a worker process."""
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recipes.train", *arguments(manifest, out, "--workers", "1")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("training from step 0"):
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 143, "".join(said)
    assert said[-1].startswith("stopped by a signal at step ")
    assert 1 <= weights(out)["global_step"] < 6 and not (out / "metrics.csv").exists()
    assert resume(manifest, out) == 0
    assert_same_end(out, whole)


def test_sigint_stops_with_a_checkpoint_and_handlers_are_put_back(manifest, tmp_path, monkeypatch):
    def step(task, batch, batch_idx):
        if task.global_step == 1:
            signal.raise_signal(signal.SIGINT)
        return train_step(task, batch, batch_idx)

    train_step = CodecTask.training_step
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(CodecTask, "training_step", step)
    assert run(manifest, tmp_path / "run") == 130
    assert weights(tmp_path / "run")["global_step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_the_clock_stops_after_a_validation(manifest, tmp_path):
    assert run(manifest, tmp_path / "run", "--max-hours", "1e-9") == 0
    assert weights(tmp_path / "run")["global_step"] == 1
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1"]


def test_settings_change_on_resume_and_are_kept_in_mind(manifest, whole, tmp_path, capsys):
    out = tmp_path / "prolonged"
    shutil.copytree(whole, out)
    saved = json.loads((out / "recipe.json").read_text())
    del saved["skip_bad_batches"]  # as if the run were older than this field
    (out / "recipe.json").write_text(json.dumps(saved))
    changes = ["--set", "max_steps=7", "--set", "learning_rate=0.5", "--set", "skip_bad_batches=1"]
    assert resume(manifest, out, *changes) == 0
    saved = json.loads((out / "recipe.json").read_text())
    assert (saved["max_steps"], saved["learning_rate"], saved["model"]["codebook_size"]) == (7, 0.5, 16)
    changed = {"max_steps": [6, 7], "learning_rate": [1e-3, 0.5], "skip_bad_batches": [0, 1]}
    assert saved["history"] == [{"step": 6, "changed": changed}]
    group = weights(out)["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.5
    moved = weights(out)["current_model_state"]["model.embed.weight"]
    moved = moved - weights(whole)["current_model_state"]["model.embed.weight"]
    assert moved.abs().max() > 0.05, "the last step is at the new rate, half of it decayed"
    for wrong, message in (
        (["--set", "model.exponent=0.4"], "the model of a run cannot change"),
        (["esc_live:base"], "was begun as esc_live:tiny"),
        (["--fast-dev-run"], "leave --resume out"),
    ):
        assert resume(manifest, out, *wrong) == 2
        assert message in capsys.readouterr().err


def test_a_fast_run_proves_and_keeps_nothing(manifest, tmp_path, caplog, monkeypatch):
    validated = []
    monkeypatch.setattr(CodecTask, "on_validation_end", lambda task: validated.append(task.global_step))
    assert run(manifest, tmp_path / "run", "--fast-dev-run") == 0
    assert validated == [3] and not (tmp_path / "run").exists()
    assert "nothing was kept" in caplog.text


@pytest.fixture
def bad_third_batch(monkeypatch):
    def losses(task, wav, levels, bypass):
        parts, out = task_losses(task, wav, levels, bypass)
        if task.training and task.global_step == 2:
            for buffer in task.model.quantizers.buffers():
                buffer.copy_(torch.full_like(buffer, True if buffer.dtype == torch.bool else torch.nan))
            parts["total"] = parts["total"] * torch.nan
        return parts, out

    task_losses = CodecTask.losses
    monkeypatch.setattr(CodecTask, "losses", losses)


def test_a_bad_batch_stops_the_run_before_it(manifest, tmp_path, capsys, bad_third_batch):
    out = tmp_path / "run"
    assert run(manifest, out, "--set", "bypass_steps=0") == 2
    said = capsys.readouterr().err
    assert "step 2: the gradient is not finite (loss here nan)" in said and "skip_bad_batches=1" in said
    crops = [line for line in said.splitlines() if str(manifest.parent) in line]
    assert len(crops) >= 4 and all(re.search(r"\d\.wav from sample \d+$", line) for line in crops)
    state = weights(out)
    assert state["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in state["current_model_state"].values())


def test_a_bad_batch_may_be_passed_over(manifest, tmp_path, caplog, bad_third_batch):
    out = tmp_path / "run"
    assert run(manifest, out, "--set", "bypass_steps=0", "--set", "skip_bad_batches=1", "--stop-after", "3") == 0
    assert "Passed over; 1 of 1 allowed" in caplog.text
    skipped = weights(out)
    assert skipped["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in skipped["current_model_state"].values())
    assert {int(state["step"]) for state in skipped["optimizer_states"][0]["state"].values()} <= {1, 2}


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
    monkeypatch.setattr("recipes.harness.callbacks.time.monotonic", lambda: clock[0])
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
    assert float(rows[0]["hours_seen"]) == pytest.approx(4 * 4 * 0.2 / 3600)
    assert (whole / "checkpoints" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_checkpoint_is_the_best_validation(manifest, whole, tmp_path):
    best = weights(whole, "best")
    assert best["global_step"] == 4
    kept = next(state["best"] for key, state in best["callbacks"].items() if key.startswith("Checkpoints"))
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert kept["metric"] == "valid/pesq6" and kept["score"] == pytest.approx(float(rows[0]["valid/pesq6"]))
    assert export.main([str(whole), "--out", str(tmp_path / "best"), "--best"]) == 0
    exported = codec.load(tmp_path / "best").state_dict()["embed.weight"]
    assert torch.equal(exported, best["state_dict"]["model.embed.weight"])
    assert not torch.equal(exported, weights(whole)["state_dict"]["model.embed.weight"])


def test_tensorboard_gets_figures_and_sounds(manifest, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert run(manifest, out, "--tensorboard", "--stop-after", "4") == 0
    board = events.EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"train/total", "valid/mel6", "valid/entropy"} <= set(tags["scalars"])
    assert {f"example 1/{name}" for name in ("reference", "6 levels", "1 levels")} <= set(tags["audio"])
    assert board.Audio("example 0/reference")[0].step == 4


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
    with pytest.raises(ConfigError, match="there are esc, esc_live"):
        train.find_recipe("nothing")
    changed = train.override(base(), ["max_steps=5", "model.exponent=0.3"])
    assert changed.max_steps == 5 and changed.model.exponent == 0.3
    with pytest.raises(ConfigError, match="no field 'model.width'"):
        train.override(base(), ["model.width=3"])
    # What recipe.json could not be read back with is refused before training.
    for setting, message in (("max_steps=1e3", "max_steps: expected int"), ("optimizer=sgd", "is not one of"),
                             ("batch_size=many", "batch_size: expected int")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            train.override(base(), [setting])


def test_levels_depend_on_the_step_and_never_rise():
    task = CodecTask(train.override(base(), ["level_weights=[1,1,1,1,1,5]"]))
    drawn = [task.draw_levels(8, step) for step in range(200)]
    assert all(bool((d[:-1] >= d[1:]).all()) and d.min() >= 1 and d.max() <= 6 for d in drawn)
    assert all(torch.equal(d, task.draw_levels(8, step)) for step, d in enumerate(drawn))
    shares = np.bincount(torch.cat(drawn).numpy(), minlength=7)[1:] / 1600
    assert shares[5] == pytest.approx(0.5, abs=0.05) and shares[:5] == pytest.approx(0.1, abs=0.04)
    for weights in ([1, 1], [0] * 6, [1, 1, 1, 1, 1, -1]):
        with pytest.raises(ConfigError, match="level_weights needs 6 numbers"):
            CodecTask(dataclasses.replace(base(), level_weights=tuple(weights)))


def test_the_recipe_is_saved_and_read_back(whole):
    saved = json.loads((whole / "recipe.json").read_text())
    assert saved["max_steps"] == 6 and saved["model"]["codebook_size"] == 16
    recipe = load_recipe(whole, CodecRecipe)
    assert json.loads(json.dumps(dataclasses.asdict(recipe))) == saved
    assert recipe.betas == (0.8, 0.98) and recipe.model.channels == (16, 16, 16, 32)
