"""OME-Zarr of both formats, read whole and by region, and refused where it cannot be trusted."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import CellsegError, InputError, LimitError
from cellseg_cli.images import ome_zarr, zarr_chunks, zarr_nodes
from cellseg_cli.images.decode import Planes, open_image, read_header, read_image
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.ome_zarr import ZarrImage, images_in, looks_like_zarr
from cellseg_cli.images.source import Place

AGAIN = "; copy or export it again"
STACK = np.random.default_rng(0).integers(0, 60000, (2, 3, 4, 30, 40)).astype(np.uint16)  # TCZYX


def axes_of(letters: str) -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [{"name": one, "type": kinds.get(one, "space")} for one in letters]


def write_group(folder: Path, zarr_format: int, ome: dict[str, Any]) -> None:
    """The metadata of a group, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    if zarr_format == 3:
        attributes = {"ome": {"version": "0.5", **ome}}
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / "zarr.json").write_text(json.dumps(document))
    else:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(ome))


def write_image(
    folder: Path,
    pixels: np.ndarray,
    axes: str,
    *,
    zarr_format: int = 3,
    chunks: tuple[int, ...] | None = None,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """An OME-Zarr image of one level, its chunks written by zarr."""
    datasets = [{"path": "0", "coordinateTransformations": []}]
    image = {"version": "0.4", "axes": axes_of(axes), "datasets": datasets}
    write_group(folder, zarr_format, {"multiscales": [image], **(extra or {})})
    array = zarr.create_array(
        store=str(folder / "0"),
        shape=pixels.shape,
        chunks=chunks or tuple(max(1, n // 2) for n in pixels.shape),
        dtype=pixels.dtype,
        zarr_format=zarr_format,
        fill_value=0,
        **options,
    )
    array[...] = pixels
    return folder


def refusal(read: Callable[[], object], folder: Path, kind: type[CellsegError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        read()
    text = str(caught.value)
    assert text.startswith(f"{folder}: ")
    return text.removeprefix(f"{folder}: ")


def both_refusals(folder: Path, planes: Planes = Planes()) -> str:
    """What header and pixels are both refused with."""
    text = refusal(lambda: read_header(folder, planes), folder)
    assert refusal(lambda: read_image(folder, planes), folder) == text
    return text


# -- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_planes_are_chosen_by_axes(tmp_path: Path, zarr_format: int) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK, "tczyx", zarr_format=zarr_format)
    for planes, expected in (
        (Planes(t=1, z="max"), STACK[1].max(axis=1)),
        (Planes(t=0, z="mid"), STACK[0, :, 2]),
        (Planes(t=1, z="3", channel=(2, 0)), STACK[1, [2, 0], 3]),
        (Planes(t=0, z="max", channel=(1,)), STACK[0, 1:2].max(axis=1)),
    ):
        image = read_image(folder, planes)
        np.testing.assert_array_equal(image, expected)
        header = read_header(folder, planes)
        assert (header.shape, header.channels, header.dtype) == ((30, 40), len(image), "uint16")
        assert header.planes == "TCZYX 2,3,4,30,40"
    assert both_refusals(folder) == (
        "is a stack (TCZYX 2,3,4,30,40); choose with --z max|mid|INT and --t INT"
    )


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    axes=st.sampled_from(["yx", "cyx", "zyx", "tyx", "czyx", "tcyx", "tczyx", "zcyx", "cxy"]),
    zarr_format=st.sampled_from([2, 3]),
    dtype=st.sampled_from(["u1", "u2", ">u2", "i4", "f4", "?"]),
    chunk=st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(5, 26)] * 2),
    ends=st.tuples(*[st.integers(0, 25)] * 4),
    sharded=st.booleans(),
)
def test_a_region_is_that_region_of_the_whole(
    tmp_path: Path,
    axes: str,
    zarr_format: int,
    dtype: str,
    chunk: tuple[int, ...],
    ends: tuple[int, int, int, int],
    sharded: bool,
) -> None:
    sizes = {"t": 2, "c": 3, "z": 4, "y": 21, "x": 25}
    shape = tuple(sizes[axis] for axis in axes)
    pixels = np.random.default_rng(3).integers(0, 120, shape).astype(dtype)
    chunks = chunk[-len(shape) :]
    more = {"shards": tuple(2 * n for n in chunks)} if sharded and zarr_format == 3 else {}
    folder = write_image(
        tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr",
        pixels,
        axes,
        zarr_format=zarr_format,
        chunks=chunks,
        **more,
    )
    planes = Planes(z="max" if "z" in axes else None, t=1 if "t" in axes else None)
    image = pixels[1] if "t" in axes else pixels
    rest = axes.replace("t", "")
    if "z" in axes:
        image, rest = image.max(axis=rest.index("z")), rest.replace("z", "")
    image = image if "c" in rest else image[np.newaxis]
    expected = image.transpose(0, 2, 1) if axes.endswith("xy") else image
    if dtype == "?":
        expected = np.where(expected, 255, 0)
    rows, columns = slice(*sorted(ends[:2])), slice(*sorted(ends[2:]))
    with open_image(folder, planes) as opened:
        found = opened.region(rows, columns)
        assert found.dtype == opened.dtype
        assert found.dtype.isnative
    np.testing.assert_array_equal(found, expected[:, rows, columns])
    np.testing.assert_array_equal(read_image(folder, planes), expected)


def test_names_of_channels(tmp_path: Path) -> None:
    channels = [{"label": name} for name in ("DAPI", "GFP", "Cy5")]
    folder = write_image(
        tmp_path / "a.zarr", STACK[0, :, 0], "cyx", extra={"omero": {"channels": channels}}
    )
    assert read_header(folder).channel_names == ("DAPI", "GFP", "Cy5")
    assert read_header(folder, Planes(channel=(2, 0))).channel_names == ("Cy5", "DAPI")
    short = {"omero": {"channels": channels[:2]}}
    folder = write_image(tmp_path / "b.zarr", STACK[0, :, 0], "cyx", extra=short)
    assert read_header(folder).channel_names == ()


def test_older_versions_say_less_of_their_axes(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK, "tczyx", zarr_format=2)
    for axes in (None, list("tczyx")):
        image = {"datasets": [{"path": "0"}], **({} if axes is None else {"axes": axes})}
        (folder / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
        np.testing.assert_array_equal(
            read_image(folder, Planes(t=1, z="0", channel=(1,))), STACK[1, 1:2, 0]
        )


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_codecs_that_are_usual(tmp_path: Path, zarr_format: int) -> None:
    from numcodecs import GZip, Zlib
    from zarr.codecs import BloscCodec, GzipCodec

    usual: dict[int, list[Any]] = {
        2: [None, GZip(), Zlib()],
        3: [None, GzipCodec(), BloscCodec(cname="lz4")],
    }
    for number, codec in enumerate(usual[zarr_format]):
        folder = write_image(
            tmp_path / f"{number}.zarr",
            STACK[0, :, 0],
            "cyx",
            zarr_format=zarr_format,
            compressors=codec,
        )
        np.testing.assert_array_equal(read_image(folder), STACK[0, :, 0])


def test_a_region_takes_the_memory_of_its_chunks(tmp_path: Path) -> None:
    pixels = np.tile(STACK[0, 0, 0], (60, 50))  # 1800 × 2000 px
    folder = write_image(tmp_path / "a.zarr", pixels, "yx", chunks=(100, 100))
    with open_image(folder) as image:
        assert image.by_region
        image.region(slice(0, 8), slice(0, 8))
        tracemalloc.start()
        for top in range(0, 1800, 100):
            image.region(slice(top, top + 100), slice(150, 250))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < pixels.nbytes / 10


def test_a_plane_in_one_chunk_is_read_whole(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx", chunks=(30, 40))
    with open_image(folder) as image:
        assert not image.by_region
        np.testing.assert_array_equal(
            image.region(slice(3, 5), slice(2, 9))[0], STACK[0, 0, 0, 3:5, 2:9]
        )


def test_a_header_tells_bytes_and_time_of_all_chunks(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, :, 0], "cyx")
    files = [path for path in folder.rglob("*") if path.is_file()]
    chunk = next(path for path in files if path.name != "zarr.json")
    os.utime(chunk, ns=(5, 4_000_000_000_000_000_001))
    header = read_header(folder)
    assert header.size_bytes == sum(path.stat().st_size for path in files)
    assert header.mtime_ns == 4_000_000_000_000_000_001


# -- damage ---------------------------------------------------------------------------------


def chunk_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in (folder / "0").rglob("*")
        if path.is_file() and path.name not in ("zarr.json", ".zarray", ".zattrs")
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_missing_chunks_are_the_fill_value_but_not_all_of_them(
    tmp_path: Path, zarr_format: int
) -> None:
    folder = write_image(
        tmp_path / "a.zarr", STACK[0, 0, 0], "yx", zarr_format=zarr_format, chunks=(15, 40)
    )
    first, second = chunk_files(folder)
    second.unlink()
    expected = STACK[0, 0, 0].copy()
    expected[15:] = 0
    np.testing.assert_array_equal(read_image(folder)[0], expected)
    first.unlink()
    assert both_refusals(folder) == (
        f"OME-Zarr is incomplete: there is no chunk of its pixels{AGAIN}"
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("compressor", ["none", "zstd", "gzip", "blosc"])
@pytest.mark.parametrize("left", [0, 7, 60])
def test_a_truncated_chunk_is_refused_where_it_is_read(
    tmp_path: Path, zarr_format: int, compressor: str, left: int
) -> None:
    from numcodecs import Blosc, GZip, Zstd
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    codecs: dict[str, tuple[Any, Any]] = {
        "none": (None, None),
        "zstd": (Zstd(), ZstdCodec()),
        "gzip": (GZip(), GzipCodec()),
        "blosc": (Blosc(), BloscCodec()),
    }
    folder = write_image(
        tmp_path / "a.zarr",
        STACK[0, 0, 0],
        "yx",
        zarr_format=zarr_format,
        chunks=(15, 40),
        compressors=codecs[compressor][zarr_format - 2],
    )
    second = chunk_files(folder)[1]
    second.write_bytes(second.read_bytes()[:left])
    with open_image(folder) as image:
        np.testing.assert_array_equal(
            image.region(slice(0, 15), slice(0, 9))[0], STACK[0, 0, 0, :15, :9]
        )
        text = refusal(lambda: image.region(slice(10, 20), slice(0, 9)), folder)
    assert text.startswith("OME-Zarr is damaged: ")
    assert text.endswith(AGAIN)


@pytest.mark.parametrize(
    ("zarr_format", "name"),
    [(2, "zlib"), (2, "gzip"), (2, "zstd"), (2, "lz4"), (3, "gzip"), (3, "zstd"), (3, "blosc")],
)
def test_a_chunk_that_grows_beyond_its_size_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zarr_format: int, name: str
) -> None:
    from numcodecs import LZ4, Blosc, GZip, Zlib, Zstd
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    packs = {"zlib": Zlib(), "gzip": GZip(), "zstd": Zstd(), "lz4": LZ4(), "blosc": Blosc()}
    thirds: dict[str, Any] = {"gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec()}
    folder = write_image(
        tmp_path / "a.zarr",
        STACK[0, 0, 0],
        "yx",
        zarr_format=zarr_format,
        chunks=(30, 40),
        compressors=packs[name] if zarr_format == 2 else thirds[name],
    )
    (chunk,) = chunk_files(folder)
    np.testing.assert_array_equal(read_image(folder)[0], STACK[0, 0, 0])
    expected = STACK[0, 0, 0].nbytes
    chunk.write_bytes(bytes(packs[name].encode(bytes(200 * expected))))
    monkeypatch.setattr(zarr.Array, "__getitem__", None)
    text = refusal(lambda: read_image(folder), folder)
    assert text.startswith("OME-Zarr is damaged: a chunk in ")
    claimed = f"{200 * expected}" if name == "blosc" else f"more than {expected}"
    assert f"holds {claimed} bytes of values" in text
    chunk.write_bytes(np.random.default_rng(0).bytes(3 * expected + 1024))
    assert refusal(lambda: read_image(folder), folder).startswith("OME-Zarr is damaged: a chunk")


def test_a_checksum_behind_a_chunk_is_no_further_chunk() -> None:
    """It may begin like zlib, and then gives a byte: once in ten thousand chunks."""
    data = gzip.compress(bytes(64), mtime=0)
    assert not zarr_chunks._is_longer("gzip", data + bytes.fromhex("4889aaad"), 64)
    assert zarr_chunks._is_longer("gzip", data + gzip.compress(b"1"), 64)  # a second member
    assert not zarr_chunks._is_longer("zlib", zlib.compress(bytes(64)) + bytes(9), 64)


@pytest.mark.parametrize("filters", [["fletcher32"], ["delta"], ["shuffle"]])
@pytest.mark.parametrize("name", ["blosc", "zstd", "gzip", "lz4"])
def test_filters_may_make_chunks_longer(tmp_path: Path, filters: list[str], name: str) -> None:
    import numcodecs

    known = {
        "fletcher32": numcodecs.Fletcher32(),
        "delta": numcodecs.Delta(dtype="<u2", astype="<i4"),
        "shuffle": numcodecs.Shuffle(2),
    }
    packs = {"blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip()}
    folder = write_image(
        tmp_path / "a.zarr",
        STACK[0, 0, 0],
        "yx",
        zarr_format=2,
        compressors=packs.get(name, numcodecs.LZ4()),
        filters=[known[one] for one in filters],
    )
    np.testing.assert_array_equal(read_image(folder)[0], STACK[0, 0, 0])


def test_only_one_codec_compresses(tmp_path: Path) -> None:
    from zarr.codecs import GzipCodec, ZstdCodec

    twice = [GzipCodec(), ZstdCodec()]
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx", compressors=twice)
    assert both_refusals(folder) == "OME-Zarr is of a kind that is not read (a codec around gzip)"


@pytest.mark.parametrize("location", ["start", "end"])
def test_a_damaged_chunk_in_a_shard_of_blosc_is_refused(
    tmp_path: Path, location: Literal["start", "end"]
) -> None:
    from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx", chunks=(30, 40))
    sharding = ShardingCodec(
        chunk_shape=(15, 20), codecs=[BytesCodec(), BloscCodec()], index_location=location
    )
    array = zarr.create(
        store=str(folder / "0"),
        shape=(30, 80),
        chunks=(30, 40),
        dtype="u2",
        codecs=[sharding],
        overwrite=True,
        zarr_format=3,
    )
    pixels = np.hstack([STACK[0, 0, 0], STACK[1, 0, 0]])
    array[...] = pixels
    np.testing.assert_array_equal(read_image(folder)[0], pixels)
    second = folder / "0" / "c" / "0" / "1"
    whole = second.read_bytes()
    # the first chunk begins behind an index of 4 · 16 + 4 bytes, or at the start
    first = 68 if location == "start" else 0
    spoilt = bytearray(whole)
    spoilt[first + 12] ^= 1
    second.write_bytes(spoilt)
    with open_image(folder) as image:
        np.testing.assert_array_equal(image.region(slice(0, 30), slice(0, 40))[0], pixels[:, :40])
        text = refusal(lambda: image.region(slice(0, 30), slice(40, 80)), folder)
    assert text.startswith("OME-Zarr is damaged: a chunk in c/0/1 has ")
    for size in (0, 30, len(whole) - 5):
        second.write_bytes(whole[:size])
        assert refusal(lambda: read_image(folder), folder).startswith("OME-Zarr is damaged: ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": [30]}, "chunks (15, 20) do not suit the shape (30,)"),
        ({"shape": [-1, 40]}, "[-1, 40] are no sizes"),
        ({"shape": ["a", 40]}, "['a', 40] are no sizes"),
        ({"data_type": None}, None),
        ({"chunk_grid": 3}, "the metadata of its array 0 lacks 'int' object is not subscriptable"),
        ({"codecs": None}, "the metadata of its array 0 lacks 'NoneType' object is not iterable"),
        ({"node_type": "group"}, "its level 0 is no array"),
    ],
)
def test_metadata_that_is_damaged(tmp_path: Path, change: dict[str, Any], text: str | None) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    path = folder / "0" / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    expected = (
        f"OME-Zarr is damaged: {text}{AGAIN}"
        if text
        else "OME-Zarr holds None values, which are not intensities"
    )
    assert both_refusals(folder) == expected


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    for text, reason in (
        ("[]", "zarr.json holds no JSON object"),
        (
            "{",
            "zarr.json: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
        (
            "[" * 200_000,
            "zarr.json: maximum recursion depth exceeded while decoding a JSON array "
            "from a unicode string",
        ),
    ):
        (folder / "0" / "zarr.json").write_text(text)
        assert both_refusals(folder) == f"OME-Zarr is damaged: {reason}{AGAIN}"
    (folder / "0" / "zarr.json").unlink()
    assert both_refusals(folder) == f"OME-Zarr is damaged: its array 0 is missing{AGAIN}"


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), where=st.sampled_from(["", "0"]))
def test_metadata_with_any_byte_changed_is_refused_or_read(
    tmp_path: Path, at: int, byte: int, where: str
) -> None:
    folder = tmp_path / "a.zarr"
    if not folder.exists():
        write_image(folder, STACK[0, :, 0], "cyx")
    path = folder / where / "zarr.json"
    data = path.read_bytes()
    spoilt = bytearray(data)
    spoilt[at % len(data)] = byte
    path.write_bytes(spoilt)
    try:
        if looks_like_zarr(folder):
            read_image(folder, Planes(z="max", t=0))
    except (InputError, LimitError) as fault:
        assert str(fault).startswith(f"{folder}: ")
    finally:
        path.write_bytes(data)


def test_codecs_that_may_run_code_are_refused(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx", zarr_format=2)
    path = folder / "0" / ".zarray"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "filters": [{"id": "pickle", "protocol": 5}]}))
    assert both_refusals(folder) == (
        "OME-Zarr is of a kind that is not read (codec pickle); save it with zstd, gzip or blosc"
    )
    path.write_text(json.dumps({**document, "dtype": "|O"}))
    assert both_refusals(folder) == "OME-Zarr holds |O values, which are not intensities"


