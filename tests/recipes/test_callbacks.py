"""What a run writes and says: the table of metrics, its pictures, lines and tables, crops by name."""

import csv
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.errors import ConfigError
from recipes.esc_live import tiny
from recipes.harness import loaders, plots, record
from recipes.harness.callbacks import Checkpoints, Ema, Stop
from recipes.harness.data import SpeechCrops, Utterance
from recipes.harness.progress import Window, duration, table
from recipes.tasks.codec import CodecTask


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_new_metrics_get_columns_and_old_rows_stay(tmp_path):
    path = tmp_path / "metrics.csv"
    record.write_metrics(path, 1, {"step": 1, "valid/mel6": 0.5})
    record.write_metrics(path, 2, {"step": 2, "train/loudness": 0.25, "valid/mel6": 0.4})
    record.write_metrics(path, 3, {"step": 3, "train/loudness": 0.125})
    assert rows_of(path) == [
        {"step": "1", "valid/mel6": "0.5", "train/loudness": ""},
        {"step": "2", "valid/mel6": "0.4", "train/loudness": "0.25"},
        {"step": "3", "valid/mel6": "", "train/loudness": "0.125"},
    ]


def test_a_run_that_goes_back_has_no_step_twice(tmp_path):
    path = tmp_path / "metrics.csv"
    for step in (10, 20, 30):
        record.write_metrics(path, step, {"step": step, "valid/mel6": step / 100})
    record.write_metrics(path, 20)  # resumed from the checkpoint of step 20
    assert [row["step"] for row in rows_of(path)] == ["10", "20"]
    record.write_metrics(path, 20, {"step": 20, "valid/mel6": 7})
    assert [(row["step"], row["valid/mel6"]) for row in rows_of(path)] == [("10", "0.1"), ("20", "7")]
    record.write_metrics(path, 0)
    assert not path.exists()


def test_a_row_that_does_not_fit_its_header_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n1,2\n2,3,4\n3\n4,5\n")
    assert [row["step"] for row in record.read_metrics(tmp_path / "metrics.csv")] == ["1", "4"]


def test_the_code_is_named_by_its_commit(root):
    state = record.code_state()
    if (root / ".git").exists():
        assert len(state["commit"]) == 40 and isinstance(state["dirty"], bool)
    else:
        assert state == {"commit": None, "dirty": None}


def test_a_damaged_record_is_an_error(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="run.json is not JSON"):
        record.starts(tmp_path)


def test_metrics_share_a_panel_by_the_beginning_of_their_name():
    names = ["train/mel", "valid/mel1", "valid/mel6", "valid/entropy", "valid/entropy_least", "train/other", "valid/x2"]
    panels = plots.group(dict.fromkeys(names), CodecTask.labels)
    assert panels == {
        "entropy": ["valid/entropy", "valid/entropy_least"],
        "mel": ["valid/mel1", "valid/mel6", "train/mel"],
        "x": ["valid/x2"],
        "other": ["train/other"],
    }


