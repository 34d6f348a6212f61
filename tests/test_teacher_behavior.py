"""What the teacher is asked about: whose label each kind of image has, and that P keeps its bound."""

from types import SimpleNamespace

import pytest
import torch
from conftest import CLASSES, FP32, NZ, SIZE, small_augmentation, small_generator, small_spec, small_teacher
from datafree.data.datasets import TensorImages

from datafree.analysis.teacher_behavior import captions, observe, under_P

BOUND = 0.1


@pytest.fixture
def run():
    """What is used of a run: small networks, 20 images."""
    images = TensorImages(torch.randint(256, (20, 3, SIZE, SIZE), dtype=torch.uint8), torch.randint(CLASSES, (20,)))
    return SimpleNamespace(
        nz=NZ,
        spec=small_spec(),
        compute=FP32,
        augmentation=small_augmentation(),
        teacher=small_teacher(),
        generator=small_generator().eval().requires_grad_(False),
        perturbation=(lambda x: torch.sin(9 * x), BOUND),  # an untrained P hardly changes anything
        real_images=lambda: images,
    )


def test_p_changes_pixels_by_at_most_its_bound_and_keeps_them_pixels(run):
    x = torch.rand(5, 3, SIZE, SIZE)
    changed = under_P(run, x)
    assert changed.min() >= 0 and changed.max() <= 1
    assert 0.9 * BOUND < (changed - x).abs().max() <= BOUND + 1e-5


def test_every_kind_has_the_label_that_is_said(run):
    seen = observe(run, synthetic_count=9, carlini_wagner_count=2)
    assert torch.equal(seen.real.labels, run.real_images().labels)
    kinds = seen.kinds()
    assert kinds["real, right"].agrees.all() and not kinds["real, wrong"].agrees.any()
    assert len(kinds["real, right"]) + len(kinds["real, wrong"]) == 20
    assert seen.synthetic.agrees.all() and seen.labelled_again.agrees.all()
    assert torch.equal(seen.attacked.labels, seen.synthetic.predicted)
    assert not torch.equal(seen.attacked.x, seen.synthetic.x)
    known = min(2, len(kinds["real, right"]))
    assert torch.equal(seen.carlini_wagner.labels, kinds["real, right"].labels[:known]) and known > 0


def test_captions_name_label_prediction_and_confidence(run):
    seen = observe(run, 2, 1).real.where(torch.tensor([0]))
    (text,) = captions(seen)
    assert text == f"label {seen.labels.item()}, says\n{seen.predicted.item()} ({seen.confidence.item():.2f})"
