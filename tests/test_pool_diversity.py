"""What is said of the images in a pool is what one counts by hand."""

import numpy as np
import pandas as pd
import pytest
from conftest import user_error
from programs import FOLDER, QUICK, few_digits, finished, script  # noqa: F401

from datafree.data.pool import ImagePool

pool_diversity = script("pool_diversity")


def test_detail_of_two_pixels_is_fine_and_of_eight_is_not():
    stripes = np.tile(np.array([0.0, 1.0]), (4, 3, 8, 4))
    broad = np.tile(np.repeat([0.0, 1.0], 4), (4, 3, 8, 1))
    assert pool_diversity.fine_share(stripes) == pytest.approx(1)
    assert pool_diversity.fine_share(stripes + 7) == pytest.approx(1)  # the mean apart
    waves = 0.5 + 0.1 * np.tile(np.cos(2 * np.pi * np.arange(8) / 8), (2, 3, 8, 1))
    assert pool_diversity.fine_share(waves) == pytest.approx(0, abs=1e-9) and pool_diversity.fine_share(broad) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("targets", [[], ["--hl", "--p_width", "4"]], ids=["images alone", "beside twins and labels"])
def test_rounds_are_read_back_and_compared_within_and_between(targets, tmp_path, monkeypatch):
    made, keep = [], ImagePool.add
    monkeypatch.setattr(ImagePool, "add", lambda self, batch: (made.append(batch.images.clone()), keep(self, batch)))
    finished([*QUICK, *targets, "--run_root", tmp_path])
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    pool_diversity.main([str(folder), "--csv", str(tmp_path / "table.csv")])
    rounds = [np.rint(255 * images.numpy()) / 255 for images in made]
    (row,) = pd.read_csv(tmp_path / "table.csv").to_dict("records")
    within = np.mean([images.std(0).mean() for images in rounds])
    between = np.std([images.mean(0) for images in rounds], axis=0).mean()
    assert (row["run"], row["rounds"]) == (folder.name, 3)
    fine = 100 * pool_diversity.fine_share(np.concatenate(rounds))
    found = [row["within a round"], row["between rounds"], row["fine detail, %"]]
    assert found == pytest.approx([within, between, fine], rel=1e-3)
    (folder / "summary.json").unlink()
    with user_error("has no pool of a finished run"):
        pool_diversity.main([str(folder)])


def test_a_run_without_a_pool_is_told_so(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "config.json").write_text('{"mean": [0.5], "img_size": 8}')
    (folder / "metrics.csv").write_text("epoch\n1\n")
    with user_error("has no pool of a finished run"):
        pool_diversity.main([str(folder)])
