"""Images of every kind read right, and every kind of bad file refused in whole sentences."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellseg_cli.errors import CellsegError, ConfigError, InputError, LimitError
from cellseg_cli.images import planes as planes_module
from cellseg_cli.images.decode import (
    ImageHeader,
    Planes,
    load_image,
    open_image,
    read_header,
    read_image,
)
from cellseg_cli.images.discover import find_fields

GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10)
DEEP = GREY.astype(np.uint16) * 300
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
AGAIN = "; copy or export it again"


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing that any decoder has to say may reach the terminal."""
    yield
    assert capfd.readouterr() == ("", "")


def png(
    pixels: np.ndarray, depth: int, colour: int, *extra: tuple[bytes, bytes], rows: int = 10**6
) -> bytes:
    """Write a PNG by hand; ``pixels`` are the packed bytes of each row, ``rows`` those written."""
    height, row_bytes = pixels.shape
    width = row_bytes * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    raw = b"".join(b"\0" + row.tobytes() for row in pixels[:rows])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [
            (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
            *extra,
            (b"IDAT", zlib.compress(raw)),
            (b"IEND", b""),
        ]
    )


def bmp(
    rows: bytes,
    size: tuple[int, int],
    bits: int,
    palette: bytes = b"",
    *,
    upside_down: bool = False,
    coding: int = 0,
) -> bytes:
    """Write a BMP by hand; ``rows`` are in the order they are stored."""
    height, width = size[0] * (-1 if upside_down else 1), size[1]
    start = 14 + 40 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, coding, 0, 0, 0, len(palette) // 4, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def tiffs(*images: np.ndarray, **options: object) -> bytes:
    """A TIFF of several images without metadata that relates them."""
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for image in images:
            writer.write(image, metadata=None, **options)
    return stream.getvalue()


def read(tmp_path: Path, data: bytes, planes: Planes = Planes()) -> np.ndarray:
    """Read the bytes under a name that tells nothing, and hold the header to the pixels."""
    path = tmp_path / "image.dat"
    path.write_bytes(data)
    image = read_image(path, planes)
    header = read_header(path, planes)
    assert header.shape == image.shape[1:]
    assert header.dtype == image.dtype.name
    assert image.flags.c_contiguous
    return image


def refusal(tmp_path: Path, data: bytes, planes: Planes = Planes(), *, header: bool = False) -> str:
    """Return the reason without the path; with ``header`` both readers must give it."""
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_image(path, planes)
    if header:
        with pytest.raises(InputError) as also:
            read_header(path, planes)
        assert str(also.value) == str(caught.value)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# -- PNG ------------------------------------------------------------------------------------


def test_grey_png_of_8_and_16_bits(tmp_path: Path) -> None:
    image = read(tmp_path, png(GREY, 8, 0))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, GREY[np.newaxis])
    image = read(tmp_path, png(DEEP.astype(">u2").view(np.uint8), 16, 0))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, DEEP[np.newaxis])


def test_colours_come_in_the_order_red_green_blue(tmp_path: Path) -> None:
    expected = COLOUR.transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path, png(COLOUR.reshape(12, 30), 8, 2)), expected)
    np.testing.assert_array_equal(read(tmp_path, tiff(COLOUR, photometric="rgb")), expected)
    # BMP stores blue, green, red, from the lowest row up, rows filled to 4 bytes (30 → 32).
    rows = np.pad(COLOUR[::-1, :, ::-1].reshape(12, 30), ((0, 0), (0, 2))).tobytes()
    np.testing.assert_array_equal(read(tmp_path, bmp(rows, (12, 10), 24)), expected)


def test_equal_colours_stay_three_channels(tmp_path: Path) -> None:
    assert len(read(tmp_path, png(np.repeat(GREY, 3, axis=1), 8, 2))) == 3


@pytest.mark.parametrize(
    ("depth", "packed", "expected"),
    [
        (1, [0b10110001], [255, 0, 255, 255, 0, 0, 0, 255]),
        (2, [0b00011011], [0, 85, 170, 255]),
        (4, [0x0F, 0x12], [0, 255, 17, 34]),
    ],
)
def test_png_of_few_bits_fills_the_range(
    tmp_path: Path, depth: int, packed: list[int], expected: list[int]
) -> None:
    image = read(tmp_path, png(np.array([packed], np.uint8), depth, 0))
    np.testing.assert_array_equal(image, [[expected]])


