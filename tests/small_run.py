"""What analyses use of a run, with small networks and 30 images."""

import torch
from conftest import CLASSES, FP32, NGF, NZ, SIZE, small_generator, small_spec, small_teacher

from datafree.data.datasets import TensorImages
from datafree.reporting.run_networks import Classifier, RunNetworks
from datafree.reuse import save_parts

BOUND = 0.1


class SmallRun(RunNetworks):
    """Its generator's files are in ``path``; its P changes every pixel, as no untrained one would."""

    def __init__(self, path):
        self.path, self.nz, self.config, self.spec, self.compute = path, NZ, {"ngf": NGF}, small_spec(), FP32
        save_parts(small_generator(seed=5), "g1", path, {})
        self.teacher = Classifier(small_teacher(), self.spec.mean, self.spec.std)
        self._attack = (lambda x: torch.sin(200 * x), BOUND)
        pixels = torch.randint(256, (30, 3, SIZE, SIZE), dtype=torch.uint8)
        self._images = TensorImages(pixels, torch.randint(CLASSES, (30,)))

    def real_images(self):
        return self._images
