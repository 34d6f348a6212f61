"""A student at chance: the warning names the flag that is the likely cause."""

import pytest
from programs import FOLDER, QUICK, few_digits, finished  # noqa: F401

from datafree.engine.advice import against_chance


def test_a_generator_whose_loss_does_not_fall_names_its_rate():
    stuck = [1900.0, 1850.0, 1646.0, 1648.0, 1645.0, 1644.0]  # two iterations an epoch
    assert "(1,875 at first, 1,644 now) - lower --lr_g" in against_chance(9.72, stuck, 3, 1e3)
    growing = [10.0, 30.0, 90.0]
    assert "does not fall (10 at first, 90 now) - lower --lr_g" in against_chance(9.72, growing, 3, 1.0)
    assert against_chance(9.72, growing, 3, 1.0).startswith("warning: the student is still near chance (9.7 %), and")


@pytest.mark.parametrize(
    "losses",
    [
        [2062.0, 1661.0, 1533.0],  # falling
        [2000.0, 100.0, 50.0, 50.0],  # at its end
        [-1.0, -2.0, -3.0],
        [5.0, 5.0],  # two epochs tell nothing
        [],
    ],
)
def test_a_generator_that_learns_leaves_the_students_rate_and_the_images_as_likely_causes(losses):
    said = against_chance(9.72, losses, max(1, len(losses)), 2e-3)
    assert "does not fall" not in said and " - lower --lr, or raise --kd_steps" in said
    assert said.endswith("all alike, lower --lr_g or raise --g_steps")


def test_a_method_without_that_flag_is_not_told_to_lower_it():
    assert "lr_g" not in against_chance(9.72, [1.0, 2.0], 2, None)


@pytest.mark.slow
def test_a_run_with_a_generator_that_is_thrown_about_says_so_once(tmp_path):
    finished([*QUICK, "--epochs", "12", "--synthesis_batch_size", "32", "--lr_g", "1e3", "--run_root", tmp_path])
    log = (tmp_path / FOLDER / "log.txt").read_text()
    assert log.count("warning: ") == 1 and "the generator's loss does not fall" in log and "lower --lr_g" in log
