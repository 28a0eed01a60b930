"""Real exports of plate readers: what is found against what their own metadata says.

The metadata is read here by other means than the package has: regular expressions on the text.
"""

from __future__ import annotations

import os
import re
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_cli.images.decode import read_header, read_image
from cellseg_cli.images.discover import Field, discover, find_fields
from cellseg_cli.images.planes import Planes

CELLVOYAGER = "CV8000-Minimal-DataSet-2C-3W-4S-FP2-stack"


@pytest.fixture
def plates(real_data: Path) -> Path:
    return real_data / "plates"


def axes_of(fields: tuple[Field, ...]) -> dict[str, int]:
    """How many of each there are, from the fields alone."""
    places = [field.place for field in fields if field.place is not None]
    planes = {(file.channel, file.z) for field in fields for file in field.source.files}
    return {
        "plates": len({place.plate for place in places}),
        "wells": len({(place.plate, place.well) for place in places}),
        "fields": len({(place.plate, place.well, place.field) for place in places}),
        "channels": len({channel for channel, _ in planes}),
        "z": len({z for _, z in planes}),
        "times": len({place.t for place in places}),
    }


def test_cellvoyager_is_what_its_measurement_data_lists(plates: Path) -> None:
    (listing,) = plates.rglob("MeasurementData.mlf")
    records = re.findall(r"<bts:MeasurementRecord ([^>]*)>([^<]*)<", listing.read_text("utf-8"))
    told = [(dict(re.findall(r'bts:(\w+)="([^"]*)"', keys)), name) for keys, name in records]
    images = {name: keys for keys, name in told if keys["Type"] == "IMG"}
    fields = find_fields(plates / "CellVoyager")
    assert axes_of(fields) == {
        "plates": 1,
        "wells": len({(keys["Row"], keys["Column"]) for keys in images.values()}),
        "fields": len({(k["Row"], k["Column"], k["FieldIndex"]) for k in images.values()}),
        "channels": len({keys["Ch"] for keys in images.values()}),
        "z": len({keys["ZIndex"] for keys in images.values()}),
        "times": len({keys["TimePoint"] for keys in images.values()}),
    }
    assert len(fields) == 12
    seen: dict[str, str] = {}
    for field in fields:
        assert field.fault is None
        assert field.place is not None
        for file in field.source.files:
            keys = images[Path(file.path).name]
            seen[Path(file.path).name] = field.id
            row = string.ascii_uppercase[int(keys["Row"]) - 1]
            assert field.place.well == f"{row}{int(keys['Column']):02d}"
            assert field.place.field == f"f{int(keys['FieldIndex']):03d}"
            assert (file.channel, file.z) == (int(keys["Ch"]) - 1, int(keys["ZIndex"]) - 1)
    assert seen.keys() == images.keys()


def test_cellvoyager_tells_its_channels_and_what_it_leaves_out(plates: Path) -> None:
    found = discover(plates / "CellVoyager")
    (settings,) = plates.rglob("*.mes")
    dyes = re.findall(
        r'<bts:Channel bts:Ch="(\d)".*?bts:Acquisition="([^"]*)"', settings.read_text()
    )
    assert found.fields[0].source.channel_names == (dict(dyes)["1"], dict(dyes)["2"])
    folder = f"{CELLVOYAGER}_20230918_135839/{CELLVOYAGER}"
    assert found.fields[0].id == f"{folder}/D/08/f001"
    corrections = [p for p in plates.rglob("*.tif") if p.name.startswith(("DC_", "SC_"))]
    assert len(corrections) == 6
    assert found.notes == (
        f"{folder}: a cellvoyager plate of 12 fields, 3 wells, 2 channels (BP445/45, BP525/50), "
        "4 z planes; left out by rule: 6 correction images",
    )


