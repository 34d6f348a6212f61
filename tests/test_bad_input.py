"""Every mistake ends in one line and status 2, with a finished run in the very folder untouched, although told to
overwrite it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from programs import NAME, TINY, TINY_SCRATCH, error_of, finished, tree, without_privileges
from torch import nn

import main
import train_scratch
from datafree import checkpoint
from datafree.models.generator import Decoder, GenerativeNetwork
from registry import MODELS

TEACHER = ROOT / "checkpoints/pretrained/digits_resnet20.pth"
LONG_NAME, LONG_PATH = "n" * 300, "/".join(["name"] * 1500)


class Payload:
    """Unpickled, makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def teacher_state():
    return torch.load(TEACHER, weights_only=True)["state_dict"]


def teacher_files(folder):
    """Teachers that are none, by name."""
    whole = TEACHER.read_bytes()
    for length in (0, 1, 100, 10_000, len(whole) // 2, len(whole) - 1):
        (folder / f"cut{length if length < len(whole) - 1 else '-1'}.pth").write_bytes(whole[:length])
    for name, at in {"start": 0, "weights": len(whole) // 2, "directory": len(whole) - 30}.items():
        (folder / f"flipped-{name}.pth").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (folder / "picture.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    (folder / "élève \N{SNOWMAN}.pth").write_bytes(b"non-ASCII")
    (folder / "empty-folder.pth").mkdir()
    os.mkfifo(folder / "pipe.pth")
    changes = {
        "nan": lambda state: state["conv1.weight"][:1].fill_(float("nan")),
        "inf": lambda state: state["bn1.running_var"][:1].fill_(float("inf")),
        "huge": lambda state: state["fc.weight"].fill_(3e38),
        "complex": lambda state: state.update({"fc.bias": torch.zeros(10, dtype=torch.complex64)}),
        "sparse": lambda state: state.update({"fc.weight": state["fc.weight"].to_sparse()}),
        "missing": lambda state: state.pop("fc.bias"),
        "extra": lambda state: state.update({"more": torch.zeros(1)}),
        "shape": lambda state: state.update({"fc.bias": torch.zeros(11)}),
    }
    for name, change in changes.items():
        state = teacher_state()
        change(state)
        torch.save({"state_dict": state}, folder / f"{name}.pth")
    for arch, classes in (("resnet8", 10), ("resnet20", 100), ("vgg8", 3), ("resnet20", 3)):
        torch.save({"state_dict": MODELS[arch](classes).state_dict()}, folder / f"{arch}-{classes}.pth")
    others = {
        "code": Payload(folder / "executed"),
        "code-beside": {"state_dict": teacher_state(), "more": Payload(folder / "executed")},
        "module": MODELS["resnet8"](10),
        "list": [1, 2],
        "tensor": torch.zeros(3),
        "no-state": {"epoch": 3},
    }
    for name, content in others.items():
        torch.save(content, folder / f"{name}.pth")


def reuse_files(folder):
    """Parts to reuse, right and wrong."""
    network, decoder = GenerativeNetwork(16, 4, 32), Decoder()
    part = {"kind": "generative_network", "config": network.config, "state_dict": network.state_dict()}
    of_decoder = {"kind": "decoder", "config": {"img_size": 32}, "state_dict": decoder.state_dict()}
    nans = {key: value * float("nan") for key, value in decoder.state_dict().items()}
    contents = {
        "g2": part,
        "d": of_decoder,
        "g2-size": {**part, "config": {**network.config, "img_size": 64}},
        "g2-width": {**part, "config": {**network.config, "ngf": 8}},
        "g2-endless": {**part, "config": {**network.config, "ngf": 10**9}},
        "g2-bare": part["state_dict"],
        "d-nan": {**of_decoder, "state_dict": nans},
        "d-size": {**of_decoder, "config": {"img_size": 64}},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    (folder / "d-cut.pth").write_bytes((folder / "d.pth").read_bytes()[:5000])


def image_folders(folder):
    (folder / "empty").mkdir()
    (folder / "no-images/train/a").mkdir(parents=True)
    (folder / "no-classes/train").mkdir(parents=True)
    (folder / "a-file").write_text("")


def run_folders(folder, run):
    """Copies of a run, each with another config.json."""

    def copy(name, text=None, **changes):
        shutil.copytree(run, folder / name)
        config = json.loads((run / "config.json").read_text()) | changes
        (folder / name / "config.json").write_text(json.dumps(config) if text is None else text)
        (folder / name / "summary.json").unlink()

    copy("run-cut", '{"lr": 0.')
    copy("run-list", "[]")
    copy("run-deep", "[" * 100_000)
    copy("run-words", lr="fast")
    copy("run-negative", epochs=-3)
    copy("run-bool", hl="yes")
    copy("run-nested", nz=[16])
    copy("run-null", kd_steps=None)
    copy("run-scratch", program="train_scratch.py")
    copy("run-good")
    (folder / "run-empty").mkdir()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    finished([*TINY, "--run_root", root])
    return root / NAME


@pytest.fixture(scope="module")
def given(tmp_path_factory, finished_run):
    """Everything that a mistake may refer to: {given} in the table."""
    folder = tmp_path_factory.mktemp("given")
    teacher_files(folder)
    reuse_files(folder)
    image_folders(folder)
    run_folders(folder, finished_run)
    return folder


REUSE = "--mode reuse_common --reuse_generator_path {given}/%s --reuse_decoder_path {given}/%s"
PETS = "--dataset imagefolder:{given}/absent --num_classes 3 "

# Flags, and a word that the error has. --overwrite is added where the flags do not say how to meet an old run.
MAIN = [
    # spelling
    ("--teachr resnet20", "--teacher"),
    ("--kd 3", "unknown flag --kd"),
    ("--lr", "--lr: expected one"),
    ("--lr --hl", "--lr: expected one"),
    ("--hl=1", "--hl"),
    ("--adam_betas 0.5", "2 arguments"),
    ("--mean 0.5 0.5 0.5 0.5", "0.5"),
    ("digits", "'digits'"),
    ("-- --lr 1", "unknown flag"),
    ("---lr 1", "unknown flag"),
    ("-lr 1", "-lr"),
    ("--lr=", "--lr"),
    ("--élan 3", "--élan"),
    # values
    ("--lr fast", "'fast'"),
    ("--lr nan", "--lr"),
    ("--lr 1e999", "--lr"),
    ("--lr -0.1", "--lr"),
    ("--epochs 0", "--epochs"),
    ("--epochs 1.5", "--epochs"),
    ("--epochs " + "9" * 5000, "--epochs"),
    ("--seed -1", "--seed"),
    ("--seed 9223372036854775808", "--seed"),
    ("--adam_betas 0.5 1.5", "--adam_betas"),
    ("--pa 1.01", "--pa"),
    ("--mode anwe", "--mode"),
    ("--precision fp16", "--precision"),
    ("--tag a/b", "--tag"),
    ("--tag ..", "--tag"),
    ("--tag=", "--tag"),
    ("--tag a\nb", "--tag"),
    # names
    ("--teacher resnet21", "resnet20"),
    ("--student Resnet8", "resnet8"),
    ("--dataset cifar11", "cifar10"),
    ("--dataset=", "--dataset"),
    ("--dataset imagefolder:", "imagefolder:PATH"),
    ("--device banana", "banana"),
    ("--device cuda:99", "cuda:99"),
    ("--device cuda:-1", "cuda:-1"),
    ("--device meta", "meta"),
    ("--device=", "device"),
    # values that do not go together
    ("--img_size 64", "--img_size"),
    ("--warmup 3 --epochs 3", "--warmup"),
    ("--lr 0.1 --lr_min 0.2", "--lr_min"),
    ("--no_aea", "--hl"),
    ("--reuse_decoder_path x.pth --reuse_generator_path y.pth", "anew"),
    ("--mode reuse_fix --reuse_decoder_path x.pth", "--reuse_generator_path"),
    ("--resume --overwrite", "--overwrite"),
    # sizes that no machine holds
    ("--nz 2000000000", "--nz"),
    ("--ngf 65536 --nz 65536", "memory"),
    ("--epochs 2000000000", "the pool of"),
    ("--synthesis_batch_size 65536 --epochs 2000000", "the pool of"),
    ("--batch_size 2000000000", "--batch_size"),
    # teachers
    ("--teacher_path {given}/nothing.pth", "does not exist"),
    ("--teacher_path {given}/page.pth/teacher.pth", "does not exist"),
    ("--teacher_path {given}/données/élève.pth", "élève.pth does not exist"),
    ("--teacher_path " + LONG_NAME, "File name too long"),
    ("--teacher_path " + LONG_PATH, "File name too long"),
    ("--teacher_path {given}/empty-folder.pth", "not a file"),
    ("--teacher_path {given}/pipe.pth", "not a file"),
    ("--teacher_path /dev/zero", "not a file"),
    *((f"--teacher_path {{given}}/cut{length}.pth", "damaged") for length in (0, 1, 100, 10_000, -1)),
    *((f"--teacher_path {{given}}/flipped-{name}.pth", "damaged") for name in ("start", "weights", "directory")),
    ("--teacher_path {given}/page.pth", "not a checkpoint"),
    ("--teacher_path {given}/picture.pth", "not a checkpoint"),
    ("--teacher_path {given}/élève%20\N{SNOWMAN}.pth", "élève"),
    ("--teacher_path {given}/nan.pth", "conv1.weight"),
    ("--teacher_path {given}/inf.pth", "bn1.running_var"),
    ("--teacher_path {given}/huge.pth", "answers noise with NaN or infinite"),
    ("--teacher_path {given}/complex.pth", "no state_dict"),
    ("--teacher_path {given}/sparse.pth", "no state_dict"),
    ("--teacher_path {given}/missing.pth", "lacks fc.bias"),
    ("--teacher_path {given}/extra.pth", "it has more"),
    ("--teacher_path {given}/shape.pth", "fc.bias"),
    ("--teacher_path {given}/resnet8-10.pth", "another architecture"),
    ("--teacher_path {given}/resnet20-100.pth", "100 classes"),
    ("--teacher_path {given}/code.pth", "mkdir"),
    ("--teacher_path {given}/code-beside.pth", "mkdir"),
    ("--teacher_path {given}/module.pth", "CifarResNet, such as a network saved whole"),
    ("--teacher_path {given}/list.pth", "no state_dict"),
    ("--teacher_path {given}/tensor.pth", "no state_dict"),
    ("--teacher_path {given}/no-state.pth", "no state_dict"),
    # files to reuse
    ("--mode reuse_common --run_root {given}", "nothing to reuse"),
    ("--mode reuse_common --tag " + LONG_NAME, "File name too long"),
    (REUSE % ("nothing.pth", "d.pth") + " --nz 16", "does not exist"),
    (REUSE % ("g2.pth", "d.pth"), "nz 16, not 256"),
    (REUSE % ("g2-size.pth", "d.pth") + " --nz 16", "img_size 64, not 32"),
    (REUSE % ("g2-width.pth", "d.pth") + " --nz 16", "another architecture"),
    (REUSE % ("g2-endless.pth", "d.pth") + " --nz 16", "width"),
    (REUSE % ("g2-bare.pth", "d.pth") + " --nz 16", "no configuration"),
    (REUSE % ("d.pth", "g2.pth") + " --nz 16", "holds a decoder"),
    (REUSE % ("g2.pth", "d-nan.pth") + " --nz 16", "NaN"),
    (REUSE % ("g2.pth", "d-size.pth") + " --nz 16", "img_size 64, not 32"),
    (REUSE % ("g2.pth", "d-cut.pth") + " --nz 16", "damaged"),
    (REUSE % ("g2.pth", "code.pth") + " --nz 16", "mkdir"),
    # data
    ("--dataset imagefolder:{given}/absent", "--num_classes"),
    ("--dataset imagefolder:{given}/empty", "train/"),
    ("--dataset imagefolder:{given}/no-images", "no image"),
    ("--dataset imagefolder:{given}/no-classes", "no class folders"),
    ("--dataset imagefolder:{given}/a-file", "train/"),
    ("--dataset imagefolder:" + LONG_NAME, LONG_NAME),
    (PETS + "--img_size 30 --teacher_path {given}/resnet20-3.pth", "multiple of 4"),
    (PETS + "--img_size 4 --teacher vgg8 --teacher_path {given}/vgg8-3.pth", "4x4 pixels"),
    (PETS + "--img_size 4 --teacher_path {given}/resnet20-3.pth --batch_size 1", "4x4 pixels"),
    (PETS + "--img_size 4 --teacher_path {given}/resnet20-3.pth --hl", "4x4 pixels"),
    # run folders
    ("--run_root {given}/a-file", "cannot write"),
    ("--run_root " + LONG_NAME, "File name too long"),
    ("--tag " + LONG_NAME, "File name too long"),
    ("--resume {given}/nothing", "no run folder"),
    ("--resume {given}/a-file", "no run folder"),
    ("--resume {given}/run-empty", "no run folder"),
    ("--resume=", "no run folder"),
    ("--resume " + LONG_NAME, "no run folder"),
    ("--resume {given}/run-cut", "no readable config.json"),
    ("--resume {given}/run-deep", "no readable config.json"),
    ("--resume {given}/run-list", "not what a run writes"),
    ("--resume {given}/run-words", "--lr"),
    ("--resume {given}/run-negative", "--epochs"),
    ("--resume {given}/run-bool", "--hl"),
    ("--resume {given}/run-nested", "--nz"),
    ("--resume {given}/run-null", "--kd_steps"),
    ("--resume {given}/run-scratch", "a run of train_scratch.py"),
    ("--resume {given}/run-good --lr 0.5", "--lr was 0.1"),
    ("--resume {given}/run-good --hl", "--hl was False"),
]
SCRATCH = [
    ("--model resnet21", "resnet20"),
    ("--mdoel resnet20", "--model"),
    ("--teacher resnet20", "unknown flag --teacher"),
    ("--epochs 0", "--epochs"),
    ("--batch_size 0", "--batch_size"),
    ("--momentum 1", "--momentum"),
    ("--lr 0", "--lr"),
    ("--lr_decay_milestones", "--lr_decay_milestones"),
    ("--lr_decay_milestones 0 3", "--lr_decay_milestones"),
    ("--lr_decay_milestones 30 20 --epochs 40", "do not increase"),
    ("--lr_decay_milestones 20 20 --epochs 40", "do not increase"),
    ("--lr_decay_milestones 20 40 --epochs 40", "after 40"),
    ("--dataset cifra10", "cifar10"),
    ("--dataset imagenet --data_root {given}", "imagenet"),
    ("--dataset tiny_imagenet --data_root {given}/a-file", "tiny"),
    (PETS, "absent/train"),
    (PETS + "--img_size 4 --model vgg8", "4x4 pixels"),
    ("--dataset imagefolder:", "imagefolder:PATH"),
    ("--img_size 64", "--img_size"),
    ("--device cuda:99", "cuda:99"),
    ("--output {given}/empty", "is a folder"),
    ("--output {given}/a-file/t.pth", "no folder to write in"),
    ("--output {given}/g2.pth --tag new --resume", "g2.pth exists"),
    ("--output " + LONG_NAME, "File name too long"),
    ("--run_root {given}/a-file", "cannot write"),
    ("--tag a/b", "--tag"),
    ("--resume {given}/nothing", "no run folder"),
    ("--resume {given}/run-good", "a run of main.py"),
    ("--resume --overwrite", "exclude"),
]
SHORT = {
    main: ["--epochs", "2", "--warmup", "1", "--kd_steps", "1", "--g_steps", "1"],
    train_scratch: ["--epochs", "1"],
}
TABLE = [(program, *row) for program, rows in ((main, MAIN), (train_scratch, SCRATCH)) for row in rows]


def words_of(flags, given):
    """Split at spaces; %20 stands for one in a name."""
    return [word.replace("{given}", str(given)).replace("%20", " ") for word in flags.split(" ") if word]


@pytest.mark.parametrize(("program", "flags", "word"), TABLE, ids=[f"{row[0].__name__} {row[1][:60]}" for row in TABLE])
def test_a_mistake_is_one_line_with_status_2_and_leaves_everything_as_it_was(
    program, flags, word, given, finished_run, tmp_path, no_network
):
    run = tmp_path / "run" / (NAME if program is main else "scratch-digits-resnet20")
    shutil.copytree(finished_run, run)
    (run / ".lock").unlink()
    short = [] if "--resume" in flags else SHORT[program]  # should it begin after all
    line = [*short, *words_of(flags, given)]
    line += [] if "--run_root" in line else ["--run_root", tmp_path / "run"]
    line += [] if "--resume" in flags else ["--overwrite"]
    line += ["--output", tmp_path / "t.pth"] if program is train_scratch and "--output" not in flags else []
    before = tree(tmp_path), tree(given)
    assert word in error_of(line, program)
    assert (tree(tmp_path), tree(given)) == before
    assert not no_network or "cifar" in flags


def test_the_table_has_at_least_60_mistakes_of_main_and_some_of_train_scratch():
    assert len(MAIN) >= 60 and len(SCRATCH) >= 20 and len({row[:2] for row in TABLE}) == len(TABLE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", [main, train_scratch])
def test_a_gpu_that_is_not_there_is_a_mistake(program, tmp_path):
    for name in ("cuda", "cuda:0"):
        assert "0 GPUs found" in error_of(["--device", name, "--run_root", tmp_path], program)


@pytest.mark.parametrize("mode", [0o000, 0o200])
def test_an_unreadable_teacher_is_a_mistake(mode, tmp_path, given):
    (tmp_path / "t.pth").write_bytes(TEACHER.read_bytes())
    (tmp_path / "t.pth").chmod(mode)
    above = [folder for folder in tmp_path.parents if str(folder).startswith("/tmp/")] + [tmp_path]
    kept = {folder: folder.stat().st_mode for folder in above}
    for folder in above:
        folder.chmod(0o755)
    try:
        with without_privileges():
            message = error_of(["--teacher_path", tmp_path / "t.pth", "--run_root", tmp_path / "run"])
    finally:
        for folder, before in kept.items():
            folder.chmod(before)
    assert "cannot be read" in message and not (tmp_path / "run").exists()


def test_what_a_refused_file_wanted_to_run_did_not_run(given):
    for name in ("code.pth", "code-beside.pth"):
        error_of(["--teacher_path", given / name])
    assert not (given / "executed").exists()
    torch.load(given / "code.pth", weights_only=False)  # the payload is real
    assert (given / "executed").is_dir()
    (given / "executed").rmdir()


def test_a_network_that_older_code_saved_whole_is_called_what_it_is(given, tmp_path):
    message = error_of(["--teacher_path", given / "module.pth", "--run_root", tmp_path])
    for words in ("a network saved whole by older code", "CifarResNet", "state_dict()", "nothing in the file was run"):
        assert words in message


def test_tensors_saved_on_a_gpu_load_on_the_cpu(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        for name, zipped in (("new", True), ("old", False)):
            content = {"state_dict": teacher_state()}
            torch.save(content, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=zipped)
    for name in ("new", "old"):
        assert b"cuda:0" in (tmp_path / f"{name}.pth").read_bytes()
        teacher = MODELS["resnet20"](10)
        checkpoint.load_classifier(teacher, tmp_path / f"{name}.pth")
        assert teacher.fc.weight.device.type == "cpu" and torch.equal(teacher.fc.bias, teacher_state()["fc.bias"])


def test_a_module_without_weights_cannot_stand_in_for_a_teacher(tmp_path):
    torch.save({"state_dict": nn.Identity().state_dict()}, tmp_path / "t.pth")
    assert "no state_dict" in error_of(["--teacher_path", tmp_path / "t.pth", "--run_root", tmp_path / "run"])


def test_an_existing_run_without_a_flag_that_says_what_to_do_is_refused_and_not_even_locked(finished_run, tmp_path):
    for program, name, flags in (
        (main, NAME, TINY),
        (train_scratch, "scratch-digits-resnet8", [*TINY_SCRATCH, "--output", tmp_path / "t.pth"]),
    ):
        shutil.copytree(finished_run, tmp_path / name)
        (tmp_path / name / ".lock").unlink()
        before = tree(tmp_path)
        assert "is not empty" in error_of([*flags, "--run_root", tmp_path], program)
        assert tree(tmp_path) == before


def test_the_script_itself_says_no_more_than_one_line(given, tmp_path):
    line = [sys.executable, "main.py", "--run_root", tmp_path / "run", "--teacher_path", given / "huge.pth"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_path_that_is_no_text_and_a_terminal_that_is_full_are_no_reason_for_a_traceback(tmp_path):
    line = [sys.executable, "main.py", "--dry_run", "--run_root", bytes(tmp_path) + b"/\xff"]
    shown = subprocess.run(line, cwd=ROOT, env=os.environ | {"LC_ALL": "C"}, capture_output=True, timeout=120)
    assert shown.returncode == 0 and b"writes to" in shown.stdout and shown.stderr == b""
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
