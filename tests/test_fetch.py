"""Data sets over a network that stops, lies and breaks off, in the formats their makers publish."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from core import files
from images import fetch as fetching
from images import load
from images.__main__ import main
from images.sources import SOURCES, File, Source

rng = np.random.default_rng(0)
TRAIN, TEST = 5, 3  # images


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes())


def mnist() -> dict[str, bytes]:
    found = {}
    for split, count in (("train", TRAIN), ("t10k", TEST)):
        found[f"{split}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        found[f"{split}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8))
    return found


def records(count: int, label_bytes: int) -> bytes:
    return rng.integers(0, 10, (count, label_bytes + 3_072), dtype=np.uint8).tobytes()


def tar(name: str, members: dict[str, bytes]) -> dict[str, bytes]:
    """An archive as CIFAR's: one folder, with a page beside the records."""
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w:gz") as archive:
        for member, content in {**members, "readme.html": b"<html/>"}.items():
            entry = tarfile.TarInfo(f"{SOURCES[name].inside}/{member}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return {SOURCES[name].files[0].name: into.getvalue()}


def cifar10() -> dict[str, bytes]:
    parts = {f"data_batch_{i}.bin": records(TRAIN // 5, 1) for i in range(1, 6)}
    return tar("cifar10", {**parts, "test_batch.bin": records(TEST, 1)})


def cifar100() -> dict[str, bytes]:
    return tar("cifar100", {"train.bin": records(TRAIN, 2), "test.bin": records(TEST, 2)})


def svhn() -> dict[str, bytes]:
    found = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        into = io.BytesIO()
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(into, {"X": images, "y": np.full((count, 1), 10, np.uint8)}, do_compression=True)
        found[f"{split}_32x32.mat"] = into.getvalue()
    return found


def tiny_imagenet() -> dict[str, bytes]:
    picture = cv2.imencode(".jpeg", np.full((64, 64, 3), 50, np.uint8))[1].tobytes()
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as archive:
        members = {"wnids.txt": b"n01\n", "val/val_annotations.txt": b""}
        for k in range(TRAIN):
            members[f"train/n01/images/n01_{k}.JPEG"] = picture
        for k in range(TEST):
            members[f"val/images/val_{k}.JPEG"] = picture
            members["val/val_annotations.txt"] += b"val_%d.JPEG\tn01\t0\t0\t62\t62\n" % k
        for member, content in members.items():
            archive.writestr(f"tiny-imagenet-200/{member}", content)
    return {"tiny-imagenet-200.zip": into.getvalue()}


SMALL = {f.__name__: f for f in (mnist, cifar10, cifar100, svhn, tiny_imagenet)}


@pytest.fixture
def server(monkeypatch):
    """Serves what a test puts into `files`, in parts where asked; `asked` are requests, `cut` ends answers early."""
    state = SimpleNamespace(files={}, asked=[], cut=None, ranges=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path.strip("/"))
            if content is None:
                return self.send_error(404)
            start = int(wanted.removeprefix("bytes=").strip("-")) if wanted and state.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : state.cut])

        def log_message(self, *given): ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{running.server_port}"

    def offer(name: str) -> None:
        """The small data set in place of the published one."""
        state.files.update(found := SMALL[name]())
        listed = [
            File((f"{state.url}/gone/{file}", f"{state.url}/{file}"), len(content), hashlib.sha256(content).hexdigest())
            for file, content in found.items()
        ]
        monkeypatch.setitem(SOURCES, name, Source(tuple(listed), (TRAIN, TEST), SOURCES[name].inside))

    state.offer = offer
    load.cache_clear()
    yield state
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("name", SMALL)
def test_what_is_fetched_is_what_training_reads_and_is_fetched_once(server, tmp_path, capsys, name):
    server.offer(name)
    folder = tmp_path / "data" / name
    with pytest.raises(ValueError, match=f"is not there; python -m images fetch {name} to={folder} fetches it"):
        load(name, str(folder))
    assert main(["fetch", name, f"to={folder}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}: 5 images for training, 3 for testing"
    found = load(name, str(folder))
    assert len(found.train) == len(found.labels) == TRAIN and len(found.test) == TEST
    assert [path.name for path in folder.parent.iterdir()] == [name], "something was left beside it"
    asked = len(server.asked)
    assert main(["fetch", name, f"to={folder}"]) == 0 and len(server.asked) == asked


def test_bytes_of_mnist_are_kept_as_they_came(server, tmp_path):
    server.offer("mnist")
    (tmp_path / "mnist").mkdir()  # an empty folder is as good as none
    fetching.fetch("mnist", tmp_path / "mnist")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mnist").iterdir()} == server.files


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path, capsys, ranges):
    server.offer("cifar10")
    server.cut, server.ranges = 4_000, ranges
    folder = tmp_path / "cifar10"
    assert main(["fetch", "cifar10", f"to={folder}"]) == 2
    said = capsys.readouterr().err
    assert "cifar-10-binary.tar.gz: broke off after 4,000 of" in said and said.count("\n") == 1
    assert not folder.exists() and (tmp_path / ".cifar10.part" / "cifar-10-binary.tar.gz").stat().st_size == 4_000
    server.cut = None
    assert main(["fetch", "cifar10", f"to={folder}"]) == 0
    assert (
        server.asked[-1] == ("/cifar-10-binary.tar.gz", "bytes=4000-") and len(load("cifar10", str(folder)).train) == 5
    )


def test_another_address_of_the_file_goes_on_with_what_the_first_gave(server, tmp_path):
    server.offer("svhn")
    file = SOURCES["svhn"].files[0]
    path = tmp_path / file.name
    path.write_bytes(server.files[file.name][:100])
    fetching.download(file, path)
    assert [asked for asked, _ in server.asked] == [f"/gone/{file.name}", f"/{file.name}"]
    assert path.read_bytes() == server.files[file.name]


@pytest.mark.parametrize("name", SMALL)
def test_a_damaged_download_is_told_by_its_name_and_nothing_is_kept_of_it(server, tmp_path, capsys, name):
    server.offer(name)
    file = SOURCES[name].files[-1].name
    whole = server.files[file]
    server.files[file] = whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]
    assert main(["fetch", name, f"to={tmp_path / name}"]) == 2
    said = capsys.readouterr().err
    assert f"{file}: is damaged as {server.url}/{file} sent it, and removed" in said and said.count("\n") == 1
    assert not (tmp_path / name).exists() and not list(tmp_path.rglob(file))
    server.files[file] = whole
    assert main(["fetch", name, f"to={tmp_path / name}"]) == 0


def test_an_address_that_sends_damage_gives_way_to_the_next(server, tmp_path):
    server.offer("svhn")
    file = SOURCES["svhn"].files[0]
    whole = server.files[file.name]
    server.files["bad"] = b"?" + whole[1:]
    path = tmp_path / file.name
    fetching.download(file._replace(urls=(f"{server.url}/bad", file.urls[1])), path)
    assert path.read_bytes() == whole and server.asked[-1] == (f"/{file.name}", None)


def test_another_page_in_place_of_the_file_is_not_taken(server, tmp_path, capsys):
    server.offer("mnist")
    server.files["t10k-labels-idx1-ubyte.gz"] = b"<html>please log in</html>"
    assert main(["fetch", "mnist", f"to={tmp_path / 'mnist'}"]) == 2
    assert "t10k-labels-idx1-ubyte.gz: sends 26 bytes; expected" in capsys.readouterr().err
    assert not list(tmp_path.rglob("t10k-labels*")) and len(list(tmp_path.rglob("*.gz"))) == 3


def test_a_server_that_has_nothing_or_is_not_there_is_one_line(server, tmp_path, capsys):
    server.offer("mnist")
    server.files.clear()
    assert main(["fetch", "mnist", f"to={tmp_path / 'mnist'}"]) == 2
    assert "train-images-idx3-ubyte.gz: Not Found; the same command" in capsys.readouterr().err
    SOURCES["mnist"] = Source((File(("http://127.0.0.1:1/train",), 9, ""),), (TRAIN, TEST))
    assert main(["fetch", "mnist", f"to={tmp_path / 'mnist'}"]) == 2
    assert capsys.readouterr().err.startswith("http://127.0.0.1:1/train: [Errno")


def test_a_folder_with_something_else_is_left_alone(server, tmp_path, capsys):
    server.offer("mnist")
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["fetch", "mnist", f"to={tmp_path}"]) == 2
    assert "is no whole mnist" in capsys.readouterr().err and not server.asked
    for file, content in server.files.items():
        (tmp_path / file).write_bytes(content)
    assert main(["fetch", "mnist", f"to={tmp_path}"]) == 0 and not server.asked  # put there by hand
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(server.files["t10k-labels-idx1-ubyte.gz"][:-9])
    assert main(["fetch", "mnist", f"to={tmp_path}"]) == 2
    assert "t10k-labels-idx1-ubyte.gz is damaged" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["fetch", "mnist", f"to={tmp_path / 'file'}"]) == 2 and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_a_kill_while_unpacking_leaves_no_folder_and_costs_no_download(server, tmp_path, monkeypatch, name):
    server.offer(name)

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "move_folder", killed)
        fetching.fetch(name, tmp_path / name)
    asked = len(server.asked)
    assert not (tmp_path / name).exists()
    assert fetching.fetch(name, tmp_path / name) == (TRAIN, TEST) and len(server.asked) == asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["fetch"], "expected python -m images fetch NAME to=FOLDER"),
        (["fetch", "mnist", "data"], "expected python -m images fetch NAME to=FOLDER"),
        (["fetch", "mnist", "to="], "expected python -m images fetch NAME to=FOLDER"),
        (["fetch", "cifar", "to=data"], "cifar: nothing to fetch; did you mean cifar10?"),
        (["fetch", "digits", "to=data"], "digits: nothing to fetch"),
    ],
)
def test_a_misspelt_command_is_one_line(capsys, given, said):
    assert main(given) == 2
    found = capsys.readouterr().err
    assert found.startswith(said) and found.count("\n") == 1


def test_digests_are_digests_and_sizes_are_those_of_the_formats():
    for source in SOURCES.values():
        assert all(len(bytes.fromhex(file.sha256)) == 32 and file.size > 4_000 for file in source.files)
        assert not source.inside or len(source.files) == 1
    labels = SOURCES["mnist"].files[3]
    assert labels.name == "t10k-labels-idx1-ubyte.gz" and labels.size < SOURCES["mnist"].images[1]  # compressed