def test_damaged_settings_cost_the_names_of_channels_and_no_field(
    plates: Path, tmp_path: Path
) -> None:
    shutil.copytree(plates / "CellVoyager", tmp_path / "p", copy_function=os.symlink)
    whole = discover(tmp_path / "p")
    for path in sorted((tmp_path / "p").rglob("*F003*.tif")):
        path.unlink()
    (settings,) = (tmp_path / "p").rglob("*.mes")
    text = settings.read_bytes()[:3000]
    settings.unlink()
    settings.write_bytes(text)
    found = discover(tmp_path / "p")
    assert [field.id for field in found.fields] == [field.id for field in whole.fields]
    lost = [field.fault for field in found.fields if field.fault]
    assert len(lost) == sum(field.id.endswith("f003") for field in whole.fields) > 0
    assert all("MeasurementData.mlf lists" in fault for fault in lost)
    assert found.fields[0].source.channel_names == ("C01", "C02")
    (note,) = [note for note in found.notes if note.startswith(str(settings))]
    assert note.endswith("; its channels have no names")


def htd(path: Path) -> dict[str, list[str]]:
    """The values of a file of MetaXpress by key; the selection of wells and sites row by row."""
    lines = path.read_bytes().decode("latin-1").replace("\r", "").split("\n")
    return {
        line.split(",")[0].strip('"'): [one.strip(' "') for one in line.split(",")[1:]]
        for line in lines
    }


def test_an_export_of_metaxpress_is_what_its_htd_says(plates: Path) -> None:
    told = htd(plates / "ImageXpress_exported" / "9987.HTD")
    wells = {
        f"{string.ascii_uppercase[row]}{column + 1:02d}"
        for row in range(int(told["YWells"][0]))
        for column, taken in enumerate(told[f"WellsSelection{row + 1}"])
        if taken == "TRUE"
    }
    sites = told["SiteSelection1"].count("TRUE")
    found = discover(plates / "ImageXpress_exported")
    assert {field.place.well for field in found.fields if field.place} == wells
    assert len(found.fields) == len(wells) * sites * int(told["TimePoints"][0])
    # The copy here has neither the fourth channel nor the third z step that the HTD tells of.
    assert int(told["NWavelengths"][0]) == 4
    assert int(told["ZSteps"][0]) == 3
    assert axes_of(found.fields) == {
        "plates": 1,
        "wells": 2,
        "fields": 4,
        "channels": 3,
        "z": 2,
        "times": 1,
    }
    assert {field.source.channel_names for field in found.fields} == {
        tuple(told[f"WaveName{n}"][0] for n in (1, 2, 3))
    }
    assert [field.id for field in found.fields] == [
        f"9987/{well}/f00{n}" for well in ("B/02", "B/03") for n in (1, 2)
    ]
    assert [field.fault for field in found.fields] == [None] * 4
    assert found.notes == (
        "9987: an imagexpress plate of 4 fields, 2 wells, 3 channels (DAPI, FITC, Texas Red), "
        "2 z planes; left out by rule: 12 projections beside their z planes; "
        "9987.HTD tells of 4 channels, 3 here and 3 z planes, 2 here",
    )


def metaseries(path: Path) -> dict[str, str]:
    """What MetaXpress wrote into the image itself."""
    with tifffile.TiffFile(path) as file:
        text = file.pages[0].description
    return dict(re.findall(r'id="([^"]*)" type="[^"]*" value="([^"]*)"', text))


@pytest.mark.parametrize("name", ["ImageXpress_exported", "ImageXpress_single"])
def test_z_planes_are_those_that_the_images_say(plates: Path, name: str) -> None:
    for field in find_fields(plates / name):
        assert field.place is not None
        for file in field.source.files:
            told = metaseries(Path(file.path))
            well, _, site = told["stage-label"].partition(" : Site ")
            assert (field.place.well, field.place.field) == (well, f"f00{site}")
            step = told.get("Z Step")
            if file.channel == 0:  # the channels with one plane are repeated in each folder
                assert step == str(file.z + 1)
            assert "Z Projection Method" not in told or file.channel == 1