def test_palette_png_becomes_colour(tmp_path: Path) -> None:
    index = np.array([[0, 1], [1, 1]], np.uint8)
    palette = (b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    expected = [[[10, 200], [200, 200]], [[20, 100], [100, 100]], [[30, 50], [50, 50]]]
    np.testing.assert_array_equal(read(tmp_path, png(index, 8, 3, palette)), expected)
    clear = png(index, 8, 3, palette, (b"tRNS", bytes([255, 7])))
    np.testing.assert_array_equal(read(tmp_path, clear), [*expected, [[255, 7], [7, 7]]])


def test_alpha_goes_only_if_it_is_opaque_everywhere(tmp_path: Path) -> None:
    opaque = np.dstack([COLOUR, np.full_like(GREY, 255)])
    see_through = opaque.copy()
    see_through[3, 4, 3] = 254
    for write in (
        lambda pixels: png(pixels.reshape(12, 40), 8, 6),
        lambda pixels: tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]),
    ):
        np.testing.assert_array_equal(read(tmp_path, write(opaque)), COLOUR.transpose(2, 0, 1))
        np.testing.assert_array_equal(
            read(tmp_path, write(see_through)), see_through.transpose(2, 0, 1)
        )
        np.testing.assert_array_equal(
            read(tmp_path, write(opaque), Planes(channel=(3, 0))),
            opaque[..., [3, 0]].transpose(2, 0, 1),
        )
    grey = np.stack([GREY, np.full_like(GREY, 255)], axis=-1)
    np.testing.assert_array_equal(read(tmp_path, png(grey.reshape(12, 20), 8, 4)), GREY[np.newaxis])


def test_a_fourth_channel_that_is_no_alpha_stays(tmp_path: Path) -> None:
    pixels = np.dstack([COLOUR, np.full_like(GREY, 255)])
    image = read(tmp_path, tiff(pixels, photometric="rgb", extrasamples=["unspecified"]))
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


FOUR = np.dstack([COLOUR, GREY])
STAINS = np.stack([GREY, 255 - GREY, GREY // 2])
RGBA = {"photometric": "rgb", "extrasamples": ["unassalpha"]}


@pytest.mark.parametrize(
    ("data", "planes", "colour"),
    [
        (lambda: png(COLOUR.reshape(12, 30), 8, 2), Planes(), True),
        (lambda: png(FOUR.reshape(12, 40), 8, 6), Planes(), True),
        (lambda: png(np.repeat(GREY, 2, axis=1), 8, 4), Planes(), False),
        (lambda: imagecodecs.jpeg8_encode(COLOUR), Planes(), True),
        (lambda: tiff(COLOUR, photometric="rgb"), Planes(), True),
        (lambda: tiff(STAINS, photometric="rgb", planarconfig="separate"), Planes(), True),
        (lambda: tiff(FOUR, **RGBA), Planes(), True),
        (lambda: tiff(FOUR, **RGBA), Planes(channel=(0, 1, 2)), True),
        (lambda: tiff(FOUR, **RGBA), Planes(channel=(1, 2, 3)), False),
        (lambda: tiff(FOUR, photometric="rgb", extrasamples=["unspecified"]), Planes(), False),
        (lambda: tiff(COLOUR, photometric="minisblack"), Planes(z="max"), False),
        (lambda: tiff(STAINS, metadata={"axes": "CYX"}, ome=True), Planes(), False),
        (lambda: tiff(STAINS, imagej=True, metadata={"axes": "CYX"}), Planes(), False),
        (lambda: tiff(GREY), Planes(), False),
    ],
)
def test_stains_are_told_from_colours(
    tmp_path: Path, data: Callable[[], bytes], planes: Planes, colour: bool
) -> None:
    (path := tmp_path / "image").write_bytes(data())
    assert load_image(path, planes).colour == colour
    with open_image(path, planes) as image:
        assert image.colour == colour


def test_what_a_png_says_of_its_colours_is_passed_over(tmp_path: Path) -> None:
    gamma = (b"gAMA", struct.pack(">I", 20000))
    broken_profile = (b"iCCP", b"x\0\0" + zlib.compress(b"none"))
    np.testing.assert_array_equal(
        read(tmp_path, png(GREY, 8, 0, gamma, broken_profile)), GREY[np.newaxis]
    )


def test_an_animation_is_refused(tmp_path: Path) -> None:
    data = png(GREY, 8, 0, (b"acTL", struct.pack(">II", 3, 0)))
    assert refusal(tmp_path, data, header=True) == (
        "PNG is an animation of 3 frames; export them as single images"
    )
    single = png(GREY, 8, 0, (b"acTL", struct.pack(">II", 1, 0)))
    np.testing.assert_array_equal(read(tmp_path, single), GREY[np.newaxis])


def test_a_png_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = png(GREY, 8, 0)
    for size in range(8, len(whole)):
        assert refusal(tmp_path, whole[:size]) == (
            f"PNG is truncated: the file ends at byte {size}, before its end mark (IEND){AGAIN}"
        )


def test_a_png_with_any_byte_changed_is_refused(tmp_path: Path) -> None:
    whole = png(GREY, 8, 0)
    path = tmp_path / "changed.png"
    for at in range(8, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(CellsegError):
            read_image(path)
    # The pixel chunk begins after 8 bytes of signature and 25 of IHDR.
    assert refusal(tmp_path, whole[:60] + b"\0\0" + whole[62:]) == (
        f"PNG is damaged: the checksum of its chunk at byte 33 is wrong{AGAIN}"
    )


def test_a_png_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, png(GREY, 8, 0, rows=5)) == (
        f"PNG is damaged: Not enough image data{AGAIN}"
    )


def test_a_png_without_header_is_refused(tmp_path: Path) -> None:
    whole = png(GREY, 8, 0)
    assert refusal(tmp_path, whole[:8] + whole[33:], header=True) == (
        f"PNG is damaged: no usable IHDR chunk at its start{AGAIN}"
    )


# -- JPEG -----------------------------------------------------------------------------------


def jpeg(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, level=95))


def test_jpeg_grey_and_colour(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 32 * 40).reshape(32, 40).astype(np.uint8)
    image = read(tmp_path, jpeg(smooth))
    np.testing.assert_allclose(image, smooth[np.newaxis], atol=6)
    red = np.zeros((16, 16, 3), np.uint8) + np.array([220, 20, 40], np.uint8)
    np.testing.assert_allclose(read(tmp_path, jpeg(red)), red.transpose(2, 0, 1), atol=4)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    whole = jpeg(GREY)
    np.testing.assert_array_equal(read(tmp_path, whole + b"\0" * 9), read(tmp_path, whole))


def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = jpeg(COLOUR)
    for size in range(3, len(whole), 3):
        assert refusal(tmp_path, whole[:size]) == (
            f"JPEG is truncated: the file ends at byte {size}, before its end mark (EOI){AGAIN}"
        )


def test_the_end_mark_of_an_embedded_thumbnail_does_not_count(tmp_path: Path) -> None:
    whole, thumbnail = jpeg(COLOUR), jpeg(GREY)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = whole[:2] + segment + whole[2:]
    assert read(tmp_path, data).shape == (3, 12, 10)
    assert refusal(tmp_path, data[:-2]) == (
        f"JPEG is truncated: the file ends at byte {len(data) - 2}, "
        f"before its end mark (EOI){AGAIN}"
    )


def test_jpeg_of_four_inks_is_refused(tmp_path: Path) -> None:
    data = bytearray(jpeg(COLOUR))
    data[data.index(b"\xff\xc0") + 9] = 4  # samples of a pixel, in the frame header
    assert refusal(tmp_path, data, header=True) == (
        "JPEG is of a kind that is not read (coding 0, 8 bits, 4 samples a pixel); "
        "save it as PNG or TIFF"
    )


def test_jpeg_without_frame_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"\xff\xd8\xff\xda\x00\x08" + bytes(20), header=True) == (
        f"JPEG is damaged: no frame header before its pixels{AGAIN}"
    )


