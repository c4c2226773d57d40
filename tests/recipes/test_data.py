"""The cache, and crops that depend on seed and number alone."""

import csv
import hashlib
import io
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from engine.errors import ConfigError
from recipes import cache as cache_command
from recipes import train
from recipes.esc_live import base
from recipes.export import describe_data
from recipes.harness.data import SpeechCrops, Utterance, build_cache, data_digest, is_validation, open_cache
from recipes.tasks.codec import CodecTask


def write_manifest(folder, rows):
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "split", "corpus", "speaker", "seconds"])
        writer.writeheader()
        writer.writerows(dict(zip(writer.fieldnames, row, strict=True)) for row in rows)
    return folder / "manifest.csv"


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for speaker in range(4):
        path = f"s{speaker}.wav"
        soundfile.write(tmp_path / path, rng.normal(size=16_000 * (speaker + 1)) * 0.1, 16_000)
        rows.append((path, "train", "c", f"c/{speaker}", speaker + 1))
    (tmp_path / "broken.wav").write_text("not audio")
    rows += [
        ("broken.wav", "train", "c", "c/9", 1),
        ("gone.wav", "train", "c", "c/9", 1),
        ("s0.wav", "test", "c", "c/0", 1),
    ]
    return write_manifest(tmp_path, rows)


def test_bad_files_are_named_and_skipped_and_test_rows_never_read(manifest, tmp_path, caplog):
    samples, utterances = build_cache([manifest], tmp_path / "cache", 16_000)
    assert [u.speaker for u in utterances] == ["c/0", "c/1", "c/2", "c/3"]
    assert len(samples) == 10 * 16_000
    assert "broken.wav" in caplog.text and "gone.wav" in caplog.text
    again = open_cache([manifest], tmp_path / "cache", 16_000)
    assert np.array_equal(again.samples, samples) and again.utterances == utterances
    assert caplog.text.count("broken.wav") == 1
    assert [path.rpartition("/")[2] for path, _ in again.skipped] == ["broken.wav", "gone.wav"]
    assert again.skipped[1][1].endswith("gone.wav: no such file")


def test_nothing_readable_is_an_error_and_leaves_no_cache(tmp_path):
    path = write_manifest(tmp_path, [("gone.wav", "train", "c", "c/0", 1)])
    with pytest.raises(ConfigError, match="no training recording could be read"):
        build_cache([path], tmp_path / "cache", 16_000)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_changed_file_a_found_one_or_another_rate_makes_another_cache(manifest, tmp_path):
    def paths():
        return open_cache([manifest], tmp_path / "cache", 16_000)

    first = paths()
    assert paths().path == first.path
    soundfile.write(tmp_path / "gone.wav", np.full(16_000, 0.1), 16_000)
    second = paths()
    assert second.path != first.path and len(second.utterances) == 5 and len(second.skipped) == 1
    soundfile.write(tmp_path / "gone.wav", np.full(32_000, 0.2), 16_000)
    third = paths()
    assert third.path != second.path and len(third.samples) == 12 * 16_000
    assert open_cache([manifest], tmp_path / "cache", 8_000).path not in {first.path, second.path, third.path}


def test_workers_make_the_same_cache(manifest, tmp_path):
    folder = tmp_path / "kaldi"  # segments of one file, shared out in batches
    folder.mkdir()
    (folder / "wav.scp").write_text(f"r {tmp_path}/s3.wav\n")
    (folder / "segments").write_text("".join(f"u{i:03d} r {i / 50} {i / 50 + 1}\n" for i in range(200)))
    one = open_cache([manifest, folder], tmp_path / "one", 16_000)
    two = open_cache([manifest, folder], tmp_path / "two", 16_000, workers=2)
    assert (two.path.name, two.utterances, two.skipped) == (one.path.name, one.utterances, one.skipped)
    assert np.array_equal(one.samples, two.samples)
    assert (len(one.utterances), len(one.skipped)) == (4 + 176, 2 + 24)  # a segment may end 0.5 s after its file


