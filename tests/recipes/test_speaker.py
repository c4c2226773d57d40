"""A small speaker training: labels, targets, resumption; what crops of it hold."""

import csv
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import speaker
from engine.errors import CheckpointError, ConfigError
from recipes import export, norms, teach, train
from recipes.harness.data import Utterance, build_cache
from recipes.harness.speakers import SpeakerCrops, blurred, centred, evened_targets
from recipes.recipe import SpeakerRecipe
from recipes.speaker import tiny
from recipes.tasks.speaker import SpeakerTask
from recipes.teach import Targets, load_targets
from recipes.teachers import load_teacher
from speaker.heads import equiangular

RATE = 16_000
SPEEDS = (1.0, 1.25)


def voice(number, seconds, take=0):
    """A buzz of a pitch and colour of its own, so that a minute's training can tell it from others."""
    rng = np.random.default_rng((number, take))
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 90 + 17 * number
    partials = [np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) for k in range(1, 12)]
    wav = sum(partial / (1 + abs(k - 1 - number)) for k, partial in enumerate(partials))
    return (0.1 * wav + 0.002 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "corpus", "speaker", "seconds", "language", "licence"])
        for number in range(12):
            for take in range(3):
                name = "anybody/unlabelled" if number == 11 else f"demo/{number}"
                soundfile.write(folder / f"{number}_{take}.wav", voice(number, 1.5, take), RATE)
                writer.writerow([f"{number}_{take}.wav", "train", "demo", name, 1.5, "", ""])
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def targets(manifest):
    """Stands in for a teacher: random directions by recording and speed."""
    _, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    rng = np.random.default_rng(0)
    path = manifest.parent / "targets.npz"
    embeddings = rng.standard_normal((len(utterances), 2, 16)).astype(np.float16)
    np.savez(path, teacher="noise", speeds=np.array(SPEEDS), sha256=[u.sha256 for u in utterances],
             embeddings=embeddings)  # fmt: skip
    return path


def arguments(manifest, out, *extra):
    return ["speaker:tiny", "--data", str(manifest), "--out", str(out), "--cache", str(manifest.parent / "cache"),
            "--no-tensorboard", "--set", "validation_percent=30", *extra]  # fmt: skip


