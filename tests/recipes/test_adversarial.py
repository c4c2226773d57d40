"""The adversarial stage on a tiny model: who learns from what, exact resuming, export."""

import csv
import dataclasses

import pytest
import soundfile
import torch

import codec
from engine.errors import ConfigError
from recipes import export, train
from recipes.esc_live import adversarial, tiny
from recipes.tasks import make_task
from recipes.tasks.adversarial import AdversarialCodecTask
from recipes.tasks.codec import CodecTask

SETTINGS = [
    "model.channels=[16,16,16,32]", "model.codebook_dims=[4,4,4,4,4,4]", "model.codebook_size=16",
    "model.encoder_depths=[1,1,1,1]", "model.decoder_depths=[1,1,1,1,1,1]",
    "crop_frames=10", "batch_size=4", "start_seconds=4", "validation_percent=40", "validation_crops=2",
    "validation_frames=40", "validate_every=4", "warmup_steps=2", "decay_steps=2", "max_steps=6",
    "discriminator_steps=2", "discriminator_frames=5", "periods=[2,3]", "period_channels=[4,8]", "windows=[128]",
    "window_channels=4",
]  # fmt: skip


def task(**changes) -> AdversarialCodecTask:
    torch.manual_seed(0)
    made = make_task(dataclasses.replace(train.override(adversarial(), SETTINGS), **changes))
    assert isinstance(made, AdversarialCodecTask)
    return made


def speech(seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(4, 3200, generator=torch.Generator().manual_seed(seed))


def gradients(module: torch.nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, recordings):
    folder = tmp_path_factory.mktemp("data")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "corpus", "speaker", "seconds"])
        for i, recording in enumerate(recordings * 2):
            wav, rate = soundfile.read(recording)
            soundfile.write(folder / f"{i}.wav", wav, rate)
            writer.writerow([f"{i}.wav", "train", "demo", f"demo/{i}", len(wav) / rate])
    return folder / "manifest.csv"


def run(manifest, out, *extra):
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    return train.main(
        ["esc_live:adversarial", "--data", str(manifest), "--out", str(out), "--cache", str(manifest.parent / "cache"),
         "--no-tensorboard", "--accelerator", "cpu", *settings, *extra]
    )  # fmt: skip


def checkpoint(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(manifest, out) == 0
    return out


def test_the_recipe_chooses_the_task():
    assert type(make_task(tiny())) is CodecTask
    with pytest.raises(ConfigError, match="discriminator_frames lies between 0 and crop_frames, 10; got 10"):
        task(discriminator_frames=10)


def test_no_gradient_goes_to_the_wrong_side():
    """The one backward pass gives each side what a backward pass through its own loss alone gives it."""
    made, wav = task(), speech()

    def parts() -> dict[str, torch.Tensor]:
        return made.play(wav, made.model(wav, 6).wav)

    made.model.eval()  # codebooks of random vectors start on what they see, in training
    found = parts()
    (found["adversarial"] + found["features"] + found["discriminator"]).backward()
    codec_together, judges_together = gradients(made.model), gradients(made.discriminators)
    made.zero_grad()
    found = parts()
    (found["adversarial"] + found["features"]).backward()
    assert gradients(made.discriminators) == [None] * len(judges_together)
    codec_alone = gradients(made.model)
    made.zero_grad()
    parts()["discriminator"].backward()
    assert gradients(made.model) == [None] * len(codec_alone)
    for together, alone in ((codec_together, codec_alone), (judges_together, gradients(made.discriminators))):
        assert any(g is not None and bool(g.abs().sum() > 0) for g in alone)
        torch.testing.assert_close(
            [g for g in together if g is not None], [g for g in alone if g is not None], rtol=1e-4, atol=1e-7
        )
    assert all(p.requires_grad for p in made.discriminators.parameters())


def test_excerpts_are_the_same_stretch_at_one_level_and_move_with_the_step(monkeypatch):
    made, wav = task(), speech()
    lag = made.model.istft.delay
    late = torch.cat([torch.zeros(4, lag), wav[:, :-lag]], dim=1)  # what a perfect codec returns
    begins = []
    for step in range(20):
        monkeypatch.setattr(AdversarialCodecTask, "batches_done", step)
        recorded, decoded = made._excerpts(wav, 0.5 * late)
        assert recorded.shape == (4, 5 * 320)
        torch.testing.assert_close(0.5 * recorded, decoded)
        assert recorded.square().mean(1).sqrt().tolist() == pytest.approx([1] * 4, rel=0.1)
        again, _ = made._excerpts(wav, late)
        assert torch.equal(again, recorded)
        begins.append(int((wav[0] / wav[0, :-lag].square().mean().sqrt() - recorded[0, 0]).abs().argmin()))
    assert len(set(begins)) > 10 and max(begins) <= 3200 - lag - 1600


def test_both_sides_are_clipped_apart():
    made = task()
    for scale, side in ((100.0, made.model), (0.01, made.discriminators)):
        for parameter in side.parameters():
            parameter.grad = torch.full_like(parameter, scale)
    before = gradients(made.discriminators)
    made.configure_gradient_clipping(None, 1.0, "norm")
    norms = [torch.nn.utils.get_total_norm([p.grad for p in s.parameters()]) for s in (made.model, made.discriminators)]
    assert float(norms[0]) == pytest.approx(1, rel=1e-3)
    assert float(norms[1]) < 1 and all(map(torch.equal, before, gradients(made.discriminators)))


def test_rates_follow_their_own_schedules():
    made = task(discriminator_steps=3, warmup_steps=2, decay_steps=2, max_steps=8, learning_rate=1.0)
    configured = made.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    codecs, judges = [], []
    for _ in range(8):
        rates = [group["lr"] for group in optimizer.param_groups]
        codecs.append(rates[0])
        judges.append(rates[-1] / made.recipe.discriminator_rate)
        assert rates[1] == rates[0]
        optimizer.step()
        schedule.step()
    assert codecs == pytest.approx([0, 0, 0, 0.5, 1, 1, 1, 0.5])
    assert judges == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.5])
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in made.parameters()}


