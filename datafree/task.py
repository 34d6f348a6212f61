"""Everything that a run works with, built from its arguments."""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from . import checkpoint, probe, reuse
from .attack import Attack, AttackSettings
from .data.augment import Augmentation
from .data.datasets import DatasetSpec
from .data.placement import choose_placement
from .data.pool import ImagePool, bytes_per_image
from .device import Compute
from .distillation import Distillation, DistillationSettings
from .models.frozen import folded, frozen
from .models.perturbation import PerturbationNetwork
from .modes import MODES
from .randomness import Streams, initialising
from .registration import Registry
from .synthesis.reusable_generator import ReusableGeneratorSynthesis, SynthesisSettings


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
    compiled: bool = False
    accuracy_teacher: float | None = None


def rounds_of(args: Namespace) -> int:
    """Synthesis rounds in a run: one before every kd_steps of the run's distillation steps; the last may be short."""
    return math.ceil(args.epochs * args.ep_steps / args.kd_steps)


def steps_in(args: Namespace, number: int) -> int:
    """Distillation steps of that round: kd_steps, or what is left of the run's steps."""
    return min(args.kd_steps, args.epochs * args.ep_steps - (number - 1) * args.kd_steps)


def build(args: Namespace, spec: DatasetSpec, compute: Compute, models: Registry) -> Task:
    """Networks, pool and the two halves of a round; ``models`` makes a classifier of a name and a class count.

    Raises:
        UserError: for whatever does not fit together.
    """
    streams = Streams(args.seed, compute.device)
    teacher = models[args.teacher](spec.num_classes)
    checkpoint.load_classifier(teacher, args.teacher_path)
    answering = frozen(folded(teacher, spec.img_size), compute)  # where only its answers are wanted
    teacher = frozen(teacher, compute)
    with initialising(args.seed, "student"):
        student = compute.place(models[args.student](spec.num_classes))
    paths = (args.reuse_generator_path, args.reuse_decoder_path)
    generator = compute.place(reuse.build_generator(args.seed, args.nz, args.ngf, spec.img_size, *paths))

    augmentation = Augmentation(spec, compute.device, args.crop_padding)
    attack = build_attack(args, answering, augmentation, compute) if args.hl and not args.no_aea else None
    part_rates = MODES[args.mode].part_rates(args.finetune_factor)
    rounds, twins = rounds_of(args), bool(attack and attack.in_pool)
    capacity = rounds * args.synthesis_batch_size
    place = choose_placement(capacity, bytes_per_image(spec.img_size, twins), compute.device, args.run_root)
    look_ahead(args, spec, compute, augmentation, teacher, student, attack)
    steps = args.epochs * args.ep_steps - args.warmup * args.kd_steps
    shared = (augmentation, compute, streams)
    synthesis = ReusableGeneratorSynthesis(
        *(generator, teacher, student, SynthesisSettings.of(args, spec.num_classes), part_rates, *shared),
        attack_step=attack.train_step if attack else None,
    )
    distillation = Distillation(answering, student, DistillationSettings.of(args, steps), *shared, attack)
    pool = ImagePool(capacity, spec.img_size, compute.device, twins, place)
    compiled = compute.compiles(args.compile, args.no_compile)
    if compiled:
        networks = [answering, teacher, student, synthesis.adapted]
        compile_networks([*networks, attack.network] if attack else networks)
    return Task(spec, compute, streams, teacher, student, attack, synthesis, distillation, pool, rounds, compiled)


def compile_networks(networks: Sequence[nn.Module]) -> None:
    """In place; each is compiled when first called, and runs as it is where PyTorch cannot compile it (it says so)."""
    config = torch._dynamo.config
    config.suppress_errors = True
    config.skip_nnmodule_hook_guards = False  # else a student of the teacher's class would run the teacher's hooks
    config.cache_size_limit = max(64, config.cache_size_limit)  # counts over all networks, modes and batch sizes
    for network in networks:
        network.compile(dynamic=False)


def look_ahead(
    args: Namespace,
    spec: DatasetSpec,
    compute: Compute,
    augmentation: Augmentation,
    teacher: nn.Module,
    student: nn.Module,
    attack: Attack | None,
) -> None:
    """Raises UserError where a network cannot do its part, before anything is written."""
    shared = (spec.img_size, augmentation, compute)
    probe.check_answers(teacher, f"teacher {args.teacher_path}", *shared)
    probe.check_answers(student, f"student {args.student}", *shared, train_batch=args.batch_size)
    if attack:
        probe.check_answers(attack.network, "the attack network P", *shared, train_batch=args.synthesis_batch_size)


def build_attack(args: Namespace, teacher: nn.Module, augmentation: Augmentation, compute: Compute) -> Attack:
    """P, initialised from a stream of its own, and its training."""
    settings = AttackSettings.of(args)
    with initialising(args.seed, "P"):
        network = PerturbationNetwork(settings.width)
    return Attack(compute.place(network), teacher, settings, augmentation, compute)


def sizes(task: Task) -> str:
    """One line on how large things are."""
    generator = task.synthesis.generator
    named = {"teacher": task.teacher, "student": task.student, "g1": generator.g1, "g2": generator.g2, "d": generator.d}
    if task.attack:
        named["P"] = task.attack.network
    counts = [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in named.items()]
    how = "; networks compiled" if task.compiled else ""
    return f"parameters: {', '.join(counts)}; rounds: {task.rounds}; pool {task.pool.placement}{how}"
