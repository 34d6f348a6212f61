import gzip
import hashlib
import pickle
import struct
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
from datafree.data.datasets import DamagedData, FolderImages, MissingData, TensorImages
from PIL import Image
from torchvision import datasets

from datafree.data.digits import load_digits, load_digits100, split, stretch
from datafree.data.folders import imagefolder_spec, load_imagenet, load_tiny_imagenet
from datafree.data.torchvision_sets import load_cifar10, load_cifar100, load_mnist, load_svhn
from datafree.errors import UserError

TORCHVISION = [load_mnist, load_svhn, load_cifar10, load_cifar100]
HALF = (0.5, 0.5, 0.5)


pytestmark = pytest.mark.usefixtures("no_network")


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and " — " in text
    return text


def counted_images(n: int = 10, size: int = 4) -> TensorImages:
    """Image i is filled with i and has label i."""
    numbers = torch.arange(n)
    return TensorImages(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous(), numbers)


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# Images in memory and in folders


def test_batches_come_in_order_and_hold_every_image():
    pieces = list(counted_images().batches(4, "cpu"))
    assert [len(labels) for _, labels in pieces] == [4, 4, 2]
    assert torch.cat([labels for _, labels in pieces]).tolist() == list(range(10))
    assert torch.cat([images for images, _ in pieces])[:, 0, 0, 0].tolist() == list(range(10))


def test_shuffled_covers_every_image_once_with_its_own_label():
    pieces = list(counted_images().shuffled(4, torch.Generator().manual_seed(0), "cpu"))
    labels = torch.cat([labels for _, labels in pieces])
    assert sorted(labels.tolist()) == list(range(10)) and labels.tolist() != list(range(10))
    assert torch.equal(torch.cat([images for images, _ in pieces])[:, 0, 0, 0].long(), labels)


def test_shuffled_is_decided_by_its_generator_alone():
    def passes(seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.cat([y for _, y in counted_images().shuffled(4, generator, "cpu")]).tolist() for _ in range(2)]

    torch.manual_seed(1)
    first = passes(0)
    torch.manual_seed(2)
    assert passes(0) == first and first[0] != first[1] and passes(3) != first


def test_drop_last_drops_a_short_batch_unless_it_is_the_only_one():
    def sizes(batch_size):
        generator = torch.Generator().manual_seed(0)
        return [len(y) for _, y in counted_images().shuffled(batch_size, generator, "cpu", drop_last=True)]

    assert sizes(4) == [4, 4] and sizes(5) == [5, 5] and sizes(64) == [10]


