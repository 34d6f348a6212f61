"""What a folder of images holds: links are followed, circles and system files are harmless, order is ImageFolder's."""

import os
from pathlib import Path

import pytest
from conftest import user_error
from torchvision.datasets import ImageFolder

from datafree.data.class_folders import TEST, TRAIN, folders_in, image_paths, samples_of, splits_in, without_images
from datafree.data.specs import DamagedData


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def names_in(folder):
    return [str(Path(path).relative_to(folder)) for path in image_paths(folder)]


def test_images_come_in_the_order_of_torchvisions_image_folder(tmp_path):
    touch(tmp_path, "b/z.png", "b/a.JPG", "b/deep/er/x.jpeg", "b/deep-1/y.png", "a/10.png", "a/9.png", "b/notes.txt")
    expected = ImageFolder.make_dataset(str(tmp_path), {"a": 0, "b": 1}, is_valid_file=lambda path: path[-3:] != "txt")
    assert samples_of(tmp_path, ["a", "b"]) == expected and len(expected) == 6


def test_links_to_files_and_folders_are_followed_and_a_folder_met_twice_is_read_once(tmp_path):
    touch(tmp_path, "real/1.png", "real/more/2.png", "other/3.png")
    a = tmp_path / "data/a"
    a.mkdir(parents=True)
    (a / "one").symlink_to(tmp_path / "real")
    (a / "two").symlink_to(tmp_path / "real")
    (a / "single.png").symlink_to(tmp_path / "other/3.png")
    assert [name.split("/", 1)[-1] for name in names_in(a)] == ["single.png", "1.png", "more/2.png"]
    (tmp_path / "data/b").symlink_to(tmp_path / "real")
    assert folders_in(tmp_path / "data") == ["a", "b"] and names_in(tmp_path / "data/b") == ["1.png", "more/2.png"]


def test_links_that_go_round_in_circles_or_up_bring_nothing_in(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "elsewhere/c/3.png", "elsewhere/d/4.png")
    (tmp_path / "train/a/self").symlink_to(".")
    (tmp_path / "train/a/up").symlink_to("..")
    (tmp_path / "train/a/root").symlink_to("/")
    (tmp_path / "train/a/knot").symlink_to("knot")
    (tmp_path / "train/c").symlink_to(tmp_path / "elsewhere/c")
    (tmp_path / "elsewhere/c/beside").symlink_to(tmp_path / "elsewhere")  # above the real folder, not above the link
    for name, target in (("self", "."), ("up", ".."), ("top", "/")):
        (tmp_path / "train" / name).symlink_to(target)
    assert folders_in(tmp_path / "train") == ["a", "b", "c"]  # these are no classes
    assert [names_in(tmp_path / "train" / name) for name in "abc"] == [["1.png"], ["2.png"], ["3.png"]]


def test_a_split_may_be_a_link_to_the_folder_that_holds_it(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "train").symlink_to(".")
    assert splits_in(tmp_path, TRAIN) == [tmp_path / "train"] and folders_in(tmp_path / "train") == ["a", "b"]
    assert [Path(path).name for path, _ in samples_of(tmp_path / "train", ["a", "b"])] == ["1.png", "2.png"]


SYSTEM = (
    *("a/._1.png", "a/.hidden.png", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", ".ipynb_checkpoints/1-copy.png"),
    *("a/.ipynb_checkpoints/1.png", "a/deep/.ipynb_checkpoints/2.png", "__MACOSX/a/._1.png", "__MACOSX/1.png"),
    *("@eaDir/1.png/SYNO.png", "a/@eaDir/2.png", "lost+found/3.png", "$RECYCLE.BIN/4.png", ".cache/5.png"),
    *("a/deep/__MACOSX/6.png", "System Volume Information/7.png", "#recycle/8.png", "a/LOST.DIR/9.png"),
)


def test_hidden_and_system_files_are_passed_over_at_every_depth(tmp_path):
    touch(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png", *SYSTEM)
    assert folders_in(tmp_path) == ["a", "b"] and names_in(tmp_path / "a") == ["1.png", "deep/2.png"]
    assert [Path(path).name for path, _ in samples_of(tmp_path, folders_in(tmp_path))] == ["1.png", "2.png", "3.png"]
    touch(tmp_path / ".mine", "a/1.png")  # a place of the user's own choosing may be hidden
    assert names_in(tmp_path / ".mine/a") == ["1.png"]


def test_what_has_the_name_of_an_image_and_is_no_file_is_passed_over(tmp_path):
    touch(tmp_path, "1.png", "folder.png/2.png")
    os.mkfifo(tmp_path / "pipe.png")  # would be waited for
    assert names_in(tmp_path) == ["1.png", "folder.png/2.png"]


def test_a_class_folder_that_links_to_nothing_is_named_and_such_an_image_is_kept_for_its_reader_to_name(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "a/2.png").symlink_to(tmp_path / "gone.png")
    assert names_in(tmp_path / "a") == ["1.png", "2.png"]
    (tmp_path / "b").symlink_to(tmp_path / "unmounted")
    with user_error(f"{tmp_path}/b is a link to {tmp_path}/unmounted", kind=DamagedData):
        folders_in(tmp_path)
    assert splits_in(tmp_path, TRAIN) == []  # none of theirs
    (tmp_path / "val").symlink_to(tmp_path / "unmounted")
    with user_error("val is a link"):
        splits_in(tmp_path, TEST)


def test_splits_are_found_by_any_of_their_names_in_order(tmp_path):
    for name in ("Test", "valid", "TRAIN", "training", "other", "dev"):
        (tmp_path / name).mkdir()
    touch(tmp_path, "val")  # a file
    assert [path.name for path in splits_in(tmp_path, TEST)] == ["valid", "Test", "dev"]
    assert [path.name for path in splits_in(tmp_path, TRAIN)] == ["TRAIN", "training"]
    assert splits_in(tmp_path / "absent", TRAIN) == []


@pytest.mark.parametrize("samples", [[], [("x", 1)]])
def test_classes_without_images_are_told(samples):
    assert without_images(samples, ["a", "b", "c"]) == (["a", "c"] if samples else ["a", "b", "c"])
