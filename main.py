"""Distil a student from a teacher without data, and leave a generator that makes the next task cheaper.

    python main.py --mode anew                 digits, resnet20 -> resnet8
    python main.py --mode reuse_common         the same task again, from what the first run left

Each round makes a batch of images (datafree/synthesis/), adds it to the pool (datafree/data/pool.py), distils on the
pool (datafree/distillation.py) and evaluates the student (datafree/evaluation.py).
"""

import math
from argparse import Namespace
from dataclasses import dataclass

from torch import nn

import registry
from datafree import checkpoint, device, reuse
from datafree.arguments import plain_values
from datafree.data.augment import Augmentation, to_levels
from datafree.data.datasets import DatasetSpec, Images, TensorImages, test_images
from datafree.data.pool import ImagePool
from datafree.device import Compute
from datafree.distillation import Distillation, DistillationSettings
from datafree.entry import run_program
from datafree.errors import UserError
from datafree.evaluation import Evaluation, Score
from datafree.flags import distillation_parser
from datafree.modes import MODES
from datafree.progress import Stopwatch, round_line
from datafree.randomness import Streams, initialising
from datafree.run_folder import RunFolder, environment, folder_name
from datafree.synthesis.reusable_generator import ReusableGeneratorSynthesis, SynthesisSettings

METRICS = [
    *("round", "loss_bn", "loss_oh", "loss_adv", "loss_generator", "loss_kd", "accuracy", "agreement", "lr"),
    *("seconds_synthesis", "seconds_distillation", "seconds_evaluation"),
]
FRESH_IMAGES = 512  # judge agreement where there is no test set; chosen by us


@dataclass
class Task:
    """Everything that a run works with."""

    spec: DatasetSpec
    compute: Compute
    streams: Streams
    teacher: nn.Module
    student: nn.Module
    synthesis: ReusableGeneratorSynthesis
    distillation: Distillation
    pool: ImagePool
    rounds: int


def main(argv: list[str]) -> None:
    parser = distillation_parser()
    args = parser.resolve(argv, registry.distillation_preset)
    spec = registry.dataset_spec(args)
    complete(args)
    compute = device.choose(args.device, args.precision)
    path = args.run_root / folder_name(args.mode, spec.name, args.teacher, args.student, args.tag)
    task = build(args, spec, compute)
    report = [*parser.grouped(args), f"runs on: {compute}", sizes(task), f"writes to: {path}"]
    if args.dry_run:
        print("\n".join(report))
        return
    images, remark = test_images(spec, args.data_root, args.download)
    with RunFolder(path, args.overwrite, METRICS) as folder:
        folder.save_json("config.json", {**plain_values(args), "environment": environment(str(compute))})
        for line in [*report, *remark]:
            folder.log(line)
        summary = distil(args, task, folder, images)
        summary |= leave_for_the_next_task(args, task, folder)
        folder.finish(summary, task.compute.device)


def complete(args: Namespace) -> None:
    """Fills in what depends on other values, and checks what depends on two of them."""
    mode = MODES[args.mode]
    if args.teacher_path is None:
        args.teacher_path = registry.pretrained_path(args.dataset, args.teacher)
    args.ep_steps = args.ep_steps or args.kd_steps
    paths = (args.reuse_generator_path, args.reuse_decoder_path)
    if not mode.reuse and any(paths):
        raise UserError(f"mode {args.mode} reuses nothing", "choose a reuse mode, or leave the reuse paths out")
    if mode.reuse and not any(paths):
        left_by = args.run_root / folder_name("anew", args.dataset, args.teacher, args.student, args.tag)
        args.reuse_generator_path, args.reuse_decoder_path = reuse.files_in(left_by)
    elif mode.reuse and not all(paths):
        raise UserError("a reuse path is missing", "give --reuse_generator_path and --reuse_decoder_path")
    if args.warmup >= rounds_of(args):
        raise UserError(
            f"{args.warmup} rounds of warm-up leave none of {rounds_of(args)} to distil in",
            "lower --warmup or raise --epochs",
        )


def rounds_of(args: Namespace) -> int:
    """Synthesis rounds in a run: one before every kd_steps of the run's distillation steps; the last may be short."""
    return math.ceil(args.epochs * args.ep_steps / args.kd_steps)


def build(args: Namespace, spec: DatasetSpec, compute: Compute) -> Task:
    """Networks, pool and the two halves of a round. Raises UserError for whatever does not fit together."""
    streams = Streams(args.seed, compute.device)
    teacher = registry.MODELS[args.teacher](spec.num_classes)
    checkpoint.load_classifier(teacher, args.teacher_path)
    teacher = compute.place(teacher).eval().requires_grad_(False)
    with initialising(args.seed, "student"):
        student = compute.place(registry.MODELS[args.student](spec.num_classes))
    paths = (args.reuse_generator_path, args.reuse_decoder_path)
    generator = compute.place(reuse.build_generator(args.seed, args.nz, args.ngf, spec.img_size, *paths))

    augmentation = Augmentation(spec, compute.device, args.crop_padding)
    part_rates = MODES[args.mode].part_rates(args.finetune_factor)
    rounds = rounds_of(args)
    steps = args.epochs * args.ep_steps - args.warmup * args.kd_steps
    shared = (augmentation, compute, streams)
    return Task(
        spec,
        compute,
        streams,
        teacher,
        student,
        ReusableGeneratorSynthesis(
            generator, teacher, student, SynthesisSettings.of(args, spec.num_classes), part_rates, *shared
        ),
        Distillation(teacher, student, DistillationSettings.of(args, steps), *shared),
        ImagePool(rounds * args.synthesis_batch_size, spec.img_size, compute.device),
        rounds,
    )


