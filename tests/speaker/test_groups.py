"""speaker/groups.py: a group for every trial, and tables that say so."""

import numpy as np
import pytest

from engine.errors import ScoreError
from speaker.groups import read_groups
from speaker.report import as_text, report
from speaker.trials import Trials


def written(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def test_words_and_numbers(tmp_path):
    trials = Trials(["a", "a", "b", "c"], ["b", "c", "d", "d"], [True, False, True, False])
    table = "path,gender,snr,speaker,room\na,f,5,x,1\nb,f,10,x,1\nc,m,20,y,1\nd,m,30,y,1\n"
    groups = read_groups(written(tmp_path, "\ufeff" + table), trials)  # a spreadsheet's byte order mark
    assert groups["gender"] == ["f", "different", "different", "m"]
    assert set(groups) == {"gender", "snr"}, "a column with one value, and names, are no groups"
    # lesser sides 5, 5, 10, 20
    assert groups["snr"] == ["5 to 10", "5 to 10", "10 to 20", "10 to 20"]


def test_what_is_no_table(tmp_path):
    trials = Trials(["a"], ["b"], [True])
    with pytest.raises(ScoreError, match="column path"):
        read_groups(written(tmp_path, "name,gender\na,f\n"), trials)
    with pytest.raises(ScoreError, match="does not have 1 of the recordings, the first is b"):
        read_groups(written(tmp_path, "path,gender\na,f\n"), trials)
    with pytest.raises(ScoreError, match="no column that groups"):
        read_groups(written(tmp_path, "path,title\na,f\nb,f\n"), trials)
    with pytest.raises(ScoreError, match="line 3: more cells than the heading"):
        read_groups(written(tmp_path, "path,gender\na,f\nb,f,x\n"), trials)
    with pytest.raises(ScoreError, match="no table"):
        read_groups(tmp_path / "nothing.csv", trials)


def test_a_table_for_every_group_that_is_large_enough():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2 == 0
    groups = ["m"] * 200 + ["f"] * 150 + ["different"] * 50
    scores = rng.normal(np.where(labels, 2.0, 0.0))
    scores[200:] += np.where(labels[200:], 3.0, 0.0)  # the second group is easier
    sides = ([f"s{i % 20}" for i in range(400)], [f"s{i % 20 if label else 99}" for i, label in enumerate(labels)])
    found = report(scores, labels, sides, groups={"gender": groups}, num=20)
    rows = {row["group"]: row for row in found["by"]["gender"]}
    assert set(rows) == {"m", "f"} and rows["f"]["eer"][0] < 5 < rows["m"]["eer"][0]
    assert all(row["eer"][1] <= row["eer"][0] <= row["eer"][2] for row in rows.values())
    assert (rows["f"]["targets"], rows["f"]["nontargets"]) == (75, 75)
    few = report(scores, labels, sides, groups={"room": [str(i // 40) for i in range(400)]}, num=20)
    assert as_text(few).endswith("by room\n  fewer than 30 trials of a kind in every group")
    assert "by gender" in as_text(found) and "(75 + 75 trials)" in as_text(found)


def test_what_is_not_known_is_a_group_of_its_own(tmp_path):
    trials = Trials(["a", "a", "c", "d", "b"], ["b", "c", "d", "e", "f"], [True, False, False, True, True])
    path = written(tmp_path, "path,snr,gender\na,10,f\nb,20,f\nc,,f\nd,5,\ne,nan,f\nf,30,f\n")
    groups = read_groups(path, trials)
    assert groups["gender"] == ["f", "f", "unknown", "unknown", "f"]
    assert groups["snr"][1:4] == ["unknown"] * 3 and "unknown" not in (groups["snr"][0], groups["snr"][4])
    assert groups["snr"][0] != groups["snr"][4]


def test_groups_of_long_numbers_and_of_no_noise(tmp_path):
    names = [f"r{i}" for i in range(12)]
    trials = Trials(names, names[::-1], [True, False] * 6)
    rows = "".join(f"r{i},{20190101 + i},{'inf' if i in (5, 6) else 10 * i}\n" for i in range(12))
    groups = read_groups(written(tmp_path, "path,date,snr\n" + rows), trials)
    assert groups["date"] == groups["date"][::-1] and len(set(groups["date"])) == 3
    ratios = groups["snr"]
    assert len(set(ratios)) == 3 and ratios[4] == ratios[5] and ratios[5].endswith(" to inf")


def test_a_table_that_says_two_things(tmp_path):
    trials = Trials(["a"], ["b"], [True])
    with pytest.raises(ScoreError, match="says different things of a"):
        read_groups(written(tmp_path, "path,gender\na,m\nb,f\na,f\n"), trials)
    with pytest.raises(ScoreError, match="several columns 'gender'"):
        read_groups(written(tmp_path, "path,gender,gender\na,m,1\nb,f,1\n"), trials)
    assert read_groups(written(tmp_path, "path,gender\na,m\nb,f\na,m\n"), trials)["gender"] == ["different"]


def test_models_are_in_the_groups_of_their_recordings(tmp_path):
    trials = Trials(["ann", "ann", "bob"], ["d", "c", "d"], [True, False, True])
    rows = "path,gender,snr\na,f,20\nb,f,5\nc,m,30\nd,f,10\n"
    groups = read_groups(written(tmp_path, rows), trials, {"ann": ["a", "b"], "bob": ["b", "c"]})
    assert groups["gender"] == ["f", "different", "unknown"]
    with pytest.raises(ScoreError, match="does not have 1 of the recordings, the first is bob"):
        read_groups(written(tmp_path, rows), trials, {"ann": ["a", "b"], "bob": ["b", "x"]})