def test_training_tells_voices_apart_and_the_export_embeds_them(manifest, targets, tmp_path, capsys):
    settings = ["--set", f"teacher={targets}", "--set", "unlabelled_share=0.1", "--set", "contrast_weight=0.1"]
    assert train.main(arguments(manifest, tmp_path / "run", *settings)) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert all(float(rows[-1][f"train/{name}"]) < float(rows[0][f"train/{name}"]) for name in ("classify", "contrast"))
    assert {
        f"valid/{name}" for name in ("eer2", "mindcf2", "taught2", "collapse", "norms", "angles", "astray")
    } <= rows[-1].keys()
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "mine")]) == 0
    encoder = speaker.load(tmp_path / "mine")
    takes = [torch.from_numpy(np.stack([voice(number, 1.0, take) for number in range(8)])) for take in (8, 9)]
    one, other = (torch.nn.functional.normalize(encoder(wav)) for wav in takes)
    cosines = one @ other.T
    assert cosines.diagonal().mean() > cosines.mean() + 0.1
    assert (cosines.argmax(1) == torch.arange(8)).sum() >= 3  # by chance 1
    average = ["--out", str(tmp_path / "half"), "--average"]
    assert export.main([str(tmp_path / "run"), *average]) == 2
    assert "begun is missing: a run has it that began from an encoder" in capsys.readouterr().err
    # What another run begins from is kept, and the mean is taken with that.
    more = ["--init", str(tmp_path / "mine"), "--set", "max_steps=2", "--set", "target_blur=0.5"]
    assert train.main(arguments(manifest, tmp_path / "more", *settings, *more)) == 0
    beginning = speaker.load(tmp_path / "more" / "begun").state_dict()
    assert export.main([str(tmp_path / "more"), "--out", str(tmp_path / "last")]) == 0
    assert export.main([str(tmp_path / "more"), *average]) == 0
    card = (tmp_path / "half" / "README.md").read_text()
    assert f"Begun from the weights of `{encoder.identity}`; 50% of these are still those" in card
    assert "next lower and higher speed were added, times 0.5." in card
    assert "telling that from its embeddings of other recordings, difference" in card
    # Other embeddings under the name of the teacher's are another space to learn.
    other = tmp_path / "other.npz"
    with np.load(targets) as held:
        np.savez(other, **{**held, "embeddings": held["embeddings"][:, ::-1]})
    again = ["--out", str(tmp_path / "more"), "--resume", "--cache", str(manifest.parent / "cache"), "--no-tensorboard"]
    assert train.main([*again, "--set", "max_steps=3", "--set", f"teacher={other}"]) == 2
    assert "bring that file back" in capsys.readouterr().err
    last, half = (speaker.load(tmp_path / name).state_dict() for name in ("last", "half"))
    assert all(torch.allclose(half[k], (v + beginning[k]) / 2) for k, v in last.items() if v.is_floating_point())
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in encoder.state_dict().items()}
    half = export.averaged(changed, tmp_path / "mine", 0.5)
    assert all(
        torch.allclose(half[k], v + 0.5, atol=1e-6) for k, v in encoder.state_dict().items() if v.is_floating_point()
    )
    with pytest.raises(CheckpointError, match="their mean means nothing"):
        export.averaged({}, tmp_path / "mine", 0.5)
    before = speaker.load(tmp_path / "mine").state_dict()
    steps = ["--run", str(tmp_path / "run"), "--cache", str(manifest.parent / "cache"), "--steps", "3"]
    assert norms.main([str(tmp_path / "mine"), *steps]) == 0
    after = speaker.load(tmp_path / "mine").state_dict()
    changed = {k.rpartition(".")[2] for k, v in after.items() if not torch.equal(v, before[k])}
    assert (
        {"running_mean", "running_var"} <= changed <= {"running_mean", "running_var", "num_batches_tracked", "weight"}
    )
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "\n- Batch normalization settled (`recipes.norms`): " in card
    assert "speaker_tiny" in card and "60 steps" in card and "{" not in card


def test_interrupted_equals_uninterrupted(manifest, tmp_path):
    fast = ["--set", "max_steps=6", "--set", "validate_every=3", "--set", "nested=[4]", "--set", "sub_centres=2"]
    assert train.main(arguments(manifest, tmp_path / "whole", *fast)) == 0
    assert train.main(arguments(manifest, tmp_path / "parts", *fast, "--stop-after", "3")) == 0
    assert train.main(["--out", str(tmp_path / "parts"), "--resume", "--cache", str(manifest.parent / "cache"),
                       "--no-tensorboard"]) == 0  # fmt: skip
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert one.keys() == other.keys() and "classifiers.1.weight" in one
    assert all(torch.equal(one[key], other[key]) for key in one)


def crops(manifest, targets=None, **options):
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    heard = load_targets(targets) if targets else None
    return SpeakerCrops(samples, utterances, 8000, 200, 1, targets=heard, **options)


def test_labels_are_speakers_times_speeds_and_nobody_is_minus_one(manifest, targets):
    found = crops(manifest, targets, speeds=SPEEDS, unlabelled_share=0.3)
    assert found.num_labels == 22 and len(found.speakers) == 11
    labels = [int(found[i].label) for i in range(200)]
    assert set(labels) <= set(range(-1, 22)) and len(set(labels)) > 18
    assert 30 < labels.count(-1) < 90
    again, item = found[5], found[5]
    assert torch.equal(again.wav, item.wav) and item.wav.shape == (8000,) and item.taught
    pitch = {}
    for i in range(200):
        item = found[i]
        if item.label in (0, 11):  # the first speaker at both speeds
            spectrum = np.abs(np.fft.rfft(item.wav.numpy() * np.hanning(8000), 1 << 16))
            pitch[int(item.label)] = spectrum[: int(120 * (1 << 16) / RATE)].argmax() * RATE / (1 << 16)
    assert pitch[0] == pytest.approx(90, abs=2) and pitch[11] == pytest.approx(112.5, abs=2)


