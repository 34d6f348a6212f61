"""What the names of models and data sets stand for, and how names are looked up."""

from argparse import Namespace

import pytest
import torch
from conftest import user_error
from test_models import PUBLISHED

import registry
from datafree.registration import Registry
from registry import DATASETS, MODELS

HALF, HALVES = (0.5, 0.5, 0.5), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FACTS = {  # classes, size, whether mirrored; mean and standard deviation that the published teachers were trained with
    "digits": (10, (32, 32), False, *HALVES),
    "digits100": (100, (32, 32), False, *HALVES),
    "mnist": (10, (32, 32), False, (0.1307,), (0.3081,)),
    "svhn": (10, (32, 32), False, *HALVES),
    "cifar10": (10, (32, 32), True, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": (100, (32, 32), True, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny_imagenet": (200, (64, 64), True, *HALVES),
    "imagenet": (1000, (224, 224), True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

OF_IMAGENET = ("resnet50", "resnet18", "mobilenetv2")


def test_every_data_set_is_registered_under_its_own_name_with_its_numbers():
    specs = dict(DATASETS.items())
    assert {name: (s.num_classes, s.img_size, s.flip, s.mean, s.std) for name, s in specs.items()} == FACTS
    assert [spec.name for spec in specs.values()] == list(specs)


def test_no_flip_is_for_every_data_set_and_the_other_descriptions_for_folders_alone():
    described = dict.fromkeys(("img_size", "num_classes", "mean", "std"))
    for name, mirrored in (("cifar10", True), ("svhn", False), ("imagenet", True)):
        specs = [registry.dataset_spec(Namespace(dataset=name, **described, no_flip=no)) for no in (False, True)]
        assert [spec.flip for spec in specs] == [mirrored, False]
    assert registry.dataset_spec(Namespace(dataset="cifar10", **described)).flip  # an earlier version's config.json
    folder = Namespace(
        dataset="imagefolder:absent", **described | {"num_classes": 3, "img_size": (8, 9), "mean": (0.5,)}
    )
    with user_error("--mean has a number for each of 1 channels, --std for 3"):
        registry.dataset_spec(folder)
    folder.std = (0.5,)
    assert registry.dataset_spec(folder).shape == (1, 8, 9) and registry.dataset_spec(folder).flip
    with user_error("--num_classes is fixed for cifar10"):
        registry.dataset_spec(Namespace(dataset="cifar10", **described | {"num_classes": 3}))


def test_a_classifier_brings_the_input_format_of_its_data_set():
    with torch.device("meta"):
        tiny = registry.classifier("resnet18", DATASETS["tiny_imagenet"])
    cifar = registry.classifier("resnet8", DATASETS["cifar10"])
    assert (tiny.name, tiny.num_classes, tiny.img_size, tiny.head.out_features) == ("resnet18", 200, (64, 64), 200)
    torch.testing.assert_close(cifar.mean.flatten(), torch.tensor(FACTS["cifar10"][3]))
    torch.testing.assert_close(cifar.std.flatten(), torch.tensor(FACTS["cifar10"][4]))


def test_models_are_the_published_19_lenets_and_three_of_imagenet():
    lenets, of_imagenet = {"lenet5", "lenet5_half", "lenet5_bn"}, {f"{name}_imagenet" for name in OF_IMAGENET}
    assert set(MODELS) == {*PUBLISHED, *lenets, *of_imagenet}


def test_an_unknown_name_is_answered_with_the_nearest_or_else_with_all():
    with user_error("unknown model 'resnet43'", "resnet34"):
        MODELS["resnet43"]
    with user_error("unknown data set 'cifar_10'", "cifar10"):
        DATASETS["cifar_10"]
    with user_error("unknown model '?'", *MODELS):
        MODELS["?"]


@pytest.mark.parametrize("name", ["{0}", "imagefolder", "ImageFolder:{0}"])
def test_a_folder_without_its_word_is_told_the_word(name, tmp_path):
    values = Namespace(dataset=name.format(tmp_path), img_size=None, num_classes=None, mean=None, std=None)
    with user_error("unknown data set", "a folder of images is imagefolder:PATH"):
        registry.dataset_spec(values)


def test_a_name_that_is_taken_is_refused():
    models = Registry("model")
    models.add("twin", 1)
    with pytest.raises(ValueError, match="model 'twin' is registered already"):
        models.add("twin", 2)
    assert models["twin"] == 1
