"""The programs as a user runs them, on tiny tasks: what they write, what they refuse, and that numbers come twice."""

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CPU, FP32, ROOT, same_state
from datafree.data.augment import Augmentation
from datafree.evaluation import Evaluation, Score, percentage_equal, predict
from datafree.flags import distillation_parser

import main
import registry
import train_scratch
from datafree import checkpoint, entry, rounds
from registry import DATASETS, MODELS


def words(line):
    return line.split()


TINY = words(
    "--epochs 3 --warmup 1 --kd_steps 2 --batch_size 8 --synthesis_batch_size 8 --g_steps 2 --ngf 8 "
    "--lr 0.1 --lr_min 2e-4 --bn 10 --oh 0.5 --adv 1.33 --nz 256 --precision fp32"
)
TINIER = words(
    "--epochs 2 --warmup 1 --kd_steps 1 --batch_size 4 --synthesis_batch_size 4 --g_steps 1 --ngf 8 --nz 256 "
    "--precision fp32"
)
NETWORKS = ["gan_reuse.pth", "gan_abandon.pth", "decoder.pth", "student_last.pth", "best.pth", "synthetic.pth"]
COLUMNS = [
    *("round", "loss_bn", "loss_oh", "loss_adv", "loss_generator", "loss_kd", "accuracy", "agreement", "lr"),
    *("seconds_synthesis", "seconds_distillation", "seconds_evaluation"),
]
SUMMARY = {
    *("accuracy_last", "accuracy_best", "accuracy_teacher", "agreement", "rounds", "seconds_total", "images"),
    *("seconds_synthesis", "peak_memory_mb", "score_g1", "score_g2", "reused_network"),
}
NAME = "anew-digits-resnet20-resnet8"


