"""imagefolder:PATH in every layout that people have: which images, which numbers of classes, what the log says."""

import os
import shutil

import pytest
import torch
from conftest import user_error
from PIL import Image

from datafree.data import specs
from datafree.data.imagefolder import imagefolder_spec
from datafree.data.specs import DamagedData, MissingData

HALF = (0.5, 0.5, 0.5)


def write(root, *names, size=(16, 16)):
    """Images whose red says the rank of their class's name in the alphabet."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (ord(path.parent.name[0]) - ord("a"), 0, 0)).save(path)


def spec_of(path, size=(16, 16), **how):
    return imagefolder_spec(path, size, HALF, HALF, **how)


def loaded(spec, train=False):
    """Red and label of each image, and the remarks."""
    images = spec.load("nowhere", train, False)
    pieces = list(images.batches(8, "cpu"))
    reds = torch.cat([x[:, 0, 0, 0] for x, _ in pieces]).tolist()
    return list(zip(reds, torch.cat([y for _, y in pieces]).tolist(), strict=True)), list(images.remarks)


def test_train_and_val_are_numbered_alike_by_name(tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in ("cat", "ant", "bee")))
    spec = spec_of(tmp_path)
    assert (spec.name, spec.num_classes, spec.flip) == (f"imagefolder:{tmp_path}", 3, True)
    assert spec.class_names == ("ant", "bee", "cat")
    for train in (True, False):
        assert loaded(spec, train)[0] == [(0, 0), (1, 1), (2, 2)]
    assert loaded(spec)[1] == [f"test set: {tmp_path}/val, 3 images, in memory"]


def test_size_and_channels_are_as_described(tmp_path):
    write(tmp_path, "val/a/1.png", "val/b/1.png", size=(40, 30))
    spec = imagefolder_spec(tmp_path, (24, 16), (0.5,), (0.2,))
    assert (spec.img_size, spec.shape, spec.mean, spec.std) == ((24, 16), (1, 24, 16), (0.5,), (0.2,))
    assert spec.load("nowhere", False, False).images.shape == (2, 1, 24, 16)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev", "Test"])
def test_the_test_images_may_be_in_a_folder_of_another_usual_name(tmp_path, name):
    write(tmp_path, "training/ant/1.png", "training/bee/1.png", f"{name}/ant/1.png", f"{name}/bee/1.png")
    pairs, remarks = loaded(spec_of(tmp_path))
    assert pairs == [(0, 0), (1, 1)] and f"{tmp_path}/{name}," in remarks[0]
    assert len(loaded(spec_of(tmp_path), train=True)[0]) == 2


def test_of_several_test_folders_the_first_is_taken_and_the_log_says_so(tmp_path):
    write(tmp_path, "train/ant/1.png", "test/ant/1.png", "test/ant/2.png", "val/ant/1.png")
    pairs, (remark,) = loaded(spec_of(tmp_path))
    assert len(pairs) == 1 and "/val, 1 images" in remark and remark.endswith(" (test/ not read)")
    shutil.rmtree(tmp_path / "val/ant")  # holds no classes now
    assert "/test, 2 images" in loaded(spec_of(tmp_path))[1][0]


def test_a_class_without_test_images_keeps_its_number_and_is_named(tmp_path):
    write(tmp_path, *(f"train/{name}/1.png" for name in "abcdefg"), "val/b/1.png", "val/g/1.png")
    (tmp_path / "val/c").mkdir()
    pairs, remarks = loaded(spec_of(tmp_path))
    assert pairs == [(1, 1), (6, 6)] and remarks[1:] == ["no test image of a, c, d and 2 more"]
    shutil.rmtree(tmp_path / "val/c")
    assert loaded(spec_of(tmp_path)) == (pairs, remarks)
    assert spec_of(tmp_path, num_classes=7).num_classes == 7
    (tmp_path / "train/b/1.png").unlink()
    assert loaded(spec_of(tmp_path), train=True)[1][1:] == ["no training image of b"]


def test_a_class_that_is_only_in_val_counts_unless_the_class_count_says_that_it_does_not(tmp_path):
    write(tmp_path, "train/a/1.png", "train/c/1.png", "val/a/1.png", "val/b/1.png", "val/c/1.png")
    assert loaded(spec_of(tmp_path))[0] == [(0, 0), (1, 1), (2, 2)]
    assert loaded(spec_of(tmp_path), train=True)[1][1:] == ["no training image of b"]
    pairs, remarks = loaded(spec_of(tmp_path, num_classes=2))
    assert pairs == [(0, 0), (2, 1)] and remarks[1:] == ["left out, for it is not in train/: b"]


def test_splits_that_have_nothing_to_do_with_each_other_are_refused(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "val/x/1.png", "val/y/1.png")
    with user_error("no class in common", "'a'", "'x'", kind=DamagedData):
        spec_of(tmp_path)


def test_another_class_count_is_answered_with_both_numbers_and_what_to_do(tmp_path):
    write(tmp_path, *(f"train/{name}/1.png" for name in "abcdefghij"))
    with user_error(
        "--num_classes says 12", "has 10 class folders", "leave the flag out", "add a folder, an empty one"
    ):
        spec_of(tmp_path, num_classes=12)
    for name in ("k", "l"):
        (tmp_path / "train" / name).mkdir()
    assert spec_of(tmp_path, num_classes=12).num_classes == 12
    with user_error("--num_classes says 11", "has 12 class folders", "remove the folders that are no class"):
        spec_of(tmp_path, num_classes=11)


def test_class_folders_without_a_split_are_test_images(tmp_path):
    write(tmp_path, "ant/1.png", "bee/1.png", "bee/2.png")
    pairs, (remark,) = loaded(spec_of(tmp_path))
    assert pairs == [(0, 0), (1, 1), (1, 1)] and "no train/ or val/" in remark
    assert spec_of(tmp_path, num_classes=2).num_classes == 2
    with user_error(f"no images in {tmp_path}/train", kind=MissingData):
        spec_of(tmp_path).load("nowhere", True, False)
    other = spec_of(tmp_path, num_classes=5)  # so these are no classes
    images, (remark,) = specs.test_images(other, "nowhere", False)
    assert other.num_classes == 5 and images is None and "its 2 folders are not 5 classes" in remark


def test_a_class_may_be_called_like_a_split_where_images_lie_right_in_all_folders(tmp_path):
    write(tmp_path, "bus/1.png", "dev/1.png", "lorry/1.png", "train/1.png", "tram/1.png", "van/1.png")
    pairs, _ = loaded(spec_of(tmp_path))
    assert pairs == [("abcdefghijklmnopqrstuvwxyz".index(name), label) for label, name in enumerate("bdlttv")]
    assert spec_of(tmp_path).class_names == ("bus", "dev", "lorry", "train", "tram", "van")
    write(tmp_path, "train/more/1.png")
    with user_error(f"{tmp_path}/dev holds no class folders", kind=MissingData):
        spec_of(tmp_path).load("nowhere", False, False)
    for name in ("bus", "lorry", "tram", "van"):
        shutil.rmtree(tmp_path / name)
    shutil.rmtree(tmp_path / "train/more")
    with user_error("holds no class folders"):
        spec_of(tmp_path)


def test_a_data_set_one_folder_further_down_is_pointed_at(tmp_path):
    write(tmp_path, "birds/train/a/1.png", "birds/val/a/1.png", "__MACOSX/birds/train/a/._1.png")
    with user_error(f"{tmp_path}/birds does", f"--dataset imagefolder:{tmp_path}/birds"):
        spec_of(tmp_path)


def test_unsorted_test_images_are_no_test_set_and_no_obstacle(tmp_path):
    write(tmp_path, "train/ant/1.png", "train/bee/1.png")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "test/1.png")
    images, (remark,) = specs.test_images(spec_of(tmp_path), "nowhere", False)
    assert images is None and "no accuracy" in remark and f"{tmp_path}/test holds no class folders" in remark
    shutil.rmtree(tmp_path / "train")
    with user_error("no class folders", "one folder a class", kind=DamagedData):
        spec_of(tmp_path)
    assert spec_of(tmp_path, num_classes=3).num_classes == 3


def test_what_is_no_data_set_is_refused_unless_the_class_count_is_given(tmp_path):
    def refused(*words):
        with user_error(*words):
            spec_of(tmp_path)

    refused("neither train/ nor val/", "--num_classes")
    assert spec_of(tmp_path, num_classes=3).num_classes == 3
    with user_error(f"there is no folder {tmp_path}/absent", "--num_classes"):
        spec_of(tmp_path / "absent")
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with user_error("pets.zip is no folder"):
        spec_of(tmp_path / "pets.zip")
    (tmp_path / "train").mkdir()
    refused("no class folders")
    (tmp_path / "train/cat").mkdir()
    refused("no image", ".jpg")
    for name in ("IMG_1", "2.HEIC", "IMG_3"):
        (tmp_path / "train/cat" / name).touch()
    others = "passed over for their endings: 3 files (none, .HEIC)"
    refused("no image", others)
    write(tmp_path, "train/cat/1.heic.png")
    assert f"training set: {others}" in loaded(spec_of(tmp_path), train=True)[1]
    (tmp_path / "val/cat").mkdir(parents=True)
    with user_error(f"no image in {tmp_path}/val", kind=MissingData):
        spec_of(tmp_path).load("nowhere", False, False)


def test_class_folders_of_files_without_extensions_are_told_of_though_there_is_no_split(tmp_path):
    for name in ("a/1", "b/2"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with user_error("neither train/ nor val/, nor images; passed over for their endings: 2 files (none)"):
        spec_of(tmp_path)


def test_links_and_system_files_change_nothing(tmp_path):
    write(tmp_path, "real/train/a/1.png", "real/train/b/1.png", "real/val/a/1.png", "real/val/b/1.PNG")
    plain = loaded(spec_of(tmp_path / "real"))[0]
    for split in ("train", "val"):
        (tmp_path / "links" / split).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "links" / split / name).symlink_to(tmp_path / "real" / split / name)
    (tmp_path / "whole").symlink_to(tmp_path / "real")
    for name in ("._1.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "real/val/a" / name).write_bytes(b"\0\5\x16\7")
    write(tmp_path, "real/val/a/.ipynb_checkpoints/1.png", "real/val/__MACOSX/1.png", "real/__MACOSX/val/1.png")
    for name in ("links", "whole", "real"):
        assert loaded(spec_of(tmp_path / name))[0] == plain == [(0, 0), (1, 1)]


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    write(tmp_path, "train/a/1.png", "val/a/1.png")
    spec, scandir = spec_of(tmp_path), os.scandir

    def refuse(folder):
        if str(folder).endswith("val/a"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with user_error(f"cannot read {tmp_path}/val/a", "Permission denied", kind=DamagedData):
        spec.load("nowhere", False, False)


@pytest.mark.parametrize(
    ("train", "test"), [("training_set", "test_set"), ("trainset", "Val Set"), ("Train", "eval-set")]
)
def test_splits_may_be_called_sets(train, test, tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in (train, test) for name in "ab"))
    spec = spec_of(tmp_path)
    assert spec.class_names == ("a", "b") and loaded(spec, train=True)[0] == [(0, 0), (1, 1)]
    assert loaded(spec)[1] == [f"test set: {tmp_path / test}, 2 images, in memory"]


def test_folds_are_no_classes_unless_the_class_count_says_so(tmp_path):
    write(tmp_path, *(f"fold{i}/{name}/1.png" for i in range(3) for name in "ab"))
    with user_error("have the same folders in them", f"imagefolder:{tmp_path}/fold0"):
        spec_of(tmp_path)
    assert spec_of(tmp_path, num_classes=3).class_names == ("fold0", "fold1", "fold2")
    with user_error("have the same folders in them", kind=MissingData):
        loaded(spec_of(tmp_path, num_classes=2))


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with user_error("pets.zip is no folder", "unpack it"):
        spec_of(tmp_path / "pets.zip")
