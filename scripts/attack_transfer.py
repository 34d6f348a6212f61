"""Does P, trained on synthetic images alone, fool the teacher on real ones? Accuracy over the attack's bound.

    python scripts/attack_transfer.py --run run/anew-digits-resnet20-resnet8 --bounds 10 25 50

For each bound a fresh P is trained on images of the run's generator; random signs of the same size stand beside it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import registry
from datafree.arguments import Parser, number
from datafree.attack import Attack, AttackSettings
from datafree.data.augment import Augmentation
from datafree.entry import run_program
from datafree.evaluation import percentage_equal
from datafree.models.perturbation import PerturbationNetwork
from datafree.randomness import Streams, initialising
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
    images = run.real_images()
    real, truth = images.images.float() / 255, images.labels
    clean = percentage_equal(*run.predict(run.teacher, images))

    signs = torch.randn(real.shape, generator=run.stream(args.seed, "signs"), device=real.device).sign()
    print(f"teacher on {len(truth)} real images: {clean:.2f} %; P of width {args.p_width}, {args.steps} steps\n")
    print("| bound (1/255) | accuracy under P % | drop | under random signs % | synthetic images that change class % |")
    print("|---|---|---|---|---|")
    for bound in args.bounds:
        P, changed = train(args, bound / 255, run)
        with torch.no_grad(), run.compute.autocast():
            shown = (attacked(P, real, bound / 255, run.teacher), (real + bound / 255 * signs).clamp(0, 1))
            under_P, under_signs = (percentage_equal(run.teacher(x).argmax(1), truth) for x in shown)
        print(f"| {bound:g} | {under_P:.2f} | {clean - under_P:.2f} | {under_signs:.2f} | {changed:.1f} |", flush=True)


def attacked(P: torch.nn.Module, x: torch.Tensor, bound: float, teacher: torch.nn.Module) -> torch.Tensor:
    """Pixels (B, 3, H, W) to attacked pixels, see RunNetworks.perturb."""
    return (x + bound * P((x - teacher.mean) / teacher.std)).clamp(0, 1)


def train(args: object, bound: float, run: RunNetworks) -> tuple[torch.nn.Module, float]:
    """P after its steps on fresh synthetic images, and the share (%) of further ones whose class it changes."""
    with initialising(args.seed, "P"):
        network = run.compute.place(PerturbationNetwork(args.p_width))
    settings = AttackSettings(bound, pa=0.0, width=args.p_width, lr_p=2e-4, swap=False)
    augmentation = Augmentation(run.spec, run.compute.device, run.config["crop_padding"])
    attack = Attack(network, run.teacher.network, settings, augmentation, run.compute)
    streams = Streams(args.seed, run.compute.device)

    def images() -> torch.Tensor:
        z = torch.randn(BATCH, run.nz, generator=streams["noise"], device=run.compute.device)
        with torch.no_grad(), run.compute.autocast():
            return run.generator(z)

    for _ in range(args.steps):
        x = augmentation(images(), streams["augmentation"])
        with torch.no_grad(), run.compute.autocast():
            logits = run.teacher.network(x)
        attack.train_step(x, logits)
    succeeded = torch.cat([attack.pair(augmentation.normalise(images())).succeeded for _ in range(8)])
    return attack.network, 100 * succeeded.float().mean().item()


if __name__ == "__main__":
    run_program(main)
