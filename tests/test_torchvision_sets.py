"""torchvision's sets, as small files in their real formats: read in order, fetched whole, never run or written over.

The checksums of the real archives are replaced by those of the small ones, so that torchvision's check still runs.
"""

import gzip
import hashlib
import pickle
import struct
import sys
import tarfile

import numpy as np
import pytest
import scipy.io
from conftest import user_error
from programs import without_privileges
from torchvision import datasets

from datafree.data.specs import DamagedData, MissingData
from datafree.data.torchvision_sets import load_cifar10, load_cifar100, load_mnist, load_svhn

LOADERS = [load_mnist, load_svhn, load_cifar10, load_cifar100]
pytestmark = pytest.mark.usefixtures("no_network")


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


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


def test_a_torchvision_that_cannot_be_imported_is_not_taken_for_damaged_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"something")
    with pytest.raises(ImportError):
        load_mnist(tmp_path, True, False)


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


def test_mnist_is_grey_and_padded_to_32(tmp_path):
    pixels = write_mnist(tmp_path)
    images = load_mnist(tmp_path, True, False)
    assert images.images.shape == (5, 1, 32, 32) and images.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(images.images[:, 0, 2:30, 2:30].numpy(), pixels)
    assert images.images.sum() == pixels.sum(dtype=np.int64)


@pytest.mark.parametrize("load", LOADERS)
def test_missing_data_is_one_quiet_line_and_touches_the_network_only_with_leave(tmp_path, no_network, capfd, load):
    root = tmp_path / "data"
    with user_error(str(root), "--data_root", kind=MissingData):
        load(root, True, False)
    assert not no_network and not root.exists()
    with user_error("download", kind=MissingData):
        load(root, True, True)
    assert no_network and not list(root.iterdir()) and capfd.readouterr() == ("", "")


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
    archive.write_bytes(archive.read_bytes() + b"x")
    with user_error("corrupted", kind=MissingData):
        load_cifar10(tmp_path / "elsewhere", True, True)
    assert not list((tmp_path / "elsewhere").iterdir())


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


def test_an_archive_that_nobody_unpacked_is_pointed_at(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"packed")
    with user_error("no cifar10 images", f"unpack {tmp_path}/cifar-10-python.tar.gz", kind=MissingData):
        load_cifar10(tmp_path, False, False)
    write_mnist(tmp_path)
    for path in (tmp_path / "MNIST/raw").iterdir():
        path.rename(path.with_name(path.name + ".gz"))
    with user_error(f"unpack {tmp_path}/MNIST/raw/t10k-images-idx3-ubyte.gz", kind=DamagedData):
        load_mnist(tmp_path, True, False)


def test_a_data_root_that_nothing_can_be_written_to_is_read_even_where_downloads_are_allowed(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    write_svhn(tmp_path, monkeypatch)
    write_mnist(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    with without_privileges(tmp_path.parent):
        for load in (load_cifar10, load_svhn, load_mnist):
            assert len(load(tmp_path, False, True)) > 0
    for folder in folders:
        folder.chmod(0o755)


class RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("code in a data file was run",))


RAW, BATCHES = "MNIST/raw", "cifar-10-batches-py"
DAMAGES = {  # file, and what becomes of its content; None: it is gone
    "cifar that runs code": (load_cifar10, f"{BATCHES}/data_batch_3", lambda whole: pickle.dumps(RunsCode())),
    "cifar without a batch": (load_cifar10, f"{BATCHES}/data_batch_5", lambda whole: None),
    "svhn cut short": (load_svhn, "train_32x32.mat", lambda whole: whole[:999]),
    "mnist cut short": (load_mnist, f"{RAW}/train-images-idx3-ubyte", lambda whole: whole[:999]),
    "mnist of three labels": (load_mnist, f"{RAW}/train-labels-idx1-ubyte", lambda whole: whole[:7] + b"\3" + bytes(3)),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_files_are_one_line_never_run_and_never_written_over(tmp_path, monkeypatch, no_network, what):
    load, name, change = DAMAGES[what]
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    write_svhn(tmp_path, monkeypatch)
    write_mnist(tmp_path)
    content = change((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for download in (False, True):
        with user_error(str(tmp_path), kind=DamagedData):
            load(tmp_path, True, download)
    assert not no_network and {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