def test_tensor_images_refuse_floats_and_unequal_lengths():
    with pytest.raises(ValueError, match="uint8"):
        TensorImages(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels"):
        TensorImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_to_keeps_images_and_labels():
    moved = counted_images().to("cpu")
    assert torch.equal(moved.images, counted_images().images) and torch.equal(moved.labels, torch.arange(10))


def write_image(path, colour, size=(64, 64), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **how)


@pytest.fixture
def gradients(tmp_path):
    """Six images of 60x40 whose red channel runs from left to right and whose blue channel is the label times 100."""
    samples = []
    for i in range(6):
        pixels = np.zeros((40, 60, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 2] = np.arange(60) * 4, 100 * (i // 3)
        samples.append((str(tmp_path / f"{i}.png"), i // 3))
        Image.fromarray(pixels).save(samples[-1][0])
    return samples


def test_folder_batches_resize_the_shorter_side_and_crop_the_centre(gradients):
    (images, labels), (rest, _) = FolderImages(gradients, 28, workers=0).batches(4, "cpu")
    assert images.shape == (4, 3, 28, 28) and rest.shape == (2, 3, 28, 28) and images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 0, 1] and images[3, 2].unique().tolist() == [100]
    # 60x40 -> 48x32 with 4 steps of grey every 0.8 pixels; the crop starts 10 pixels in
    assert abs(images[0, 0, 14, 0].item() - 10 / 0.8 * 4) <= 4 and abs(images[0, 0, 14, 27].item() - 37 / 0.8 * 4) <= 4


def test_folder_crops_are_random_yet_decided_by_the_generator_whatever_the_number_of_workers(gradients):
    def epoch(seed, workers):
        generator = torch.Generator().manual_seed(seed)
        pieces = list(FolderImages(gradients, 16, workers).shuffled(4, generator, "cpu"))
        return torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])

    torch.manual_seed(1)
    images, labels = epoch(0, workers=0)
    torch.manual_seed(2)
    again, labels_again = epoch(0, workers=2)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1] and torch.equal(images[:, 2, 0, 0].long(), 100 * labels)
    assert len({x[0].numpy().tobytes() for x in images}) == 6
    assert not torch.equal(epoch(1, workers=0)[0], images)


def test_folder_shuffling_leaves_the_global_generator_alone(gradients):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(FolderImages(gradients, 16, workers=0).shuffled(4, torch.Generator().manual_seed(0), "cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_in_a_folder_is_named_in_one_line(gradients, workers):
    with open(gradients[4][0], "wb") as file:
        file.write(b"no image")
    with pytest.raises(DamagedData) as error:
        list(FolderImages(gradients, 16, workers).batches(4, "cpu"))
    assert "4.png" in one_line(error)


def test_only_folder_images_say_that_they_crop(gradients):
    assert FolderImages(gradients, 16).crops and not counted_images().crops


# Digits


def test_digits_split_is_1437_to_360_and_stratified(tmp_path):
    train, test = load_digits(tmp_path, True, False), load_digits(tmp_path, False, False)
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (3, 32, 32) and train.images.max() == 255 and train.images.min() == 0
    share = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    assert (share - 0.2).abs().max() < 0.005


def test_digit_images_are_the_bilinear_upsampling_of_the_source():
    pixels, _ = split(True)
    image = stretch(pixels[:1], 32, 32)[0, 0]
    source = pixels[0, 0].double().numpy()
    at = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)  # pixel centres
    columns = np.stack([np.interp(at, np.arange(8), row) for row in source])
    expected = np.stack([np.interp(at, np.arange(8), column) for column in columns.T], axis=1) * 255 / 16
    assert np.abs(image.numpy() - expected).max() <= 0.5


def halves_by_bytes(train: bool) -> dict[bytes, int]:
    """Source digits of a split, stretched to half an image, with their labels."""
    pixels, labels = split(train)
    return {half.numpy().tobytes(): int(y) for half, y in zip(stretch(pixels, 32, 16), labels, strict=True)}


@pytest.mark.parametrize("train", [True, False])
def test_digits100_halves_are_digits_of_the_own_split_and_make_the_label(tmp_path, train):
    own, other = halves_by_bytes(train), halves_by_bytes(not train)
    assert not own.keys() & other.keys()
    pairs = load_digits100(tmp_path, train, False)
    for image, label in zip(pairs.images, pairs.labels.tolist(), strict=True):
        left, right = (half.contiguous().numpy().tobytes() for half in image[0].split(16, dim=1))
        assert label == 10 * own[left] + own[right]


@pytest.mark.parametrize(("train", "per_class"), [(True, 100), (False, 20)])
def test_digits100_is_balanced_and_holds_no_pair_twice(tmp_path, train, per_class):
    pairs = load_digits100(tmp_path, train, False)
    assert pairs.labels.bincount().tolist() == [per_class] * 100
    assert len({image.numpy().tobytes() for image in pairs.images}) == 100 * per_class
    assert torch.equal(pairs.images[:, 0], pairs.images[:, 2])


@pytest.mark.parametrize(
    ("load", "train", "checksum"),
    [
        (load_digits, True, "e9adda3ee496a28d"),
        (load_digits, False, "3647b38292c335ff"),
        (load_digits100, True, "c2398c6984572dbb"),
        (load_digits100, False, "753b2c3bb1bd039f"),
    ],
)
def test_digits_are_the_same_on_every_machine(tmp_path, load, train, checksum):
    """The committed teachers were trained on exactly these bytes."""
    images = load(tmp_path, train, False)
    held = images.images.numpy().tobytes() + images.labels.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(held).hexdigest()[:16] == checksum


# torchvision's sets, as small files in their real formats. The checksums of the real archives are replaced by those of
# the small ones, so that torchvision's check still runs.


def write_cifar(root, kind, monkeypatch, n=4):
    """Python-version CIFAR batches of n images each; returns {file: (pixels (n, 3, 32, 32), labels)}."""
    folder, key = root / kind.base_folder, "labels" if kind is datasets.CIFAR10 else "fine_labels"
    folder.mkdir(parents=True)
    generator, written, sums = np.random.default_rng(0), {}, {}
    for name, _ in kind.train_list + kind.test_list:
        pixels = generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        labels = generator.integers(0, 10 if kind is datasets.CIFAR10 else 100, n).tolist()
        batch = {"data": pixels.reshape(n, -1), key: labels, "coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        written[name], sums[name] = (pixels, labels), md5(folder / name)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(i) for i in range(100)]}, protocol=2))
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[name, sums[name]] for name, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    return written


def write_svhn(root, monkeypatch):
    """Both .mat files with the labels 1 to 10; returns the train pixels (32, 32, 3, 10)."""
    root.mkdir(parents=True, exist_ok=True)
    pixels, sums = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8), {}
    for part in ("train", "test"):
        path = root / f"{part}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels, "y": np.arange(1, 11, dtype=np.uint8)[:, None]})
        url, name, _ = datasets.SVHN.split_list[part]
        sums[part] = [url, name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)
    return pixels


def write_mnist(root, n=5):
    """The four idx files; returns the train pixels (n, 28, 28)."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + bytes(range(n)))
    return pixels


@pytest.mark.parametrize(("load", "kind"), [(load_cifar10, datasets.CIFAR10), (load_cifar100, datasets.CIFAR100)])
def test_cifar_batches_are_read_in_order_channels_first(tmp_path, monkeypatch, load, kind):
    written = write_cifar(tmp_path, kind, monkeypatch)
    for train, parts in ((True, kind.train_list), (False, kind.test_list)):
        images = load(tmp_path, train, False)
        assert np.array_equal(images.images.numpy(), np.concatenate([written[name][0] for name, _ in parts]))
        assert images.labels.tolist() == [label for name, _ in parts for label in written[name][1]]


def test_svhn_is_upright_and_calls_the_digit_zero_zero(tmp_path, monkeypatch):
    pixels = write_svhn(tmp_path, monkeypatch)
    images = load_svhn(tmp_path, True, False)
    assert images.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert np.array_equal(images.images[3].permute(1, 2, 0).numpy(), pixels[..., 3])
    assert len(load_svhn(tmp_path, False, False)) == 10


def test_mnist_is_padded_to_32_in_three_equal_channels(tmp_path):
    pixels = write_mnist(tmp_path)
    images = load_mnist(tmp_path, True, False)
    assert images.images.shape == (5, 3, 32, 32) and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert all(np.array_equal(images.images[:, c, 2:30, 2:30].numpy(), pixels) for c in range(3))
    assert images.images.sum() == 3 * pixels.sum(dtype=np.int64)


@pytest.mark.parametrize("load", TORCHVISION)
def test_missing_data_is_one_line_and_touches_neither_network_nor_disk_without_leave(tmp_path, no_network, capfd, load):
    root = tmp_path / "data"
    with pytest.raises(MissingData) as error:
        load(root, True, False)
    assert str(root) in one_line(error) and "--data_root" in one_line(error)
    assert not isinstance(error.value, DamagedData) and not no_network and not root.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", TORCHVISION)
def test_a_failed_download_is_one_quiet_line_and_leaves_nothing_behind(tmp_path, no_network, capfd, load):
    with pytest.raises(MissingData) as error:
        load(tmp_path, True, True)
    assert "download" in one_line(error) and no_network and not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def serve(monkeypatch, files):
    """Makes torchvision's downloads copy local files: {name at the end of the url: path}."""

    def copy(url, filename, *args, **kwargs):
        with open(filename, "wb") as file:
            file.write(files[url.rsplit("/", 1)[1]].read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", copy)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **how: url)


def test_a_download_is_verified_then_moved_into_place(tmp_path, monkeypatch):
    written = write_cifar(tmp_path / "there", datasets.CIFAR10, monkeypatch)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "there" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    serve(monkeypatch, {archive.name: archive})
    root = tmp_path / "here"
    assert np.array_equal(load_cifar10(root, False, True).images.numpy(), written["test_batch"][0])
    assert [entry.name for entry in root.iterdir()] == ["cifar-10-batches-py"]
    assert len(load_cifar10(root, True, False)) == 20


def test_mnist_and_svhn_download_into_the_place_they_are_read_from(tmp_path, monkeypatch):
    write_mnist(tmp_path / "there")
    write_svhn(tmp_path / "there", monkeypatch)
    files = {f"{part}_32x32.mat": tmp_path / "there" / f"{part}_32x32.mat" for part in ("train", "test")}
    for path in list((tmp_path / "there/MNIST/raw").iterdir()):
        files[path.name + ".gz"] = path.with_suffix(".gz")
        path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
    resources = [(name, md5(files[name])) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    serve(monkeypatch, files)
    root = tmp_path / "here"
    assert len(load_mnist(root, True, True)) == 5 and len(load_mnist(root, False, False)) == 5
    assert len(load_svhn(root, False, True)) == 10 and len(load_svhn(root, True, True)) == 10
    assert sorted(entry.name for entry in root.iterdir()) == ["MNIST", "test_32x32.mat", "train_32x32.mat"]


def test_an_altered_download_is_refused(tmp_path, monkeypatch):
    write_svhn(tmp_path / "there", monkeypatch)
    path = tmp_path / "there" / "train_32x32.mat"
    path.write_bytes(path.read_bytes() + b"x")
    serve(monkeypatch, {path.name: path})
    with pytest.raises(MissingData) as error:
        load_svhn(tmp_path / "here", True, True)
    assert "corrupted" in one_line(error) and not list((tmp_path / "here").iterdir())


class RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("code in a data file was run",))


def damage_cifar(root, monkeypatch):
    write_cifar(root, datasets.CIFAR10, monkeypatch)
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(RunsCode()))


def lose_cifar_batch(root, monkeypatch):
    write_cifar(root, datasets.CIFAR10, monkeypatch)
    (root / "cifar-10-batches-py" / "data_batch_5").unlink()


def truncate_svhn(root, monkeypatch):
    write_svhn(root, monkeypatch)
    (root / "train_32x32.mat").write_bytes((root / "train_32x32.mat").read_bytes()[:999])


def truncate_mnist(root, monkeypatch):
    write_mnist(root)
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:999])