def test_hours_above_the_curves_follow_the_rows():
    """Twice the batch from step 100 on; beyond the rows the mean rate goes on."""
    to_hours, to_steps = plots._scale(np.array([50.0, 100.0, 150.0]), np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(to_hours([50, 75, 125, 150, 250]), [1, 1.5, 3, 4, 7])
    np.testing.assert_allclose(to_steps(to_hours(np.arange(0, 300, 10))), np.arange(0, 300, 10), atol=1e-6)


def test_curves_are_drawn_with_gaps(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": "1", "hours_seen": "0.1", "valid/mel6": "0.5"}, {"step": 2, "hours_seen": 0.2, "train/mel": 1.0}]
    plots.draw_curves(rows, tmp_path / "new" / "curves.png", CodecTask.labels, "levels")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_the_validation_table():
    text = table({"valid/pesq1": 1.5, "valid/pesq6": 3.25, "valid/mel6": 0.5, "valid/entropy": 9.1}, "levels")
    assert text.splitlines() == [
        "  levels        1        6",
        "  pesq        1.5     3.25",
        "  mel                  0.5",
        "  entropy 9.1",
    ]


def test_durations():
    assert [duration(s) for s in (-5, 0, 59, 60, 7500)] == ["0 s", "0 s", "59 s", "1 min", "2 h 05 min"]


def test_a_window_means_over_its_steps():
    window = Window()
    window.add({"train/mel": torch.tensor(1.0)}, 2.0)
    window.add({"train/mel": torch.tensor(2.0)}, 2.0)
    assert window.means() == {"train/mel": 1.5} and window.audio_seconds == 4.0


def test_crops_name_the_recordings_they_are_read_from():
    rng = np.random.default_rng(0)
    speech = rng.integers(-9000, 9000, 4000).astype(np.int16)
    samples = np.concatenate([speech, np.zeros(4000, np.int16)])
    listing = [Utterance("loud.wav", "a", 0, 4000), Utterance("silent.wav", "b", 4000, 4000)]
    crops = SpeechCrops(samples, listing, 1000, total=20, seed=0)
    for number in range(20):
        places = loaders.sources(crops, number)
        name, _, start = places[-1].partition(" from sample ")
        found = speech if name == "loud.wav" else samples[4000:]
        crop, read = crops[number].numpy(), found[int(start) : int(start) + 1000] / 32768
        scale = np.abs(crop).max() / max(np.abs(read).max(), 1e-9)
        np.testing.assert_allclose(crop, read * scale, atol=1e-4)
        assert all(place.startswith("silent.wav") for place in places[:-1])
    assert crops.samples is samples, "the crops themselves are left as they are"


def test_ranks_share_a_batch_and_more_of_them_share_it_finer():
    def numbers(rank, world_size):
        trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        return list(loaders.batch_numbers(SimpleNamespace(trainer=trainer, batches_done=5, recipe=recipe)))

    recipe = SimpleNamespace(batch_size=8)
    assert numbers(0, 1) == list(range(40, 48))
    assert [numbers(rank, 2) for rank in range(2)] == [[40, 42, 44, 46], [41, 43, 45, 47]]
    assert sorted(sum((numbers(rank, 4) for rank in range(4)), [])) == list(range(40, 48))


@pytest.mark.parametrize(
    ("values", "kept"),
    [([1.0, 3.0, 2.0, 4.0], [1.0, 3.0, 4.0]), ([float("nan"), 1.0], [-2.0, 1.0])],
)
def test_the_best_is_by_the_first_metric_that_is_measured(values, kept, tmp_path):
    """PESQ where it is a number, else the negative mel distance (2.0 here)."""
    checkpoints, saved = Checkpoints(tmp_path, 1.0), []
    for value in values:
        metrics = {"valid/pesq6": torch.tensor(value), "valid/mel6": torch.tensor(2.0)}
        trainer = SimpleNamespace(
            callback_metrics=metrics,
            world_size=1,
            save_checkpoint=lambda path: saved.append((path.name, checkpoints.best["score"])),
        )
        checkpoints.on_validation_end(trainer, SimpleNamespace(monitor={"valid/pesq6": 1, "valid/mel6": -1}))
    assert saved == [("best.ckpt", score) for score in kept]


def test_a_second_signal_acts_at_once():
    before = signal.getsignal(signal.SIGINT)
    stop = Stop(None)
    try:
        stop.on_train_start(None, None)
        signal.raise_signal(signal.SIGINT)
        assert stop.caught == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, stop.before[signal.SIGTERM])


def test_the_average_leaves_the_data_alone():
    """A copy of a memory map is all of it in memory."""

    class Data:
        def __deepcopy__(self, memo):
            raise AssertionError("the data are copied")

    task, average = CodecTask(tiny()), Ema(0.9)
    task.crops = data = Data()
    average.setup(None, task, "fit")
    assert task.crops is data and average._average_model is not None
