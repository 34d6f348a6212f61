"""Distil a student from a teacher without data, and leave a generator that makes the next task cheaper.

    python main.py --mode anew                 digits, resnet20 -> resnet8
    python main.py --mode reuse_common         the same task again, from what the first run left

Each round makes a batch of images (datafree/synthesis/), adds it to the pool (datafree/data/pool.py), distils on the
pool (datafree/distillation.py) and evaluates the student (datafree/evaluation.py).
"""

import math
from argparse import Namespace
from dataclasses import dataclass

from torch import Tensor, nn

import registry
from datafree import checkpoint, device, resume, reuse
from datafree.arguments import plain_values
from datafree.attack import Attack, AttackSettings
from datafree.data.augment import Augmentation, to_levels
from datafree.data.datasets import DatasetSpec, Images, TensorImages, test_images
from datafree.data.pool import ImagePool
from datafree.device import Compute
from datafree.distillation import Distillation, DistillationSettings
from datafree.entry import run_program
from datafree.errors import UserError, not_finite_in
from datafree.evaluation import Evaluation, Score
from datafree.flags import distillation_parser
from datafree.models.perturbation import PerturbationNetwork
from datafree.modes import MODES
from datafree.progress import Progress, Stopwatch, round_line
from datafree.randomness import Streams, initialising
from datafree.run_folder import RunFolder, environment, folder_name
from datafree.snapshot import Snapshot
from datafree.stopping import Stopped, StopRequests
from datafree.synthesis.reusable_generator import ReusableGeneratorSynthesis, SynthesisSettings

METRICS = [
    *("round", "loss_bn", "loss_oh", "loss_adv", "loss_generator", "loss_kd", "accuracy", "agreement", "lr"),
    *("seconds_synthesis", "seconds_distillation", "seconds_evaluation"),
]
HARD_LOSS_METRICS = [
    *("loss_hard", "loss_gap", "attack_success", "swap_rate", "attacked_rate", "label_disagreement"),
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
    attack: Attack | None
    synthesis: ReusableGeneratorSynthesis
    distillation: Distillation
    pool: ImagePool
    rounds: int
    accuracy_teacher: float | None = None


def main(argv: list[str]) -> None:
    parser = distillation_parser()
    args = resume.resolve(parser, argv, registry.distillation_preset)
    spec = registry.dataset_spec(args)
    complete(args)
    compute = device.choose(args.device, args.precision)
    path = resume.run_path(
        args, folder_name(args.mode + hard_loss_suffix(args), spec.name, args.teacher, args.student, args.tag)
    )
    task = build(args, spec, compute)
    report = [*parser.grouped(args), f"runs on: {compute}", sizes(task), f"writes to: {path}"]
    if args.dry_run:
        print("\n".join(report))
        return
    images, remark = test_images(spec, args.data_root, args.download)
    columns = METRICS + HARD_LOSS_METRICS * args.hl
    with RunFolder(path, columns, args.overwrite, bool(args.resume)) as folder, StopRequests() as stop:
        if folder.complete():
            return
        folder.save_json("config.json", {**plain_values(args), "environment": environment(str(compute))})
        for line in [*report, *remark]:
            folder.log(line)
        progress = distil(args, task, folder, stop, images)
        folder.save_array("generator_loss.npy", progress.generator_loss)
        reused = leave_for_the_next_task(args, task, folder)
        folder.finish(summary(task, progress) | reused, compute.device)


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
    if (args.no_aea or args.no_swap) and not args.hl:
        raise UserError("--no_aea and --no_swap are about the hard loss", "add --hl")
    if args.warmup >= rounds_of(args):
        raise UserError(
            f"{args.warmup} rounds of warm-up leave none of {rounds_of(args)} to distil in",
            "lower --warmup or raise --epochs",
        )


def hard_loss_suffix(args: Namespace) -> str:
    """What the run folder's name says of the hard loss."""
    return ("-hl-noaea" if args.no_aea else "-hl") if args.hl else ""


def rounds_of(args: Namespace) -> int:
    """Synthesis rounds in a run: one before every kd_steps of the run's distillation steps; the last may be short."""
    return math.ceil(args.epochs * args.ep_steps / args.kd_steps)


def steps_in(args: Namespace, number: int) -> int:
    """Distillation steps of that round: kd_steps, or what is left of the run's steps."""
    return min(args.kd_steps, args.epochs * args.ep_steps - (number - 1) * args.kd_steps)


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
    attack = build_attack(args, teacher, augmentation, compute) if args.hl and not args.no_aea else None
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
        attack,
        ReusableGeneratorSynthesis(
            *(generator, teacher, student, SynthesisSettings.of(args, spec.num_classes), part_rates, *shared),
            attack_step=attack.train_step if attack else None,
        ),
        Distillation(teacher, student, DistillationSettings.of(args, steps), *shared, attack),
        ImagePool(
            rounds * args.synthesis_batch_size, spec.img_size, compute.device, twins=bool(attack and attack.in_pool)
        ),
        rounds,
    )


def build_attack(args: Namespace, teacher: nn.Module, augmentation: Augmentation, compute: Compute) -> Attack:
    """P, initialised from a stream of its own, and its training."""
    with initialising(args.seed, "P"):
        network = PerturbationNetwork(args.p_width)
    return Attack(compute.place(network), teacher, AttackSettings.of(args), augmentation, compute)


