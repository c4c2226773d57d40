"""What the README shows is what happens: its commands and programs run, in order, in an empty folder."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, root: Path, recordings: list[Path]) -> Path:
    """An empty folder with a recording as `speech.wav`, and the command `codec` of this checkout on the path."""
    from engine import audio

    wav, rate = audio.load(recordings[0])
    (tmp_path / "work").mkdir()
    audio.save(tmp_path / "work" / "speech.wav", wav, rate)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "codec"
    command.write_text(f"#!{sys.executable}\nfrom codec.cli import main\nmain()\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path / "work"


def test_examples_run(folder: Path, root: Path) -> None:
    blocks = BLOCK.findall((root / "README.md").read_text())
    assert [language for language, _ in blocks].count("sh") >= 3
    assert [language for language, _ in blocks].count("python") >= 3
    bash = shutil.which("bash")
    assert bash, "the examples need bash"
    environment = {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "PYTHONWARNINGS": "error",
        "OMP_NUM_THREADS": "1",
    }
    for language, text in blocks:
        start = [bash, "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*start, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
    assert (folder / "copy.esc").read_bytes() == (folder / "speech.esc").read_bytes()
    assert (folder / "copy.wav").read_bytes() == (folder / "decoded.wav").read_bytes()


def test_the_two_commands_of_the_readme_exist(root: Path) -> None:
    readme, makefile = (root / "README.md").read_text(), (root / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"$ make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere(root: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (root / "README.md").read_text())
    assert links
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []
