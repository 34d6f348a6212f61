"""Accuracy of the committed teachers on the held-out digits, in fp32."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import registry
from datafree.cli.parser import Parser
from datafree.cli.program import run_program
from datafree.engine import device
from datafree.engine.evaluation import percentage_equal, predict
from datafree.errors import UserError
from datafree.models.loading import load_classifier

AT_LEAST = 98.5


def main(argv: list[str]) -> None:
    parser = Parser(prog="check_teachers.py", description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet20", "wrn16_1"], help="networks in checkpoints/pretrained")
    names = parser.parse_args(argv).names
    compute = device.choose("cpu", "fp32")
    spec = registry.DATASETS["digits"]
    images = spec.load(Path("data"), False, False)
    for name in names:
        classifier, path = registry.classifier(name, spec), registry.teacher_file("digits", name)
        load_classifier(classifier, path)
        accuracy = percentage_equal(*predict(classifier, images, compute))
        print(f"{path}: {accuracy:.2f} %")
        if accuracy < AT_LEAST:
            raise UserError(f"{path} reaches less than {AT_LEAST} %", "check out the committed file again")


if __name__ == "__main__":
    run_program(main)
