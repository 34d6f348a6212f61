"""What analyses use of a run, with small networks and 30 images."""

import torch
from conftest import CLASSES, FP32, NGF, NZ, SIZE, small_generator, small_spec, small_teacher

from datafree import files
from datafree.data.specs import TensorImages
from datafree.models.generator_files import ABANDONED_FILE, DECODER_FILE, GENERATOR_FILE, part
from datafree.reporting.run_networks import RunNetworks

BOUND = 0.1


class SmallRun(RunNetworks):
    """Its generator's files are in ``path``; its P changes every pixel, as no untrained one would."""

    def __init__(self, path):
        self.path, self.nz, self.config, self.spec, self.compute = path, NZ, {"ngf": NGF}, small_spec(), FP32
        generator = small_generator(seed=5)
        for file, network in ((GENERATOR_FILE, generator.g1), (ABANDONED_FILE, generator.g2)):
            files.save(part(network, "generative_network", network.config, {}), path / file)
        files.save(part(generator.d, "decoder", {"img_size": SIZE}, {}), path / DECODER_FILE)
        self.teacher = small_teacher()
        self._attack = (lambda x: torch.sin(200 * x), BOUND)
        pixels = torch.randint(256, (30, 3, SIZE, SIZE), dtype=torch.uint8)
        self._images = TensorImages(pixels, torch.randint(CLASSES, (30,)))

    def real_images(self):
        return self._images