def empty_mnist_labels(root, monkeypatch):
    write_mnist(root)
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"")


def unequal_mnist(root, monkeypatch):
    write_mnist(root)
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes(3))


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("damage", "load"),
    [
        (damage_cifar, load_cifar10),
        (lose_cifar_batch, load_cifar10),
        (truncate_svhn, load_svhn),
        (truncate_mnist, load_mnist),
        (empty_mnist_labels, load_mnist),
        (unequal_mnist, load_mnist),
    ],
)
def test_damaged_files_are_one_line_never_run_and_never_written_over(
    tmp_path, monkeypatch, no_network, damage, load, download
):
    damage(tmp_path, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DamagedData) as error:
        load(tmp_path, True, download)
    assert str(tmp_path) in one_line(error) and "download=" not in one_line(error) and not no_network
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Tiny-ImageNet, ImageNet, image folders

WNIDS = [f"n{i:08d}" for i in np.random.default_rng(0).permutation(200)]  # not in sorted order


def write_tiny_train(root, below="images"):
    """One flat image a class whose grey is the rank of the class's sorted name."""
    for wnid in WNIDS:
        grey = sorted(WNIDS).index(wnid)
        write_image(root / "train" / wnid / below / f"{wnid}_0.JPEG", (grey,) * 3, quality=95)


