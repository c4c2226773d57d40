"""Training on two processes: both hold the same model, and it is the one that a single process would get."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch

from engine.errors import ConfigError
from recipes import train
from recipes.harness.loaders import make_loaders
from recipes.tasks import make_task

# Where two processes equal one to rounding: plain means as losses (the spectrum's error is a ratio over the batch),
# all levels in every crop (their draw is for the share of one rank), no restarts (they take vectors of rank 0).
EXACT = [
    "model.channels=[16,16,16,32]", "model.codebook_dims=[4,4,4,4,4,4]", "model.codebook_size=16",
    'model.quantizer_options={"restart_below": 0.0}', "level_weights=[0,0,0,0,0,1]", "spectrum_weight=0",
    "crop_frames=10", "batch_size=4", "start_seconds=4", "validation_percent=40", "validation_crops=2",
    "validation_frames=40", "validate_every=4", "warmup_steps=1", "decay_steps=1", "bypass_steps=0", "max_steps=4",
]  # fmt: skip
# Levels drawn at random, so that some steps leave codebooks out; restarts.
ORDINARY = ["level_weights=[]", "spectrum_weight=1", 'model.quantizer_options={"restart_below": 0.5}', "batch_size=2"]

# Orthogonalized steps alone, so that a matrix sent by the wrong process shows.
STEPS = """
import os, pathlib, sys, time
import torch
from torch import distributed
from recipes.harness.optim import Muon

rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if ranks > 1:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
torch.manual_seed(0)
shapes = (32, 32, 3), (48, 20), (32, 32, 3), (8, 96), (48, 20), (9, 9)
weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
optimizer = Muon([{"params": weights, "weight_decay": 0.01, "orthogonal": True}], lr=0.1)
for _ in range(3):
    for weight in weights[:-1]:  # the last has no part in the loss
        weight.grad = torch.randn(weight.shape)
    optimizer.step()
torch.save([weight.detach() for weight in weights], f"{folder}/{ranks}_{rank}.pt")
if ranks > 1:
    # One that leaves while the other still sends makes that abort, and taking gloo's threads down can abort by itself:
    # each waits until both have written all, and leaves without that.
    pathlib.Path(folder, f"done{rank}").touch()
    while not pathlib.Path(folder, f"done{1 - rank}").exists():
        time.sleep(0.02)
    os._exit(0)
"""

RUNNER = """
import sys, torch
from recipes import train
from recipes.tasks.codec import CodecTask

def keep(task):
    torch.save(task.model.state_dict(), f"{sys.argv[1]}/rank{task.global_rank}.pt")

CodecTask.on_train_end = keep
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, recordings):
    folder = tmp_path_factory.mktemp("data")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "corpus", "speaker", "seconds"])
        for i, recording in enumerate(recordings * 2):
            wav, rate = soundfile.read(recording)
            soundfile.write(folder / f"{i}.wav", wav, rate)
            writer.writerow([f"{i}.wav", "train", "demo", f"demo/{i}", len(wav) / rate])
    return folder / "manifest.csv"


def arguments(manifest, out, *settings):
    sets = [argument for setting in settings for argument in ("--set", setting)]
    cache = str(manifest.parent / "cache")
    return ["esc_live:tiny", "--data", str(manifest), "--out", str(out), "--cache", cache, "--accelerator", "cpu",
            "--no-tensorboard", *sets]  # fmt: skip


def two_processes(manifest, folder, root, *settings):
    """Run on two processes in `folder`; return the model of each."""
    (folder / "runner.py").write_text(RUNNER)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(folder / "runner.py"), str(folder), "--devices", "2", "--strategy", "ddp",
               *arguments(manifest, folder / "run", *settings)]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training from step 0") == 1, "one process speaks for both"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def exact(manifest, tmp_path_factory, root):
    folder = tmp_path_factory.mktemp("exact")
    return folder, two_processes(manifest, folder, root, *EXACT)


def single(out, key):
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)[key]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def assert_same(first, second):
    assert any(name.endswith("embedding_sum") for name in first), "codebook statistics are buffers"
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_ranks_agree_and_equal_one_process_with_the_whole_batch(manifest, exact, tmp_path):
    _, (first, second) = exact
    assert_same(first, second)
    assert train.main(arguments(manifest, tmp_path / "one", *EXACT)) == 0
    one = single(tmp_path / "one", "current_model_state")
    for name, value in first.items():
        if name.endswith("qkv.bias"):  # the softmax cancels the bias of keys: its gradient is rounding, Adam scales it
            torch.testing.assert_close(value, one[name], atol=1e-3, rtol=0)
        else:
            torch.testing.assert_close(value, one[name], atol=5e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_ranks_share_the_work_of_orthogonalizing(tmp_path, root):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", STEPS, str(rank), str(ranks), str(tmp_path)], env=environment)
        for rank, ranks in ((0, 1), (0, 2), (1, 2))
    ]
    try:
        assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    finally:
        for run in runs:
            run.kill()
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for one, a, b in zip(alone, first, second, strict=True):
        assert torch.equal(a, b) and torch.allclose(a, one, atol=1e-6)


def test_rank_0_alone_writes_and_validates_everything(exact):
    folder, _ = exact
    run = folder / "run"
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["4"]
    assert float(rows[0]["hours_seen"]) == pytest.approx(4 * 4 * 0.2 / 3600)
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert len(starts) == 1 and starts[0]["ranks"] == 2


def test_a_run_goes_on_with_another_number_of_devices(manifest, exact, tmp_path):
    """Two processes and then one equal one process throughout: crops, statistics and schedule go on."""
    folder, _ = exact
    shutil.copytree(folder / "run", tmp_path / "run")
    assert train.main(arguments(manifest, tmp_path / "one", *EXACT, "max_steps=6")) == 0
    more = ["--out", str(tmp_path / "run"), "--resume", "--cache", str(manifest.parent / "cache"), "--no-tensorboard"]
    assert train.main([*more, "--set", "max_steps=6"]) == 0
    got, expected = (single(tmp_path / name, "current_model_state") for name in ("run", "one"))
    for name in ("embed.weight", "quantizers.0.down.weight", "quantizers.5.codebooks.0.usage"):
        torch.testing.assert_close(got[name], expected[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ranks_agree_when_steps_leave_codebooks_out(manifest, tmp_path, root, optimizer):
    """Unused parameters, restarts drawn on rank 0, a share of one crop each."""
    first, second = two_processes(manifest, tmp_path, root, *EXACT, *ORDINARY, f"optimizer={optimizer}")
    assert_same(first, second)


def test_a_batch_that_cannot_be_shared_is_an_error(manifest, tmp_path):
    recipe = train.override(train.find_recipe("esc_live:tiny"), ["batch_size=3"])
    with pytest.raises(ConfigError, match="a batch of 3 crops cannot be dealt to 2 devices"):
        make_loaders(make_task(recipe), [str(manifest)], tmp_path, world_size=2)
