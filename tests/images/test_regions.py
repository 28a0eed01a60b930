"""What is read by region is what is read whole, whatever the file, and takes no more memory."""

from __future__ import annotations

import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images import planes as planes_module
from cellseg_cli.images import tiff
from cellseg_cli.images.decode import Planes, open_image, read_header, read_image
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.source import Source
from cellseg_cli.images.tiff_header import plain_layout
from cellseg_cli.rows import PlaneFile

AGAIN = "; copy or export it again"
EVERY_PLANE = Planes(z="max", t=0)
TYPES = ["u1", "u2", "u4", "i2", "f2", "f4", "f8", "?"]


def values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 250, shape)
    return drawn > 90 if dtype == "?" else drawn.astype(dtype)


def written(pixels: np.ndarray, **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def region_of(path: Path | Source, rows: slice, columns: slice, planes: Planes) -> np.ndarray:
    with open_image(path, planes) as image:
        found = image.region(rows, columns)
        assert found.dtype == image.dtype
        assert found.flags.c_contiguous
        return found


# -- TIFF -----------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Options of tifffile that all fit together."""
    blocks = draw(st.sampled_from(["strips", "tiles", "whole"]))
    options: dict[str, Any] = {
        "compression": draw(st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"])),
        "bigtiff": draw(st.booleans()),
        "byteorder": draw(st.sampled_from(["<", ">"])),
    }
    if blocks == "strips":
        options["rowsperstrip"] = draw(st.integers(1, 20))
    if blocks == "tiles":
        options["tile"] = draw(st.sampled_from([(16, 16), (16, 32), (48, 16)]))
    return options


@st.composite
def tiffs(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A TIFF and the channels (C, Y, X) in it, worked out by hand."""
    shape = (draw(st.integers(2, 70)), draw(st.integers(2, 70)))
    options = draw(layouts())
    kind = draw(st.sampled_from(["grey", "white", "rgb", "planar", "rgba", "palette", "stack"]))
    if kind == "grey":
        pixels = values(shape, draw(st.sampled_from(TYPES)))
        if pixels.dtype.kind in "ui" and options["compression"] in ("zlib", "lzw", "zstd"):
            options["predictor"] = draw(st.booleans())
        if pixels.dtype.kind == "b":
            options.pop("tile", None)  # tifffile packs no bits into tiles
            return written(pixels, photometric="minisblack", **options), 255 * pixels[np.newaxis]
        return written(pixels, photometric="minisblack", **options), pixels[np.newaxis]
    if kind == "white":
        pixels = values(shape, "u2")
        return written(pixels, photometric="miniswhite", **options), 65535 - pixels[np.newaxis]
    if kind == "rgb":
        pixels = values((*shape, 3), "u1")
        return written(pixels, photometric="rgb", **options), pixels.transpose(2, 0, 1)
    if kind == "planar":
        pixels = values((3, *shape), "u2")
        return written(pixels, photometric="rgb", planarconfig="separate", **options), pixels
    if kind == "rgba":
        pixels = values((*shape, 4), "u1")
        pixels[..., 3] = 255
        seen = draw(st.booleans())
        pixels[-1, -1, 3] = 254 if seen else 255
        data = written(pixels, photometric="rgb", extrasamples=["unassalpha"], **options)
        return data, pixels[..., : 4 if seen else 3].transpose(2, 0, 1)
    if kind == "palette":
        pixels = values(shape, "u1")
        table = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
        return written(pixels, photometric="palette", colormap=table << 8, **options), table[
            :, pixels
        ]
    stack = values((3, 2, *shape), "u2")
    form = draw(st.sampled_from(["ome", "imagej", "bare"]))
    if form == "imagej":
        options = {"compression": options["compression"], "imagej": True}
    elif form == "ome":
        options["ome"] = True
    metadata = None if form == "bare" else {"axes": "ZCYX"}
    if form == "bare":
        return written(stack[:, 0], photometric="minisblack", **options), stack[:, 0].max(
            axis=0, keepdims=True
        )
    return written(stack, photometric="minisblack", metadata=metadata, **options), stack.max(axis=0)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=tiffs(), ends=st.tuples(*[st.integers(0, 70)] * 4))
def test_a_region_of_a_tiff_is_that_region_of_the_whole(
    tmp_path: Path, made: tuple[bytes, np.ndarray], ends: tuple[int, int, int, int]
) -> None:
    data, expected = made
    path = tmp_path / "field.tif"
    path.write_bytes(data)
    rows, columns = slice(*sorted(ends[:2])), slice(*sorted(ends[2:]))
    with open_image(path, EVERY_PLANE) as image:
        assert image.shape == expected.shape
        np.testing.assert_array_equal(image.region(rows, columns), expected[:, rows, columns])
        # once more, beside it: what is kept of blocks must not show
        np.testing.assert_array_equal(image.region(rows, slice(None)), expected[:, rows])
        np.testing.assert_array_equal(image.region(rows, columns), expected[:, rows, columns])
    whole = read_image(path, EVERY_PLANE)
    assert whole.dtype == expected.astype(whole.dtype).dtype
    np.testing.assert_array_equal(whole, expected)
    header = read_header(path, EVERY_PLANE)
    assert (header.shape, header.dtype) == (whole.shape[1:], whole.dtype.name)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=tiffs())
def test_the_quick_look_at_a_header_sees_what_the_careful_one_sees(
    tmp_path: Path, made: tuple[bytes, np.ndarray]
) -> None:
    path = tmp_path / "field.tif"
    path.write_bytes(made[0])
    with path.open("rb") as handle:
        quick = plain_layout(handle, len(made[0]))
    with tiff._opened(path) as source:
        assert quick is None or quick == source.layout


def test_ordinary_tiffs_are_looked_at_quickly(tmp_path: Path) -> None:
    grey, colour = values((20, 30), "u2"), values((20, 30, 3), "u1")
    for number, data in enumerate(
        [
            written(grey),
            written(grey, bigtiff=True, byteorder=">"),
            written(grey, metadata=None, compression="zlib", rowsperstrip=4),
            written(grey, compression="lzw", tile=(16, 16)),
            written(grey.astype("f4"), metadata=None, software="MetaSeries", subfiletype=2),
            written(grey, metadata=None, description="ImageJ=1.53t\nmin=0.0\nmax=255.0\n"),
            written(colour, photometric="rgb"),
            written(grey, metadata=None, description="<MetaData>\n5 µm\n</MetaData>\n".encode()),
        ]
    ):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(data)
        with path.open("rb") as handle, tiff._opened(path) as source:
            assert plain_layout(handle, len(data)) == source.layout


def test_what_may_be_more_than_a_page_is_looked_at_with_care(tmp_path: Path) -> None:
    grey = values((2, 20, 30), "u2")
    palette = np.zeros((3, 256), np.uint16)
    for data in (
        written(grey, photometric="minisblack"),
        written(grey[0], ome=True),
        written(grey[0], metadata=None, description="Aperio Image Library"),
        written(grey[0], metadata=None, description='{"shape": [1, 20, 30]}'),
        written(grey[0].astype("u1"), photometric="palette", colormap=palette),
        written(grey[0] > 9),
        written(grey[0])[:100],
        b"II*\0\x08\0\0\0",
        b"II*\0" + b"\xff" * 12,
    ):
        assert plain_layout(BytesIO(data), len(data)) is None


def test_real_tiffs_are_looked_at_quickly_and_right(real_data: Path) -> None:
    quick = 0
    paths = [p for p in (real_data / "plates").rglob("*") if p.suffix.lower() in (".tif", ".tiff")]
    for path in paths:
        with path.open("rb") as handle, tiff._opened(path) as source:
            layout = plain_layout(handle, path.stat().st_size)
            assert layout is None or layout == source.layout
        quick += layout is not None
    # the stacks, the colour picture and the hyperstacks of odd_tiffs are not
    assert quick == len(paths) - 5


@pytest.mark.parametrize(
    ("options", "by_region"),
    [
        ({}, True),
        ({"rowsperstrip": 64}, True),
        ({"compression": "zlib"}, True),  # tifffile writes strips of 256 KiB
        ({"compression": "zlib", "rowsperstrip": 700}, False),
        ({"compression": "zlib", "tile": (64, 64)}, True),
    ],
)
def test_which_tiffs_are_read_by_region(
    tmp_path: Path, options: dict[str, Any], by_region: bool
) -> None:
    path = tmp_path / "field.tif"
    pixels = values((700, 700), "u2")
    tifffile.imwrite(path, pixels, **options)
    with open_image(path) as image:
        assert image.by_region == by_region
        np.testing.assert_array_equal(image.region(slice(5, 9), slice(3, 8))[0], pixels[5:9, 3:8])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "rowsperstrip": 16},
        {"compression": "zlib", "tile": (128, 128)},
        {"photometric": "rgb", "planarconfig": "separate", "tile": (128, 128)},
    ],
)
def test_a_region_takes_its_own_memory_and_not_that_of_the_field(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "large.tif"
    shape = (3, 2048, 2048) if "photometric" in options else (2048, 2048)
    tifffile.imwrite(path, np.tile(values((64, 64), "u2"), (*shape[:-2], 32, 32)), **options)
    with open_image(path) as image:
        image.region(slice(0, 8), slice(0, 8))
        tracemalloc.start()
        for top in range(0, 2048, 256):
            image.region(slice(top, top + 256), slice(100, 356))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    region = 256 * 256 * 2 * image.shape[0]
    # 256 rows of the whole width are 1 MiB a channel, what is kept of blocks at most 10 of these
    assert peak < 8 * region + (12 << 20) if options else peak < 3 * region


def test_what_is_kept_of_blocks_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellseg_cli.images.tiff_pages.KEPT_BYTES", 5000)
    path, pixels = tmp_path / "field.tif", values((300, 200), "u2")
    tifffile.imwrite(path, pixels, compression="zlib", tile=(16, 16))
    with tiff._opened(path) as source:
        region = tiff.Region(3, 290, 5, 190)
        page = source.reader.page(source.file.pages.first, region)
        np.testing.assert_array_equal(page, pixels[3:290, 5:190])
        kept = source.reader._kept.values()
        assert 0 < sum(block.nbytes for block in kept) <= 5000


# -- damage ---------------------------------------------------------------------------------


def messages(path: Path, planes: Planes = Planes()) -> tuple[str, str]:
    """What is said where the file is read whole, and where its first 4 × 4 px are."""
    told = []
    for region in (slice(None), slice(0, 4)):
        with pytest.raises(InputError) as caught:
            if region.stop is None:
                read_image(path, planes)
            else:
                region_of(path, region, region, planes)
        told.append(str(caught.value))
    return told[0], told[1]


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib", "rowsperstrip": 16}, {"tile": (16, 16)}]
)
def test_a_truncated_tiff_is_refused_in_any_region(tmp_path: Path, options: dict[str, Any]) -> None:
    data = written(values((64, 64), "u2"), metadata=None, **options)
    path = tmp_path / "cut.tif"
    path.write_bytes(data[:-3])
    whole, region = messages(path)
    assert whole == region
    assert whole == (
        f"{path}: TIFF is truncated: its pixels reach to byte {len(data)}, "
        f"the file ends at byte {len(data) - 3}{AGAIN}"
    )


def test_an_empty_block_is_refused_in_any_region(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, values((48, 20), "u2"), compression="zlib", rowsperstrip=16)
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = file.pages[0].tags["StripByteCounts"]
        counts.overwrite([*counts.value[:2], 0])
    whole, region = messages(path)
    assert whole == region
    assert whole == (
        f"{path}: TIFF is incomplete: 1 of the 3 blocks of its pixels are empty{AGAIN}"
    )


def test_tiles_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "few.tif"
    tifffile.imwrite(path, values((32, 32), "u2"), compression="zlib", tile=(16, 16))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for name in ("TileOffsets", "TileByteCounts"):
            data[file.pages[0].tags[name].offset + 4] = 3
    path.write_bytes(data)
    whole, region = messages(path)
    assert whole == region
    assert whole == (
        f"{path}: TIFF is incomplete: 1 of the 4 blocks of its pixels are empty{AGAIN}"
    )


def test_a_damaged_block_is_refused_where_it_is_read(tmp_path: Path) -> None:
    path, pixels = tmp_path / "damaged.tif", values((48, 20), "u2")
    tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=16)
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[last : last + 4] = b"\xff" * 4
    path.write_bytes(data)
    with open_image(path) as image:
        np.testing.assert_array_equal(image.region(slice(0, 32), slice(None))[0], pixels[:32])
        with pytest.raises(InputError) as caught:
            image.region(slice(30, 40), slice(None))
    assert str(caught.value).startswith(f"{path}: TIFF is damaged: ")


def test_a_file_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, values((64, 64), "u2"), metadata=None)
    size = path.stat().st_size
    with open_image(path) as image:
        image.region(slice(0, 4), slice(0, 4))
        with path.open("r+b") as handle:
            handle.truncate(size - 5000)
        with pytest.raises(InputError) as caught:
            image.region(slice(40, 64), slice(None))
    assert str(caught.value).startswith(f"{path}: TIFF is truncated: its pixels reach to byte ")


def test_blocks_that_no_image_can_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, values((32, 32), "u2"), compression="zlib", tile=(16, 16))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for name in ("TileWidth", "TileLength"):
            tag = file.pages[0].tags[name]
            data[tag.offset + 2 : tag.offset + 12] = b"\x04\0\x01\0\0\0\0\0\x01\0"  # 65536
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == (
        f"{path}: TIFF is damaged: it says that each block has 4294967296 values, "
        f"an image has at most 2147483648{AGAIN}"
    )


def test_what_goes_wrong_in_the_body_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values((16, 16), "u1"))
    for fault in (RuntimeError("the device has no memory"), OSError("the disk is full")):
        with pytest.raises(type(fault)) as caught, open_image(tmp_path / "a.tif"):
            raise fault
        assert caught.value is fault


# -- other formats --------------------------------------------------------------------------


def test_other_formats_are_read_whole_and_cut(tmp_path: Path) -> None:
    import cv2

    pixels = values((30, 40), "u1")
    for name in ("a.png", "a.bmp"):
        cv2.imwrite(str(tmp_path / name), pixels)
        with open_image(tmp_path / name) as image:
            assert (image.shape, image.by_region) == ((1, 30, 40), False)
            found = image.region(slice(3, 30), slice(5, 6))
            np.testing.assert_array_equal(found, pixels[np.newaxis, 3:, 5:6])


def test_real_images_by_region(real_data: Path) -> None:
    folder = real_data / "plates" / "odd_tiffs"
    for name, planes in {
        "instanseg_HE_example.tif": Planes(),
        "instanseg_Fluorescence_example.tif": Planes(),
        "ometypes_ome.tiff": Planes(channel=(1,)),
        "midap_example_stack.tiff": Planes(z="max"),
        "bian_IXMtest_A02_s9.tif": Planes(channel=(2, 0)),
    }.items():
        whole = read_image(folder / name, planes)
        found = region_of(folder / name, slice(2, 300), slice(1, 277), planes)
        np.testing.assert_array_equal(found, whole[:, 2:300, 1:277])
    for path in sorted((real_data / "usiigaci" / "images").glob("*.tif"))[:2]:
        whole = tifffile.imread(path)
        found = region_of(path, slice(500, 700), slice(1000, 1024), Planes())
        np.testing.assert_array_equal(found[0], whole[500:700, 1000:1024])


# -- a file per plane -----------------------------------------------------------------------

STACK = values((2, 3, 40, 50), "u2", seed=5)  # channels, z, Y, X


def exported(folder: Path, stack: np.ndarray = STACK, **options: Any) -> Source:
    files = []
    for c, z in np.ndindex(stack.shape[:2]):
        path = folder / f"c{c}z{z}.tif"
        tifffile.imwrite(path, stack[c, z], **options)
        files.append(PlaneFile(str(path), c, z))
    return Source(Path(files[0].path), tuple(files))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_files_of_a_plane_each_are_one_stack(tmp_path: Path, options: dict[str, Any]) -> None:
    source = exported(tmp_path, **options)
    for planes, expected in (
        (Planes(z="max"), STACK.max(axis=1)),
        (Planes(z="mid"), STACK[:, 1]),
        (Planes(z="2", channel=(1,)), STACK[1:, 2]),
        (Planes(z="0", channel=(1, 0)), STACK[::-1, 0]),
        (Planes(z="0", t=4), STACK[:, 0]),  # t chose the field
    ):
        np.testing.assert_array_equal(read_image(source, planes), expected)
        found = region_of(source, slice(3, 33), slice(7, 9), planes)
        np.testing.assert_array_equal(found, expected[:, 3:33, 7:9])
        header = read_header(source, planes)
        assert header.shape == (40, 50)
        assert header.channels == len(expected)
        assert (header.dtype, header.planes) == ("uint16", "CZYX 2,3,40,50")


def test_a_header_sums_sizes_and_takes_the_latest_time(tmp_path: Path) -> None:
    import os

    source = exported(tmp_path)
    os.utime(tmp_path / "c1z1.tif", ns=(5, 4_000_000_000_000_000_001))
    header = read_header(source, Planes(z="max"))
    assert header.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert header.mtime_ns == 4_000_000_000_000_000_001


def test_only_picked_files_are_opened(tmp_path: Path) -> None:
    source = exported(tmp_path)
    (tmp_path / "c1z0.tif").write_bytes(b"no image")
    np.testing.assert_array_equal(read_image(source, Planes(z="2")), STACK[:, 2])
    np.testing.assert_array_equal(
        read_image(source, Planes(z="max", channel=(0,))), STACK[:1].max(axis=1)
    )
    with pytest.raises(InputError) as caught:
        read_image(source, Planes(z="max"))
    assert str(caught.value) == (
        f"{tmp_path / 'c1z0.tif'}: is not an image: it holds text, not PNG, JPEG, BMP or TIFF"
    )


def test_a_choice_of_z_is_needed_among_files_too(tmp_path: Path) -> None:
    source = exported(tmp_path)
    for read in (read_image, read_header):
        with pytest.raises(InputError) as caught:
            read(source)
        assert str(caught.value) == (
            f"{source.path}: is a stack (CZ 2,3); choose with --z max|mid|INT"
        )
        with pytest.raises(InputError) as caught:
            read(source, Planes(z="max", channel=(2,)))
        assert str(caught.value) == (
            f"{source.path}: has 2 channels, 0 to 1; --channel 2 is not among them"
        )


def test_a_channel_may_have_fewer_planes_than_another(tmp_path: Path) -> None:
    files = exported(tmp_path).files
    projection = Source(Path(files[0].path), (*files[:3], files[4]))  # of channel 1 only z 1
    expected = np.stack([STACK[0, 0], STACK[1, 1]])
    np.testing.assert_array_equal(read_image(projection, Planes(z="0")), expected)
    short = Source(Path(files[0].path), files[:5])  # of channel 1 z 0 and 1
    expected = np.stack([STACK[0].max(axis=0), STACK[1, :2].max(axis=0)])
    np.testing.assert_array_equal(read_image(short, Planes(z="max")), expected)
    with pytest.raises(InputError) as caught:
        read_image(short, Planes(z="2"))
    assert str(caught.value) == (
        f"{short.path}: is incomplete: there is no file of channel 1, z 2; "
        "copy or export the field again"
    )


def test_planes_that_are_there_twice_or_not_at_all(tmp_path: Path) -> None:
    files = exported(tmp_path).files
    twice = Source(Path(files[0].path), (*files, PlaneFile(str(tmp_path / "again.tif"), 0, 1)))
    with pytest.raises(InputError) as caught:
        read_header(twice, Planes(z="max"))
    assert str(caught.value) == (
        f"{twice.path}: {tmp_path / 'again.tif'} and {files[1].path} are both channel 0, z 1 of "
        "one field; leave one out with --exclude"
    )
    second = Source(Path(files[3].path), files[3:])
    with pytest.raises(InputError) as caught:
        read_header(second, Planes(z="max"))
    assert str(caught.value) == (
        f"{second.path}: is incomplete: there is no file of channel 0; "
        "copy or export the field again"
    )


def test_files_that_differ_are_both_named(tmp_path: Path) -> None:
    source = exported(tmp_path)
    for pixels, text in (
        (values((40, 49), "u2"), "40×49 px of uint16"),
        (values((40, 50), "u1"), "40×50 px of uint8"),
    ):
        tifffile.imwrite(tmp_path / "c1z2.tif", pixels)
        with pytest.raises(InputError) as caught:
            read_image(source, Planes(z="max"))
        assert str(caught.value) == (
            f"{tmp_path / 'c1z2.tif'}: is {text}, but {source.path} of the same field is "
            "40×50 px of uint16; copy or export the field again"
        )


def test_a_file_of_several_channels_is_no_plane(tmp_path: Path) -> None:
    source = exported(tmp_path)
    tifffile.imwrite(source.path, values((40, 50, 3), "u1"), photometric="rgb")
    for read in (read_image, read_header):
        with pytest.raises(InputError) as caught:
            read(source, Planes(z="0"))
        assert str(caught.value) == (
            f"{source.path}: is one of the files of a field, a plane each, but has 3 channels; "
            "export it as single planes"
        )


def test_a_file_that_has_gone(tmp_path: Path) -> None:
    source = exported(tmp_path)
    (tmp_path / "c0z2.tif").unlink()
    with pytest.raises(InputError) as caught:
        read_header(source, Planes(z="0"))
    assert str(caught.value) == f"{tmp_path / 'c0z2.tif'}: there is no such file"


def test_files_that_are_stacks_themselves(tmp_path: Path) -> None:
    files = []
    for c in range(2):
        path = tmp_path / f"c{c}.tif"
        tifffile.imwrite(path, STACK[c], metadata={"axes": "ZYX"}, ome=True)
        files.append(PlaneFile(str(path), c))
    source = Source(Path(files[0].path), tuple(files))
    np.testing.assert_array_equal(read_image(source, Planes(z="max")), STACK.max(axis=1))
    np.testing.assert_array_equal(read_image(source, Planes(z="1", channel=(1,))), STACK[1:, 1])


def test_the_limit_holds_for_all_files_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = exported(tmp_path)
    monkeypatch.setattr(planes_module, "MAX_PIXELS", 40 * 50)
    assert len(read_image(source, Planes(z="max", channel=(1,)))) == 1
    for read in (read_image, read_header):
        with pytest.raises(LimitError) as caught:
            read(source, Planes(z="max"))
        assert str(caught.value) == (
            f"{source.path}: is too large: 40×50 px × 2 channels = 4000 values, "
            "the limit (MAX_PIXELS) is 2000; cut it into smaller fields"
        )


def test_real_plates_are_read_as_fields(real_data: Path) -> None:
    fields = find_fields(real_data / "plates" / "CellVoyager")
    field = fields[0]
    image = read_image(field.source, Planes(z="max"))
    by_channel = [
        np.max([tifffile.imread(one.path) for one in field.source.files if one.channel == c], 0)
        for c in range(2)
    ]
    np.testing.assert_array_equal(image, by_channel)
    found = region_of(field.source, slice(900, 1100), slice(1990, 2000), Planes(z="max"))
    np.testing.assert_array_equal(found, image[:, 900:1100, 1990:])