def write_tiny_val(root, original: bool):
    lines = []
    for i, wnid in enumerate(WNIDS):
        folder = root / "val" / "images" if original else root / "val" / wnid
        write_image(folder / f"val_{i}.JPEG", (sorted(WNIDS).index(wnid),) * 3, quality=95)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    if original:
        (root / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.mark.parametrize("folder", ["tiny-imagenet-200", "tiny_imagenet"])
@pytest.mark.parametrize(("original", "below"), [(True, "images"), (False, ".")])
def test_tiny_imagenet_train_and_val_number_the_classes_alike_in_both_layouts(tmp_path, folder, original, below):
    write_tiny_train(tmp_path / folder, below)
    write_tiny_val(tmp_path / folder, original)
    for train in (True, False):
        images = load_tiny_imagenet(tmp_path, train, False)
        assert images.images.shape == (200, 3, 64, 64) and sorted(images.labels.tolist()) == list(range(200))
        assert (images.images[:, 0, 0, 0].long() - images.labels).abs().max() <= 1  # the grey tells the class


def test_tiny_imagenet_val_in_the_original_layout_needs_no_train(tmp_path):
    write_tiny_val(tmp_path / "tiny-imagenet-200", original=True)
    images = load_tiny_imagenet(tmp_path, False, False)
    assert (images.images[:, 0, 0, 0].long() - images.labels).abs().max() <= 1


def test_tiny_imagenet_reads_grey_images_as_three_channels(tmp_path):
    write_tiny_val(tmp_path / "tiny_imagenet", original=True)
    Image.new("L", (64, 64), 77).save(tmp_path / "tiny_imagenet/val/images/val_0.JPEG")
    assert load_tiny_imagenet(tmp_path, False, False).images[0].unique().tolist() == [77]


def tiny_without_annotations(root):
    (root / "val/val_annotations.txt").unlink()


def tiny_with_a_foreign_class(root):
    text = (root / "val/val_annotations.txt").read_text()
    (root / "val/val_annotations.txt").write_text(text.replace(WNIDS[7], "n99999999"))


def tiny_with_a_cut_image(root):
    (root / "val/images/val_3.JPEG").write_bytes((root / "val/images/val_3.JPEG").read_bytes()[:300])


def tiny_with_a_lost_image(root):
    (root / "val/images/val_3.JPEG").unlink()


def tiny_with_a_large_image(root):
    write_image(root / "val/images/val_3.JPEG", (0, 0, 0), (65, 64))


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (tiny_without_annotations, "val_annotations.txt"),
        (tiny_with_a_foreign_class, "only one of"),
        (tiny_with_a_cut_image, "val_3.JPEG"),
        (tiny_with_a_lost_image, "val_3.JPEG"),
        (tiny_with_a_large_image, "64x64"),
    ],
)
def test_a_harmed_tiny_imagenet_is_named_in_one_line(tmp_path, harm, word):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_train(root)
    write_tiny_val(root, original=True)
    harm(root)
    with pytest.raises(DamagedData, match=word) as error:
        load_tiny_imagenet(tmp_path, False, False)
    one_line(error)


