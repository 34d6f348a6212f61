"""The flags of main.py and of train_scratch.py: defaults are the paper's for CIFAR (method section in brackets)."""

import argparse
from pathlib import Path

from .arguments import Parser, add_machine_flags, number
from .modes import MODES
from .synthesis.reusable_generator import META_GRADIENTS

positive = number(float, 0, above=True)
weight = number(float, 0)
share = number(float, 0, 1)
below_one = number(float, 0, 0.9999)
count = number(int, 1, 2**31)
count_or_zero = number(int, 0, 2**31)
size = number(int, 1, 2**16)  # of batches, layers, images: above anything published, below what no machine holds


def dataset(text: str) -> str:
    """A checker for argparse: a name, or imagefolder: with a path behind it."""
    if not text or text == "imagefolder:":
        raise argparse.ArgumentTypeError(f"{text!r} names no data set; give a name or imagefolder:PATH")
    return text


def distillation_parser() -> Parser:
    """Flags of main.py."""
    parser = Parser(prog="main.py", description="Distil a student from a teacher without data.")
    task = parser.add_argument_group("task")
    modes = "; ".join(f"{name}: {mode.help}" for name, mode in MODES.items())
    task.add_argument("--mode", default="anew", choices=tuple(MODES), help=modes)
    task.add_argument("--teacher", default="resnet20", metavar="MODEL", help="a model of registry.py")
    task.add_argument(
        "--student", default="resnet8", metavar="MODEL", help="a model of registry.py, trained from scratch"
    )
    task.add_argument(
        "--teacher_path",
        type=Path,
        metavar="FILE",
        help="the teacher's checkpoint (default: checkpoints/pretrained/<dataset>_<teacher>.pth)",
    )
    _add_dataset_flags(task)
    _add_reuse_flags(parser)
    _add_synthesis_flags(parser)
    _add_distillation_flags(parser)
    _add_hard_loss_flags(parser)
    machine = add_machine_flags(parser)
    machine.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the networks, on a GPU done anyway: minutes at the start, faster steps",
    )
    machine.add_argument("--no_compile", action="store_true", help="eager networks on a GPU, too")
    machine.add_argument(
        "--download", action="store_true", help="fetch the data set, for evaluation alone, where it is absent"
    )
    return parser


def training_parser() -> Parser:
    """Flags of train_scratch.py."""
    parser = Parser(prog="train_scratch.py", description="Train a teacher, or a student's upper bound, on real data.")
    task = parser.add_argument_group("task")
    task.add_argument("--model", default="resnet20", metavar="MODEL", help="a model of registry.py")
    task.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the checkpoint goes (default: checkpoints/pretrained/<dataset>_<model>.pth)",
    )
    _add_dataset_flags(task)
    training = parser.add_argument_group("training")
    _add_optimiser_flags(training, epochs=200, batch_size=256, lr=0.1, weight_decay=5e-4)
    training.add_argument(
        "--lr_decay_milestones",
        type=count,
        nargs="+",
        metavar="EPOCH",
        help="divide the learning rate by 10 after these epochs (default: a cosine to 0)",
    )
    training.add_argument(
        "--eval_every",
        type=count,
        default=1,
        metavar="EPOCHS",
        help="how often the model is evaluated; the last epoch always is",
    )
    add_machine_flags(parser)
    return parser


def _add_reuse_flags(parser: Parser) -> None:
    reuse = parser.add_argument_group("reuse")
    earlier = "from an earlier run (default: the anew run of the same data set, teacher, student and tag)"
    reuse.add_argument("--reuse_generator_path", type=Path, metavar="FILE", help=f"gan_reuse.pth {earlier}")
    reuse.add_argument("--reuse_decoder_path", type=Path, metavar="FILE", help=f"decoder.pth {earlier}")
    reuse.add_argument(
        "--reuse_pick",
        default="score",
        choices=("score", "g1", "g2"),
        help="which network the next task gets: the one that inverts better alone, or the one named",
    )
    reuse.add_argument(
        "--finetune_factor",
        type=share,
        default=0.1,
        metavar="RATIO",
        help="reuse_finetune: learning rate of g2 and d over that of g1; lower keeps more of the earlier task",
    )


