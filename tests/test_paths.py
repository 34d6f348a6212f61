"""Paths in config.json are from the root, and follow a run whose folder has moved; names are told without them."""

from pathlib import Path

import pytest

from datafree.paths import absolute, found_again, portable, same_place, split


def test_a_name_is_split_into_what_stands_before_the_path_the_path_and_what_stands_behind():
    assert split("imagefolder:my data/x") == ("imagefolder:", "my data/x", "")
    assert split("timm:local-dir:my/x") == ("timm:local-dir:", "my/x", "")
    assert split("methods/own.py:Own") == ("", "methods/own.py", ":Own")
    assert split("/a/own.py:Own") == ("", "/a/own.py", ":Own")
    assert split("/a/t.pth") == ("", "/a/t.pth", "")
    for name in ("digits", "torchvision:resnet18", "t.pth", ""):
        assert split(name) == ("", "", name)


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("resnet8", "resnet8"),
        ("imagefolder:/home/ann/birds", "imagefolder:birds"),
        ("imagefolder:birds/", "imagefolder:birds"),
        ("/home/ann b/net.py:build", "net.py:build"),
        (r"C:\Users\ann\net.py:build", "net.py:build"),
        ("timm:vit_tiny_patch16_224,img_size=32", "timm:vit_tiny_patch16_224,img_size=32"),
        ("hf:/home/ann/vit", "hf:vit"),
        ("hf:~/vit", "hf:vit"),
        ("hf:../vit", "hf:vit"),
        ("hf:google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("timm:local-dir:/home/ann/vit", "timm:local-dir:vit"),
        ("timm:hf-hub:timm/vit.a1", "timm:hf-hub:timm/vit.a1"),
        ("~/t.pth", "t.pth"),
    ],
)
def test_names_stay_and_the_folders_that_lead_to_them_go(text, stays):
    assert portable(text) == stays


def test_a_folder_that_reads_like_a_name_of_the_hub_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann/vit").mkdir(parents=True)
    assert portable("hf:ann/vit") == "hf:vit"


def test_a_path_is_written_from_the_root_and_a_name_where_its_path_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    (tmp_path / "é x").mkdir()
    assert absolute(Path("not there/t.pth")) == f"{tmp_path}/not there/t.pth"
    assert absolute("own.py:Own") == f"{tmp_path}/own.py:Own"
    assert absolute("imagefolder:é x") == f"imagefolder:{tmp_path}/é x"
    for value in ("imagefolder:none", "hf:org/name", "own.py", "digits", None, True, 3):
        assert absolute(value) == value and type(absolute(value)) is type(value)
    assert absolute((0.5, 1)) == [0.5, 1]


@pytest.fixture
def project(tmp_path):
    """A project with a run, a teacher and a method; and what the run's config.json says."""
    for name in ("run/one", "data"):
        (tmp_path / "old/project" / name).mkdir(parents=True)
    for name in ("t.pth", "own.py"):
        (tmp_path / "old/project" / name).touch()
    at = tmp_path / "old/project"
    config = {"run_root": f"{at}/run", "teacher_path": f"{at}/t.pth", "method": f"{at}/own.py:Own", "lr": 0.1}
    return at, config | {"data_root": f"{at}/data", "dataset": "imagefolder:/elsewhere/x", "output": f"{at}/new/o.pth"}


def test_paths_follow_a_project_that_moved_as_a_whole_and_no_other(project, tmp_path):
    at, config = project
    assert found_again(config, at / "run/one") == config
    (tmp_path / "new").mkdir()
    at.rename(tmp_path / "new/renamed")
    now = tmp_path / "new/renamed"
    expected = {"run_root": f"{now}/run", "teacher_path": f"{now}/t.pth", "method": f"{now}/own.py:Own", "lr": 0.1}
    expected |= {"data_root": f"{now}/data", "dataset": "imagefolder:/elsewhere/x", "output": f"{now}/new/o.pth"}
    assert found_again(config, now / "run/one") == expected


def test_paths_stay_where_the_run_alone_moved_or_was_renamed_and_what_is_there_is_not_looked_for(project, tmp_path):
    at, config = project
    (at / "run/one").rename(at / "run/renamed")
    assert found_again(config, at / "run/renamed") == config
    (at / "run/renamed").rename(tmp_path / "alone")
    assert found_again(config, tmp_path / "alone") == config
    (tmp_path / "copy/project/run/one").mkdir(parents=True)
    (tmp_path / "copy/project/t.pth").touch()
    assert found_again(config, tmp_path / "copy/project/run/one") == config  # the first is still there


def test_a_config_of_before_with_paths_from_the_working_folder_is_taken_as_it_is(tmp_path):
    config = {"run_root": "run", "teacher_path": "t.pth"}
    assert found_again(config, tmp_path / "run/one") == config


def test_two_values_are_the_same_where_they_name_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pth", "b.pth", "own.py", "other.py"):
        (tmp_path / name).touch()
    (tmp_path / "link.pth").symlink_to("a.pth")
    at = str(tmp_path)
    assert same_place(f"{at}/a.pth", f"{at}/link.pth") and same_place("a.pth", f"{at}/a.pth")  # the latter of before
    assert not same_place(f"{at}/a.pth", f"{at}/b.pth")
    assert same_place(f"{at}/own.py:A", f"{at}/../{tmp_path.name}/own.py:A")
    assert not same_place(f"{at}/own.py:A", f"{at}/own.py:B")
    assert not same_place(f"{at}/own.py:A", f"{at}/other.py:A")
    for before, now in ((1, 2), (None, f"{at}/a.pth"), ("digits", "mnist"), ("digits", f"imagefolder:{at}"), (3, "3")):
        assert not same_place(before, now) and same_place(before, before)


def test_what_is_gone_may_be_named_anew_where_it_is_now(tmp_path):
    (tmp_path / "new.py").touch()
    at = str(tmp_path)
    assert same_place(f"{at}/old.py:A", f"{at}/new.py:A") and same_place("imagefolder:gone", f"imagefolder:{at}")
    assert not same_place(f"{at}/old.py:A", f"{at}/new.py:B")
    assert not same_place(f"{at}/old.py:A", f"{at}/not there.py:A")
    assert not same_place("imagefolder:gone", f"hf:{at}")
