"""RTTM in and out."""

import pytest

from engine.errors import ScoreError
from speaker.rttm import Segment, read_rttm, write_rttm


def test_what_is_written_is_read(tmp_path):
    segments = [Segment(0.5, 1.25, "anna"), Segment(1.0, 3.0, "ben smith")]
    write_rttm(tmp_path / "x.rttm", {"a meeting": segments, "b": segments[:1]})
    found = read_rttm(tmp_path / "x.rttm")
    assert found == {"a_meeting": [segments[0], Segment(1.0, 3.0, "ben_smith")], "b": segments[:1]}
    assert (tmp_path / "x.rttm").read_text().splitlines()[2] == "SPEAKER b 1 0.500 0.750 <NA> <NA> anna <NA> <NA>"


def test_a_name_that_is_no_text(tmp_path):
    write_rttm(tmp_path / "x.rttm", {"\udcff": [Segment(0.0, 1.0, "anna")]})
    assert list(read_rttm(tmp_path / "x.rttm")) == ["\\xff"]


def test_other_lines_are_passed_over(tmp_path):
    (tmp_path / "x.rttm").write_text(
        ";; a comment\nSPKR-INFO f 1 <NA> <NA> <NA> unknown a <NA>\n\n"
        "SPEAKER f 1 2 1 <NA> <NA> b <NA>\nSPEAKER f 1 0 1.5 <NA> <NA> a <NA> <NA>\n"
    )
    assert read_rttm(tmp_path / "x.rttm") == {"f": [Segment(0, 1.5, "a"), Segment(2, 3, "b")]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPEAKER f 1 0 1 <NA> <NA> a b <NA> <NA>\n", "line 1: expected 9 or 10 fields, got 11"),
        ("\nSPEAKER f 1 x 1 <NA> <NA> a <NA> <NA>\n", "line 2: start and duration must be seconds, got 'x'"),
        ("SPEAKER f 1 0 -1 <NA> <NA> a <NA> <NA>\n", "lasts longer than 0 s"),
        ("SPEAKER f 1 nan 1 <NA> <NA> a <NA> <NA>\n", "starts at 0 or later"),
        ("SPEAKER f 1 0 1 <NA> <NA> <NA> <NA> <NA>\n", "name is missing"),
        ("0.0 1.0 a\n", "expected `SPEAKER"),
        ("", "holds no SPEAKER line"),
    ],
)
def test_what_is_no_rttm_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "x.rttm").write_text(text)
    with pytest.raises(ScoreError, match=message):
        read_rttm(tmp_path / "x.rttm")
    with pytest.raises(ScoreError, match="no such file"):
        read_rttm(tmp_path / "none.rttm")
