"""Does P, trained on synthetic images alone, fool the teacher on real ones? Accuracy over the attack's bound.

    python scripts/attack_transfer.py --run run/anew-digits-resnet20-resnet8 --bounds 10 25 50

For each bound a fresh P is trained on images of the run's generator; random signs of the same size stand beside it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import registry
from datafree import checkpoint, device, reuse
from datafree.arguments import Parser, number
from datafree.attack import Attack, AttackSettings
from datafree.data.augment import Augmentation, to_pixels
from datafree.data.datasets import TensorImages, test_images
from datafree.entry import run_program
from datafree.errors import UserError
from datafree.evaluation import percentage_equal, predict
from datafree.models.generator import Decoder, ReusableGenerator
from datafree.models.perturbation import PerturbationNetwork
from datafree.randomness import Streams, initialising
from datafree.run_reader import read_run

BATCH = 64


def main(argv: list[str]) -> None:
    parser = Parser(prog="attack_transfer.py", description="Accuracy of a teacher under P, over the attack's bound.")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="a finished run, for its generator")
    parser.add_argument("--bounds", type=number(float, 0, 255), nargs="+", default=[10, 25, 50], help="in 1/255")
    parser.add_argument("--steps", type=number(int, 1), default=300, help="of training for each P")
    parser.add_argument("--p_width", type=number(int, 1), default=16, help="width of P")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of P and of the noise")
    args = parser.parse_args(argv)
    config = read_run(args.run).config
    compute, spec = device.choose(), registry.DATASETS[config["dataset"]]
    augmentation = Augmentation(spec, compute.device, config["crop_padding"])
    teacher = registry.MODELS[config["teacher"]](spec.num_classes)
    checkpoint.load_classifier(teacher, config["teacher_path"])
    teacher = compute.place(teacher).eval().requires_grad_(False)
    images, _ = test_images(spec, Path(config["data_root"]), download=False)
    if not isinstance(images, TensorImages):
        raise UserError(f"no test images of {spec.name}", "this script measures accuracy on real ones")
    real = augmentation.normalise(to_pixels(images.images.to(compute.device)))
    truth = images.labels.to(compute.device)
    clean = percentage_equal(predict(teacher, images, augmentation, compute)[0], truth)

    signs = torch.randn(real.shape, generator=Streams(args.seed, compute.device)["signs"], device=real.device).sign()
    print(f"teacher on {len(truth)} real images: {clean:.2f} %; P of width {args.p_width}, {args.steps} steps\n")
    print("| bound (1/255) | accuracy under P % | drop | under random signs % | synthetic images that change class % |")
    print("|---|---|---|---|---|")
    for bound in args.bounds:
        attack, changed = train(args, bound / 255, compute, augmentation, teacher, generator_of(args.run, config))
        low, high = attack.limits
        noisy = torch.clamp(real + bound / 255 * (high - low) * signs, low, high)
        with torch.no_grad(), compute.autocast():
            attacked, random = (percentage_equal(teacher(x).argmax(1), truth) for x in (attack.attack(real), noisy))
        print(f"| {bound:g} | {attacked:.2f} | {clean - attacked:.2f} | {random:.2f} | {changed:.1f} |", flush=True)


def generator_of(run: Path, config: dict) -> ReusableGenerator:
    """The generator that a run ended with, in eval mode."""
    size = registry.DATASETS[config["dataset"]].img_size
    networks = [
        reuse.load_generative_network(run / name, config["nz"], size)
        for name in (reuse.GENERATOR_FILE, reuse.ABANDONED_FILE)
    ]
    decoder = Decoder()
    reuse.load_decoder(decoder, run / reuse.DECODER_FILE, size)
    return ReusableGenerator(*networks, decoder).eval()


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
    generator, streams = compute.place(generator), Streams(args.seed, compute.device)

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