def sizes(task: Task) -> str:
    """One line on how large things are."""
    generator = task.synthesis.generator
    named = {"teacher": task.teacher, "student": task.student, "g1": generator.g1, "g2": generator.g2, "d": generator.d}
    if task.attack:
        named["P"] = task.attack.network
    counts = [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in named.items()]
    pool = task.pool.capacity * task.pool.bytes_per_image / 2**20
    return f"parameters: {', '.join(counts)}; rounds: {task.rounds}; pool: {pool:.0f} MiB when full"


def distil(args: Namespace, task: Task, folder: RunFolder, stop: StopRequests, images: Images | None) -> Progress:
    """The rounds, each saved before the next begins. Returns where they end."""
    evaluation = Evaluation(task.teacher, images, task.synthesis.augmentation, task.compute)
    task.accuracy_teacher = evaluation.accuracy_teacher
    parts = {"synthesis": task.synthesis, "distillation": task.distillation, "streams": task.streams}
    if task.attack:
        parts["attack"] = task.attack
    snapshot = Snapshot(folder.path, parts, task.pool)
    progress = Progress.restored(snapshot.load() if args.resume else None)
    folder.start(progress.metrics_bytes, progress.round, progress.seconds_total)
    for number in folder.rounds(task.rounds, progress.round):
        row = one_round(args, task, folder, evaluation, progress, number)
        folder.record(row, round_line(row, "round", task.rounds))
        warn_if_at_chance(task, folder, progress)
        progress.metrics_bytes = folder.metrics_bytes()
        progress.seconds_total = folder.seconds()
        snapshot.save(progress.state())
        if stop.received:
            raise Stopped(stop.received, f"stopped after round {number}; go on: python main.py --resume {folder.path}")
    return progress


def one_round(
    args: Namespace, task: Task, folder: RunFolder, evaluation: Evaluation, progress: Progress, number: int
) -> dict:
    """Synthesis, distillation, evaluation. Takes ``progress`` on and returns the row of metrics.csv."""
    warming_up, last = number <= args.warmup, number == task.rounds
    row, clock = {"round": number, "lr": task.distillation.lr}, Stopwatch(task.compute.device)
    with not_finite_in(f"round {number}"):
        made = task.synthesis.synthesize(adversarial=not warming_up)
        row |= made.terms | fill_pool(task, made.images) | {"seconds_synthesis": clock.lap()}
        if not warming_up:
            row |= task.distillation.run(task.pool, steps_in(args, number))
        row |= {"seconds_distillation": clock.lap()}
    if not warming_up and (last or number % args.eval_every == 0):
        score = evaluation.score(task.student, synthetic_set(task) if evaluation.images is None else None)
        row |= {"accuracy": score.accuracy, "agreement": score.agreement}
        save_student(args, task, folder, score, number, is_best=score.beats(progress.best))
        progress.score, progress.best = score, score if score.beats(progress.best) else progress.best
    if last or number % max(1, task.rounds // 20) == 0:
        folder.show_images(number, made.images)
    row |= {"seconds_evaluation": clock.lap()}
    progress.round = number
    progress.generator_loss += made.generator_loss
    progress.seconds_synthesis += row["seconds_synthesis"]
    return row


def fill_pool(task: Task, x: Tensor) -> dict[str, float]:
    """Takes images into the pool, with their attacked twins where these are made once. Returns the attack's rates."""
    if task.attack is None or not task.attack.in_pool:
        task.pool.add(x)
        return {}
    made = task.attack.twins(x)
    task.pool.add(made.images, made.twins, made.labels)
    return {name: rate.item() for name, rate in made.rates.items()}


def warn_if_at_chance(task: Task, folder: RunFolder, progress: Progress) -> None:
    """One line, after a third of the rounds, to somebody whose student has learnt nothing."""
    chance = 100 / task.spec.num_classes
    reached = progress.score.agreement if progress.score.accuracy is None else progress.score.accuracy
    if progress.round == math.ceil(task.rounds / 3) and reached is not None and reached < 1.5 * chance:
        folder.log(
            f"warning: the student is still near chance ({reached:.1f} %) - lower --lr, or raise --kd_steps; if the "
            "images in synthetic.png are all alike, raise --g_steps"
        )


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


def summary(task: Task, progress: Progress) -> dict:
    """What the rounds gave, for summary.json."""
    return {
        "accuracy_last": progress.score.accuracy,
        "accuracy_best": progress.best.accuracy,
        "accuracy_teacher": task.accuracy_teacher,
        "agreement": progress.score.agreement,
        "rounds": progress.round,
        "seconds_synthesis": progress.seconds_synthesis,
        "images": len(task.pool),
    }


def leave_for_the_next_task(args: Namespace, task: Task, folder: RunFolder) -> dict:
    """Chooses between g1 and g2 and writes the three parts. Returns what that adds to the summary."""
    generator = task.synthesis.generator
    origin = {key: getattr(args, key) for key in ("mode", "dataset", "teacher", "student", "tag", "seed")}
    if task.attack:
        folder.save("gap.pth", task.attack.exported() | {"origin": origin})
    scores = reuse.score_networks(
        generator, task.teacher, task.synthesis.augmentation, task.compute, task.streams, args.bn, args.oh,
        args.synthesis_batch_size,
    )  # fmt: skip
    kept = min(scores, key=scores.get) if args.reuse_pick == "score" else args.reuse_pick
    reuse.save_parts(generator, kept, folder.path, origin)
    folder.log(f"inversion loss alone: g1 {scores['g1']:.4g}, g2 {scores['g2']:.4g}; the next task gets {kept} and d")
    return {"score_g1": scores["g1"], "score_g2": scores["g2"], "reused_network": kept}


if __name__ == "__main__":
    run_program(main)