@pytest.fixture
def at_root(monkeypatch):
    """The committed teachers are found from the repository's folder."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A folder with nothing in it, as far as the programs can see."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def anew(tmp_path_factory):
    """The run root of a tiny run in mode anew, made in this process."""
    run_root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        main.main([*TINY, "--run_root", str(run_root)])
    return run_root


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, list(reader)


def json_of(path):
    return json.loads(path.read_text())


def reuse_flags(folder):
    return [
        "--reuse_generator_path",
        str(folder / "gan_reuse.pth"),
        "--reuse_decoder_path",
        str(folder / "decoder.pth"),
    ]


def save_random_classifier(path, arch, num_classes):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    torch.save({"state_dict": MODELS[arch](num_classes).state_dict()}, path)


# What a run leaves


def test_every_file_of_a_run_folder_is_written(anew):
    names = {entry.name for entry in (anew / NAME).iterdir()}
    others = {
        "config.json",
        "log.txt",
        "metrics.csv",
        "summary.json",
        "generator_loss.npy",
        "synthetic.png",
        "tensorboard",
    }
    assert {*NETWORKS, *others} <= names
    assert list((anew / NAME / "tensorboard").glob("events.out.tfevents.*"))
    assert (anew / NAME / "synthetic.png").read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in anew.iterdir()] == [NAME]


def test_every_pth_file_holds_tensors_and_plain_values(anew):
    found = sorted(path.name for path in (anew / NAME).glob("*.pth"))
    assert set(NETWORKS) <= set(found)
    for name in found:
        torch.load(anew / NAME / name, weights_only=True)
    student = torch.load(anew / NAME / "student_last.pth", weights_only=True)
    assert (student["arch"], student["dataset"]) == ("resnet8", "digits")
    assert student["accuracy"] == json_of(anew / NAME / "summary.json")["accuracy_last"]


def test_metrics_have_a_row_a_round_and_the_columns_of_the_interface(anew):
    columns, rows = rows_of(anew / NAME)
    assert columns == COLUMNS
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    always = [column for column in COLUMNS if column not in ("loss_kd", "accuracy", "agreement")]
    for row in rows:
        assert all(np.isfinite(float(row[column])) for column in always)
        bn, oh, adv, total = (float(row[f"loss_{name}"]) for name in ("bn", "oh", "adv", "generator"))
        assert total == pytest.approx(10 * bn + 0.5 * oh + 1.33 * adv, rel=1e-4)
    assert [rows[0][column] for column in ("loss_kd", "accuracy", "agreement")] == ["", "", ""]
    assert float(rows[0]["loss_adv"]) == 0  # warm-up
    for row in rows[1:]:
        assert float(row["loss_kd"]) > 0 and 0 <= float(row["accuracy"]) <= 100 and 0 <= float(row["agreement"]) <= 100


def test_the_learning_rate_of_the_rounds_is_on_the_cosine_of_the_runs_distillation_steps(anew):
    rates = [float(row["lr"]) for row in rows_of(anew / NAME)[1]]
    cosine = [2e-4 + (0.1 - 2e-4) * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]  # 2 rounds of 2 steps
    assert rates == pytest.approx([cosine[0], cosine[1], cosine[3]], rel=1e-4)


def test_config_has_every_flag_and_what_else_the_numbers_depend_on(anew):
    config = json_of(anew / NAME / "config.json")
    flags = {action.dest for action in distillation_parser()._actions if action.dest != "help"}
    assert flags <= config.keys()
    assert (config["epochs"], config["kd_steps"], config["ep_steps"], config["seed"]) == (3, 2, 2, 0)
    assert config["teacher_path"] == "checkpoints/pretrained/digits_resnet20.pth" and config["lr"] == 0.1
    assert config["environment"]["torch"] == torch.__version__
    assert {"python", "numpy", "torchvision", "git_commit", "device"} <= config["environment"].keys()


def test_summary_has_the_keys_of_the_interface_and_agrees_with_the_metrics(anew):
    summary, rows = json_of(anew / NAME / "summary.json"), rows_of(anew / NAME)[1]
    assert summary.keys() >= SUMMARY
    accuracies = [float(row["accuracy"]) for row in rows[1:]]
    assert summary["accuracy_last"] == pytest.approx(accuracies[-1], rel=1e-5)
    assert summary["accuracy_best"] == pytest.approx(max(accuracies), rel=1e-5)
    assert summary["agreement"] == pytest.approx(float(rows[-1]["agreement"]), rel=1e-5)
    assert summary["accuracy_teacher"] >= 98.5 and summary["rounds"] == 3 and summary["images"] == 24
    assert summary["reused_network"] == min(("g1", "g2"), key=lambda part: summary[f"score_{part}"])
    assert 0 < summary["seconds_synthesis"] < summary["seconds_total"]


def test_the_generator_loss_has_a_value_an_iteration_and_the_metrics_its_means(anew):
    losses = np.load(anew / NAME / "generator_loss.npy")
    assert losses.shape == (6,)
    means = [float(row["loss_generator"]) for row in rows_of(anew / NAME)[1]]
    assert losses.reshape(3, 2).mean(1).tolist() == pytest.approx(means, rel=1e-4)


def test_synthetic_images_are_pixels_of_the_newest_batch(anew):
    x = torch.load(anew / NAME / "synthetic.pth", weights_only=True)
    assert x.shape == (8, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1


def test_the_log_has_a_line_a_round_and_ends_with_the_result(anew):
    lines = (anew / NAME / "log.txt").read_text().splitlines()
    assert sum(line.startswith("round ") for line in lines) == 3
    assert lines[-1].startswith("finished: accuracy ") and any("next task gets" in line for line in lines)


def test_the_student_file_gives_the_reported_accuracy(anew):
    student = MODELS["resnet8"](10)
    told = checkpoint.load_classifier(student, anew / NAME / "student_last.pth", "student")
    spec = DATASETS["digits"]
    test = spec.load(ROOT / "data", False, False)
    accuracy = percentage_equal(*predict(FP32.place(student), test, Augmentation(spec, CPU), FP32))
    assert accuracy == pytest.approx(told["accuracy"])


def test_the_same_seed_gives_the_same_files_in_another_process_that_prints_its_log_and_nothing_else(anew, tmp_path):
    command = [sys.executable, "main.py", *TINY, "--run_root", str(tmp_path)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = anew / NAME, tmp_path / NAME
    assert done.stdout == (second / "log.txt").read_text()
    for name in NETWORKS:
        contents = [torch.load(folder / name, weights_only=True) for folder in (first, second)]
        states = [content["state_dict"] if isinstance(content, dict) else {"": content} for content in contents]
        assert same_state(*states), name
    assert (first / "generator_loss.npy").read_bytes() == (second / "generator_loss.npy").read_bytes()
    numbers = [
        [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows_of(folder)[1]]
        for folder in (first, second)
    ]
    assert numbers[0] == numbers[1]


def test_another_seed_gives_another_student(anew, tmp_path, at_root):
    main.main([*TINY, "--seed", "1", "--run_root", str(tmp_path)])
    students = [torch.load(root / NAME / "student_last.pth", weights_only=True) for root in (anew, tmp_path)]
    assert not torch.equal(students[0]["state_dict"]["fc.weight"], students[1]["state_dict"]["fc.weight"])


def test_epochs_of_another_length_than_a_round_give_a_short_last_round(tmp_path, at_root):
    line = [*TINY, "--epochs", "5", "--ep_steps", "3", "--kd_steps", "4", "--run_root", str(tmp_path)]
    main.main(line)  # 15 steps: rounds of 4, 4, 4, 3, the first of warm-up
    assert len(rows_of(tmp_path / NAME)[1]) == json_of(tmp_path / NAME / "summary.json")["rounds"] == 4
    rates = [float(row["lr"]) for row in rows_of(tmp_path / NAME)[1]]
    cosine = [2e-4 + (0.1 - 2e-4) * (1 + np.cos(np.pi * step / 11)) / 2 for step in range(11)]
    assert rates == pytest.approx([cosine[0], cosine[3], cosine[7], cosine[10]], rel=1e-4)


def test_best_is_the_first_student_of_the_highest_accuracy_and_last_the_last(tmp_path, at_root, monkeypatch):
    accuracies = iter([10.0, 30.0, 30.0, 20.0])

    class Scripted(Evaluation):
        def score(self, student, fresh=None):
            return Score(next(accuracies), 50.0)

    monkeypatch.setattr(rounds, "Evaluation", Scripted)
    main.main([*TINY, "--epochs", "5", "--run_root", str(tmp_path)])
    last, best = (torch.load(tmp_path / NAME / name, weights_only=True) for name in ("student_last.pth", "best.pth"))
    assert (last["round"], last["accuracy"]) == (5, 20.0) and (best["round"], best["accuracy"]) == (3, 30.0)
    summary = json_of(tmp_path / NAME / "summary.json")
    assert (summary["accuracy_last"], summary["accuracy_best"]) == (20.0, 30.0)


def test_eval_every_leaves_cells_empty_but_not_those_of_the_last_round(tmp_path, at_root):
    main.main([*TINY, "--epochs", "5", "--eval_every", "3", "--run_root", str(tmp_path)])
    rows = rows_of(tmp_path / NAME)[1]
    assert [bool(row["accuracy"]) for row in rows] == [False, False, True, False, True]


# Reuse


@pytest.mark.parametrize("mode", ["reuse_common", "reuse_finetune", "reuse_fix"])
def test_a_reuse_mode_starts_from_what_anew_left(anew, tmp_path, at_root, mode):
    flags = ["--mode", mode, "--teacher", "wrn16_1", *reuse_flags(anew / NAME)]
    main.main([*TINY, *flags, "--run_root", str(tmp_path), "--reuse_pick", "g2"])
    folder = tmp_path / f"{mode}-digits-wrn16_1-resnet8"
    assert json_of(folder / "summary.json")["reused_network"] == "g2"
    for name in ("gan_reuse.pth", "decoder.pth"):
        left, now = (torch.load(where / name, weights_only=True)["state_dict"] for where in (anew / NAME, folder))
        assert same_state(left, now) == (mode == "reuse_fix"), name
    weight = "layers.Conv5.conv.weight"
    left, now = (
        torch.load(where / "decoder.pth", weights_only=True)["state_dict"][weight] for where in (anew / NAME, folder)
    )
    assert (left - now).abs().max() < 0.5  # trained on from there, not from random


def test_without_paths_reuse_takes_what_the_anew_run_of_the_same_task_left(anew, tmp_path, at_root):
    shutil.copytree(anew / NAME, tmp_path / NAME)
    main.main([*TINY, "--mode", "reuse_fix", "--run_root", str(tmp_path), "--reuse_pick", "g2"])
    folder = tmp_path / "reuse_fix-digits-resnet20-resnet8"
    assert (tmp_path / NAME / "gan_reuse.pth") == tmp_path / json_of(folder / "config.json")["reuse_generator_path"]
    states = [torch.load(where / "gan_reuse.pth", weights_only=True)["state_dict"] for where in (anew / NAME, folder)]
    assert same_state(*states)


# Without the data set


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The working folder of a run of the request's command: a teacher file and nothing else."""
    folder = tmp_path_factory.mktemp("cifar")
    save_random_classifier(folder / "checkpoints/pretrained/cifar10_resnet34.pth", "resnet34", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(rounds, "FRESH_IMAGES", 8)
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
        main.main([*words("--mode anew --dataset cifar10 --teacher resnet34 --student resnet18"), *TINIER])
    return folder


def test_cifar10_distils_from_a_teacher_file_alone_and_says_in_one_line_that_there_is_no_accuracy(cifar10):
    folder = cifar10 / "run/anew-cifar10-resnet34-resnet18"
    lines = (folder / "log.txt").read_text().splitlines()
    assert sum("no accuracy" in line for line in lines) == 1 and "agreement" in lines[-1]
    summary, rows = json_of(folder / "summary.json"), rows_of(folder)[1]
    assert summary["accuracy_last"] is summary["accuracy_best"] is summary["accuracy_teacher"] is None
    assert 0 <= summary["agreement"] <= 100
    assert rows[-1]["accuracy"] == "" and float(rows[-1]["agreement"]) == pytest.approx(summary["agreement"], rel=1e-5)
    assert {*NETWORKS} <= {entry.name for entry in folder.iterdir()}


def test_a_second_cifar10_teacher_reuses_the_first_ones_generator(cifar10, monkeypatch, no_network):
    monkeypatch.chdir(cifar10)
    monkeypatch.setattr(rounds, "FRESH_IMAGES", 8)
    save_random_classifier(cifar10 / "checkpoints/pretrained/cifar10_vgg11.pth", "vgg11", 10)
    line = (
        "--mode reuse_common --dataset cifar10 --teacher vgg11    --student resnet18 "
        "--reuse_generator_path run/anew-cifar10-resnet34-resnet18/gan_reuse.pth "
        "--reuse_decoder_path run/anew-cifar10-resnet34-resnet18/decoder.pth"
    )
    main.main([*words(line), *TINIER])
    config = json_of(cifar10 / "run/reuse_common-cifar10-vgg11-resnet18/config.json")
    assert config["adv"] == 1.0 and config["bn"] == 10 and not no_network


def test_a_generator_of_cifar100_is_reused_for_cifar10(elsewhere, monkeypatch, no_network):
    monkeypatch.setattr(rounds, "FRESH_IMAGES", 8)
    save_random_classifier(elsewhere / "checkpoints/pretrained/cifar100_resnet20.pth", "resnet20", 100)
    save_random_classifier(elsewhere / "checkpoints/pretrained/cifar10_vgg11.pth", "vgg11", 10)
    main.main([*words("--dataset cifar100 --teacher resnet20 --student resnet8"), *TINIER])
    left = elsewhere / "run/anew-cifar100-resnet20-resnet8"
    line = words("--mode reuse_common --dataset cifar10 --teacher vgg11 --student resnet8")
    main.main([*line, *TINIER, *reuse_flags(left)])
    student = torch.load(elsewhere / "run/reuse_common-cifar10-vgg11-resnet8/student_last.pth", weights_only=True)
    assert student["num_classes"] == 10 and not no_network


# Folders that are there already


def test_an_existing_run_is_refused_and_left_as_it_is(anew, at_root, tmp_path):
    shutil.copytree(anew / NAME, tmp_path / NAME)
    before = {path: path.read_bytes() for path in sorted((tmp_path / NAME).rglob("*")) if path.is_file()}
    message = error_of([*TINY, "--run_root", str(tmp_path)])
    assert str(tmp_path / NAME) in message and "--overwrite" in message
    after = {path: path.read_bytes() for path in sorted((tmp_path / NAME).rglob("*")) if path.is_file()}
    assert {path: content for path, content in after.items() if path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }


def test_overwrite_removes_what_a_run_wrote_and_keeps_foreign_files(anew, at_root, tmp_path):
    folder = tmp_path / NAME
    shutil.copytree(anew / NAME, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "tensorboard/notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots/a.pth").write_text("mine")
    old = {path.name for path in (folder / "tensorboard").glob("events*")}
    main.main([*TINY, "--epochs", "2", "--overwrite", "--run_root", str(tmp_path)])
    for name in ("notes.txt", "tensorboard/notes.txt", "plots/a.pth"):
        assert (folder / name).read_text() == "mine"
    assert len(rows_of(folder)[1]) == json_of(folder / "summary.json")["rounds"] == 2
    assert sum(line.startswith("finished") for line in (folder / "log.txt").read_text().splitlines()) == 1
    new = {path.name for path in (folder / "tensorboard").glob("events*")}
    assert len(new) == 1 and not new & old


def test_a_tag_names_another_folder(anew, at_root, tmp_path):
    shutil.copytree(anew / NAME, tmp_path / NAME)
    main.main([*TINY, "--epochs", "2", "--tag", "second", "--run_root", str(tmp_path)])
    assert (tmp_path / f"{NAME}-second/summary.json").exists()


def test_dry_run_shows_everything_and_writes_nothing(at_root, tmp_path, capsys):
    main.main(["--dry_run", "--run_root", str(tmp_path / "run"), "--bn", "7"])
    shown = capsys.readouterr().out
    steps = registry.distillation_preset(distillation_parser().resolve([], lambda _: {}))["kd_steps"]
    for part in ("bn=7.0", f"kd_steps={steps} ", "mode=anew", NAME, "resnet20", "parameters"):
        assert part in shown
    assert list(tmp_path.iterdir()) == []
    train_scratch.main(["--dry_run", "--run_root", str(tmp_path / "run"), "--output", str(tmp_path / "t.pth")])
    assert "model=resnet20" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


# Mistakes


def error_of(line, program=main):
    """The message of a command that must fail the way a user sees it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["program", *map(str, line)])
        stderr = io.StringIO()
        patch.setattr(sys, "stderr", stderr)
        entry.run_program(program.main)
    text = stderr.getvalue()
    assert left.value.code == 2
    assert text.startswith("error: ") and text.endswith("\n") and text.count("\n") == 1 and " — " in text, text
    return text


def truncated(folder):
    path = folder / "given/t.pth"
    path.write_bytes((ROOT / "checkpoints/pretrained/digits_resnet20.pth").read_bytes()[:100_000])
    return ["--teacher_path", path]


def of_class_count(folder):
    save_random_classifier(folder / "given/t.pth", "resnet20", 100)
    return ["--teacher_path", folder / "given/t.pth"]


def with_nan(folder):
    state = torch.load(ROOT / "checkpoints/pretrained/digits_resnet20.pth", weights_only=True)["state_dict"]
    state["fc.bias"][3] = float("nan")
    torch.save(state, folder / "given/t.pth")
    return ["--teacher_path", folder / "given/t.pth"]


def with_code(folder):
    torch.save(MODELS["resnet8"](10), folder / "given/t.pth")
    return ["--teacher_path", folder / "given/t.pth"]


def imagefolder(folder):
    (folder / "given/pets/train").mkdir(parents=True)
    return ["--dataset", f"imagefolder:{folder / 'given/pets'}", "--teacher_path", folder / "given/t.pth"]


def run_root_is_a_file(folder):
    (folder / "given/file").write_text("")
    return [*TINY, "--run_root", folder / "given/file"]


MISTAKES = {
    "unknown model": (["--teacher", "resnet21"], "resnet20"),
    "unknown student": (["--student", "wrn-16-1"], "wrn16_1"),
    "unknown data set": (["--dataset", "cifar"], "cifar10"),
    "unknown flag": (["--g_step", "3"], "--g_steps"),
    "out of range": (["--bn_mmt", "1.5"], "--bn_mmt"),
    "unknown device": (["--device", "tpu"], "tpu"),
    "absent GPU": (["--device", "cuda:99"], "cuda:99"),
    "no teacher": (["--teacher", "vgg8"], "checkpoints/pretrained/digits_vgg8.pth"),
    "folder for a teacher": (["--teacher_path", "checkpoints"], "not a file"),
    "truncated teacher": (truncated, "damaged"),
    "teacher of another architecture": (
        ["--teacher_path", "checkpoints/pretrained/digits_wrn16_1.pth"],
        "architecture",
    ),
    "teacher of another class count": (of_class_count, "100 classes"),
    "teacher with NaN": (with_nan, "fc.bias"),
    "teacher that is code": (with_code, "code"),
    "nothing to reuse": (["--mode", "reuse_common"], "--mode anew"),
    "half of what to reuse": (["--mode", "reuse_fix", "--reuse_decoder_path", "x.pth"], "--reuse_generator_path"),
    "reuse in anew": (["--reuse_decoder_path", "x.pth", "--reuse_generator_path", "y.pth"], "anew"),
    "only warm-up": (["--epochs", "3", "--warmup", "3"], "--warmup"),
    "size of a fixed data set": (["--img_size", "64"], "--img_size"),
    "incomplete image folder": (imagefolder, "pets"),
    "run root that is a file": (run_root_is_a_file, "cannot write"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_status_2_and_writes_nothing(what, at_root, tmp_path):
    flags, expected = MISTAKES[what]
    (tmp_path / "given").mkdir()
    flags = flags(tmp_path) if callable(flags) else flags
    assert expected in error_of(["--run_root", tmp_path / "run", *flags])
    assert not (tmp_path / "run").exists()


def test_reuse_files_of_another_noise_length_or_image_size_are_mistakes(anew, at_root, tmp_path):
    reuse = ["--mode", "reuse_common", "--run_root", tmp_path / "run", *reuse_flags(anew / NAME)]
    assert "nz 256, not 128" in error_of([*reuse, "--nz", "128"])
    save_random_classifier(tmp_path / "t.pth", "resnet20", 200)
    assert "img_size 32, not 64" in error_of(
        [*reuse, "--dataset", "tiny_imagenet", "--teacher_path", tmp_path / "t.pth"]
    )
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_by_its_name(at_root, tmp_path):
    assert "loss_kd" in error_of([*TINY, "--lr", "1e30", "--epochs", "5", "--run_root", tmp_path])


def test_the_scripts_themselves_end_with_one_line_and_status_2(tmp_path):
    commands = (["main.py", "--teachr", "resnet20"], ["train_scratch.py", "--model", "resnet21"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    started = [subprocess.Popen([sys.executable, ROOT / script, *flags], **pipes) for script, *flags in commands]
    for process in started:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 2 and stdout == ""
        assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Training on real data


def test_a_teacher_that_train_scratch_wrote_is_where_main_looks_for_it(elsewhere):
    train_scratch.main(words("--model resnet8 --epoch 1 --batch-size 128 --lr 0.05 --crop_padding 2"))
    path = elsewhere / "checkpoints/pretrained/digits_resnet8.pth"
    content = torch.load(path, weights_only=True)
    assert (content["arch"], content["dataset"], content["num_classes"]) == ("resnet8", "digits", 10)
    folder = elsewhere / "run/scratch-digits-resnet8"
    columns, rows = rows_of(folder)
    assert columns[:4] == ["epoch", "loss", "accuracy", "accuracy_train"] and len(rows) == 1
    assert json_of(folder / "summary.json")["accuracy_last"] == content["accuracy"] > 15  # learns: chance is 10 %
    main.main([*TINY, "--teacher", "resnet8"])
    summary = json_of(elsewhere / "run/anew-digits-resnet8-resnet8/summary.json")
    assert summary["accuracy_teacher"] == pytest.approx(content["accuracy"], abs=1.0)


def test_an_existing_teacher_is_not_overwritten_unless_told(elsewhere):
    path = elsewhere / "checkpoints/pretrained/digits_resnet8.pth"
    save_random_classifier(path, "resnet8", 10)
    before = path.read_bytes()
    assert str(path.relative_to(elsewhere)) in error_of(["--model", "resnet8", "--epochs", "1"], train_scratch)
    assert path.read_bytes() == before and not (elsewhere / "run").exists()


@pytest.mark.parametrize("name", ["resnet20", "wrn16_1"])
def test_the_committed_teachers_know_985_of_1000_held_out_digits(name):
    spec = DATASETS["digits"]
    teacher = MODELS[name](spec.num_classes)
    told = checkpoint.load_classifier(teacher, ROOT / f"checkpoints/pretrained/digits_{name}.pth")
    test = spec.load(ROOT / "data", False, False)
    accuracy = percentage_equal(*predict(FP32.place(teacher), test, Augmentation(spec, CPU), FP32))
    assert len(test) == 360 and accuracy >= 98.5
    assert told["arch"] == name and told["dataset"] == "digits"