def test_at_first_the_discriminators_learn_alone(manifest, whole, tmp_path):
    """One step: the codec is what it was started as, codebooks and their statistics too; the others have moved."""
    started = export_of(whole, tmp_path / "started")
    assert run(manifest, tmp_path / "run", "--init", str(started), "--stop-after", "1") == 0
    state, before = checkpoint(tmp_path / "run")["current_model_state"], codec.load(started).state_dict()
    for name, value in before.items():
        assert torch.equal(state[f"model.{name}"], value), name
    assert run(manifest, tmp_path / "run", "--resume", "--stop-after", "3") == 0
    later = checkpoint(tmp_path / "run")["current_model_state"]
    moved = [name for name, value in state.items() if not torch.equal(later[name], value)]
    assert any(name.startswith("model.") for name in moved)
    assert any(name.startswith("discriminators.") for name in moved)


def test_interrupted_equals_uninterrupted(manifest, whole, tmp_path):
    """Twice: within the discriminators' own time, and after it; a step is a batch."""
    out = tmp_path / "parts"
    assert run(manifest, out, "--stop-after", "1") == 0
    assert checkpoint(out)["global_step"] == 1
    assert run(manifest, out, "--resume", "--stop-after", "4") == 0
    assert checkpoint(out)["global_step"] == 4
    assert run(manifest, out, "--resume") == 0
    expected, got = checkpoint(whole), checkpoint(out)
    assert got["global_step"] == expected["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        assert any(name.startswith("discriminators.") for name in expected[key])
        for name, value in expected[key].items():
            torch.testing.assert_close(got[key][name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for ours, theirs in zip(got["optimizer_states"], expected["optimizer_states"], strict=True):
        torch.testing.assert_close(ours["state"], theirs["state"], atol=1e-6, rtol=1e-4)
        assert [g["lr"] for g in ours["param_groups"]] == [g["lr"] for g in theirs["param_groups"]]
    assert torch.equal(got["random_state"], expected["random_state"])


def test_validation_is_that_of_the_first_stage_and_both_losses_are_written(whole):
    (row,) = csv.DictReader((whole / "metrics.csv").read_text().splitlines())
    assert row["step"] == "4" and {"valid/mel6", "valid/spectrum1", "valid/entropy"} <= row.keys()
    assert not any(name.startswith("valid/") and "discriminator" in name for name in row)
    assert all(float(row[f"train/{name}"]) > 0 for name in ("adversarial", "features", "discriminator", "mel"))


def export_of(run_folder, out):
    assert export.main([str(run_folder), "--out", str(out)]) == 0
    return out


def test_mixed_precision_and_the_export_of_the_codec_alone(manifest, tmp_path):
    out = tmp_path / "run"
    assert run(manifest, out, "--set", 'precision="bf16-mixed"', "--set", "max_steps=3") == 0
    assert all(torch.isfinite(v).all() for v in checkpoint(out)["state_dict"].values())
    model = codec.load(export_of(out, tmp_path / "small"))
    assert not any("discriminator" in name for name in model.state_dict())
    decoded = model.decode(model.encode(speech()), num_samples=3200)
    assert decoded.shape == (4, 3200) and torch.isfinite(decoded).all()
