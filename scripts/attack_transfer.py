"""Does P, trained on synthetic images alone, fool the teacher on real ones? Accuracy over the attack's bound.

    python scripts/attack_transfer.py --run run/anew-digits-resnet20-resnet8 --bounds 10 25 50

For each bound a fresh P is trained on images of the run's generator; random signs of the same size stand beside it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datafree.arguments import Parser, number
from datafree.attack import Attack, AttackSettings
from datafree.data.augment import Augmentation, to_pixels
from datafree.entry import run_program
from datafree.evaluation import percentage_equal, predict
from datafree.randomness import Streams, initialising

import registry
from datafree import device
from datafree.models.generator import ReusableGenerator
from datafree.models.perturbation import PerturbationNetwork
from datafree.reporting.run_networks import RunNetworks

BATCH = 64


def main(argv: list[str]) -> None:
    parser = Parser(prog="attack_transfer.py", description="Accuracy of a teacher under P, over the attack's bound.")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="a finished run, for its generator")
    parser.add_argument("--bounds", type=number(float, 0, 255), nargs="+", default=[10, 25, 50], help="in 1/255")
    parser.add_argument("--steps", type=number(int, 1), default=300, help="of training for each P")
    parser.add_argument("--p_width", type=number(int, 1), default=16, help="width of P")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of P and of the noise")
    args = parser.parse_args(argv)
    run = RunNetworks(args.run, registry)
    compute, augmentation, teacher, images = run.compute, run.augmentation, run.teacher, run.real_images()
    real, truth = augmentation.normalise(to_pixels(images.images)), images.labels
    clean = percentage_equal(predict(teacher, images, augmentation, compute)[0], truth)

    signs = torch.randn(real.shape, generator=Streams(args.seed, compute.device)["signs"], device=real.device).sign()
    print(f"teacher on {len(truth)} real images: {clean:.2f} %; P of width {args.p_width}, {args.steps} steps\n")
    print("| bound (1/255) | accuracy under P % | drop | under random signs % | synthetic images that change class % |")
    print("|---|---|---|---|---|")
    for bound in args.bounds:
        attack, changed = train(args, bound / 255, compute, augmentation, teacher, run.generator)
        low, high = attack.limits
        noisy = torch.clamp(real + bound / 255 * (high - low) * signs, low, high)
        with torch.no_grad(), compute.autocast():
            attacked, random = (percentage_equal(teacher(x).argmax(1), truth) for x in (attack.attack(real), noisy))
        print(f"| {bound:g} | {attacked:.2f} | {clean - attacked:.2f} | {random:.2f} | {changed:.1f} |", flush=True)


def train(
    args: object,
    bound: float,
    compute: device.Compute,
    augmentation: Augmentation,
    teacher: torch.nn.Module,
    generator: ReusableGenerator,
) -> tuple[Attack, float]:
    """P after its steps on fresh synthetic images, and the share (%) of further ones whose class it changes."""
    settings = AttackSettings(bound, pa=0.0, width=args.p_width, lr_p=2e-4, swap=False)
    with initialising(args.seed, "P"):
        network = compute.place(PerturbationNetwork(settings.width))
    attack = Attack(network, teacher, settings, augmentation, compute)
    streams = Streams(args.seed, compute.device)

    def images() -> torch.Tensor:
        z = torch.randn(BATCH, generator.g1.config["nz"], generator=streams["noise"], device=compute.device)
        with torch.no_grad(), compute.autocast():
            return generator(z)

    for _ in range(args.steps):
        x = augmentation(images(), streams["augmentation"])
        with torch.no_grad(), compute.autocast():
            logits = teacher(x)
        attack.train_step(x, logits)
    succeeded = torch.cat([attack.pair(augmentation.normalise(images())).succeeded for _ in range(8)])
    return attack, 100 * succeeded.float().mean().item()


if __name__ == "__main__":
    run_program(main)