# -- BMP ------------------------------------------------------------------------------------

GREYS = bytes([0, 0, 0, 0, 90, 90, 90, 0])
PAINTS = bytes([0, 0, 0, 0, 30, 20, 10, 0])  # black; blue 30, green 20, red 10


@pytest.mark.parametrize(
    ("bits", "rows"),
    [
        (1, bytes([0b10100000, 0, 0, 0, 0b01100000, 0, 0, 0])),
        (4, bytes([0x10, 0x10, 0, 0, 0x01, 0x10, 0, 0])),
        (8, bytes([1, 0, 1, 0, 0, 1, 1, 0])),
    ],
)
def test_bmp_with_palette(tmp_path: Path, bits: int, rows: bytes) -> None:
    index = np.array([[0, 1, 1], [1, 0, 1]])  # the lower row is stored first
    np.testing.assert_array_equal(
        read(tmp_path, bmp(rows, (2, 3), bits, GREYS)), 90 * index[np.newaxis]
    )
    np.testing.assert_array_equal(
        read(tmp_path, bmp(rows, (2, 3), bits, PAINTS)), [10 * index, 20 * index, 30 * index]
    )
    np.testing.assert_array_equal(
        read(tmp_path, bmp(rows, (2, 3), bits, GREYS, upside_down=True)),
        90 * index[np.newaxis, ::-1],
    )


def test_bmp_of_32_bits_has_no_alpha(tmp_path: Path) -> None:
    pixels = bytes([3, 2, 1, 0, 6, 5, 4, 0])
    np.testing.assert_array_equal(
        read(tmp_path, bmp(pixels, (1, 2), 32)), [[[1, 4]], [[2, 5]], [[3, 6]]]
    )


