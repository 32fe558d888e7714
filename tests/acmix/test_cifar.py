"""CIFAR is read from its binary version; nothing is unpickled and nothing downloaded unasked."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from acmix.datasets.cifar import Cifar10, Cifar100
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

KINDS = [Cifar10, Cifar100]


def _record(kind: type, label: int) -> bytes:
    """An image whose red, green and blue planes are label, label + 100 and label + 150."""
    planes = b"".join(bytes([label + offset]) * 1024 for offset in (0, 100, 150))
    return bytes([7] * (kind.label_bytes - 1) + [label]) + planes


def _write(root: Path, kind: type) -> Path:
    """A data set below the root, 10 records a file, labels 0 to 9."""
    place = root / "cifar" / kind.folder
    place.mkdir(parents=True)
    for name in (*kind.train_files, *kind.test_files):
        (place / name).write_bytes(b"".join(_record(kind, label) for label in range(10)))
    (place / kind.names_file).write_text("".join(f"class{index}\n" for index in range(kind.num_classes)) + "\n")
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_the_binary_files_are_read(tmp_path, kind):
    _write(tmp_path, kind)
    cifar = kind(tmp_path)
    train = 10 * len(kind.train_files)
    assert [len(cifar.split(name)) for name in ("train", "val", "test")] == [train - train // 10, train // 10, 10]
    assert cifar.classes == tuple(f"class{index}" for index in range(kind.num_classes))
    image_3HW, label = cifar.split("test")[4]
    assert (image_3HW.dtype, image_3HW.shape, label) == (torch.uint8, (3, 32, 32), 4)
    assert image_3HW[:, 5, 6].tolist() == [4, 104, 154]


def test_rows_and_columns_are_not_swapped(tmp_path):
    place = _write(tmp_path, Cifar10)
    record = bytearray(_record(Cifar10, 0))
    record[1 + 32 * 3 + 5] = 255  # red, row 3, column 5
    (place / "test_batch.bin").write_bytes(record)
    image_3HW, _ = Cifar10(tmp_path).split("test")[0]
    assert image_3HW[0, 3, 5] == 255


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_folder_is_named_with_where_to_get_it(tmp_path, kind):
    with pytest.raises(DatasetMissing, match=kind.folder) as caught:
        kind(tmp_path)
    assert kind.url in caught.value.hint


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    (_write(tmp_path, Cifar10) / name).unlink()
    with pytest.raises(DatasetMissing, match=name):
        Cifar10(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data_batch_2.bin", b"", "0 bytes"),
        ("data_batch_2.bin", _record(Cifar10, 1)[:-1], "3072 bytes"),
        ("data_batch_2.bin", _record(Cifar10, 10), "label 10"),
        ("batches.meta.txt", b"cat\ndog\n", "names 2 classes"),
        ("batches.meta.txt", b"\xff" * 200_000, "at most 100000"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, content, says):
    (_write(tmp_path, Cifar10) / name).write_bytes(content)
    with pytest.raises(DatasetCorrupt, match=says) as caught:
        Cifar10(tmp_path)
    assert name in caught.value.message


def test_a_link_out_of_the_data_root_is_refused(tmp_path):
    _write(tmp_path / "outside", Cifar10)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cifar").symlink_to(tmp_path / "outside" / "cifar")
    with pytest.raises(OptionInvalid, match="link out of the data root"):
        Cifar10(tmp_path / "root")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of a web server that publishes tmp_path."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as httpd:
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def _published(folder: Path, server: str, kind: type) -> type:
    """The kind with its archive, made from a tiny tree, on the server."""
    place = _write(folder / "tree", kind)
    archive = folder / "published.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(place.iterdir()):
            member = tarfile.TarInfo(f"{kind.folder}/{path.name}")
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    return type("Published", (kind,), {"url": f"{server}/{archive.name}", "md5": digest})


def test_download_fetches_the_archive_once(tmp_path, server):
    kind = _published(tmp_path, server, Cifar100)
    root = tmp_path / "root"
    assert len(kind(root, download=True).split("test")) == 10
    (tmp_path / "published.tar.gz").unlink()
    assert len(kind(root, download=True).split("test")) == 10
    assert [path.name for path in (root / "cifar").iterdir()] == [kind.folder]


def test_a_download_that_is_another_file_is_refused_and_leaves_nothing(tmp_path, server):
    kind = type("Forged", (_published(tmp_path, server, Cifar10),), {"md5": "0" * 32})
    with pytest.raises(DatasetMissing, match="could not be downloaded"):
        kind(tmp_path / "root", download=True)
    assert list((tmp_path / "root" / "cifar").iterdir()) == []


def test_a_download_without_a_network_says_so(tmp_path):
    kind = type("Unreachable", (Cifar10,), {"url": "http://127.0.0.1:9/cifar-10-binary.tar.gz"})
    with pytest.raises(DatasetMissing, match="could not be downloaded"):
        kind(tmp_path, download=True)