def test_classes_start_where_the_teacher_puts_them(manifest, targets):
    recipe = replace(tiny(), teacher=str(targets), speeds=SPEEDS, nested=(4,), sub_centres=2, own_share=0.0)
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    task = SpeakerTask(recipe)
    task.prepare(samples, utterances, utterances)
    expected = torch.zeros(22, 16)
    for u, target in zip(task.crops.utterances, task.crops.targets, strict=True):
        if u.speaker in task.crops.labels:
            for number in range(2):  # with own_share 0 all targets of a label are the same
                expected[task.crops.labels[u.speaker] + 11 * number] = torch.from_numpy(target[number])
    cosines = task.classifiers[0].cosines(expected).detach()
    assert (cosines.argmax(1) == torch.arange(22)).all() and float(cosines.diagonal().min()) > 0.97
    nested = task.classifiers[1].cosines(expected[:, :4]).detach()
    assert float(nested.diagonal().min()) > 0.97
    task = SpeakerTask(replace(recipe, sub_centres=1, fixed_classifier=True))
    task.prepare(samples, utterances, utterances)
    assert torch.allclose(task.classifiers[0].weight, equiangular(22, 16), atol=1e-6)


def test_classes_start_where_a_trained_encoder_puts_them(manifest, tmp_path):
    """Fine-tuning on labels alone: random class vectors would pull apart what it has learned."""
    recipe = replace(tiny(), teacher="", speeds=(0.9, 1.0), nested=(4,))
    begun = SpeakerTask(recipe)
    speaker.save(tmp_path / "begun", begun.model.eval(), "# begun")
    task = SpeakerTask(recipe)
    task.start_from(tmp_path / "begun")
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    task.prepare(samples, utterances, utterances)
    assert task.model.training
    crops = task.crops
    wavs = torch.from_numpy(np.stack(list(crops.of_each_label())))
    assert len(wavs) == crops.num_labels == 2 * len(crops.speakers)
    with torch.inference_mode():
        wanted = begun.model.eval()(wavs)
    for classifier, size in zip(task.classifiers, (16, 4), strict=True):
        found = torch.nn.functional.normalize(classifier.weight.detach(), dim=1)
        torch.testing.assert_close(found, torch.nn.functional.normalize(wanted[:, :size], dim=1), atol=1e-4, rtol=1e-3)


def test_a_trained_encoder_is_turned_to_the_teacher(manifest, targets, tmp_path):
    recipe = replace(tiny(), teacher=str(targets), speeds=SPEEDS)
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    cosines = []
    for begun in (False, True):
        task = SpeakerTask(recipe)
        if begun:
            speaker.save(tmp_path / "mine", SpeakerTask(recipe).model, "# mine")
            task.start_from(tmp_path / "mine")
        task.prepare(samples, utterances, utterances)
        task.model.eval()
        items = [task.crops[i] for i in range(60)]
        given = torch.stack([task.model(item.wav[None])[0] for item in items]).detach()
        cosines.append(float(torch.cosine_similarity(given, torch.stack([i.target for i in items])).mean()))
    assert cosines[1] > cosines[0] + 0.3


def test_unknown_voices_are_trained_on_never_held_out():
    task = SpeakerTask(replace(tiny(), validation_percent=100.0))
    assert task.holds_out(Utterance("a", "demo/0", 0, 10, "a"))
    assert not task.holds_out(Utterance("a", "demo/unlabelled", 0, 10, "a"))


def test_targets_mix_the_recording_and_its_speaker(manifest, targets):
    alone, mean = crops(manifest, targets, own_share=1.0), crops(manifest, targets, own_share=0.0)
    of_first = [i for i, u in enumerate(alone.utterances) if u.speaker == "demo/0"]
    assert np.allclose(mean.targets[of_first], mean.targets[of_first[0]])
    assert not np.allclose(alone.targets[of_first[0]], alone.targets[of_first[1]])
    assert np.allclose(np.linalg.norm(mean.targets, axis=2), 1, atol=1e-5)
    unknown = [i for i, u in enumerate(alone.utterances) if u.path.rsplit("/", 1)[-1].startswith("11_")]
    assert np.allclose(mean.targets[unknown], alone.targets[unknown], atol=1e-5)  # nobody has no mean