def test_bmp_of_the_oldest_and_of_a_newer_version(tmp_path: Path) -> None:
    core = struct.pack("<IHHHH", 12, 3, 1, 1, 1)
    palette = bytes([0, 0, 0, 30, 20, 10])  # three bytes a colour
    data = (
        b"BM" + struct.pack("<IHHI", 36, 0, 0, 32) + core + palette + bytes([0b01000000, 0, 0, 0])
    )
    np.testing.assert_array_equal(read(tmp_path, data), [[[0, 10, 0]], [[0, 20, 0]], [[0, 30, 0]]])
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(52)
    head = b"BM" + struct.pack("<IHHI", 130, 0, 0, 122) + info
    clear = head + bytes([3, 2, 1, 255, 6, 5, 4, 7])
    expected = [[[1, 4]], [[2, 5]], [[3, 6]], [[255, 7]]]
    np.testing.assert_array_equal(read(tmp_path, clear), expected)
    np.testing.assert_array_equal(read(tmp_path, clear[:-1] + b"\xff"), expected[:3])


def test_bad_bmps_are_refused(tmp_path: Path) -> None:
    rows = bytes([1, 0, 1, 0, 0, 1, 1, 0])
    whole = bmp(rows, (2, 3), 8, GREYS)  # 14 + 40 + 8 + 8 bytes
    assert refusal(tmp_path, whole[:-1], header=True) == (
        f"BMP is truncated: it needs 70 bytes and has 69{AGAIN}"
    )
    assert refusal(tmp_path, whole[:40], header=True) == (
        f"BMP is truncated: the file ends at byte 40, within its header{AGAIN}"
    )
    assert refusal(tmp_path, bmp(rows, (2, 3), 8, GREYS, coding=1), header=True) == (
        "BMP is of a kind that is not read (coding 1, 8 bits a pixel); save it as PNG or TIFF"
    )
    assert refusal(tmp_path, bmp(b"\2" + rows[1:], (2, 3), 8, GREYS)) == (
        f"BMP is damaged: value 2 is beyond its palette of 2 colours{AGAIN}"
    )


# -- TIFF -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8", ">u2", ">f4"]
)
def test_tiff_keeps_its_dtype(tmp_path: Path, dtype: str) -> None:
    pixels = GREY.astype(dtype)
    image = read(tmp_path, tiff(pixels, byteorder=">" if dtype.startswith(">") else "<"))
    assert image.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(image, GREY[np.newaxis])


@pytest.mark.parametrize(
    "compression", [None, "lzw", "zlib", "zstd", "packbits", "lzma", "jpeg2000", "png", "webp"]
)
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_tiff_of_any_compression(
    tmp_path: Path, compression: str | None, tile: tuple[int, int] | None
) -> None:
    pixels, photometric = (COLOUR, "rgb") if compression == "webp" else (GREY, "minisblack")
    lossless = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    data = tiff(pixels, compression=compression, tile=tile, photometric=photometric, **lossless)
    expected = np.atleast_3d(pixels).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path, data), expected)


def test_big_and_planar_tiff(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tmp_path, tiff(DEEP, bigtiff=True)), DEEP[np.newaxis])
    planar = COLOUR.transpose(2, 0, 1)
    data = tiff(planar, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read(tmp_path, data), planar)


def test_jpeg_within_tiff_becomes_rgb(tmp_path: Path) -> None:
    red = np.zeros((16, 16, 3), np.uint8) + np.array([220, 20, 40], np.uint8)
    data = tiff(red, compression="jpeg", photometric="rgb")
    np.testing.assert_allclose(read(tmp_path, data), red.transpose(2, 0, 1), atol=4)


def test_one_bit_tiff_becomes_0_and_255(tmp_path: Path) -> None:
    bits = GREY % 3 == 0
    for photometric in ("minisblack", "miniswhite"):
        image = read(tmp_path, tiff(bits, photometric=photometric))
        bright = bits if photometric == "minisblack" else ~bits
        np.testing.assert_array_equal(image, np.where(bright, 255, 0)[np.newaxis])
        assert image.dtype == np.uint8


def test_tiff_where_0_is_white_is_inverted(tmp_path: Path) -> None:
    for pixels, highest in ((GREY, 255), (DEEP, 65535)):
        image = read(tmp_path, tiff(pixels, photometric="miniswhite"))
        np.testing.assert_array_equal(image, highest - pixels[np.newaxis].astype(int))


