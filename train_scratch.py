"""Train a classifier on real data: a teacher, or the student's upper bound.

    python train_scratch.py --model resnet34 --dataset cifar10 --batch-size 256 --lr 0.1 --epoch 200

SGD with Nesterov momentum or AdamW; cosine to 0, or steps at --lr_decay_milestones. The checkpoint goes to
checkpoints/pretrained/<dataset>_<model>.pth, where main.py looks for a teacher.
"""

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import registry
from datafree import files, processes
from datafree.cli import resume
from datafree.cli.flags import (
    NETWORKS,
    Channels,
    DataConfig,
    MachineConfig,
    Sizes,
    channels_knob,
    mean_knob,
    size_knob,
    std_knob,
)
from datafree.cli.parser import Parser
from datafree.cli.program import keep_what_is_built, run_program
from datafree.configuration import knob
from datafree.data.augmentation import Augmentation
from datafree.data.specs import DatasetSpec, Images, TensorImages, test_images
from datafree.engine import device
from datafree.engine.device import Compute
from datafree.engine.evaluation import Score, part_of, percentage_equal, predict
from datafree.engine.probe import fitted
from datafree.engine.randomness import Streams, initialising
from datafree.engine.training import Training
from datafree.errors import UserError, check_weights_finite
from datafree.models.classifier import Classifier
from datafree.models.names import given_format
from datafree.runs.folder import folder_name
from datafree.runs.run import Run, opened


@dataclass(frozen=True)
class TaskConfig(DataConfig):
    """What is trained."""

    model: str = knob("resnet20", NETWORKS, unit="MODEL")
    model_img_size: Sizes = size_knob("model")
    model_channels: int | None = channels_knob("model")
    model_mean: Channels = mean_knob("model")
    model_std: Channels = std_knob("model")
    output: Path | None = knob(
        None, "where the checkpoint goes (default: checkpoints/pretrained/<dataset>_<model>.pth)", unit="FILE"
    )


CONFIGS = {"task": TaskConfig, "training": Training.Config, "machine": MachineConfig}


def main(argv: list[str]) -> None:
    processes.join()
    parser = Parser("train_scratch.py", "Train a teacher, or a student's upper bound, on real data.", CONFIGS)
    values = resume.arguments(parser, argv, registry.training_preset)
    parser.check(values, argv)
    values.output = values.output or registry.pretrained_path(values.dataset, values.model)
    spec, compute = registry.dataset_spec(values), device.choose(values.device, values.precision)
    values.precision = compute.precision  # a resumption must not choose another
    path = resume.run_path(parser, values, folder_name("scratch", spec.name, values.model, values.tag))
    with initialising(values.seed, "student"):
        model = registry.classifier(values.model, spec, given_format(values, "model"), download=True)
    remarks = fitted(model, f"model {values.model}", spec.shape, compute, values.batch_size)
    report = [*parser.grouped(values), *compute.about(), f"writes to: {path}, {values.output}", *remarks]
    if values.dry_run:
        if processes.first():
            print("\n".join(report))
        return
    check_output(values, path)
    train, test, remarks = load(values, spec, compute)
    report += remarks
    streams = Streams(values.seed, compute.device)
    augmentation = Augmentation(0 if train.crops else values.crop_padding, spec.flip)
    training = Training(model, train, Training.Config.of(values).share(), augmentation, compute, streams)
    parts = {"training": training, "streams": streams}
    keep_what_is_built()
    with opened(path, values, parser.config(values), report, parts, compute) as run:
        if run is not None:
            processes.check_same((len(train), test is None), "training or test sets")
            fit(values, training, test, run)
            leave(values, spec, model, run)


def check_output(values: Namespace, run: Path) -> None:
    """Raises UserError where the checkpoint could not be put, or where another one is, before hours of training."""
    files.check_writable(values.output)
    began = values.resume and os.path.exists(run / "config.json")  # and looked then
    if values.output.exists() and not (values.overwrite or began):
        raise UserError(f"{values.output} exists", "give --overwrite to replace it, or --output for another place")


def load(values: Namespace, spec: DatasetSpec, compute: Compute) -> tuple[Images, Images | None, list[str]]:
    """Training images, test images where there are any, and lines about both; small sets on the device.

    What is absent is downloaded where it can be.
    """
    train, (test, remarks) = spec.load(values.data_root, True, True), test_images(spec, values.data_root, True)
    test = None if test is None else part_of(test)
    placed = (images.to(compute.device) if isinstance(images, TensorImages) else images for images in (train, test))
    return *placed, [*getattr(train, "remarks", ()), *remarks]


def fit(values: Namespace, training: Training, test: Images | None, run: Run) -> None:
    """The epochs."""
    steps = len(training.images) // values.batch_size or 1
    for epoch in run.epochs():
        with run.checked(epoch):
            row = training.epoch()
            run.lap("training")
            check_weights_finite({"model": training.classifier}, steps)
        if test is not None and (epoch % values.eval_every == 0 or epoch == values.epochs):
            score = Score(percentage_equal(*predict(training.classifier, test, run.compute)), None)
            run.progress.score, run.progress.best = (
                score,
                score if score.beats(run.progress.best) else run.progress.best,
            )
            row["accuracy"] = score.accuracy
        run.lap("evaluation")
        run.record(epoch, row)
        run.save()


def leave(values: Namespace, spec: DatasetSpec, model: Classifier, run: Run) -> None:
    """The trained network, where main.py looks for it and in the run folder; the summary."""
    content = {"state_dict": model.state_dict(), "arch": values.model, "dataset": spec.name}
    content |= spec.classes | {"accuracy": run.progress.score.accuracy}
    content |= {"input_format": model.input_format}
    content |= {"epochs": values.epochs, "seed": values.seed}
    if processes.first():
        values.output.parent.mkdir(parents=True, exist_ok=True)
        files.remove_unfinished(values.output.parent, [values.output.name])
        files.save(content, values.output)
    run.folder.save("student_last.pth", content)
    run.finish({})


if __name__ == "__main__":
    run_program(main)