def test_the_digest_is_of_the_sound_not_of_its_place(manifest, tmp_path):
    _, utterances = build_cache([manifest], tmp_path / "cache", 16_000)
    digest = data_digest(utterances)
    assert len(digest) == 64 and data_digest(utterances[:-1]) != digest
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for i in range(4):
            tar.add(tmp_path / f"s{i}.wav", f"{i}.wav")
            name = tarfile.TarInfo(f"{i}.spk")
            name.size = 1
            tar.addfile(name, io.BytesIO(str(i).encode()))
    _, elsewhere = build_cache([tmp_path / "c.tar"], tmp_path / "cache", 16_000)
    assert data_digest(elsewhere) == digest
    wav, rate = soundfile.read(tmp_path / "s2.wav")
    wav[100] += 0.01
    soundfile.write(tmp_path / "s2.wav", wav, rate)
    _, changed = build_cache([manifest], tmp_path / "cache", 16_000)
    assert data_digest(changed) != digest


def test_the_command_says_what_there_is(manifest, tmp_path, capsys):
    arguments = ["--data", str(manifest), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    assert cache_command.main(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("0.00 h, 4 recordings, 4 speakers, 2 skipped\n")
    assert data_digest(build_cache([manifest], tmp_path / "cache", 16_000)[1]) in first
    assert cache_command.main(arguments) == 0
    assert capsys.readouterr().out == first
    assert cache_command.main(["--data", str(tmp_path / "none.csv"), "--cache", str(tmp_path)]) == 2
    assert "cache: error: " in capsys.readouterr().err


def test_a_card_tells_what_the_manifests_state_and_what_they_do_not(manifest, tmp_path):
    soundfile.write(tmp_path / "s0.flac", np.full(16_000, 0.1), 16_000)
    (tmp_path / "talk" / "anna").mkdir(parents=True)
    (tmp_path / "s0.flac").rename(tmp_path / "talk" / "anna" / "0.flac")
    (tmp_path / "crowd").mkdir()
    crowd = write_manifest(
        tmp_path / "crowd",
        [(f"{i}.wav", "train", "crowd", f"crowd/{who}", 36) for i, who in enumerate(["unlabelled"] * 2 + ["a"])],
    )
    rows = describe_data([str(manifest), str(tmp_path / "talk"), str(crowd)]).splitlines()[2:]
    assert rows == [
        "| c | 0.00 | 6 | 5 | not stated | not stated |",
        "| crowd | 0.03 | 3 | 1 + unlabelled | not stated | not stated |",
        "| talk | not stated | 1 | 1 | not stated | not stated |",
    ]


def noise_utterances():
    """Five recordings of three speakers; a long silence inside of the longer ones. Fixed: checksums depend on it."""
    lengths = [9_000, 16_000, 3_000, 40_000, 25_000]
    samples = np.random.default_rng(0).normal(size=sum(lengths)) * 2000
    samples = samples.round().clip(-32768, 32767).astype(np.int16)
    samples[25_000:50_000] = 0
    starts = np.cumsum([0, *lengths])
    utterances = [Utterance(str(i), f"s{i % 3}", int(starts[i]), n) for i, n in enumerate(lengths)]
    return samples, utterances


def test_the_crops_of_earlier_runs_come_again_to_the_bit():
    """Checksums from before there were augmentation, joining and an exponent: a run of that time can be continued."""
    crops = SpeechCrops(*noise_utterances(), 8_000, total=200, seed=3)
    joined = hashlib.sha256(b"".join(crops[i].numpy().tobytes() for i in range(200)))
    assert joined.hexdigest() == "256fa552d3e9bfa67c3b372ab299a20e0af06c282a9bd0ec195c511882476c6d"
    shares = hashlib.sha256(crops.cumulative.tobytes()).hexdigest()
    assert shares == "bf2a9f796d061dd28d013da7cf7beb6c683080076d6b3241209e92d47a6db0d4"


def test_crops_depend_on_seed_and_number_only(manifest, tmp_path):
    samples, utterances = build_cache([manifest], tmp_path / "cache", 16_000)
    crops = SpeechCrops(samples, utterances, 8_000, total=50, seed=3)
    shuffled = {i: crops[i] for i in reversed(range(50))}
    assert all(torch.equal(shuffled[i], crops[i]) for i in range(50))
    other = SpeechCrops(samples, utterances, 8_000, total=50, seed=4)
    assert not torch.equal(crops[0], other[0])
    levels = torch.stack([20 * crops[i].square().mean().sqrt().log10() for i in range(50)])
    assert -39 < levels.min() < -30 and -20 < levels.max() < -13
    assert all(crops[i].abs().max() <= 0.991 for i in range(50))


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 1.0])
def test_speakers_are_drawn_by_hours_to_the_exponent(manifest, tmp_path, exponent):
    samples, utterances = build_cache([manifest], tmp_path / "cache", 16_000)
    utterances.append(Utterance("again", "c/3", utterances[3].start, 16_000))
    crops = SpeechCrops(samples, utterances, 8_000, total=1, seed=0, speaker_exponent=exponent)
    share = np.diff(crops.cumulative, prepend=0)
    hours = np.array([1, 2, 3, 5]) ** exponent
    expected = [*hours[:3], hours[3] * 4 / 5, hours[3] * 1 / 5] / hours.sum()
    np.testing.assert_allclose(share, expected)