@pytest.mark.parametrize("count", [10**8, 10**12 - 1])
@pytest.mark.parametrize(
    ("axes", "planes", "reason"),
    [
        ("cyx", Planes(), "is too large: 64×64 px × "),
        ("zyx", Planes(z="max"), "has {} z planes, the limit (MAX_PLANES) is 1048576"),
        ("tyx", Planes(t=0), "has {} time points, the limit (MAX_PLANES) is 1048576"),
    ],
)
def test_a_plane_is_not_counted_before_there_may_be_so_many(
    tmp_path: Path, count: int, axes: str, planes: Planes, reason: str
) -> None:
    folder = write_image(tmp_path / "a.zarr", np.zeros((1, 64, 64), np.uint8), axes)
    path = folder / "0" / "zarr.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "shape": [count, 64, 64]}))
    (folder / "0/c/0/0").mkdir(parents=True)
    (folder / "0/c/0/0/0").write_bytes(bytes(64 * 64))
    tracemalloc.start()
    text = refusal(lambda: read_header(folder, planes), folder, LimitError)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.startswith(reason.format(count))
    assert peak < 1 << 20


def test_sizes_are_checked_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    path = folder / "0" / "zarr.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "shape": [10**6, 10**6]}))
    assert refusal(lambda: read_header(folder), folder, LimitError) == (
        "is too large: 1000000×1000000 px × 1 channels = 1000000000000 values, "
        "the limit (MAX_PIXELS) is 2147483648; cut it into smaller fields"
    )
    grid = {"name": "regular", "configuration": {"chunk_shape": [10**5, 10**5]}}
    path.write_text(json.dumps({**document, "chunk_grid": grid}))
    assert refusal(lambda: read_header(folder), folder, LimitError) == (
        "has chunks of 20000000000 bytes, the limit (MAX_CHUNK_BYTES) is 1073741824; "
        "save it with smaller chunks"
    )
    path.write_text(json.dumps(document))
    monkeypatch.setattr(zarr_nodes, "MAX_METADATA_BYTES", 10)
    text = refusal(lambda: read_header(folder), folder, LimitError)
    assert text.startswith("has metadata of ")