def _add_synthesis_flags(parser: Parser) -> None:
    synthesis = parser.add_argument_group("synthesis")
    synthesis.add_argument(
        "--synthesis_batch_size", type=size, default=256, metavar="IMAGES", help="images made a round"
    )
    synthesis.add_argument(
        "--g_steps",
        type=count,
        default=10,
        metavar="K",
        help="generator iterations a round; more give better images, slower",
    )
    synthesis.add_argument("--nz", type=size, default=256, metavar="N", help="length of the noise vector z")
    synthesis.add_argument(
        "--ngf", type=size, default=64, metavar="CHANNELS", help="width of g1 and g2; lower is faster"
    )
    synthesis.add_argument("--lr_g", type=positive, default=2e-3, help="learning rate of the generator")
    synthesis.add_argument("--lr_z", type=positive, default=0.01, help="learning rate of z")
    synthesis.add_argument(
        "--adam_betas",
        type=below_one,
        nargs=2,
        default=(0.5, 0.999),
        metavar="BETA",
        help="of Adam, for generator, z and P",
    )
    synthesis.add_argument(
        "--bn",
        type=weight,
        default=10.0,
        metavar="WEIGHT",
        help="of L_bn: raise it for images closer to the teacher's training data",
    )
    synthesis.add_argument(
        "--oh", type=weight, default=0.5, metavar="WEIGHT", help="of L_oh: raise it for images of clearer class"
    )
    synthesis.add_argument(
        "--adv",
        type=weight,
        default=1.33,
        metavar="WEIGHT",
        help="of L_adv: raise it for images that the student finds harder",
    )
    synthesis.add_argument(
        "--bn_mmt",
        type=below_one,
        default=0.9,
        metavar="RATIO",
        help="weight on the running average of BN statistics; 0 compares each batch alone",
    )
    synthesis.add_argument(
        "--meta",
        default="fomaml",
        choices=tuple(META_GRADIENTS),
        help="how a round's inner steps change the generator; none: plain updating",
    )


def _add_distillation_flags(parser: Parser) -> None:
    distillation = parser.add_argument_group("distillation")
    _add_optimiser_flags(distillation, epochs=420, batch_size=256, lr=0.2, weight_decay=1e-4)
    distillation.add_argument("--lr_min", type=weight, default=2e-4, help="where the cosine ends")
    distillation.add_argument(
        "--T", type=positive, default=20.0, metavar="TAU", help="temperature: raise it for softer targets"
    )
    distillation.add_argument(
        "--kd_steps", type=count, default=400, metavar="STEPS", help="distillation steps after each synthesis round"
    )
    distillation.add_argument(
        "--ep_steps",
        type=count,
        metavar="STEPS",
        help="distillation steps an epoch (default: kd_steps, so that an epoch is one round)",
    )
    distillation.add_argument(
        "--warmup", type=count_or_zero, default=20, metavar="ROUNDS", help="first rounds, of synthesis only"
    )
    distillation.add_argument(
        "--eval_every",
        type=count,
        default=1,
        metavar="ROUNDS",
        help="how often the student is evaluated; the last round always is",
    )


def _add_hard_loss_flags(parser: Parser) -> None:
    hard = parser.add_argument_group("hard loss")
    hard.add_argument(
        "--hl", "--hard_loss", action="store_true", help="learn the teacher's class as well as its softened answer"
    )
    hard.add_argument("--no_aea", action="store_true", help="hard loss without the adversarial-example attack")
    hard.add_argument("--alpha", type=weight, default=0.9, metavar="WEIGHT", help="of the softened answers' KL")
    hard.add_argument("--beta", type=weight, default=0.1, metavar="WEIGHT", help="of the hard labels' cross-entropy")
    hard.add_argument(
        "--pa", type=share, default=0.001, metavar="SHARE", help="of samples attacked: raise it for more contradiction"
    )
    hard.add_argument(
        "--attack_bound",
        type=number(float, 0, 255),
        default=10.0,
        metavar="LEVELS",
        help="largest change of a pixel, in 1/255: raise it until the attack changes classes",
    )
    hard.add_argument("--p_width", type=size, default=64, metavar="CHANNELS", help="width of P; lower is faster")
    hard.add_argument("--lr_p", type=positive, default=2e-4, help="learning rate of P")
    hard.add_argument("--no_swap", action="store_true", help="no identity swap of clean and attacked samples")
    hard.add_argument(
        "--attack_at",
        default="pool",
        choices=("pool", "step"),
        help="attack an image once, as it enters the pool, or at every distillation step (much slower)",
    )


def _add_dataset_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset",
        type=dataset,
        default="digits",
        metavar="NAME",
        help="a data set of registry.py, or imagefolder:PATH",
    )
    group.add_argument("--img_size", type=size, metavar="PIXELS", help="imagefolder: height and width (default: 224)")
    group.add_argument(
        "--num_classes",
        type=size,
        metavar="N",
        help="imagefolder: number of classes (default: as found in the folder)",
    )
    group.add_argument(
        "--mean",
        type=share,
        nargs=3,
        metavar="R",
        help="imagefolder: the teacher's normalisation, pixels in [0, 1] (default: ImageNet's)",
    )
    group.add_argument("--std", type=positive, nargs=3, metavar="R", help="imagefolder: likewise")
    group.add_argument(
        "--crop_padding",
        type=count_or_zero,
        default=4,
        metavar="PIXELS",
        help="largest shift of the random crop; 0 turns it off",
    )


def _add_optimiser_flags(
    group: argparse._ArgumentGroup, epochs: int, batch_size: int, lr: float, weight_decay: float
) -> None:
    group.add_argument("--epochs", "--epoch", type=count, default=epochs, metavar="N", help="length of the run")
    group.add_argument("--batch_size", type=size, default=batch_size, metavar="IMAGES", help="images a step")
    group.add_argument("--lr", type=positive, default=lr, help="learning rate of SGD at the start")
    group.add_argument("--momentum", type=below_one, default=0.9, help="of SGD")
    group.add_argument("--weight_decay", type=weight, default=weight_decay, help="of SGD; raise it against overfitting")