def level(crop):
    return 20 * np.log10(np.sqrt(np.mean(np.asarray(crop, dtype=np.float64) ** 2)))


def test_augmentation_comes_before_the_level_and_draws_from_the_crops_generator():
    def augment(wav, rng):
        return (wav[::-1] * rng.uniform(1e-4, 1)).astype(np.float32)

    plain = SpeechCrops(*noise_utterances(), 8_000, 20, seed=3, levels=(-30, -25))
    changed = SpeechCrops(*noise_utterances(), 8_000, 20, seed=3, levels=(-30, -25), augment=augment)
    for i in reversed(range(20)):
        assert -30.01 < level(changed[i]) < -24.99
        torch.testing.assert_close(changed[i].flip(0), plain[i], atol=1e-5, rtol=1e-4)
        assert torch.equal(changed[i], changed[i])
    mute = SpeechCrops(*noise_utterances(), 8_000, 1, seed=3, augment=lambda wav, rng: np.zeros_like(wav))
    assert not mute[0].any()
    exact = SpeechCrops(*noise_utterances(), 8_000, 1, seed=3, levels=(-20, -20))
    assert level(exact[0]) == pytest.approx(-20, abs=1e-3)


def test_short_recordings_are_joined_with_others_of_their_speaker():
    lengths, speakers = [3_000, 2_000, 4_000, 12_000, 1_000, 3_000], ["a", "a", "a", "b", "b", "lone"]
    starts = np.cumsum([0, *lengths])
    samples = np.repeat(np.arange(1, 7, dtype=np.int16) * 1000, lengths)  # each recording one value
    utterances = [
        Utterance(str(i), s, int(b), n) for i, (s, b, n) in enumerate(zip(speakers, starts, lengths, strict=False))
    ]
    crops = SpeechCrops(samples, utterances, 8_000, 300, seed=0, join_short=True, levels=(-20, -20))
    assert [u.path for u in crops.utterances] == ["0", "1", "2", "3", "4"]  # of `lone` there is less than a crop
    places, sets = set(), set()
    for i in range(300):
        values, counts = np.unique((crops[i].numpy() / crops[i].numpy().min()).round(3), return_counts=True)
        assert crops[i].shape == (8_000,) and torch.equal(crops[i], crops[i])
        sets.add(tuple(counts.tolist()) if len(values) > 1 else "whole")
        places.add(int(crops[i].argmax()))
        if counts.tolist() == [7_000, 1_000]:  # the drawn one is in one piece, wherever it lies
            assert np.flatnonzero(np.diff(crops[i].numpy() == crops[i].numpy().max())).size <= 2
    assert "whole" in sets and len(places) > 20
    # a: 9,000 samples in all, so always at least two of 3, 2 and 4 thousand whole; b: the short one whole
    assert {s for s in sets if s != "whole"} <= {
        (3_000, 2_000, 3_000), (2_000, 2_000, 4_000), (3_000, 1_000, 4_000), (7_000, 1_000),
    }  # fmt: skip
    assert [u.path for u in SpeechCrops(samples, utterances, 8_000, 1, 0).utterances] == ["3"]


