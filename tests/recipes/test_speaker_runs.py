"""What a run of a speaker encoder refuses or says, before hours of training."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import speaker
from engine.errors import CheckpointError, ConfigError
from recipes import calibrate, export, norms, train
from recipes.harness import record
from recipes.harness.data import build_cache, is_validation
from recipes.speaker import tiny
from recipes.tasks.speaker import SpeakerTask

RATE = 16_000


def write(folder, speakers, takes=3, seconds=1.5):
    """A manifest of noise, `takes` recordings of each speaker."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "corpus", "speaker", "seconds"])
        for number, name in enumerate(speakers):
            for take in range(takes):
                path = f"{number}_{take}.wav"
                soundfile.write(folder / path, 0.1 * rng.standard_normal(round(seconds * RATE)), RATE)
                writer.writerow([path, "train", "demo", name, seconds])
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write(tmp_path_factory.mktemp("voices"), [f"demo/{number}" for number in range(12)])


@pytest.fixture(scope="module")
def begun(manifest, tmp_path_factory):
    """A run of two steps."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train.main(arguments(manifest, out, "--set", "max_steps=2")) == 0
    return out


def arguments(manifest, out, *extra):
    return ["speaker:tiny", "--data", str(manifest), "--out", str(out), "--cache", str(manifest.parent / "cache"),
            "--no-tensorboard", "--set", "validation_percent=30", *extra]  # fmt: skip


def prepared(manifest, **changes):
    """A task of all recordings, of them validated too."""
    task = SpeakerTask(replace(tiny(), **changes))
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    task.prepare(samples, utterances, utterances)
    return task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["speeds=[0.9,1.0,1.1]"], "its classes are not the speakers that these data give"),
        (["validation_percent=60"], "its classes are not the speakers"),
        (["sub_centres=2"], "its classifiers.0.weight has the shape"),
        (["nested=[4]"], "its classifiers.1.weight has the shape None, with these data and settings it would have"),
        (["optimizer=muon"], "the optimizer of a run cannot change"),
    ],
)
def test_a_run_is_not_resumed_as_another(begun, manifest, tmp_path, capsys, settings, message):
    """Nor is anything of it changed: the next resume, without the mistake, goes on."""
    out = shutil.copytree(begun, tmp_path / "run")
    files = {path: path.read_bytes() for path in out.rglob("*.json")}
    changed = [argument for setting in ["max_steps=3", *settings] for argument in ("--set", setting)]
    resume = ["--out", str(out), "--resume", "--cache", str(manifest.parent / "cache"), "--no-tensorboard"]
    assert train.main([*resume, *changed]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == files


def test_a_speaker_of_another_name_does_not_take_the_class_of_the_next(begun, tmp_path, capsys):
    out = shutil.copytree(begun, tmp_path / "run")
    names = [f"demo/{number}" for number in range(12)]
    trained = next(number for number, name in enumerate(names) if not is_validation(name, 30))
    names[trained] = next(f"demo/a{i}" for i in range(99) if not is_validation(f"demo/a{i}", 30))
    other = write(tmp_path / "voices", names)
    assert train.main(arguments(other, out, "--resume", "--set", "max_steps=3")) == 2
    assert "its classes are not the speakers that these data give" in capsys.readouterr().err


def test_what_is_given_to_a_resumed_run_in_vain_is_an_error(begun, manifest, capsys):
    assert train.main(arguments(manifest, begun, "--resume", "--init", "ecapa")) == 2
    assert "leave --init or --resume out" in capsys.readouterr().err


def test_a_start_without_a_checkpoint_leaves_no_trace(begun, manifest, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("run.json", "recipe.json"):
        shutil.copy(begun / name, out / name)
    past = {"starts": [{**record.starts(begun)[0], "teacher_sha256": "0" * 64, "begun_from": "another@0"}]}
    (out / "run.json").write_text(json.dumps(past))
    assert train.main(arguments(manifest, out, "--set", "max_steps=1", "--set", "seed=7")) == 0
    assert len(record.starts(out)) == 1 and "begun_from" not in record.starts(out)[0]
    assert "history" not in json.loads((out / "recipe.json").read_text())


def test_validation_compares_no_recording_with_itself(manifest):
    task = prepared(manifest, validation_crops=60)
    valid = [task.crops.labels[u.speaker] for u in task.crops.utterances]
    assert set(valid) == set(range(12))
    labels = np.array([0, 0, 0, 1, 1])
    task.heard = [frozenset({1}), frozenset({1, 2}), frozenset({3}), frozenset({4}), frozenset({5})]
    first, second, same = task.trials(labels, np.arange(5))
    pairs = {(int(i), int(j)) for i, j, is_same in zip(first, second, same, strict=True) if is_same}
    assert pairs == {(0, 2), (1, 2), (3, 4)} and (~same).sum() == 6
    # Of the crops that are really drawn, too.
    task = prepared(manifest, validation_crops=60)
    numbers = np.arange(60)
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    owner = {u.start: u.speaker for u in utterances}
    assert all(len({owner[start] for start in heard}) == 1 for heard in task.heard)
    speakers = sorted(set(owner.values()))
    labels = np.array([speakers.index(owner[next(iter(heard))]) for heard in task.heard])
    first, second, same = task.trials(labels, numbers)
    assert same.any() and all(not task.heard[i] & task.heard[j] for i, j in zip(first[same], second[same], strict=True))


def test_validation_that_can_measure_nothing_says_so(manifest, tmp_path, caplog):
    prepared(manifest)
    assert not caplog.messages
    prepared(write(tmp_path, [f"demo/{number}" for number in range(4)], takes=1))
    assert "validation has no equal error rate and so no best.ckpt" in caplog.text


def test_without_a_teacher_nobody_is_drawn(tmp_path, caplog):
    path = write(tmp_path, ["demo/0", "demo/1", "demo/unlabelled", "demo/2"])
    task = prepared(path)
    assert "3 recordings of unknown speakers are left out" in caplog.text
    assert {u.speaker for u in task.crops.utterances} == {"demo/0", "demo/1", "demo/2"}
    with pytest.raises(ConfigError, match="no speaker has a name and there is no teacher"):
        prepared(write(tmp_path / "nobody", ["demo/unlabelled"]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("unlabelled_share=35", "unlabelled_share must be 0 to 1, got 35"),
        ("own_share=-0.1", "own_share must be 0 to 1"),
        ("ema_decay=99", "ema_decay must be 0 or more and below 1"),
        ("target_blur=-3", "target_blur must be 0 or more"),
        ("scale=-32", "scale must be positive"),
        ("speeds=[]", "speeds must be positive"),
        ("crop_seconds=[1.0,0.5]", "crop_seconds must be two numbers, the lower first"),
        ("batch_size=0", "batch_size must be 1 or more"),
        ("validation_percent=0", "validation_percent must be above 0"),
        ("augment.noise_snr=10", "noise_snr: expected tuple, got 10"),
        ("augment.noise_probability=a", "noise_probability: expected float, got 'a'"),
        ("model.channels=3", "no field 'model.channels'"),
    ],
)
def test_values_that_would_ruin_a_run_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        train.override(tiny(), [setting])


def test_only_recipes_are_variants():
    """Of what a module imports, too, some makes a network."""
    for name in ("resnet", "small", "replace"):
        with pytest.raises(ConfigError, match=f"has no variant '{name}'; there are ecapa, "):
            train.find_recipe(f"speaker:{name}")


def test_the_card_says_what_is_true_of_any_encoder(begun, tmp_path, capsys):
    assert export.main([str(begun), "--out", str(tmp_path / "mine")]) == 0
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "16 kHz speech in" in card and "the voices of 6 known speakers" in card and "MIT" not in card
    with pytest.raises(CheckpointError, match="0 to 1; got 15"):
        export.averaged({}, tmp_path / "mine", 15)
    assert norms.main([str(tmp_path / "mine"), "--run", str(tmp_path / "nowhere")]) == 2
    assert "is " + str(tmp_path / "nowhere") + " the folder of a run?" in capsys.readouterr().err


def test_a_mean_of_several_ends(begun, manifest, tmp_path, capsys):
    for seed in (2, 3):
        given = ["--set", "max_steps=1", "--set", f"seed={seed}"]
        assert train.main(arguments(manifest, tmp_path / f"run{seed}", *given)) == 0
        assert export.main([str(tmp_path / f"run{seed}"), "--out", str(tmp_path / f"end{seed}")]) == 0
    assert export.main([str(begun), "--out", str(tmp_path / "end1")]) == 0
    mixed = ["--with", f"{tmp_path / 'end2'}=0.4", "--with", f"{tmp_path / 'end3'}=0.2"]
    assert export.main([str(begun), "--out", str(tmp_path / "mean"), *mixed]) == 0
    one, two, three, mean = (speaker.load(tmp_path / name) for name in ("end1", "end2", "end3", "mean"))
    card = (tmp_path / "mean" / "README.md").read_text()
    assert f"Mean of weights: 40% of `{two.identity}`, 20% of `{three.identity}`, the rest what the steps made." in card
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            parts = [encoder.state_dict()[name] for encoder in (one, two, three)]
            torch.testing.assert_close(value, 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2], atol=1e-5, rtol=1e-5)
    assert export.main([str(begun), "--out", str(tmp_path / "x"), "--with", f"{tmp_path / 'end2'}=1.5"]) == 2
    assert "the shares of --with are 0 to 1, and less than 1 together" in capsys.readouterr().err


def test_the_teacher_is_named_where_its_file_is_gone(manifest, tmp_path):
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    heard = tmp_path / "targets.npz"
    embeddings = np.random.default_rng(0).standard_normal((len(utterances), 1, 16)).astype(np.float16)
    np.savez(heard, teacher="campplus", speeds=[1.0], sha256=[u.sha256 for u in utterances], embeddings=embeddings)
    given = ["--set", f"teacher={heard}", "--set", "max_steps=1"]
    assert train.main(arguments(manifest, tmp_path / "run", *given)) == 0
    heard.unlink()
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "mine")]) == 0
    assert "Teacher: CAM++" in (tmp_path / "mine" / "README.md").read_text()


def test_a_calibration_without_pairs_is_refused_before_anything_is_written(begun, tmp_path, capsys):
    """Weights that were turned already could not be turned again."""
    data = write(tmp_path / "voices", [f"demo/{number}" for number in range(40)], takes=1, seconds=2.0)
    assert export.main([str(begun), "--out", str(tmp_path / "mine")]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    given = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--percent", "30", "--balance", "0.5"]
    assert calibrate.main([str(tmp_path / "mine"), *given]) == 2
    assert "no two held-out speakers of one corpus have recordings long enough, or none has two" in (
        capsys.readouterr().err
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == files
