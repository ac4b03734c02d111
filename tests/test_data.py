import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pathline.core.errors import UsageError
from pathline.data import FetchError, Package, digits, emoji, fashion, fetch, prepare
from pathline.data.fetch import cache_folder, sha256_of
from pathline.learn.sources import SOURCES

KEEP = "PATHLINE_CACHE"


def fake_client(folder: Path, name: str, script: str) -> None:
    """A program that stands in for a package client."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that packs one file, an empty cache, and the checksum of what it packs."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "hello.txt").write_text("hello")
    archive = tmp_path / "hello.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    count = tmp_path / "count"
    fake_client(bin_, "npm", f"echo $* >> {count}; /bin/cp {archive} .")
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.setenv(KEEP, str(tmp_path / "cache"))
    return archive


def left_behind(tmp_path):
    return [p.name for p in (tmp_path / "cache" / "packages").iterdir()]


def test_a_package_is_fetched_once_by_name_and_version(npm, tmp_path):
    package = Package("npm", "@some/hello", "1.2.3", sha256_of(npm))
    first, second = fetch(package), fetch(package)
    assert first == second == cache_folder() / "packages" / "npm-some-hello-1.2.3"
    assert (first / "hello.txt").read_text() == "hello"
    calls = (tmp_path / "count").read_text().splitlines()
    assert calls == ["pack --loglevel=error @some/hello@1.2.3"]
    assert left_behind(tmp_path) == ["npm-some-hello-1.2.3"]


def test_another_checksum_is_refused_and_leaves_nothing(npm, tmp_path):
    with pytest.raises(FetchError, match=r"hello 1.2.3 has the checksum .*, and 000000000000…"):
        fetch(Package("npm", "hello", "1.2.3", "0" * 64))
    assert left_behind(tmp_path) == []


def test_a_missing_client_is_named(npm, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match=r"npm is needed to fetch hello 1.2.3, and is not here"):
        fetch(Package("npm", "hello", "1.2.3", "0" * 64))


@pytest.mark.parametrize(
    ("client", "kind", "says", "reads"),
    [
        (
            "npm",
            "npm",
            "npm error code ETARGET\nnpm error notarget No matching version found for hello@9.",
            "npm cannot fetch hello 9: No matching version found for hello@9.",
        ),
        (
            "apt-get",
            "apt",
            "W: old\nE: Version '9' for 'hello' was not found",
            "apt-get cannot fetch hello 9: Version '9' for 'hello' was not found (`apt-get update`",
        ),
    ],
    ids=["npm", "apt"],
)
def test_a_failing_client_is_quoted_in_one_sentence(npm, tmp_path, client, kind, says, reads):
    (tmp_path / "says").write_text(says)
    fake_client(tmp_path / "bin", client, f"/bin/cat {tmp_path / 'says'} >&2; exit 1")
    with pytest.raises(FetchError) as error:
        fetch(Package(kind, "hello", "9", "0" * 64))
    assert str(error.value).startswith(reads)
    assert "\n" not in str(error.value)
    assert left_behind(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(npm, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(KEEP, str(tmp_path / "file"))
    with pytest.raises(FetchError, match="PATHLINE_CACHE"):
        fetch(Package("npm", "hello", "1.2.3", "0" * 64))


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean emoji"):
        prepare("emojis")


@pytest.fixture(scope="module")
def drawn_emoji():
    """The real data set, if its packages are in the cache."""
    packages = [vendor.package for vendor in emoji.VENDORS] + [emoji.CAPTIONS]
    absent = [str(p) for p in packages if not p.folder.is_dir()]
    if absent:
        pytest.skip(f"not in the cache: {', '.join(absent)}; `pathline data emoji` fetches them")
    return emoji.load()


def test_no_emoji_is_both_trained_on_and_held_out(drawn_emoji):
    by_split = {"train": set(), "held_out": set()}
    for entry in drawn_emoji.entries:
        by_split[entry.split].add(entry.base)
    assert not by_split["train"] & by_split["held_out"]
    share = len(by_split["held_out"]) / sum(map(len, by_split.values()))
    # a binomial draw of about 1 900 bases: five standard deviations are 2.5 %
    assert abs(share - emoji.HELD_OUT) < 0.025


def test_a_base_is_never_a_skin_variant_itself(drawn_emoji):
    variants = {entry.key for entry in drawn_emoji.entries if entry.is_skin_variant}
    assert not variants & {entry.base for entry in drawn_emoji.entries}
    # a couple of two tones is spelled with other code points than its base, and belongs to it
    couple_of_two_tones = "1f469-1f3fb-200d-1f91d-200d-1f468-1f3fd"
    (couple,) = {e.base for e in drawn_emoji.entries if e.key == couple_of_two_tones}
    assert couple == "1f46b"


def test_vendors_draw_the_same_code_points(drawn_emoji):
    keys = {v: [e.key for e in drawn_emoji.entries if e.vendor == v] for v in ("noto", "twemoji")}
    assert keys["noto"] == keys["twemoji"]
    assert len(keys["noto"]) == len(set(keys["noto"])) == 3786
    fluent = [e.key for e in drawn_emoji.entries if e.vendor == "fluent"]
    assert len(fluent) == len(set(fluent)) == 3372


def test_known_pictures_have_their_colours(drawn_emoji):
    images, entries = drawn_emoji.images, drawn_emoji.entries
    assert images.shape == (len(entries), 32, 32, 3)
    centre = {e.label: images[i, 16, 16] for i, e in enumerate(entries) if e.vendor == "twemoji"}
    # Twemoji's red, green and white of its palette: #DD2E44, #78B159, #E6E7E8
    assert centre["red square"].tolist() == [0xDD, 0x2E, 0x44]
    assert centre["green circle"].tolist() == [0x78, 0xB1, 0x59]
    corners = [images[i, 0, 0] for i, e in enumerate(entries) if e.label == "green circle"]
    assert np.min(corners) >= 250, "the background is white"


def test_hidden_colours_do_not_bleed_into_edges(tmp_path):
    from PIL import Image

    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # red everywhere, seen nowhere
    pixels[:, :32] = (255, 255, 255, 255)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert (emoji._render(tmp_path / "a.png") == 255).all()


@pytest.mark.slow
def test_the_emoji_are_the_same_bytes_whenever_they_are_made(drawn_emoji, tmp_path, monkeypatch):
    first = prepare("emoji")
    packages = cache_folder() / "packages"
    (tmp_path / "packages").symlink_to(packages)
    monkeypatch.setenv(KEEP, str(tmp_path))
    second = prepare("emoji")
    assert second.path != first.path
    assert second.checksum == first.checksum
    assert second.counts == first.counts


def test_the_index_records_background_packages_and_licences(drawn_emoji):
    index = json.loads((prepare("emoji").path / "index.json").read_text())
    assert index["background"] == [255, 255, 255]
    assert set(index["licences"]) == {"noto", "twemoji", "fluent", "captions"}
    assert {p["sha256"] for p in index["packages"]} >= {v.package.sha256 for v in emoji.VENDORS}


def test_fashion_reads_idx_files(tmp_path, monkeypatch):
    """Header and order, on a package made here; the real one only differs in size."""
    monkeypatch.setenv(KEEP, str(tmp_path))
    source = fashion.PACKAGE.folder / "usr/share/datasets/fashion-mnist"
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for stem, n in (("train", 3), ("t10k", 2)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        written[stem] = images, labels
        for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            packed = gzip.compress(b"\1" * header + values.tobytes())
            (source / f"{stem}-{kind}-ubyte.gz").write_bytes(packed)
    data = fashion.load()
    assert np.array_equal(data.train_images, written["train"][0])
    assert np.array_equal(data.test_labels, written["t10k"][1])
    assert prepare("fashion").counts == {"train": 3, "test": 2}


def test_fashion_has_seventy_thousand_balanced_images():
    if not fashion.PACKAGE.folder.is_dir():
        pytest.skip("dataset-fashion-mnist is not in the cache; `pathline data fashion` fetches it")
    data = fashion.load()
    assert data.train_images.shape == (60000, 28, 28)
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10


def test_digits_are_shared_between_training_and_testing():
    pytest.importorskip("sklearn", reason='it comes with the extra "pathline[data]"')
    data = digits.load()
    assert data.train_images.shape == (1500, 8, 8) and data.test_images.shape == (297, 8, 8)
    assert data.train_images.max() == digits.LEVELS - 1
    assert set(data.test_labels.tolist()) == set(range(10))
    points = SOURCES["digits"]()
    drawn = points.batch(64, torch.Generator().manual_seed(0)).x0
    pixels = ((drawn + 1) * digits.LEVELS / 2).floor()
    assert drawn.abs().max() <= 1 and pixels.min() >= 0 and pixels.max() == digits.LEVELS - 1
    whole = {tuple(each) for each in data.train_images.reshape(1500, -1).tolist()}
    assert all(tuple(each) in whole for each in pixels.flatten(1).int().tolist())