def test_options_out_of_range_are_refused():
    for options in ({"speaker_exponent": -0.1}, {"speaker_exponent": 2}, {"levels": (-10, -20)}, {"levels": (-9, 1)}):
        with pytest.raises(ConfigError, match="should"):
            SpeechCrops(*noise_utterances(), 8_000, 1, 0, **options)
    with pytest.raises(ConfigError, match="join_short would join"):
        SpeechCrops(*noise_utterances(), 80_000, 1, 0)
    with pytest.raises(ConfigError, match="no recording is as long as a crop of 80000 samples$"):
        SpeechCrops(*noise_utterances(), 80_000, 1, 0, join_short=True)


def test_silence_ends_in_a_crop_not_in_a_loop(tmp_path):
    soundfile.write(tmp_path / "zero.wav", np.zeros(16_000), 16_000)
    path = write_manifest(tmp_path, [("zero.wav", "train", "c", "c/0", 1)])
    samples, utterances = build_cache([path], tmp_path / "cache", 16_000)
    assert not SpeechCrops(samples, utterances, 8_000, 1, 0)[0].any()
    # As long as any other, where augmentation takes more than it gives.
    longer = SpeechCrops(samples, utterances, 8_000, 1, 0, read_samples=9_000, augment=lambda wav, rng: wav[:8_000])
    assert longer[0].shape == (8_000,)


def test_the_validation_split_is_stable_and_of_the_asked_size():
    names = [f"corpus/{i}" for i in range(5_000)]
    held_out = [name for name in names if is_validation(name, 5)]
    assert 200 < len(held_out) < 300
    assert held_out == [name for name in held_out if is_validation(name, 8)]  # a larger split contains the smaller


def test_a_recipe_augments_training_crops_and_not_its_validation():
    recipe = train.override(base(), ["augment.speed_probability=1", "augment.speed_factors=[1.25]", "crop_frames=10"])
    task = CodecTask(recipe)
    tone = np.sin(2 * np.pi * 500 * np.arange(48_000) / 16_000)
    samples = (8000 * tone).astype(np.int16)
    crops = task.training_crops(samples, [Utterance("a.wav", "a", 0, len(samples))], total=4)
    assert crops.read_samples == 4000 and crops[0].shape == (3200,)
    peak = np.abs(np.fft.rfft(crops[0].numpy() * np.hanning(3200))).argmax() * 16_000 / 3200
    assert peak == pytest.approx(625, abs=10)  # sped up by a quarter, without a seam
    assert CodecTask(base()).training_crops(samples, crops.utterances, 4).augment is None


def test_settings_reach_into_the_parts_of_a_recipe():
    assert train.override(base(), ["augment.noise_snr=[5, 15]"]).augment.noise_snr == (5, 15)
    with pytest.raises(ConfigError, match="no field 'augment.nois'; there are speed_probability"):
        train.override(base(), ["augment.nois=1"])
    with pytest.raises(ConfigError, match="no field 'seed.x'"):
        train.override(base(), ["seed.x=1"])
