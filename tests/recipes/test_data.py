"""Manifests, the cache, and crops that depend on seed and number alone."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from engine.errors import ConfigError
from recipes.harness.data import SpeechCrops, build_cache, is_validation, read_manifest


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
    again, _ = build_cache([manifest], tmp_path / "cache", 16_000)
    assert np.array_equal(again, samples) and caplog.text.count("broken.wav") == 1


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


def test_long_speakers_are_drawn_more_often_but_less_than_by_length(manifest, tmp_path):
    samples, utterances = build_cache([manifest], tmp_path / "cache", 16_000)
    crops = SpeechCrops(samples, utterances, 8_000, total=1, seed=0)
    share = np.diff(crops.cumulative, prepend=0)
    np.testing.assert_allclose(share, np.sqrt([1, 2, 3, 4]) / np.sqrt([1, 2, 3, 4]).sum())


def test_silence_ends_in_a_crop_not_in_a_loop(tmp_path):
    soundfile.write(tmp_path / "zero.wav", np.zeros(16_000), 16_000)
    path = write_manifest(tmp_path, [("zero.wav", "train", "c", "c/0", 1)])
    samples, utterances = build_cache([path], tmp_path / "cache", 16_000)
    assert not SpeechCrops(samples, utterances, 8_000, 1, 0)[0].any()


def test_the_validation_split_is_stable_and_of_the_asked_size():
    names = [f"corpus/{i}" for i in range(5_000)]
    held_out = [name for name in names if is_validation(name, 5)]
    assert 200 < len(held_out) < 300
    assert held_out == [name for name in held_out if is_validation(name, 8)]  # a larger split contains the smaller


@pytest.mark.parametrize(
    "text,message",
    [("path,split\n", "needs the columns"), ("path,split,corpus,speaker,seconds\n", "no rows of split 'train'")],
)
def test_bad_manifests(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="no such manifest"):
        read_manifest(tmp_path / "none.csv")