def test_thumbnails_and_projections_beside_z_planes_are_left_out(plates: Path) -> None:
    found = discover(plates / "ImageXpress_single")
    assert axes_of(found.fields) == {
        "plates": 1,
        "wells": 2,
        "fields": 4,
        "channels": 1,
        "z": 2,
        "times": 1,
    }
    used = {Path(file.path) for field in found.fields for file in field.source.files}
    everything = set((plates / "ImageXpress_single").rglob("*.tif"))
    thumbs = {path for path in everything if metaseries(path)["image-name"] == "HTSThumbHTS"}
    projections = {path for path in everything - thumbs if path.parent.name == "1334"}
    assert (len(thumbs), len(projections)) == (12, 4)
    assert used == everything - thumbs - projections
    assert found.notes == (
        "2023-02-21/1334/Projection-Mix: an imagexpress plate of 4 fields, 2 wells, 1 channel "
        "(w1), 2 z planes; left out by rule: 4 projections beside their z planes, 12 thumbnails",
    )


def test_each_time_point_is_a_field(plates: Path) -> None:
    found = discover(plates / "ImageXpress_timeseries")
    root = "2024-04-22/1697/1well-3C-2S-Zmix-T/C/07"
    assert [field.id for field in found.fields] == [
        f"{root}/f001t000",
        f"{root}/f001t001",
        f"{root}/f002t000",
        f"{root}/f002t001",
    ]
    for field in found.fields:
        assert field.place is not None
        told = [metaseries(Path(file.path)) for file in field.source.files]
        assert {one["Timepoint"] for one in told} == {str(int(field.place.t or 0) + 1)}
        assert len({one["_IllumSetting_"] for one in told}) == 3
    second = discover(plates / "ImageXpress_timeseries", planes=Planes(t=1))
    assert [field.id for field in second.fields] == [f"{root}/f001t001", f"{root}/f002t001"]
    assert second.notes[1] == "2 of 4 fields are chosen by --t 1"


def test_the_planes_of_a_field_are_read_as_one_image(plates: Path) -> None:
    field = find_fields(plates / "ImageXpress_single")[0]
    first, second = (tifffile.imread(file.path) for file in field.source.files)
    assert read_header(field.source, Planes(z="max")).shape == (512, 512)
    highest = read_image(field.source, Planes(z="max"))
    np.testing.assert_array_equal(highest, np.maximum(first, second)[None])
    np.testing.assert_array_equal(read_image(field.source, Planes(z="1")), second[None])
    # The chosen time point is that of the field, and the first channel has no second z.
    timed = find_fields(plates / "ImageXpress_timeseries", planes=Planes(t=1))[0]
    expected = np.stack([tifffile.imread(file.path) for file in timed.source.files])
    np.testing.assert_array_equal(read_image(timed.source, Planes(t=1, z="max")), expected)


def test_odd_images_stay_one_field_a_file(plates: Path) -> None:
    found = discover(plates / "odd_tiffs")
    assert [field.id for field in found.fields] == [
        "bian_IXMtest_A02_s9",
        "instanseg_Fluorescence_example",
        "instanseg_HE_example",
        "midap_example_stack",
        "ometypes_ome",
    ]
    assert {field.place for field in found.fields} == {None}
    assert found.notes == ()


def test_the_whole_folder_of_plates(plates: Path) -> None:
    found = discover(plates)
    assert len(found.fields) == 12 + 4 + 4 + 4 + 5
    assert len({field.place.plate for field in found.fields if field.place}) == 4
    assert len(found.notes) == 4


def test_livecell_has_a_field_for_each_image(real_data: Path) -> None:
    folder = real_data / "livecell" / "images"
    found = discover(folder)
    assert [field.id for field in found.fields] == sorted(p.stem for p in folder.glob("*.tif"))
    for field in found.fields:
        cells, _, well, image, _, crop = field.path.stem.split("_")
        assert field.place is not None
        assert field.place.plate == cells
        assert (field.place.row, int(field.place.column)) == (well[0], int(well[1:]))
        assert field.place.field == f"f00{image}c{crop}"
        assert field.place.t is not None
    # Within a plate the later image has the later time point.
    of_plate = [f for f in found.fields if f.place and f.place.plate == "BT474"]
    by_time = sorted(of_plate, key=lambda f: f.path.stem.split("_")[4])
    assert [f.place.t for f in by_time if f.place] == [0, 1, 2, 3]
    assert found.notes == (
        "16 file names tell their well and time point (incucyte, 6 plates); each file is a field",
    )
