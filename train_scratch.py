"""Train a classifier on real data: a teacher, or the student's upper bound.

    python train_scratch.py --model resnet34 --dataset cifar10 --batch-size 256 --lr 0.1 --epoch 200

SGD with Nesterov momentum; cosine to 0, or steps at --lr_decay_milestones. The checkpoint goes to
checkpoints/pretrained/<dataset>_<model>.pth, where main.py looks for a teacher.
"""

import os
import shlex
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

from torch import nn

import registry
from datafree import checkpoint, device, probe, resume
from datafree.arguments import plain_values
from datafree.data.augment import Augmentation
from datafree.data.datasets import DatasetSpec, Images, TensorImages
from datafree.device import Compute
from datafree.entry import run_program
from datafree.errors import UserError, check_weights_finite, not_finite_in
from datafree.evaluation import Score, percentage_equal, predict
from datafree.flags import training_parser
from datafree.progress import Progress, round_line
from datafree.randomness import Streams, initialising
from datafree.readings import Stopwatch
from datafree.run_folder import RunFolder, environment, folder_name
from datafree.snapshot import Snapshot
from datafree.stopping import Stopped, StopRequests
from datafree.training import Training, TrainingSettings

METRICS = ["epoch", "loss", "accuracy", "accuracy_train", "lr", "seconds_training", "seconds_evaluation"]


def main(argv: list[str]) -> None:
    parser = training_parser()
    args = resume.resolve(parser, argv, registry.training_preset)
    spec = registry.dataset_spec(args)
    compute = device.choose(args.device, args.precision)
    args.precision = compute.precision  # a resumption must not choose another
    complete(args)
    path = resume.run_path(args, folder_name("scratch", spec.name, args.model, args.tag))
    with initialising(args.seed, "student"):
        model = compute.place(registry.MODELS[args.model](spec.num_classes))
    augmentation = Augmentation(spec, compute.device, args.crop_padding)
    probe.check_answers(model, f"model {args.model}", spec.img_size, augmentation, compute, args.batch_size)
    report = [*parser.grouped(args), f"runs on: {compute}", f"writes to: {path}, {args.output}"]
    if args.dry_run:
        print("\n".join(report))
        return
    check_output(args, path)
    train, test = load(args, spec, compute)
    with RunFolder(path, METRICS, args.overwrite, bool(args.resume)) as folder, StopRequests() as stop:
        if folder.complete():
            return
        config = {
            "program": parser.prog,
            **plain_values(args),
            "environment": environment(f"{compute.device}, {compute.precision}"),
        }
        folder.save_config(config)
        for line in report:
            folder.log(line)
        augmentation = Augmentation(spec, compute.device, 0 if train.crops else args.crop_padding)
        progress = fit(args, model, augmentation, compute, train, test, folder, stop)
        content = {"state_dict": model.state_dict(), "arch": args.model, "dataset": spec.name}
        content |= {"num_classes": spec.num_classes, "accuracy": progress.score.accuracy}
        content |= {"epochs": args.epochs, "seed": args.seed}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_unfinished(args.output.parent, [args.output.name])
        for place in (args.output, folder.path / "student_last.pth"):
            checkpoint.save(content, place)
        accuracies = {"accuracy_last": progress.score.accuracy, "accuracy_best": progress.best.accuracy}
        folder.finish(accuracies | {"epochs": args.epochs}, compute.device)


def complete(args: Namespace) -> None:
    """Fills in what depends on other values, and checks what depends on two of them."""
    args.output = args.output or registry.pretrained_path(args.dataset, args.model)
    milestones = args.lr_decay_milestones or []
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise UserError(f"--lr_decay_milestones {milestones} do not increase", "name each epoch once, in order")
    if milestones and milestones[-1] >= args.epochs:
        raise UserError(
            f"--lr_decay_milestones: none of {args.epochs} epochs is after {milestones[-1]}",
            "leave it out or raise --epochs",
        )


def check_output(args: Namespace, run: Path) -> None:
    """Raises UserError where the checkpoint could not be put, or where another one is, before hours of training."""
    checkpoint.check_writable(args.output)
    began = args.resume and os.path.exists(run / "config.json")  # and looked then
    if args.output.exists() and not (args.overwrite or began):
        raise UserError(f"{args.output} exists", "give --overwrite to replace it, or --output for another place")


def load(args: Namespace, spec: DatasetSpec, compute: Compute) -> tuple[Images, Images]:
    """Training and test images, downloaded where they are absent; small sets on the device."""
    train, test = (spec.load(args.data_root, split, True) for split in (True, False))
    if isinstance(train, TensorImages):
        train, test = train.to(compute.device), test.to(compute.device)
    return train, test


def fit(
    args: Namespace,
    model: nn.Module,
    augmentation: Augmentation,
    compute: Compute,
    train: Images,
    test: Images,
    folder: RunFolder,
    stop: StopRequests,
) -> Progress:
    """The epochs, each saved before the next begins. Returns where they end."""
    streams = Streams(args.seed, compute.device)
    training = Training(model, train, TrainingSettings.of(args), augmentation, compute, streams)
    snapshot = Snapshot(folder.path, {"training": training, "streams": streams})
    progress = Progress.restored(snapshot.load() if args.resume else None)
    folder.start(progress.metrics_bytes, progress.round, progress.seconds_total)
    for epoch in folder.rounds(args.epochs, progress.round):
        clock = Stopwatch(compute.device)
        with not_finite_in(f"epoch {epoch}"):
            row = {"epoch": epoch} | training.epoch()
            clock.lap("seconds_training")
            check_weights_finite({"model": model}, len(train) // args.batch_size or 1)
        if epoch % args.eval_every == 0 or epoch == args.epochs:
            score = Score(percentage_equal(*predict(model, test, augmentation, compute)), None)
            progress.score, progress.best = score, score if score.beats(progress.best) else progress.best
            row["accuracy"] = score.accuracy
        clock.lap("seconds_evaluation")
        row |= clock.seconds()
        folder.record(row, round_line(row, "epoch", args.epochs))
        progress.round, progress.metrics_bytes = epoch, folder.metrics_bytes()
        progress.seconds_total = folder.seconds()
        snapshot.save(progress.state())
        if stop.received:
            command = f"python train_scratch.py --resume {shlex.quote(str(folder.path))}"
            raise Stopped(stop.received, f"stopped after epoch {epoch}; go on: {command}")
    return progress


if __name__ == "__main__":
    run_program(main)
