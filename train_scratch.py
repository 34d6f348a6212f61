"""Train a classifier on real data: a teacher, or the student's upper bound.

    python train_scratch.py --model resnet34 --dataset cifar10 --batch-size 256 --lr 0.1 --epoch 200

SGD with Nesterov momentum; cosine to 0, or steps at --lr_decay_milestones. The checkpoint goes to
checkpoints/pretrained/<dataset>_<model>.pth, where main.py looks for a teacher.
"""

import registry
from datafree import checkpoint, device
from datafree.arguments import plain_values
from datafree.data.augment import Augmentation
from datafree.data.datasets import TensorImages
from datafree.entry import run_program
from datafree.errors import UserError
from datafree.evaluation import percentage_equal, predict
from datafree.flags import training_parser
from datafree.progress import Stopwatch, round_line
from datafree.randomness import Streams, initialising
from datafree.run_folder import RunFolder, environment, folder_name
from datafree.training import Training, TrainingSettings

METRICS = ["epoch", "loss", "accuracy", "accuracy_train", "lr", "seconds_training", "seconds_evaluation"]


def main(argv: list[str]) -> None:
    parser = training_parser()
    args = parser.resolve(argv, registry.training_preset)
    spec = registry.dataset_spec(args)
    compute = device.choose(args.device, args.precision)
    args.output = args.output or registry.pretrained_path(args.dataset, args.model)
    path = args.run_root / folder_name("scratch", spec.name, args.model, args.tag)
    with initialising(args.seed, "student"):
        model = compute.place(registry.MODELS[args.model](spec.num_classes))
    report = [*parser.grouped(args), f"runs on: {compute}", f"writes to: {path}, {args.output}"]
    if args.dry_run:
        print("\n".join(report))
        return
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists", "give --overwrite to replace it, or --output for another place")
    train, test = (spec.load(args.data_root, split, True) for split in (True, False))
    if isinstance(train, TensorImages):
        train, test = train.to(compute.device), test.to(compute.device)
    padding = 0 if train.crops else args.crop_padding
    augmentation = Augmentation(spec, compute.device, padding)
    training = Training(
        model, train, TrainingSettings.of(args), augmentation, compute, Streams(args.seed, compute.device)
    )
    with RunFolder(path, args.overwrite, METRICS) as folder:
        folder.save_json("config.json", {**plain_values(args), "environment": environment(str(compute))})
        for line in report:
            folder.log(line)
        accuracy = best = 0.0
        for epoch in folder.rounds(args.epochs):
            clock = Stopwatch(compute.device)
            row = {"epoch": epoch} | training.epoch() | {"seconds_training": clock.lap()}
            if epoch % args.eval_every == 0 or epoch == args.epochs:
                accuracy = percentage_equal(*predict(model, test, augmentation, compute))
                best = max(best, accuracy)
                row["accuracy"] = accuracy
            row |= {"seconds_evaluation": clock.lap()}
            folder.record(row, round_line(row, args.epochs))
        content = {"state_dict": model.state_dict(), "arch": args.model, "dataset": spec.name}
        content |= {"num_classes": spec.num_classes, "accuracy": accuracy, "epochs": args.epochs, "seed": args.seed}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(content, args.output)
        folder.save("student_last.pth", content)
        folder.finish({"accuracy_last": accuracy, "accuracy_best": best, "epochs": args.epochs}, compute.device)


if __name__ == "__main__":
    run_program(main)
