"""Who may import whom: `engine` <- `codec`, `speaker` <- `recipes`; inference never loads a training framework."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("engine", "codec", "speaker", "recipes")
# package -> what its modules must not import, wherever in the file
FORBIDDEN = {
    "engine": {"codec", "speaker", "recipes", "lightning", "torchaudio", "pickle"},
    "codec": {"speaker", "recipes", "lightning", "soundfile", "soxr", "torchaudio", "pickle"},
    "speaker": {"codec", "recipes", "lightning", "soundfile", "soxr", "torchaudio", "pickle"},
    "recipes": {"soundfile", "soxr", "pickle"},
}
# Optional or slow: imported inside the function that needs them, so that commands start fast and without extras.
LAZY = {
    "pesq",
    "pystoi",
    "librosa",
    "matplotlib",
    "scipy",
    "huggingface_hub",
    "tensorboard",
    "yaml",
    "transformers",
    "kaldiio",
    "pyarrow",
    "speechbrain",
    "faiss",
    "sqlcipher3",
}
# The one file that touches sound files and sample rates.
AUDIO = "engine/audio.py"


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all imports below ``tree``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0] if node.module and not node.level else "a relative import"


def violations(name: str, source: str) -> list[str]:
    """What a file at ``name`` (relative to the top) imports but must not."""
    tree = ast.parse(source)
    package = name.partition("/")[0]
    found = set(imported(tree)) & (FORBIDDEN[package] | {"a relative import"})
    if package == "engine" and name != AUDIO:
        found |= set(imported(tree)) & {"soundfile", "soxr"}
    if package != "recipes":
        at_start = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)]
        found |= {each for node in at_start for each in imported(node)} & LAZY
    return sorted(f"{name} imports {each}" for each in found)


def test_imports_follow_the_architecture(root: Path) -> None:
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    assert {path.relative_to(root).parts[0] for path in files} == set(PACKAGES)
    assert [v for path in files for v in violations(path.relative_to(root).as_posix(), path.read_text())] == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("engine/x.py", "import codec.model", ["codec"]),
        ("engine/x.py", "def f():\n    from recipes import train", ["recipes"]),
        ("engine/x.py", "import soxr", ["soxr"]),
        ("engine/audio.py", "import soxr, soundfile", []),
        ("codec/x.py", "from speaker import cli", ["speaker"]),
        ("codec/x.py", "import lightning.pytorch as pl", ["lightning"]),
        ("codec/x.py", "import librosa", ["librosa"]),
        ("codec/x.py", "def f():\n    import librosa", []),
        ("codec/x.py", "from . import model", ["a relative import"]),
        ("speaker/x.py", "import codec", ["codec"]),
        ("recipes/x.py", "import lightning, codec, speaker, engine", []),
    ],
)
def test_the_rules_can_fail(name: str, source: str, expected: list[str]) -> None:
    assert violations(name, source) == [f"{name} imports {each}" for each in expected]


def test_modules_say_what_they_are(root: Path) -> None:
    silent = [
        p
        for package in PACKAGES
        for p in (root / package).rglob("*.py")
        if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []
