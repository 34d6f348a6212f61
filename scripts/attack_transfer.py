"""Does P, trained on synthetic images alone, fool the teacher on real ones? Accuracy over the attack's bound.

    python scripts/attack_transfer.py --run run/anew-digits-resnet20-resnet8 --bounds 10 25 50

For each bound a fresh P is trained on images of the run's generator; random signs of the same size stand beside it.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import registry
from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.data.augmentation import Augmentation
from datafree.engine.context import Context
from datafree.engine.evaluation import percentage_equal
from datafree.engine.randomness import Streams
from datafree.reporting.run_networks import RunNetworks
from datafree.targets.attack import Attack, perturb

BATCH = 64


def main(argv: list[str]) -> None:
    parser = Parser(prog="attack_transfer.py", description="Accuracy of a teacher under P, over the attack's bound.")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="a finished run, for its generator")
    parser.add_argument("--bounds", type=number(float, 0), nargs="+", default=[10, 25, 50], help="in 1/255")
    parser.add_argument("--steps", type=number(int, 1), default=300, help="of training for each P")
    parser.add_argument("--p_width", type=number(int, 1), default=16, help="width of P")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of P and of the noise")
    args = parser.parse_args(argv)
    run = RunNetworks(args.run, registry)
    images = run.real_images()
    real, truth = images.images.float() / 255, images.labels
    clean = percentage_equal(*run.predict(run.teacher, images))

    signs = torch.randn(real.shape, generator=run.stream(args.seed, "signs"), device=real.device).sign()
    print(f"teacher on {len(truth)} real images: {clean:.2f} %; P of width {args.p_width}, {args.steps} steps\n")
    print("| bound (1/255) | accuracy under P % | drop | under random signs % | synthetic images that change class % |")
    print("|---|---|---|---|---|")
    for bound in args.bounds:
        attack, changed = train(args, bound, run)
        with torch.no_grad(), run.compute.autocast():
            shown = (
                perturb(attack.P.eval(), real, bound / 255, attack.normalise),
                (real + bound / 255 * signs).clamp(0, 1),
            )
            under_P, under_signs = (percentage_equal(run.teacher(x).argmax(1), truth) for x in shown)
        print(f"| {bound:g} | {under_P:.2f} | {clean - under_P:.2f} | {under_signs:.2f} | {changed:.1f} |", flush=True)


def train(args: Namespace, bound: float, run: RunNetworks) -> tuple[Attack, float]:
    """The attack after P's steps on fresh images, and the share (%) of further ones whose class it changes."""
    streams = Streams(args.seed, run.compute.device)
    augmentation = Augmentation(run.config["crop_padding"], run.spec.flip)
    context = Context(run.spec, run.teacher, run.teacher, run.student, run.compute, streams, augmentation)
    attack = Attack(context, Attack.Config(attack_bound=bound, p_width=args.p_width))

    def images() -> torch.Tensor:
        z = torch.randn(BATCH, run.nz, generator=streams["noise"], device=run.compute.device)
        with torch.no_grad(), run.compute.autocast():
            return run.generator(z)

    for _ in range(args.steps):
        x = augmentation(images(), streams["augmentation"])
        attack.train_step(x, context.answers(x))
    succeeded = torch.cat([attack.pair(images()).succeeded for _ in range(8)])
    return attack, 100 * succeeded.float().mean().item()


if __name__ == "__main__":
    run_program(main)