def test_targets_are_blurred_between_neighbouring_speeds():
    rng = np.random.default_rng(0)
    targets = Targets("x", (1.0, 1.1, 0.9), {"a": 0, "b": 1}, rng.normal(size=(2, 3, 4)).astype(np.float32))
    normal, fast, slow = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in targets.embeddings.transpose(1, 0, 2))
    found = blurred(targets, 0.5).embeddings
    expected = [normal + (fast + slow) / 2, fast + normal / 2, slow + normal / 2]
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-6)
    one = Targets("x", (1.0,), targets.rows, targets.embeddings[:, :1])
    np.testing.assert_allclose(blurred(one, 0.5).embeddings[:, 0], normal, atol=1e-6)


def test_short_recordings_of_nobody_are_repeated_never_joined(manifest):
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    only = [u for u in utterances if u.speaker.endswith("/unlabelled")]
    long = SpeakerCrops(samples, only, 60_000, 10, 1)
    assert long.speakers == [] and long.num_labels == 0
    wav = long[0].wav
    assert torch.allclose(wav[:24_000], wav[24_000:48_000])  # 1.5 s, again


def test_what_a_teacher_has_not_heard_is_an_error(manifest, targets, tmp_path):
    with pytest.raises(ConfigError, match=r"not heard the speeds \[0.9\]; it has \[1.0, 1.25\]"):
        crops(manifest, targets, speeds=(0.9,))
    other = Targets("x", (1.0,), {hashlib.sha256(b"").hexdigest(): 0}, np.zeros((1, 1, 4), np.float32))
    with pytest.raises(ConfigError, match="none of these recordings"):
        SpeakerCrops(np.zeros(10, np.int16), [Utterance("a", "b", 0, 10, "c")], 5, 1, 1, targets=other)
    (tmp_path / "x.npz").write_text("hello")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("x.npz", "array.npy", "cut.npz"):
        with pytest.raises(ConfigError, match="holds no embeddings of a teacher"):
            load_targets(tmp_path / name)
    with pytest.raises(ConfigError, match="nothing to learn"):
        SpeakerTask(SpeakerRecipe(name="x", classify_weight=0.0))
    with pytest.raises(ConfigError, match="nested dimensions lie between 0 and 16"):
        SpeakerTask(train.override(tiny(), ["nested=[16]"]))
    with pytest.raises(ConfigError, match="there is no teacher 'x'; there are campplus, ge2e"):
        load_teacher("x")


def test_the_mean_of_the_speakers_is_taken_off_the_teacher():
    said = Utterance("a", "one", 0, 10, "a"), Utterance("b", "one", 10, 10, "b"), Utterance("c", "two", 20, 10, "c")
    embeddings = np.array([[[1.0, 5.0]], [[3.0, 5.0]], [[6.0, 1.0]], [[0.0, 0.0]]], np.float32)
    targets = Targets("x", (1.0,), {"a": 0, "b": 1, "c": 2, "d": 3}, embeddings)
    found = centred(targets, list(said))  # speakers count alike, however many recordings they have
    assert np.allclose(found.embeddings, embeddings - np.array([4.0, 3.0]))
    assert np.array_equal(centred(targets, []).embeddings, embeddings)


def test_a_teacher_without_the_directions_of_the_corpora():
    rng = np.random.default_rng(0)
    said = [Utterance(str(i), f"{'ab'[i % 2]}/{i % 50}", 0, 10, str(i)) for i in range(400)]
    said.append(Utterance("x", "a/unlabelled", 0, 10, "x"))
    embeddings = rng.normal(size=(401, 2, 3)).astype(np.float32)
    embeddings[:400:2, :, 1] += 20
    rows = {u.sha256: row for row, u in enumerate(said)}
    targets = centred(Targets("x", (0.9, 1.0), rows, embeddings), said)
    found = evened_targets(targets, said, 0.0, 1).embeddings
    apart = found[:400:2].mean((0, 1)) - found[1:400:2].mean((0, 1))
    assert np.linalg.norm(apart) < 3 and found.shape == (401, 2, 3)
    # Turned alone, all distances stay; the same map for every recording and speed.
    turned = evened_targets(targets, said, 0.0, 0).embeddings
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(targets.embeddings, axis=-1), rtol=1e-4)
    with pytest.raises(ConfigError, match="2 recordings of known speakers are too few"):
        evened_targets(targets, said[:2], 0.5, 1)