def test_palette_tiff_becomes_colour_but_a_ramp_does_not(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[:, :3] = [[0, 200 << 8, 9 << 8], [0, 100 << 8, 8 << 8], [0, 50 << 8, 7 << 8]]
    index = np.array([[0, 1], [2, 1]], np.uint8)
    image = read(tmp_path, tiff(index, photometric="palette", colormap=colours))
    np.testing.assert_array_equal(
        image, [[[0, 200], [9, 200]], [[0, 100], [8, 100]], [[0, 50], [7, 50]]]
    )
    green = np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    image = read(tmp_path, tiff(index, photometric="palette", colormap=green))
    np.testing.assert_array_equal(image, index[np.newaxis])


def test_a_display_colour_map_of_imagej_is_not_data(tmp_path: Path) -> None:
    colours = np.arange(768, dtype=np.uint16)[::-1].reshape(3, 256)
    image = read(tmp_path, tiff(GREY, imagej=True, photometric="palette", colormap=colours))
    np.testing.assert_array_equal(image, GREY[np.newaxis])


@pytest.mark.parametrize("options", [{"photometric": "separated"}, {"photometric": "cielab"}])
def test_other_colour_models_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    pixels = np.dstack([COLOUR, GREY]) if options["photometric"] == "separated" else COLOUR
    name = options["photometric"].upper()
    assert refusal(tmp_path, tiff(pixels, **options), header=True) == (
        f"TIFF has colours of a kind that is not read ({name}); save it as RGB or grey"
    )


def test_complex_values_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, tiff(GREY.astype(np.complex64)), header=True) == (
        "TIFF holds complex64 values, which are not intensities"
    )


# -- stacks ---------------------------------------------------------------------------------

STACK = np.random.default_rng(0).integers(0, 60000, (2, 4, 3, 12, 10)).astype(np.uint16)  # TZCYX


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_planes_are_chosen_by_name(tmp_path: Path, kind: str, compression: str | None) -> None:
    data = tiff(STACK, metadata={"axes": "TZCYX"}, compression=compression, **{kind: True})
    for planes, expected in (
        (Planes(t=1, z="max"), STACK[1].max(axis=0)),
        (Planes(t=0, z="mid"), STACK[0, 2]),
        (Planes(t=1, z="3"), STACK[1, 3]),
        (Planes(t=1, z="0", channel=(2, 0)), STACK[1, 0, [2, 0]]),
        (Planes(t=0, z="max", channel=(1,)), STACK[0, :, 1].max(axis=0)[np.newaxis]),
    ):
        np.testing.assert_array_equal(read(tmp_path, data, planes), expected)
    assert refusal(tmp_path, data, header=True) == (
        "is a stack (TZCYX 2,4,3,12,10); choose with --z max|mid|INT and --t INT"
    )
    assert refusal(tmp_path, data, Planes(z="max"), header=True) == (
        "is a stack (TZCYX 2,4,3,12,10); choose with --t INT"
    )
    assert refusal(tmp_path, data, Planes(z="4", t=0), header=True) == (
        "has 4 z planes, 0 to 3; --z 4 is not among them"
    )
    assert refusal(tmp_path, data, Planes(z="max", t=2), header=True) == (
        "has 2 time points, 0 to 1; --t 2 is not among them"
    )
    assert refusal(tmp_path, data, Planes(z="max", t=0, channel=(0, 3)), header=True) == (
        "has 3 channels, 0 to 2; --channel 3 is not among them"
    )


def test_named_channels_need_no_choice(tmp_path: Path) -> None:
    data = tiff(STACK[0, 0], metadata={"axes": "CYX"}, ome=True)
    np.testing.assert_array_equal(read(tmp_path, data), STACK[0, 0])


