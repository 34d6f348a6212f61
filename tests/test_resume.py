"""A run that was interrupted and resumed ends bit for bit as one left alone; what is not its state is refused."""

import csv
import json
import os
import shlex
import shutil
import signal

import pytest
import torch
from datafree.run_folder import RunFolder
from datafree.snapshot import Snapshot
from programs import NAME, PROGRAMS, TINY, TINY_SCRATCH, Crash, error_of, finished, run, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_scratch
from datafree import checkpoint
from scripts.kill_test import differences

FORMS = {
    "anew": [],
    "reuse_common": ["--mode", "reuse_common"],
    "reuse_finetune": ["--mode", "reuse_finetune"],
    "reuse_fix": ["--mode", "reuse_fix"],
    "hard loss": ["--hl"],
    "hard loss, attack at every step": ["--hl", "--attack_at", "step", "--pa", "0.5"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a tiny run left alone."""
    root = tmp_path_factory.mktemp("alone")
    finished([*TINY, "--run_root", root])
    return root / NAME


@pytest.fixture
def signal_after(monkeypatch):
    """Sends this process a signal once the state of that round is saved."""

    def arrange(number, after):
        save = Snapshot.save

        def save_and_signal(self, progress):
            save(self, progress)
            if progress["round"] == after:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Snapshot, "save", save_and_signal)

    return arrange


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").open(newline="")))


# The same end


@pytest.mark.parametrize("form", FORMS)
def test_resuming_with_the_folder_alone_changes_nothing(form, alone, tmp_path, signal_after):
    flags = [*TINY, *FORMS[form]]
    if "reuse" in form:
        flags += ["--reuse_generator_path", alone / "gan_reuse.pth", "--reuse_decoder_path", alone / "decoder.pth"]
    if form == "anew":
        whole = alone
    else:
        finished([*flags, "--run_root", tmp_path / "whole"])
        (whole,) = (tmp_path / "whole").iterdir()
    signal_after(signal.SIGTERM, 2)
    assert run([*flags, "--run_root", tmp_path / "cut"])[0] == 143
    (cut,) = (tmp_path / "cut").iterdir()
    assert not (cut / "summary.json").exists() and len(rows_of(cut)) == 2
    finished(["--resume", cut])
    assert differences(whole, cut) == []
    assert "P" not in form or (cut / "gap.pth").exists()


def test_training_on_real_data_resumes_likewise(tmp_path, signal_after):
    """With steps; scripts/kill_test.py does it with the cosine."""
    flags = [*TINY_SCRATCH, "--lr_decay_milestones", "1", "--output", tmp_path / "t.pth"]
    finished([*flags, "--run_root", tmp_path / "whole"], train_scratch)
    (tmp_path / "t.pth").unlink()
    signal_after(signal.SIGTERM, 1)
    assert run([*flags, "--run_root", tmp_path], train_scratch)[0] == 143
    assert not (tmp_path / "t.pth").exists()
    folder = tmp_path / "scratch-digits-resnet8"
    finished(["--resume", folder], train_scratch)
    assert differences(tmp_path / "whole" / folder.name, folder) == []
    assert (tmp_path / "t.pth").read_bytes() == (folder / "student_last.pth").read_bytes()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 128 + signal.SIGUSR1)]
)
def test_a_signal_saves_and_leaves_with_one_line_that_has_the_command_to_go_on(
    number, status, alone, tmp_path, signal_after
):
    root = tmp_path / "with a space"
    signal_after(number, 1)
    left, stdout, stderr = run([*TINY, "--run_root", root])
    assert left == status and stderr.count("\n") == 1 and stdout == (root / NAME / "log.txt").read_text()
    assert stderr.startswith("stopped after round 1; go on: python main.py --resume ")
    _, program, *line = shlex.split(stderr.partition("go on: ")[2])
    finished(line, PROGRAMS[program])
    assert differences(alone, root / NAME) == []


def test_a_signal_in_the_last_round_leaves_a_run_that_a_resumption_finishes(alone, tmp_path, signal_after):
    signal_after(signal.SIGTERM, 3)
    assert run([*TINY, "--run_root", tmp_path])[0] == 143
    finished([*TINY, "--run_root", tmp_path, "--resume"])
    assert differences(alone, tmp_path / NAME) == []


def crash_at(monkeypatch, name, occurrence):
    """Ends the run while it writes that file for that time; what a kill would leave behind stays there."""
    seen = []

    def strike(path):
        seen.append(path)
        if len(seen) == occurrence:
            (path.parent / f".{path.name}.0abc_xyz").write_bytes(b"half of it")
            raise Crash

    def patched(original, path_of):
        def call(*args, **keywords):
            if path_of(*args).name == name:
                strike(path_of(*args))
            return original(*args, **keywords)

        return call

    monkeypatch.setattr(checkpoint, "write_whole", patched(checkpoint.write_whole, lambda path, _: path))
    record = patched(RunFolder.record, lambda folder, *_: folder.path / "metrics.csv")
    monkeypatch.setattr(RunFolder, "record", record)
    append = Snapshot._append

    def torn_append(self, start, end):
        append(self, start, end)
        if name == "pool.bin":
            strike(self.folder / name)

    monkeypatch.setattr(Snapshot, "_append", torn_append)


POINTS = {
    "before there is a config.json": ("config.json", 1),
    "before the first state": ("last.pth", 1),
    "with a pool longer than the state knows of": ("pool.bin", 2),
    "with a row more than the state knows of": ("last.pth", 3),
    "with a best student later than the state": ("metrics.csv", 3),
    "while the student is written": ("student_last.pth", 2),
    "while the images are written": ("synthetic.png", 2),
    "after the last round": ("generator_loss.npy", 1),
    "while the reusable parts are written": ("decoder.pth", 1),
    "at the very end": ("summary.json", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_loses_no_more_than_the_round_under_way(point, alone, tmp_path):
    line = [*TINY, "--run_root", tmp_path]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, *POINTS[point])
        run(line)
    assert [file for file in (tmp_path / NAME).iterdir() if file.name.endswith(".0abc_xyz")]
    finished([*line, "--resume"])
    assert differences(alone, tmp_path / NAME) == []
    assert not [file for file in (tmp_path / NAME).iterdir() if file.name.endswith(".0abc_xyz")]
    events = EventAccumulator(str(tmp_path / NAME / "tensorboard"))
    events.Reload()
    for name in ("loss_bn", "seconds_synthesis"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3], name


def test_a_moved_and_renamed_run_resumes_where_it_is(alone, tmp_path, signal_after):
    signal_after(signal.SIGTERM, 2)
    run([*TINY, "--run_root", tmp_path / "before"])
    shutil.move(tmp_path / "before" / NAME, tmp_path / "renamed é")
    finished(["--resume", tmp_path / "renamed é"])
    assert differences(alone, tmp_path / "renamed é") == []
    assert list((tmp_path / "before").iterdir()) == []


def test_resuming_a_finished_run_says_so_and_changes_none_of_its_results(alone, tmp_path):
    shutil.copytree(alone, tmp_path / NAME)
    for line in (["--resume", tmp_path / NAME], [*TINY, "--run_root", tmp_path, "--resume"]):
        assert finished(line) == f"{tmp_path / NAME} is complete: nothing to resume\n"
    before, after = tree(alone), tree(tmp_path / NAME)
    assert {name for name in before if before[name] != after.get(name)} == {"log.txt"} and before.keys() == after.keys()


def test_resume_where_there_is_nothing_yet_starts(alone, tmp_path):
    finished([*TINY, "--run_root", tmp_path, "--resume"])
    assert differences(alone, tmp_path / NAME) == []


def test_the_log_is_continued_and_the_seconds_are_those_of_all_processes(tmp_path, signal_after):
    signal_after(signal.SIGTERM, 2)
    first = run([*TINY, "--run_root", tmp_path])[1]
    second = finished(["--resume", tmp_path / NAME])
    assert (tmp_path / NAME / "log.txt").read_text() == first + second
    rounds = [line.split()[1] for line in (first + second).splitlines() if line.startswith("round")]
    assert rounds == ["1/3", "2/3", "3/3"]
    rows = rows_of(tmp_path / NAME)
    in_rounds = sum(float(row[name]) for row in rows for name in row if name.startswith("seconds"))
    assert json.loads((tmp_path / NAME / "summary.json").read_text())["seconds_total"] >= in_rounds


def test_lost_rows_of_the_metrics_are_said_to_be_lost_and_the_run_goes_on(tmp_path, signal_after):
    signal_after(signal.SIGTERM, 2)
    run([*TINY, "--run_root", tmp_path])
    metrics = tmp_path / NAME / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-20])  # torn by whoever cut it
    assert "metrics.csv has lost rows" in finished(["--resume", tmp_path / NAME])
    assert [row["round"] for row in rows_of(tmp_path / NAME)] == ["1", "3"]


# Refusals


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run stopped after two rounds, to be copied."""
    root = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        save = Snapshot.save

        def save_and_crash(self, progress):
            save(self, progress)
            if progress["round"] == 2:
                raise Crash

        patch.setattr(Snapshot, "save", save_and_crash)
        with pytest.raises(Crash):
            run([*TINY, "--run_root", root])
    return root / NAME


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def another_student(path):
    state = torch.load(path, weights_only=True)
    state["distillation"]["student"].pop("fc.bias")
    torch.save(state, path)


DAMAGE = {
    "a state cut short": (lambda run: os.truncate(run / "last.pth", 10_000), "last.pth is damaged"),
    "a flipped bit in the state": (lambda run: flip(run / "last.pth", 100_000), "last.pth is damaged"),
    "a state without one weight": (lambda run: another_student(run / "last.pth"), "another run"),
    "a state that is a tensor": (lambda run: torch.save(torch.zeros(3), run / "last.pth"), "no run state"),
    "a state that is empty": (lambda run: torch.save({}, run / "last.pth"), "another run"),
    "no pool": (lambda run: (run / "pool.bin").unlink(), "pool.bin"),
    "a pool cut short": (lambda run: os.truncate(run / "pool.bin", 100), "pool.bin has 100 bytes"),
    "a flipped bit in the pool": (lambda run: flip(run / "pool.bin", 5000), "pool.bin is damaged"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_state_is_refused_and_left_as_it_is(what, half, tmp_path):
    shutil.copytree(half, tmp_path / NAME)
    damage, words = DAMAGE[what]
    damage(tmp_path / NAME)
    state = [path.read_bytes() for path in sorted(tmp_path.glob("*/*.pth"))]
    assert words in error_of(["--resume", tmp_path / NAME])
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*/*.pth"))] == state
    assert [row["round"] for row in rows_of(tmp_path / NAME)] == ["1", "2"]


def test_a_pool_that_lost_images_while_the_run_went_on_is_not_filled_with_holes(tmp_path, monkeypatch):
    save = Snapshot.save

    def lose_images(self, progress):
        save(self, progress)
        os.truncate(self.folder / "pool.bin", 10)

    monkeypatch.setattr(Snapshot, "save", lose_images)
    assert "pool.bin has lost images" in error_of([*TINY, "--run_root", tmp_path])


def test_a_flag_that_config_json_contradicts_is_refused_by_name_and_one_that_it_confirms_is_not(half, tmp_path):
    shutil.copytree(half, tmp_path / NAME)
    before = tree(tmp_path)
    assert "--lr was 0.1" in error_of(["--resume", tmp_path / NAME, "--lr", "0.2"])
    assert "--epochs was 3" in error_of([*TINY, "--run_root", tmp_path, "--resume", "--epochs", "9"])
    assert "--hl was False" in error_of(["--resume", tmp_path / NAME, "--hl"])
    assert tree(tmp_path) == before
    main_flags = ["--resume", tmp_path / NAME, "--lr", "0.1", "--kd-steps", "2", "--device", "cpu"]
    assert "finished" in finished(main_flags)
