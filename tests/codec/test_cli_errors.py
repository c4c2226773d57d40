"""What the command `codec` says and returns where something is wrong that is no matter of its files."""

import sys

import pytest

from codec import cli, info


@pytest.fixture
def codec(monkeypatch, capsys):
    """Run a command line; return (status, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["codec", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().err

    return run


def test_a_defect_keeps_its_traceback_and_is_status_2(codec, monkeypatch):
    def defect(_):
        raise KeyError("a defect")

    monkeypatch.setattr(info, "describe", defect)
    status, err = codec("info", "esc_live")
    assert status == 2 and err.startswith("Traceback") and "a defect" in err


def test_devices_that_do_not_compute_are_refused(codec, recordings, tmp_path):
    for name in ("meta", "xpu:99", "nonsense"):
        status, err = codec("encode", recordings[0], tmp_path / "out.esc", "--device", name)
        assert status == 2 and err.startswith("codec: error: ") and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())