def test_colour_planes_of_a_stack(tmp_path: Path) -> None:
    pixels = np.stack([COLOUR, COLOUR[::-1], COLOUR[:, ::-1]])
    data = tiff(pixels, photometric="rgb", metadata={"axes": "ZYXS"}, ome=True)
    np.testing.assert_array_equal(
        read(tmp_path, data, Planes(z="1", channel=(2,))), pixels[1, ..., 2][np.newaxis]
    )
    np.testing.assert_array_equal(
        read(tmp_path, data, Planes(z="max")), pixels.max(axis=0).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("how", ["shaped", "bare", "one entry", "volume"])
def test_an_axis_without_name_is_what_the_flag_says(tmp_path: Path, how: str) -> None:
    stack = STACK[0, :, 0]
    data = {
        "shaped": lambda: tiff(stack, photometric="minisblack"),
        "bare": lambda: tiffs(*stack, compression="zlib"),
        "one entry": lambda: tiff(stack, photometric="minisblack", truncate=True),
        "volume": lambda: tiff(stack, volumetric=True, tile=(16, 16, 16), photometric="minisblack"),
    }[how]()
    np.testing.assert_array_equal(read(tmp_path, data, Planes(z="2")), stack[[2]])
    np.testing.assert_array_equal(
        read(tmp_path, data, Planes(z="max")), stack.max(axis=0, keepdims=True)
    )
    if how == "volume":
        return
    np.testing.assert_array_equal(read(tmp_path, data, Planes(t=1)), stack[[1]])
    np.testing.assert_array_equal(read(tmp_path, data, Planes(channel=(3, 1))), stack[[3, 1]])
    letter = "I" if how == "bare" else "Q"
    assert refusal(tmp_path, data, header=True) == (
        f"is a stack ({letter}YX 4,12,10) and does not say what its axis {letter} is; "
        f"choose with --z max|mid|INT or --t INT or --channel I[,J]"
    )


def test_choices_that_a_plain_image_answers(tmp_path: Path) -> None:
    planes = Planes(z="max", t=0, channel=(0,))
    np.testing.assert_array_equal(read(tmp_path, png(GREY, 8, 0), planes), GREY[np.newaxis])
    assert refusal(tmp_path, png(GREY, 8, 0), Planes(z="1"), header=True) == (
        "has only one z plane, 0; --z 1 is not among them"
    )
    assert refusal(tmp_path, tiff(GREY), Planes(channel=(2,)), header=True) == (
        "has only one channel, 0; --channel 2 is not among them"
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"z": "mean"}, "--z must be max, mid or a number from 0, got 'mean'"),
        ({"z": "-1"}, "--z must be max, mid or a number from 0, got '-1'"),
        ({"z": "9" * 5000}, f"--z must be max, mid or a number from 0, got '{'9' * 24}'"),
        ({"t": -1}, "--t must be a number from 0, got -1"),
        ({"channel": (0, -1)}, "--channel must be one or more numbers from 0, got '0,-1'"),
        ({"channel": ()}, "--channel must be one or more numbers from 0, got ''"),
    ],
)
def test_choices_that_are_none(choice: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Planes(**choice)
    assert str(caught.value) == message


def test_several_images_in_one_tiff_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, tiffs(GREY, GREY[:5], DEEP), header=True) == (
        "TIFF holds 3 images: 0 (YX 12,10), 1 (YX 5,10), 2 (YX 12,10); "
        "save the one you want as a file of its own"
    )


def test_reduced_copies_are_passed_over(tmp_path: Path) -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(GREY, metadata=None)
        writer.write(GREY[::2, ::2], metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read(tmp_path, stream.getvalue()), GREY[np.newaxis])
    large = np.tile(GREY, (20, 20))
    stream = BytesIO()
    with tifffile.TiffWriter(stream, ome=True) as writer:
        writer.write(large, subifds=1, tile=(64, 64))
        writer.write(large[::2, ::2], subfiletype=1, tile=(64, 64))
    np.testing.assert_array_equal(read(tmp_path, stream.getvalue()), large[np.newaxis])


def test_a_file_of_an_ome_set_is_a_field_of_its_own(tmp_path: Path) -> None:
    blocks = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="{z}.tif">urn:uuid:0000000{z}-0000-0000-0000-000000000000</UUID>'
        f"</TiffData>"
        for z in range(3)
    )
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
        'SizeX="10" SizeY="12" SizeZ="3" SizeC="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{blocks}</Pixels></Image></OME>'
    )
    for z in range(3):
        (tmp_path / f"{z}.tif").write_bytes(tiff(GREY + z, metadata=None, description=ome))
    np.testing.assert_array_equal(read_image(tmp_path / "1.tif"), GREY[np.newaxis] + 1)


# -- damaged TIFFs --------------------------------------------------------------------------

CUT_TIFFS = {
    "plain": lambda: tiff(DEEP),
    "zlib": lambda: tiff(DEEP, compression="zlib", rowsperstrip=4),
    "lzw tiles": lambda: tiff(GREY, compression="lzw", tile=(16, 16)),
    "jpeg": lambda: tiff(COLOUR, compression="jpeg"),
    "stack": lambda: tiff(STACK[0, :, 0], photometric="minisblack"),
    "imagej": lambda: tiff(STACK[0, :, 0], imagej=True, metadata={"axes": "ZYX"}),
    "imagej zlib": lambda: tiff(
        STACK[0, :, 0], imagej=True, metadata={"axes": "ZYX"}, compression="zlib"
    ),
    "ome": lambda: tiff(STACK[0, :, 0], ome=True, metadata={"axes": "ZYX"}),
    "bare": lambda: tiffs(*STACK[0, :, 0], compression="zlib"),
    "one entry": lambda: tiff(STACK[0, :, 0], photometric="minisblack", truncate=True),
}


@pytest.mark.parametrize("kind", sorted(CUT_TIFFS))
def test_a_tiff_cut_anywhere_is_refused_or_read_whole(tmp_path: Path, kind: str) -> None:
    """What is cut may be nothing but metadata behind the pixels; then the image must be equal."""
    data, path, planes = CUT_TIFFS[kind](), tmp_path / "cut.tif", Planes(z="max")
    whole = read(tmp_path, data, planes)
    refused = 0
    for size in range(1, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:size])
        try:
            image = read_image(path, planes)
        except InputError as fault:
            refused += 1
            assert str(fault).startswith(f"{path}: ")
        else:
            np.testing.assert_array_equal(image, whole)
    assert refused >= 40