@pytest.mark.parametrize(
    "path", ["../secret", "/etc", "a/../../b", "a\\b", "C:/x", "", ".", "a//b"]
)
def test_paths_never_leave_the_folder(tmp_path: Path, path: str) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    image = {"axes": axes_of("yx"), "datasets": [{"path": path}]}
    write_group(folder, 3, {"multiscales": [image]})
    reason = f"OME-Zarr has the path {path!r} in its metadata, which is no path within it{AGAIN}"
    assert both_refusals(folder) == reason
    write_group(folder, 3, {"plate": {"wells": [{"path": path}]}})
    assert refusal(lambda: images_in(folder), folder) == reason
    write_group(folder, 3, {"plate": {"wells": [{"path": "A/1"}]}})
    write_group(folder / "A/1", 3, {"well": {"images": [{"path": path}]}})
    (image,) = images_in(folder)
    assert image == ZarrImage("A/1", None, f"{folder / 'A/1'}: {reason}")


def test_axes_that_are_no_image(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, :, 0], "cyx")
    for axes in (axes_of("yx"), axes_of("cyc"), axes_of("czt"), "cyx"):
        write_group(folder, 3, {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]})
        assert both_refusals(folder) == (
            f"OME-Zarr has an array of 3 axes, called {axes}; they must be some of "
            "t, c, z, y, x, each once"
        )