def loudness(wav):
    return np.array([len(wav), 1000 * np.square(wav).mean()], np.float32)


def load_loudness(name, half):
    """Stands in for `load_teacher`; other processes find it by its name."""
    return loudness


def test_teach_writes_what_training_reads(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(teach, "load_teacher", load_loudness)
    out = tmp_path / "a" / "targets.npz"
    given = ["fake", "--data", str(manifest), "--out", str(out), "--speeds", "1", "2", "--speaker-seconds", "2.5"]
    assert teach.main([*given, "--cache", str(manifest.parent / "cache")]) == 0
    found = load_targets(out)
    assert found.speeds == (1.0, 2.0) and found.embeddings.shape == (11 * 2 + 3, 2, 2)
    assert np.all(found.embeddings[:, 0, 0] == 24_000) and np.all(abs(found.embeddings[:, 1, 0] - 12_000) < 10)
    several = [*given, "--cache", str(manifest.parent / "cache"), "--workers", "2"]
    several[several.index(str(out))] = str(tmp_path / "same.npz")
    assert teach.main(several) == 0
    same = load_targets(tmp_path / "same.npz")
    assert same.rows == found.rows and np.array_equal(same.embeddings, found.embeddings)


def test_teach_goes_on_with_what_a_file_holds(manifest, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(teach, "load_teacher", lambda name, half: lambda wav: heard.append(0) or np.ones(2, np.float32))
    monkeypatch.setattr(teach, "SAVE_SECONDS", 0.0)
    out = tmp_path / "targets.npz"
    given = ["fake", "--data", str(manifest), "--out", str(out), "--cache", str(manifest.parent / "cache")]
    assert teach.main([*given, "--speeds", "1", "--speaker-seconds", "2.5"]) == 0
    assert len(heard) == 11 * 2 + 3
    assert teach.main([*given, "--speeds", "1"]) == 0
    assert len(heard) == len(load_targets(out).rows) == 12 * 3  # each recording once, whatever the run
    assert teach.main([*given, "--speeds", "1", "2"]) == 2
    assert len(load_targets(out).rows) == 12 * 3


def test_teach_chooses_the_same_recordings_when_others_are_added():
    said = [Utterance(f"{i}", f"c/{i % 3}", 0, RATE, hashlib.sha256(bytes([i])).hexdigest()) for i in range(60)]
    more = [Utterance(f"m{i}", f"d/{i % 3}", 0, RATE, hashlib.sha256(bytes([i, 1])).hexdigest()) for i in range(60)]
    some = teach.chosen(said, 5.0)
    assert len(some) == 15 and set(some) < set(teach.chosen(more + said, 5.0))


@pytest.mark.parametrize("name", ["ecapa", "ecapa_large_margin", "titanet", "titanet_large_margin", "resnet34",
                                  "resnet34_large_margin", "xvector", "xvector_large_margin", "but_resnet",
                                  "but_resnet_margin", "but_tdnn", "but_tdnn_plp"])  # fmt: skip
def test_recipes_make_encoders(name):
    recipe = train.find_recipe(f"speaker:{name}")
    assert recipe.name == name
    encoder = speaker.SpeakerEncoder(recipe.model).eval()
    with torch.inference_mode():
        assert torch.isfinite(encoder(0.1 * torch.randn(1, RATE))).all()


def test_recordings_that_the_teacher_has_not_heard_are_told_of(manifest, targets, tmp_path, caplog):
    """Decoded anew, or written in another format, they are others to it, and would be left out without a word."""
    samples, utterances = build_cache([manifest], manifest.parent / "cache", RATE)
    recipe = replace(tiny(), teacher=str(targets), speeds=SPEEDS)
    SpeakerTask(recipe).prepare(samples, utterances, utterances)
    assert not caplog.messages
    with np.load(targets) as held:
        np.savez(tmp_path / "some.npz", **{**held, "sha256": held["sha256"][:9], "embeddings": held["embeddings"][:9]})
    SpeakerTask(replace(recipe, teacher=str(tmp_path / "some.npz"))).prepare(samples, utterances, utterances)
    (message,) = caplog.messages
    assert "the teacher has heard 0.0 of 0.0 hours" in message and "some.npz" in message