def test_what_is_said_of_damaged_tiffs(tmp_path: Path) -> None:
    plain = tiff(DEEP, metadata=None)
    assert refusal(tmp_path, plain[:-1]) == (
        f"TIFF is truncated: its pixels reach to byte {len(plain)}, "
        f"the file ends at byte {len(plain) - 1}{AGAIN}"
    )
    one_entry = tiff(STACK[0, :, 0], photometric="minisblack", truncate=True)
    assert refusal(tmp_path, one_entry[:-1], Planes(z="max")) == (
        f"TIFF is truncated: it ends within its plane 3{AGAIN}"
    )
    imagej = tiff(STACK[0, :, 0], imagej=True, metadata={"axes": "ZYX"})
    # 4 planes of 240 bytes; the entries of planes 1 to 3 follow the pixels.
    assert refusal(tmp_path, imagej[:900], Planes(z="0"), header=True) == (
        f"TIFF is truncated: its ImageJ header promises 4 planes, 1 are there{AGAIN}"
    )
    bare = tiffs(*STACK[0, :, 0])
    with tifffile.TiffFile(BytesIO(bare)) as file:
        third = file.pages[2].offset
    assert refusal(tmp_path, bare[:third], Planes(z="0"), header=True) == (
        f"TIFF is truncated: its list of pages breaks off after 2{AGAIN}"
    )
    assert refusal(tmp_path, b"II*\0\x08\0\0\0", header=True).startswith("TIFF ")


def test_empty_strips_are_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    path.write_bytes(tiff(DEEP, compression="zlib", rowsperstrip=4))
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = file.pages[0].tags["StripByteCounts"]
        counts.overwrite([counts.value[0], 0, counts.value[2]])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"{path}: TIFF is incomplete: 1 of the 3 blocks of its pixels are empty{AGAIN}"
    )


# -- files that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"name,width\nA1,520\n", "text"),
        ("é".encode() * 400, "text"),
        (b"BM is also how a text may begin, of BMP this is none.", "text"),
        (bytes(600), "zeros"),
        (b"GIF89a" + bytes(20), "GIF"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04" + bytes(20), "ZIP"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (
            b"\x01\x02\x03\xff\xfe\xfd\xfc\xfb\xfa",
            "unknown data (first bytes 01 02 03 ff fe fd fc fb)",
        ),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, content: str) -> None:
    assert refusal(tmp_path, data, header=True) == (
        f"is not an image: it holds {content}, not PNG, JPEG, BMP or TIFF"
    )


def test_an_empty_file(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"", header=True) == "is empty (0 bytes)"


def path_refusal(path: Path) -> str:
    texts = []
    for reader in (read_image, read_header):
        with pytest.raises(InputError) as caught:
            reader(path)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    return texts[0]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    folder, pipe, loop = tmp_path / "folder.png", tmp_path / "pipe.png", tmp_path / "loop.png"
    folder.mkdir()
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    gone = tmp_path / "gone.png"
    assert path_refusal(folder) == f"{folder}: is a folder, not an image"
    assert path_refusal(pipe) == f"{pipe}: is not a regular file"
    assert path_refusal(gone) == f"{gone}: there is no such file"
    assert path_refusal(loop) == (f"{loop}: cannot be read (Too many levels of symbolic links)")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(png(GREY, 8, 0))

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    # Permissions do not bind the superuser, as whom tests often run in containers.
    monkeypatch.setattr(Path, "open", refuse)
    assert path_refusal(path) == (
        f"{path}: cannot be read (permission denied); mend its permissions"
    )


@pytest.mark.parametrize("name", ["png.tif", "jpeg.png", "tiff.jpg", "bmp.tiff"])
def test_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    data = {
        "png": png(GREY, 8, 0),
        "jpeg": jpeg(GREY),
        "tiff": tiff(GREY),
        "bmp": bmp(bytes([1, 0, 1, 0, 0, 1, 1, 0]), (2, 3), 8, GREYS),
    }[name.partition(".")[0]]
    (tmp_path / name).write_bytes(data)
    assert len(read_image(tmp_path / name)) == 1


# -- sizes and headers ----------------------------------------------------------------------


def test_a_header_is_known_without_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(STACK, metadata={"axes": "TZCYX"}, ome=True))
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    assert read_header(path, Planes(z="max", t=0, channel=(1,))) == ImageHeader(
        shape=(12, 10),
        channels=1,
        dtype="uint16",
        size_bytes=path.stat().st_size,
        mtime_ns=path.stat().st_mtime_ns,
        planes="TZCYX 2,4,3,12,10",
    )
    path.write_bytes(png(np.dstack([COLOUR, GREY]).reshape(12, 40), 8, 6))
    header = read_header(path)
    assert (header.shape, header.channels, header.dtype, header.planes) == (
        (12, 10),
        4,
        "uint8",
        "YXS 12,10,4",
    )