def test_several_images_in_one_group_are_named(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    image = {"axes": axes_of("yx"), "datasets": [{"path": "0"}]}
    write_group(folder, 3, {"multiscales": [{**image, "name": "embedding"}, image]})
    assert both_refusals(folder) == ("holds 2 images: embedding, 1; save them as images of one")


def test_a_folder_that_is_no_zarr(tmp_path: Path) -> None:
    assert not looks_like_zarr(tmp_path)
    assert both_refusals(tmp_path) == "is a folder, not an image"
    write_group(tmp_path, 3, {"labels": ["cells"]})
    assert looks_like_zarr(tmp_path)
    assert both_refusals(tmp_path) == "is zarr, but no OME-Zarr image"
    assert refusal(lambda: images_in(tmp_path), tmp_path) == (
        "is zarr, but neither an OME-Zarr image nor a plate"
    )


# -- plates ---------------------------------------------------------------------------------


def write_plate(folder: Path, zarr_format: int) -> Path:
    wells = [{"path": "B/02", "rowIndex": 1, "columnIndex": 1}, {"path": "C/03"}]
    plate = {"name": "screen 1", "wells": wells, "rows": [{"name": "B"}], "columns": []}
    write_group(folder, zarr_format, {"plate": plate})
    for well, fields in (("B/02", ["0", "1"]), ("C/03", ["f7"])):
        images = [{"path": field, "acquisition": 0} for field in fields]
        write_group(folder / well, zarr_format, {"well": {"images": images}})
        for number, field in enumerate(fields):
            write_image(folder / well / field, STACK[0, :, number], "cyx", zarr_format=zarr_format)
    return folder


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_fields_of_a_plate(tmp_path: Path, zarr_format: int) -> None:
    folder = write_plate(tmp_path / "p.ome.zarr", zarr_format)
    assert images_in(folder) == (
        ZarrImage("B/02/0", Place("screen 1", "B", "02", "0")),
        ZarrImage("B/02/1", Place("screen 1", "B", "02", "1")),
        ZarrImage("C/03/f7", Place("screen 1", "C", "03", "f7")),
    )
    np.testing.assert_array_equal(read_image(folder / "B/02/1"), STACK[0, :, 1])
    fields = find_fields(folder)
    assert [field.place.well for field in fields if field.place] == ["B02", "B02", "C03"]
    for field in fields:
        assert read_header(field.source).channels == 3


def test_a_plate_without_name_has_that_of_its_folder(tmp_path: Path) -> None:
    folder = write_plate(tmp_path / "screen.ome.zarr", 3)
    write_group(folder, 3, {"plate": {"wells": [{"path": "C/03"}]}})
    (image,) = images_in(folder)
    assert image.place == Place("screen", "C", "03", "f7")


def test_an_image_alone_and_the_series_of_bio_formats(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    assert images_in(image) == (ZarrImage(".", None),)
    series = tmp_path / "b.zarr"
    write_group(series, 2, {"bioformats2raw.layout": 3})
    assert refusal(lambda: images_in(series), series) == f"OME-Zarr holds no series{AGAIN}"
    for number in range(2):
        write_image(series / str(number), STACK[0, 0, 0], "yx", zarr_format=2)
    assert images_in(series) == (ZarrImage("0", None), ZarrImage("1", None))
    write_group(series / "OME", 2, {"series": ["1"]})
    assert images_in(series) == (ZarrImage("1", None),)


def test_plates_that_are_damaged(tmp_path: Path) -> None:
    folder = write_plate(tmp_path / "p.zarr", 3)
    write_group(folder, 3, {"plate": {"wells": [{"path": "B02"}]}})
    assert refusal(lambda: images_in(folder), folder) == (
        "OME-Zarr plate has a well B02, which is no row/column"
    )
    write_group(folder, 3, {"plate": {"wells": [7]}})
    assert refusal(lambda: images_in(folder), folder) == (
        f"OME-Zarr is damaged: a list of its metadata has no objects{AGAIN}"
    )
    write_group(folder, 3, {"plate": 5})
    assert refusal(lambda: images_in(folder), folder) == "OME-Zarr plate has no wells"
    well = folder / "B/02"
    assert refusal(lambda: images_in(well), well) == (
        "is one well of an OME-Zarr plate; give the plate"
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda well: write_group(well, 3, {"well": {}}), "OME-Zarr well has no fields"),
        (shutil.rmtree, "OME-Zarr well has no fields"),
        (
            lambda well: write_group(well, 3, {"well": {"images": [{"path": "../B"}]}}),
            "OME-Zarr has the path '../B' in its metadata, which is no path within it",
        ),
    ],
)
def test_a_bad_well_costs_no_other_well(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    folder = write_plate(tmp_path / "p.zarr", 3)
    spoil(well := folder / "C/03")
    fields = find_fields(tmp_path)
    assert [field.id for field in fields] == ["p/B/02/0", "p/B/02/1", "p/C/03"]
    assert [field.fault for field in fields] == [None, None, f"{well}: {reason}{AGAIN}"]


def test_metadata_takes_no_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of many fields must not wait for an import, nor open an array for each."""
    folder = write_plate(tmp_path / "p.zarr", 3)
    monkeypatch.setattr(ome_zarr.arrays, "open_foreign", None)
    for image in images_in(folder):
        assert read_header(folder / image.relative).shape == (30, 40)
