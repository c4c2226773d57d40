"""Ratios from scores: where the truth is known they are it, and files of another kind are refused."""

import numpy as np
import pytest

from engine.errors import ScoreError
from speaker import calibration, score_files
from speaker.intervals import eer_percent, paired_difference, speaker_bootstrap
from speaker.metrics import cllr, min_cllr, split
from speaker.score_files import ScoreFile
from speaker.trials import Trials


def gaussian(count=20_000, seed=0, scale=1.0, shift=0.0):
    """Scores whose log-likelihood ratio is 4 times the unscaled score."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) < count // 4
    ratio = np.where(labels, 2, -2) + rng.normal(size=count)
    return scale * ratio + shift, labels, 4 * ratio


@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_the_ratio_of_gaussians_is_found(prior):
    scores, labels, truth = gaussian(scale=0.1, shift=0.4)
    found = calibration.fit(["x"], scores[:, None], labels, prior=prior)
    ratios = found.llr(scores[:, None], {})
    assert np.abs(ratios - truth).max() < 0.15 * np.abs(truth).max()
    targets, others = split(ratios, labels)
    assert cllr(targets, others) - min_cllr(targets, others) < 0.01


def test_seconds_tell_how_much_a_score_is_worth():
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < 0.3
    seconds = np.exp(rng.uniform(0, np.log(10), (20_000, 2)))
    worth = 1 + np.log(seconds.min(1))
    scores = np.where(labels, 1, -1) * worth / 4 + rng.normal(size=20_000) / 2  # ratio: 2 worth score
    costs = []
    for names in ((), ("seconds",)):
        found = calibration.fit(["x"], scores[:, None], labels, {"seconds": seconds}, names)
        costs.append(cllr(*split(found.llr(scores[:, None], {"seconds": seconds}), labels)))
    assert costs[1] < costs[0] - 0.003
    assert found.shortest == pytest.approx(seconds.min())
    best = cllr(*split(2 * worth * scores, labels))
    assert costs[1] - best < 0.002


def test_fusion_beats_both_systems():
    rng = np.random.default_rng(2)
    labels = rng.random(8_000) < 0.3
    voice = np.where(labels, 1.0, -1.0)
    both = np.stack([voice + rng.normal(size=8_000), 5 * voice + 5 * rng.normal(size=8_000)], axis=1)
    fused = calibration.fit(["a", "b"], both, labels).llr(both, {})
    alone = [calibration.fit(["a"], both[:, k : k + 1], labels).llr(both[:, k : k + 1], {}) for k in (0, 1)]
    assert cllr(*split(fused, labels)) < min(cllr(*split(one, labels)) for one in alone) - 0.05


def test_separable_trials_give_finite_weights():
    scores, labels = np.array([[0.9], [0.8], [0.1], [0.0]]), np.array([True, True, False, False])
    found = calibration.fit(["x"], scores, labels)
    assert np.isfinite(found.weights).all() and found.llr(scores, {})[0] > 5 > -5 > found.llr(scores, {})[3]


def test_files_come_back_and_others_are_refused(tmp_path):
    scores, labels, _ = gaussian(200)
    found = calibration.fit(["ecapa@12ab:cosine"], scores[:, None], labels)
    found.save(tmp_path / "c.json")
    assert calibration.load(tmp_path / "c.json") == found
    found.check_systems(["renamed@12ab:cosine"])
    with pytest.raises(ScoreError, match="made for ecapa@12ab:cosine, the scores are of ecapa@ffff:cosine"):
        found.check_systems(["ecapa@ffff:cosine"])
    (tmp_path / "other.json").write_text('{"kind": "something"}')
    for name in ("other.json", "none.json"):
        with pytest.raises(ScoreError, match="is no calibration"):
            calibration.load(tmp_path / name)
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"weights": [', '"weights": [1, '))
    with pytest.raises(ScoreError, match="is no calibration"):
        calibration.load(tmp_path / "c.json")
    with pytest.raises(ScoreError, match="for 1 systems"):
        found.llr(np.ones((3, 2)), {})


def test_trials_that_cannot_calibrate():
    with pytest.raises(ScoreError, match="all 3 trials are of one kind"):
        calibration.fit(["x"], np.ones((3, 1)), np.ones(3, bool))
    with pytest.raises(ScoreError, match="1 of 2 trials have a score that is not finite"):
        calibration.fit(["x"], np.array([[np.nan], [1]]), np.array([True, False]))
    sides = {"seconds": np.array([[1, 2], [np.nan, 3]])}
    with pytest.raises(ScoreError, match="seconds is not known of both sides"):
        calibration.fit(["x"], np.array([[0.0], [1]]), np.array([True, False]), sides, ("seconds",))
    with pytest.raises(ScoreError, match="needs the quality measure 'seconds'"):
        calibration.fit(["x"], np.array([[0.0], [1]]), np.array([True, False]), {}, ("seconds",))


def test_files_of_scores(tmp_path):
    trials = Trials(["a/1", "b/1"], ["a/2", "a/1"], [True, False])
    file = ScoreFile(trials, np.array([0.5, -0.25]), {"seconds": np.array([[1, 2.5], [3, 4]])}, {"system": "s"})
    file.save(tmp_path / "s.txt")
    back = score_files.read(tmp_path / "s.txt")
    assert back.trials == trials and back.system == "s"
    np.testing.assert_array_equal(back.scores, file.scores)
    np.testing.assert_array_equal(back.quality["seconds"], file.quality["seconds"])
    text = (tmp_path / "s.txt").read_text()
    for old, new, match in (
        ("a/2\t1\t", "a/2\tmaybe\t", "line 3 is no trial"),
        ("label", "wrong", "line 2"),
        ("2.5", "", "line 3"),
        ("# {", "{{", "is no file of scores"),
    ):
        (tmp_path / "bad.txt").write_text(text.replace(old, new))
        with pytest.raises(ScoreError, match=match):
            score_files.read(tmp_path / "bad.txt")
    other = ScoreFile(Trials(["a/1"], ["a/2"], [True]), np.array([0.5]))
    with pytest.raises(ScoreError, match="scores other trials"):
        score_files.same_trials([file, other])


def test_intervals_draw_speakers_not_trials():
    """Twenty speakers with a level of their own: the interval is far wider than if trials were independent."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=20)
    first, second = rng.integers(20, size=(2, 20_000))
    second[:8_000] = first[:8_000]
    labels = first == second
    scores = labels * 2.0 + level[first] + level[second] + 0.3 * rng.normal(size=20_000)
    names = [f"s{k}" for k in first], [f"s{k}" for k in second]
    by_speaker = speaker_bootstrap(scores, labels, *names, [eer_percent], num=200)[0]
    alone = [f"r{k}" for k in range(20_000)]
    by_trial = speaker_bootstrap(scores, labels, alone, alone, [eer_percent], num=200)[0]
    assert by_speaker.value == by_trial.value and by_speaker.low < by_speaker.value < by_speaker.high
    assert by_speaker.high - by_speaker.low > 4 * (by_trial.high - by_trial.low)
    assert paired_difference((scores, scores), labels, *names, num=50) == (0, 0, 0)
    worse = scores + rng.normal(size=20_000)
    gap = paired_difference((worse, scores), labels, *names, num=100)
    assert gap.low > 0 and gap.low < gap.value < gap.high
