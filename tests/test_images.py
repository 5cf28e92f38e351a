"""The one reader of images: which files it finds, and what it makes of odd ones."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from atmnet.images import ImageError, count_passed_over, find_images, natural, open_image, scan, to_rgb, upright, upright_size
from image_files import HEIGHT, WIDTH, scene, write_turned
from PIL import Image


def save(array: np.ndarray, path: Path, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_images_are_upright(orientation: int, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"turned.{ending}"
    write_turned(path, orientation, **({"lossless": True} if ending == "webp" else {"quality": 95} if ending == "jpg" else {}))
    image = open_image(path)
    assert image.size == upright_size(path) == (WIDTH, HEIGHT) and image.mode == "RGB"
    assert upright(image) is image  # what is opened is not turned again
    assert np.abs(np.asarray(image)[..., 0] / 255 - scene()).max() < (0.2 if ending == "jpg" else 0.01)


@pytest.mark.parametrize("kind", ["16 bits", "16 bits, big-endian", "12 bits", "16 bits, 0 is white", "16 bits of a PGM", "floats"])
def test_deep_images_are_scaled_by_their_own_depth(kind: str, tmp_path: Path) -> None:
    deep = (65535 * scene()).round().astype(np.uint16)
    if kind == "floats":
        path = save(scene().astype(np.float32), tmp_path / "a.tif")
    elif kind == "16 bits of a PGM":
        path = tmp_path / "a.pgm"
        path.write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes())
    elif kind == "16 bits, big-endian":
        path = tmp_path / "a.tif"
        Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes()).save(path)
    elif kind == "12 bits":
        first, second = (deep // 16).reshape(-1, 2).T  # two values in three bytes
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
        path = write_tiff(tmp_path / "a.tif", 12, 1, data)
    elif kind == "16 bits, 0 is white":
        path = write_tiff(tmp_path / "a.tif", 16, 0, (65535 - deep).astype("<u2").tobytes())
    else:
        path = save(deep, tmp_path / "a.png")
    assert np.abs(np.asarray(open_image(path))[..., 1] - 255 * scene()).max() <= 1


def test_16_bits_as_older_pillow_opens_them() -> None:
    image = Image.fromarray((65535 * scene()).round().astype(np.int32))
    image.format = "PNG"
    assert image.mode == "I" and np.abs(np.asarray(to_rgb(image))[..., 1] - 255 * scene()).max() <= 1


def write_tiff(path: Path, bits: int, photometric: int, data: bytes) -> Path:
    """A TIFF of one strip."""
    tags = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, HEIGHT), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4)
    return path


PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("wide.tif", 1000 * scene().astype(np.float32), r"its floats are 0 to 1000, not 0 to 1"),
        ("nan.tif", np.full((4, 4), np.nan, np.float32), r"its floats are nan"),
        ("long.tif", (2**30 * scene()).astype(np.int32), r"integers, signed or of 32 bits, do not tell their range"),
        ("empty.jpg", b"", r"cannot identify image file"),
        ("text.png", b"no image", r"cannot identify image file"),
        ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", r"cannot identify image file"),
        (
            "bomb.png",
            PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b""),
            r"bomb",
        ),
        ("header.png", PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)), r"."),
        ("none.png", PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 8, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b""), r"."),
        ("cut.qoi", b"qoif" + struct.pack(">IIBB", 8, 8, 3, 0), r"."),
        ("palette.bmp", b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 9, 0, 0, 0, 0, 0, 0), r"."),
    ],
)
def test_what_cannot_be_read_says_why(name: str, content: bytes | np.ndarray, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else save(content, path)
    with pytest.raises(ImageError, match=says) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(ImageError, match="it is not a regular file"):
            open_image(path)
    with pytest.raises(ImageError, match="No such file"):
        open_image(tmp_path / "gone.jpg")
    assert scan(tmp_path).images == []


@pytest.mark.parametrize(("size", "fits"), [((1, 250), True), ((251, 1), False), ((1, 65500), False)])
def test_how_long_an_image_may_be(size: tuple[int, int], fits: bool, tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "a.jpg")
    if fits:
        assert open_image(tmp_path / "a.jpg").size == size
    else:
        with pytest.raises(ImageError, match=r"pixels: more than 250 times as long as it is wide"):
            open_image(tmp_path / "a.jpg")


def test_more_pixels_than_wanted_are_not_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", 600).size == (30, 20)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])  # of which nothing can be decoded
    with pytest.raises(ImageError, match="it is 30 x 20 pixels: more than 599 in all"):
        open_image(tmp_path / "a.png", 599)


def test_a_damaged_exif_turns_nothing(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense")):
        Image.new("RGB", (9, 6)).save(tmp_path / f"{number}.jpg", exif=exif)
        assert open_image(tmp_path / f"{number}.jpg").size == upright_size(tmp_path / f"{number}.jpg") == (9, 6)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("a/1.webp", "a/2.BMP", "a/10.tif", "b/x.gif", "b/y.ppm", "b/z.jfif", "b/c/deep.PNG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, format="jpeg" if name.endswith("jfif") else None)
    for name in (".ipynb_checkpoints/1.png", ".thumbnails/t.png", "__MACOSX/._1.png", "a/._1.png", "a/@eaDir/1.png/thumb.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    for name in ("a/notes.TXT", "b/list.txt", "b/README", "b/paper.pdf", "b/film.mpg"):
        (root / name).write_text("no image")
    (root / "b/gone.jpg").symlink_to("nowhere.jpg")
    (root / "a/loop").symlink_to("..")
    (root / "a/self").symlink_to("self")
    (root / "0-again").symlink_to("a")  # before what it leads to
    return root


FOUND = ["a/1.webp", "a/2.BMP", "a/10.tif", "b/c/deep.PNG", "b/x.gif", "b/y.ppm", "b/z.jfif"]


def test_every_image_is_found_once_and_the_rest_is_told(photos: Path) -> None:
    found = scan(photos)
    assert [os.path.relpath(file, photos) for file in found.images] == FOUND
    told = count_passed_over(found.passed_over)
    assert sorted(told.split(", ")) == ["1 .mpg", "1 .pdf", "1 without ending", "2 .txt", "2 broken links and the like"]
    assert scan(photos / "a" / "loop" / "a").images[0].endswith("loop/a/1.webp")  # what is asked for by a link


@pytest.mark.parametrize("pattern", ["", "*", "**", "**/*.*", "[ab]/**/*"])
def test_patterns_find_the_same(pattern: str, photos: Path) -> None:
    found, _ = find_images([str(photos / pattern)])
    images = [file for file in found if file.suffix.lower() not in (".txt", ".pdf", ".mpg") and file.stem != "README"]
    assert sorted(os.path.relpath(os.path.realpath(file), photos) for file in images) == sorted(FOUND)


def test_a_link_to_a_folder_elsewhere_is_followed(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked").symlink_to(photos / "b")
    assert len(scan(tmp_path / "other").images) == 4


def test_order_is_as_people_count_and_the_same_everywhere() -> None:
    names = ["b", "a10", "a9", "a09", "A9", "1²2", "1²10", "٣", "4"]
    expected = ["1²2", "1²10", "٣", "4", "A9", "a09", "a9", "a10", "b"]
    assert sorted(names, key=natural) == sorted(reversed(names), key=natural) == expected