@pytest.mark.parametrize("load", [load_tiny_imagenet, load_imagenet])
def test_absent_folders_are_missing_and_half_a_folder_is_damaged(tmp_path, no_network, load):
    with pytest.raises(MissingData) as error:
        load(tmp_path, False, True)
    assert "--data_root" in one_line(error) and not isinstance(error.value, DamagedData) and not no_network
    for name in ("tiny-imagenet-200", "imagenet"):
        (tmp_path / name / "train").mkdir(parents=True)
    with pytest.raises(DamagedData, match="val"):
        load(tmp_path, False, True)


def write_classes(root, classes, parts=("train", "val"), size=(20, 16)):
    for part in parts:
        for i, name in enumerate(classes):
            write_image(root / part / name / "a.png", (i % 256, i // 256, 0), size)


def test_imagenet_reads_a_thousand_classes_in_the_order_of_their_names(tmp_path):
    write_classes(tmp_path / "imagenet", [f"n{i:08d}" for i in range(1000)], size=(2, 2))
    for train in (True, False):
        images = load_imagenet(tmp_path, train, False)
        assert len(images) == 1000 and [label for _, label in images.samples] == list(range(1000))
    images.workers = 0
    pixels, labels = next(images.batches(8, "cpu"))
    assert pixels.shape == (8, 3, 224, 224) and torch.equal(pixels[:, 0, 0, 0].long(), labels)


def test_imagenet_with_too_few_classes_is_damaged(tmp_path):
    write_classes(tmp_path / "imagenet", ["a", "b"])
    with pytest.raises(DamagedData, match="2 classes instead of 1000"):
        load_imagenet(tmp_path, False, False)


def test_imagefolder_finds_its_classes_and_numbers_train_and_val_alike(tmp_path):
    write_classes(tmp_path, ["cat", "dog", "eel"])
    (tmp_path / "train" / ".cache").mkdir()
    spec = imagefolder_spec(tmp_path, 16, HALF, HALF)
    assert (spec.name, spec.num_classes, spec.img_size, spec.flip) == (f"imagefolder:{tmp_path}", 3, 16, True)
    for train in (True, False):
        images = spec.load(tmp_path / "elsewhere", train, False)
        images.workers = 0
        pixels, labels = next(images.batches(8, "cpu"))
        assert pixels.shape == (3, 3, 16, 16) and pixels[:, 0, 0, 0].tolist() == labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("part", ["train", "val"])
def test_imagefolder_counts_classes_from_either_split_and_calls_the_other_missing(tmp_path, part):
    write_classes(tmp_path, ["cat", "dog"], (part,))
    spec = imagefolder_spec(str(tmp_path), 16, HALF, HALF)
    assert spec.num_classes == 2 and len(spec.load(tmp_path, part == "train", False)) == 2
    with pytest.raises(MissingData) as error:
        spec.load(tmp_path, part != "train", False)
    one_line(error)


def test_imagefolder_refuses_what_is_no_data_set(tmp_path):
    def refusal() -> str:
        with pytest.raises(UserError) as error:
            imagefolder_spec(tmp_path, 16, HALF, HALF)
        return one_line(error)

    assert "neither train/ nor val/" in refusal()
    (tmp_path / "train").mkdir()
    assert "no class folders" in refusal()
    (tmp_path / "train" / "cat").mkdir()
    assert "no image" in refusal()
    write_classes(tmp_path, ["cat", "dog"], ("train",))
    write_classes(tmp_path, ["cat", "eel"], ("val",))
    assert "'dog'" in refusal()


def test_imagefolder_names_a_class_without_images(tmp_path):
    write_classes(tmp_path, ["cat", "dog"])
    (tmp_path / "val" / "dog" / "a.png").unlink()
    with pytest.raises(UserError, match="dog") as error:
        imagefolder_spec(tmp_path, 16, HALF, HALF).load(tmp_path, False, False)
    one_line(error)


@pytest.mark.parametrize("load", [load_imagenet, load_tiny_imagenet, load_cifar10])
def test_a_folder_that_may_not_be_looked_into_is_named_in_one_line(tmp_path, monkeypatch, load):
    for name in ("imagenet/val", "tiny_imagenet/val", "cifar-10-batches-py"):
        (tmp_path / name).mkdir(parents=True)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DamagedData, match=str(tmp_path)) as error:
        load(tmp_path, False, False)
    one_line(error)


# The registry


def test_every_data_set_is_registered_under_its_own_name_with_its_numbers():
    from registry import DATASETS

    shapes = {name: (DATASETS[name].num_classes, DATASETS[name].img_size, DATASETS[name].flip) for name in DATASETS}
    assert all(DATASETS[name].name == name for name in DATASETS)
    assert shapes == {
        "digits": (10, 32, False),
        "digits100": (100, 32, False),
        "mnist": (10, 32, False),
        "svhn": (10, 32, False),
        "cifar10": (10, 32, True),
        "cifar100": (100, 32, True),
        "tiny_imagenet": (200, 64, True),
        "imagenet": (1000, 224, True),
    }


def test_an_unknown_data_set_is_answered_with_the_nearest_names():
    from registry import DATASETS

    with pytest.raises(UserError, match="cifar10"):
        DATASETS["cifar_10"]