def sizes(task: Task) -> str:
    """One line on how large things are."""
    generator = task.synthesis.generator
    named = {"teacher": task.teacher, "student": task.student, "g1": generator.g1, "g2": generator.g2, "d": generator.d}
    counts = [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in named.items()]
    pool = task.pool.images.numel() / 2**20
    return f"parameters: {', '.join(counts)}; rounds: {task.rounds}; pool: {pool:.0f} MiB when full"


def distil(args: Namespace, task: Task, folder: RunFolder, images: Images | None) -> dict:
    """The rounds. Returns what they add to the summary."""
    evaluation = Evaluation(task.teacher, images, task.synthesis.augmentation, task.compute)
    generator_loss, score, best = [], Score(None, None), Score(None, None)
    seconds_synthesis = 0.0
    left = args.epochs * args.ep_steps - args.warmup * args.kd_steps
    for number in folder.rounds(task.rounds):
        warming_up, last = number <= args.warmup, number == task.rounds
        row, clock = {"round": number, "lr": task.distillation.lr}, Stopwatch(task.compute.device)
        made = task.synthesis.synthesize(adversarial=not warming_up)
        task.pool.add(made.images)
        generator_loss += made.generator_loss
        row |= made.terms | {"seconds_synthesis": clock.lap()}
        if not warming_up:
            row |= task.distillation.run(task.pool, min(args.kd_steps, left))
            left -= args.kd_steps
        row |= {"seconds_distillation": clock.lap()}
        if not warming_up and (last or number % args.eval_every == 0):
            fresh = None if images is not None else synthetic_set(task)
            score = evaluation.score(task.student, fresh)
            row |= {"accuracy": score.accuracy, "agreement": score.agreement}
            save_student(args, task, folder, score, number, is_best=score.beats(best))
            best = score if score.beats(best) else best
        row |= {"seconds_evaluation": clock.lap()}
        seconds_synthesis += row["seconds_synthesis"]
        folder.record(row, round_line(row, task.rounds))
        if last or number % max(1, task.rounds // 20) == 0:
            folder.show_images(number, made.images)
    folder.save_array("generator_loss.npy", generator_loss)
    return {
        "accuracy_last": score.accuracy,
        "accuracy_best": best.accuracy,
        "accuracy_teacher": evaluation.accuracy_teacher,
        "agreement": score.agreement,
        "rounds": task.rounds,
        "seconds_synthesis": seconds_synthesis,
        "images": len(task.pool),
    }


def synthetic_set(task: Task) -> TensorImages:
    """Images that the student has not been trained on: fresh noise through the generator as it is."""
    x = task.synthesis.sample(FRESH_IMAGES, "evaluation")
    return TensorImages(to_levels(x), x.new_zeros(len(x)).long())


def save_student(args: Namespace, task: Task, folder: RunFolder, score: Score, number: int, is_best: bool) -> None:
    """student_last.pth and, where the student is the best so far, best.pth."""
    content = {
        "state_dict": task.student.state_dict(),
        "arch": args.student,
        "dataset": task.spec.name,
        "num_classes": task.spec.num_classes,
        "accuracy": score.accuracy,
        "agreement": score.agreement,
        "round": number,
    }
    for name in ["student_last.pth", *(["best.pth"] if is_best else [])]:
        folder.save(name, content)


def leave_for_the_next_task(args: Namespace, task: Task, folder: RunFolder) -> dict:
    """Chooses between g1 and g2 and writes the three parts. Returns what that adds to the summary."""
    generator = task.synthesis.generator
    scores = reuse.score_networks(
        generator, task.teacher, task.synthesis.augmentation, task.compute, task.streams, args.bn, args.oh,
        args.synthesis_batch_size,
    )  # fmt: skip
    kept = min(scores, key=scores.get) if args.reuse_pick == "score" else args.reuse_pick
    origin = {key: getattr(args, key) for key in ("mode", "dataset", "teacher", "student", "tag", "seed")}
    reuse.save_parts(generator, kept, folder.path, origin)
    folder.log(f"inversion loss alone: g1 {scores['g1']:.4g}, g2 {scores['g2']:.4g}; the next task gets {kept} and d")
    return {"score_g1": scores["g1"], "score_g2": scores["g2"], "reused_network": kept}


if __name__ == "__main__":
    run_program(main)
