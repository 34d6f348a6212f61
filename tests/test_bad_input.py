"""A mistake ends either program in one line with status 2, and leaves all as it was: even a finished run in the very
folder, although told to overwrite it. What the parts refuse by themselves is in the tests of the parts."""

import json
import shutil

import pytest
import torch
from programs import BEFORE, FOLDER, OF_RESNET8, QUICK, error_of, few_digits, finished, tree  # noqa: F401

import main
import train_scratch
from registry import MODELS

LONG_NAME = "n" * 300


def files_in(folder, run):
    """Everything that a mistake may refer to: {given} in the tables."""
    whole = (BEFORE / "digits_resnet8.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[:10_000])
    state = torch.load(BEFORE / "digits_resnet8.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {"fc.weight": torch.full_like(state["fc.weight"], 3e38)}}, folder / "huge.pth")
    for arch, classes in (("resnet8", 3), ("resnet8", 100), ("vgg8", 3)):
        torch.save(MODELS[arch](classes).state_dict(), folder / f"{arch}-{classes}.pth")
    torch.save(MODELS["vgg8"](10), folder / "module.pth")
    for name, file in (("g", "gan_reuse.pth"), ("d", "decoder.pth")):
        shutil.copy(BEFORE / file, folder / f"{name}.pth")
    (folder / "empty").mkdir()
    (folder / "no-classes/train").mkdir(parents=True)
    (folder / "a-file").write_text("")
    config = json.loads((run / "config.json").read_text())
    changes = {"words": {"lr": "fast"}, "scratch": {"program": "train_scratch.py"}, "good": {}}
    changes |= {"method": {"method": "gone.py:Gone"}}
    texts = {"cut": '{"lr": 0.', "list": "[]", "deep": "[" * 100_000}
    for name, text in (texts | {name: json.dumps(config | change) for name, change in changes.items()}).items():
        (folder / f"run-{name}").mkdir()
        (folder / f"run-{name}" / "config.json").write_text(text)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    finished([*QUICK, "--run_root", root / "run"])
    shutil.copytree(root / "run" / FOLDER, root / "run/scratch-digits-resnet20")
    files_in(root, root / "run" / FOLDER)
    return root


REUSE = "--mode reuse_common --nz 16 --reuse_generator_path {given}/%s.pth --reuse_decoder_path {given}/%s.pth"
PETS = "--dataset imagefolder:{given}/absent --num_classes 3 "

# Flags, and words that the error has. --overwrite is added where the flags do not say how to meet an old run.
MAIN = [
    # names
    ("--teachr resnet20", "did you mean --teacher"),
    ("--teacher resnet21", "resnet20"),
    ("--dataset cifar11", "cifar10"),
    ("--device banana", "unknown device 'banana'"),
    ("--device cuda:99", "GPUs found"),
    ("--device meta", "'meta' is not supported"),
    # values that do not go together
    ("--img_size 64", "--img_size is fixed for digits"),
    ("--warmup 3 --epochs 3", "lower --warmup"),
    ("--lr 0.1 --lr_min 0.2", "--lr_min"),
    ("--optimizer adam --momentum 0.5", "--momentum has no effect with --optimizer adam — leave it out, or choose"),
    ("--lr_steps 0.5 --lr_min 0", "--lr_min has no effect with --lr_steps 0.5 — leave it out"),
    ("--kd_loss l1 --T 4", "or choose --kd_loss kl"),
    ("--finetune_factor 0.2", "or choose --mode reuse_finetune"),
    ("--method nayer --embedding_size 8", "or choose --embedding random"),
    ("--no_aea", "add --hl"),
    ("--pa 0.1", "add --hl (without --no_aea)"),
    ("--compile --no_compile", "contradict"),
    ("--resume --overwrite", "exclude each other"),
    ("--reuse_decoder_path x.pth --reuse_generator_path y.pth", "mode anew reuses nothing"),
    ("--mode reuse_fix --reuse_decoder_path x.pth", "--reuse_generator_path"),
    # sizes that no machine holds
    ("--ngf 65536 --nz 65536", "out of memory"),
    ("--epochs 2000000000", "the pool of"),
    # teachers
    ("--teacher_path checkpoints", "is not a file"),
    ("--teacher_path {given}/cut.pth", "damaged"),
    ("--teacher_path {given}/huge.pth", "huge.pth answers noise with NaN or infinite"),
    ("--teacher_path {given}/resnet8-100.pth", "100 classes"),
    ("--teacher resnet20 --teacher_path {given}/resnet8-3.pth", "another architecture"),
    ("--teacher_path {given}/module.pth", "another architecture"),
    ("--teacher_path {given}/resnet8-100.pth --teacher_weights ema", "no weights under 'ema'"),
    # files to reuse
    ("--mode reuse_common --tag other", "nothing to reuse in"),
    (REUSE % ("g", "cut"), "damaged"),
    # data
    ("--dataset imagefolder:{given}/absent", "give --num_classes"),
    ("--dataset imagefolder:{given}/empty", "neither train/ nor val/"),
    ("--dataset imagefolder:{given}/no-classes", "no class folders"),
    (PETS + "--img_size 8 8 8 --teacher_path {given}/resnet8-3.pth", "1 or 2 are wanted"),
    (PETS + "--mean 0.1 0.2 --teacher_path {given}/resnet8-3.pth", "1 or 3 are wanted"),
    ("--teacher_channels 2", "neither 1 nor 3"),
    (PETS + "--img_size 4 --teacher vgg8 --teacher_path {given}/vgg8-3.pth", "4x4 pixels"),
    (
        PETS + "--img_size 4 --teacher_path {given}/resnet8-3.pth --batch_size 1",
        "batches of 1 colour images of 4x4 pixels",
    ),
    # run folders
    ("--run_root {given}/a-file", "cannot write"),
    ("--run_root " + LONG_NAME, "File name too long"),
    ("--resume {given}/nothing", "no run folder"),
    ("--resume=", "no run folder"),
    ("--resume {given}/run-cut", "no readable config.json"),
    ("--resume {given}/run-deep", "no readable config.json"),
    ("--resume {given}/run-list", "not what a run writes"),
    ("--resume {given}/run-words", "run-words/config.json: --lr cannot be 'fast'"),
    ("--resume {given}/run-method", "gone.py does not exist"),
    ("--resume {given}/run-scratch", "a run of train_scratch.py"),
]
SCRATCH = [
    ("--model resnet21", "resnet20"),
    ("--optimizer adamw --momentum 0.5", "has no effect with --optimizer adamw"),
    ("--lr_decay_milestones", "--lr_decay_milestones: expected at least one"),
    ("--dataset cifra10", "cifar10"),
    (PETS, "absent/train"),
    (PETS + "--img_size 4 --model vgg8", "4x4 pixels"),
    ("--img_size 64", "--img_size"),
    ("--output {given}/empty", "is a folder"),
    ("--output {given}/a-file/t.pth", "no folder to write in"),
    ("--output {given}/g.pth --tag new --resume", "g.pth exists"),
    ("--output " + LONG_NAME, "File name too long"),
    ("--resume {given}/run-good", "a run of main.py"),
]
TABLE = [(program, *row) for program, rows in ((main, MAIN), (train_scratch, SCRATCH)) for row in rows]
SHORT = {  # should it begin after all
    main: ["--epochs", "2", "--warmup", "1", "--kd_steps", "1", "--g_steps", "1", *OF_RESNET8],
    train_scratch: ["--epochs", "1"],
}


@pytest.mark.parametrize(
    ("program", "flags", "words"), TABLE, ids=[f"{row[0].__name__} {row[1][:60]}" for row in TABLE]
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_everything_as_it_was(program, flags, words, given, no_network):
    line = [*([] if "--resume " in flags else SHORT[program]), *flags.replace("{given}", str(given)).split()]
    line += [] if "--run_root" in line else ["--run_root", given / "run"]
    line += [] if "--resume" in flags else ["--overwrite"]
    line += ["--output", given / "t.pth"] if program is train_scratch and "--output" not in flags else []
    before = tree(given)
    assert words in error_of(line, program)
    assert tree(given) == before and not no_network


def test_an_existing_run_without_a_flag_that_says_what_to_do_is_refused_and_not_even_locked(given):
    scratch = ["--output", given / "t.pth", "--epochs", "1"]
    for lock in given.glob("run/*/.lock"):
        lock.unlink()
    before = tree(given)
    for program, flags in ((main, QUICK), (train_scratch, scratch)):
        message = error_of([*flags, "--run_root", given / "run"], program)
        assert "is not empty" in message and "--resume" in message and "--overwrite" in message
    assert tree(given) == before
