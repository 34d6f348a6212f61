"""Accuracy of the committed teachers on the held-out digits, in fp32."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datafree.data.augment import Augmentation
from datafree.entry import run_program
from datafree.evaluation import percentage_equal, predict

import registry
from datafree import checkpoint, device
from datafree.errors import UserError

AT_LEAST = 98.5


def main(argv: list[str]) -> None:
    compute = device.choose("cpu", "fp32")
    spec = registry.DATASETS["digits"]
    images = spec.load(Path("data"), False, False)
    for name in argv or ["resnet20", "wrn16_1"]:
        model = registry.MODELS[name](spec.num_classes)
        path = registry.pretrained_path("digits", name)
        checkpoint.load_classifier(model, path)
        accuracy = percentage_equal(*predict(model, images, Augmentation(spec, compute.device), compute))
        print(f"{path}: {accuracy:.2f} %")
        if accuracy < AT_LEAST:
            raise UserError(f"{path} reaches less than {AT_LEAST} %", "check out the committed file again")


if __name__ == "__main__":
    run_program(main)
