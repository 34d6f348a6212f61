"""What the teacher is asked about: whose label each kind of image has, and what is shown of it."""

import pytest
import torch
from small_run import BOUND, SmallRun

from datafree.analysis.calibration import judge
from datafree.analysis.teacher_behavior import (
    AGAIN,
    CARLINI_WAGNER,
    REAL,
    SYNTHETIC,
    UNDER_P,
    carlini_wagner,
    gallery,
    observe,
    parted,
)


@pytest.fixture
def run(tmp_path):
    return SmallRun(tmp_path)


def test_every_kind_has_the_label_that_is_said_and_p_keeps_its_bound(run):
    pixels, seen = observe(run, synthetic=9, attacked=2)
    assert seen.label[REAL].tolist() == run.real_images().labels.tolist() and seen.right[[SYNTHETIC, AGAIN]].all()
    assert seen.label[UNDER_P].tolist() == seen.predicted[SYNTHETIC].tolist()
    moved = (pixels[UNDER_P] - pixels[SYNTHETIC]).abs().max()
    assert 0.9 * BOUND < moved <= BOUND + 1e-6
    assert pixels[UNDER_P].min() >= 0 and pixels[UNDER_P].max() <= 1
    known = seen.loc[REAL].query("right").label.tolist()[:2]
    assert seen.label[CARLINI_WAGNER].tolist() == known and len(known) == 2


def test_what_is_shown_parts_real_images_and_leaves_out_what_withstood(run):
    pixels, seen = observe(run, synthetic=3, attacked=2)
    seen.loc[CARLINI_WAGNER, "right"] = [True, False]
    shown = parted(seen)
    counts = shown.name.value_counts()
    assert counts["real, right"] + counts["real, wrong"] == 30 and counts[CARLINI_WAGNER] == 1 and AGAIN not in counts
    assert shown[shown.name == "real, wrong"].right.sum() == 0
    images, texts = gallery(pixels, shown, most=2)
    first = seen.loc[CARLINI_WAGNER].iloc[1]
    assert torch.equal(images[CARLINI_WAGNER], pixels[CARLINI_WAGNER][1:])
    assert texts[CARLINI_WAGNER] == [f"label {first.label}, says\n{first.predicted} ({first.confidence:.2f})"]


def test_carlini_wagner_changes_the_class_by_a_small_step_within_the_pixels(run):
    teacher, x = run.teacher, torch.rand(6, 3, 8, 8)
    changed = carlini_wagner(teacher, x, num_classes=5)
    stayed = torch.tensor(judge(teacher, changed, teacher(x).argmax(1)).right)
    assert changed.shape == x.shape and changed.min() >= 0 and changed.max() <= 1
    moved, far = ((other - x).flatten(1).norm(dim=1) for other in (changed, torch.rand(6, 3, 8, 8)))
    assert (~stayed).sum() >= 2 and (moved < 0.5 * far).all()
    assert (moved[stayed] == 0).all() and (moved[~stayed] > 0).all()