def test_a_header_is_read_where_the_pixels_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(GREY, 8, 0)[:60])
    assert read_header(path).shape == (12, 10)


def test_an_image_larger_than_the_limit_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    head = struct.pack(">IIBBBBB", 60000, 40000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR" + head + bytes(4) + b"\0\0\0\0IDAT" + bytes(4)
    )
    for reader in (read_image, read_header):
        with pytest.raises(LimitError) as caught:
            reader(path)
        assert str(caught.value) == (
            f"{path}: is too large: 40000×60000 px × 1 channels = 2400000000 values, "
            f"the limit (MAX_PIXELS) is 2147483648; cut it into smaller fields"
        )


def test_the_limit_counts_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes_module, "MAX_PIXELS", 12 * 10 * 2)
    for data in (png(COLOUR.reshape(12, 30), 8, 2), tiff(COLOUR, photometric="rgb")):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(LimitError):
            read_image(tmp_path / "a")
    data = tiff(STACK, metadata={"axes": "TZCYX"}, ome=True)
    assert len(read(tmp_path, data, Planes(z="max", t=0, channel=(0, 1)))) == 2


def test_no_pixels(tmp_path: Path) -> None:
    data = png(np.zeros((0, 10), np.uint8), 8, 0)
    assert refusal(tmp_path, data, header=True) == "has no pixels (YX 0,10)"


# -- real files -----------------------------------------------------------------------------


def test_real_plates_have_headers(real_data: Path) -> None:
    stacks = {}
    for field in find_fields(real_data / "plates", exclude=["odd_tiffs"]):
        header = read_header(field.source, Planes(z="max"))
        stacks.setdefault((header.shape, header.channels, header.dtype), []).append(field.id)
    # as the names of the files tell: channels w1 to w3 and C01 to C02
    assert {shape: len(ids) for shape, ids in stacks.items()} == {
        ((2000, 2000), 2, "uint16"): 12,
        ((512, 512), 1, "uint16"): 4,
        ((256, 256), 3, "uint16"): 4 + 4,
    }


@pytest.mark.parametrize(
    ("name", "planes", "shape", "dtype", "stored"),
    [
        ("bian_IXMtest_A02_s9.tif", Planes(), (3, 395, 695), "uint16", "CYX 3,395,695"),
        ("instanseg_Fluorescence_example.tif", Planes(), (2, 450, 450), "uint8", "CYX 2,450,450"),
        ("instanseg_HE_example.tif", Planes(), (3, 1484, 1380), "uint8", "YXS 1484,1380,3"),
        ("ometypes_ome.tiff", Planes(channel=(1,)), (1, 6, 6), "uint8", "CYX 2,6,6"),
        ("midap_example_stack.tiff", Planes(t=9), (1, 256, 256), "uint16", "QYX 10,256,256"),
    ],
)
def test_odd_real_tiffs(
    real_data: Path, name: str, planes: Planes, shape: tuple[int, ...], dtype: str, stored: str
) -> None:
    path = real_data / "plates" / "odd_tiffs" / name
    image, header = read_image(path, planes), read_header(path, planes)
    assert (image.shape, image.dtype.name, header.planes) == (shape, dtype, stored)
    pages = tifffile.imread(path)
    pages = pages.transpose(2, 0, 1) if stored.startswith("YXS") else pages
    chosen = {"ometypes_ome.tiff": [1], "midap_example_stack.tiff": [9]}
    np.testing.assert_array_equal(image, pages[chosen.get(name, slice(None))])


def test_real_pngs_equal_what_opencv_reads(real_data: Path) -> None:
    import cv2

    folder = real_data / "dsb2018" / "val" / "images"
    for field in find_fields(folder)[::4]:
        expected = cv2.imread(str(field.path), cv2.IMREAD_UNCHANGED)
        expected = expected[..., :3][..., ::-1] if expected.ndim == 3 else expected[..., None]
        np.testing.assert_array_equal(read_image(field.path), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_a_block_that_is_a_larger_image_is_not_decoded(tmp_path: Path, compression: str) -> None:
    pixels = np.tile(GREY, (12, 13))  # 144 × 130 px
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(pixels, compression=compression, rowsperstrip=144))
    assert read_image(path).shape == (1, 144, 130)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag in (257, 278):  # height, and rows of a strip
            file.pages.first.tags[tag].overwrite(100)
    assert refusal(tmp_path, path.read_bytes()) == (
        f"TIFF is damaged: a block of 100×130 px holds an image of 144×130 px{AGAIN}"
    )
