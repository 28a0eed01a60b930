"""Generated exports: names as the vendors document them, planes that are missing, own patterns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import ConfigError, InputError
from cellseg_cli.images.discover import Field, Found, discover, find_fields
from cellseg_cli.images.planes import Planes
from cellseg_cli.images.source import Place
from cellseg_cli.rows import PlaneFile


def make(root: Path, *names: str) -> Path:
    """Make empty files; discovery never opens one."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(found: Found) -> list[str]:
    return [field.id for field in found.fields]


def planes(field: Field) -> list[tuple[str, int, int]]:
    return [(Path(file.path).name, file.channel, file.z) for file in field.source.files]


# -- Harmony --------------------------------------------------------------------------------

INDEX_5 = """<?xml version="1.0" encoding="utf-8"?>
<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5">
  <Plates><Plate><PlateID>7</PlateID><Name>screen 7</Name></Plate></Plates>
  <Images>{images}</Images>
</EvaluationInputData>"""
IMAGE_5 = (
    "<Image><State>Ok</State><URL>{url}</URL><ChannelID>{channel}</ChannelID>"
    "<ChannelName>{name}</ChannelName></Image>"
)
INDEX_6 = """<EvaluationInputData xmlns="43B2A954/HarmonyV6">
  <Maps><Map><Entry ChannelID="1"><FlatfieldProfile>x</FlatfieldProfile></Entry></Map>
    <Map><Entry ChannelID="1"><ChannelName>DAPI</ChannelName></Entry>
    <Entry ChannelID="2"><ChannelName>Alexa 488</ChannelName></Entry></Map></Maps>
  <Images><Image><URL>r02c03f01p01-ch1sk1fk1fl1.tiff</URL></Image></Images>
</EvaluationInputData>"""


def harmony(row: int, field: int, z: int, channel: int, t: int = 1) -> str:
    return f"r{row:02d}c03f{field:02d}p{z:02d}-ch{channel}sk{t}fk1fl1.tiff"


def test_harmony_groups_channels_and_z_and_parts_time_points(tmp_path: Path) -> None:
    names = [
        harmony(row, field, z, channel, t)
        for row in (2, 16)
        for field in (1, 12)
        for z in (1, 2)
        for channel in (1, 2)
        for t in (1, 2)
    ]
    folder = "7__2024-05-01T10_00_00-Measurement 1"
    make(tmp_path, *(f"{folder}/Images/{name}" for name in names))
    images = [IMAGE_5.format(url=name, channel=name[13:14], name="") for name in names]
    images.append(IMAGE_5.format(url=names[0], channel=1, name="HOECHST"))
    (tmp_path / folder / "Images" / "Index.idx.xml").write_text(
        INDEX_5.format(images="".join(images)), encoding="utf-8-sig"
    )
    found = discover(tmp_path)
    assert ids(found) == [
        f"{folder}/{row}/03/f{field}t{t}"
        for row in "BP"
        for field in ("001", "012")
        for t in ("000", "001")
    ]
    assert found.fields[0].place == Place("screen 7", "B", "03", "f001", 0)
    assert planes(found.fields[1]) == [
        (harmony(2, 1, z, channel, 2), channel - 1, z - 1) for channel in (1, 2) for z in (1, 2)
    ]
    assert found.fields[0].source.channel_names == ("HOECHST", "ch2")
    assert found.notes == (
        f"{folder}: a harmony plate of 8 fields, 2 wells, 2 channels (HOECHST, ch2), 2 z planes, "
        "2 time points",
    )


def test_harmony_6_names_its_channels_in_a_map(tmp_path: Path) -> None:
    names = [harmony(2, 1, 1, channel) for channel in (1, 2)]
    make(tmp_path / "m", *(f"Images/{name}" for name in names))
    (tmp_path / "m" / "Images" / "Index.xml").write_text(INDEX_6)
    # Whoever gives the inner folder gets the plate under the same name.
    for source, name in ((tmp_path / "m", "m"), (tmp_path / "m" / "Images", "m")):
        (field,) = discover(source).fields
        assert field.id == f"{name}/B/03/f001"
        assert field.source.channel_names == ("DAPI", "Alexa 488")


def test_listed_images_that_are_gone_are_faults(tmp_path: Path) -> None:
    every = [harmony(2, f, 1, c) for f in (1, 2, 3) for c in (1, 2)]
    make(tmp_path, *(f"p/Images/{name}" for name in (*every[:3], harmony(2, 4, 1, 1))))
    listed = [*every, harmony(9, 1, 1, 1), harmony(2, 4, 1, 1)]
    images = "".join(IMAGE_5.format(url=n, channel=n[13:14], name="") for n in listed)
    (tmp_path / "p" / "Images" / "Index.xml").write_text(INDEX_5.format(images=images))
    found = discover(tmp_path)
    faults = {field.id[-4:]: field.fault for field in found.fields}
    assert faults == {
        "f001": None,
        "f002": "is incomplete: without channel ch2, which Index.xml has",
        "f003": f"none of its 2 files is there: Index.xml lists {every[4]}",
        "f004": None,  # other fields have a second channel, but none is listed for this one
    }
    assert found.notes == (
        "p: a harmony plate of 3 fields, 1 well, 2 channels (ch1, ch2); Index.xml tells of "
        "1 well more than is here; 1 field that it lists without any file",
    )
    chosen = discover(tmp_path, planes=Planes(channel=(0,)))
    assert [f.fault is None for f in chosen.fields] == [True, True, False, True]
    # Whoever asks for some files only misses nothing.
    assert ids(discover(tmp_path, include=["*f01*"])) == ["p/B/03/f001"]


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>
<EvaluationInputData><Images><Image><URL>&c;</URL></Image></Images></EvaluationInputData>"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "has a document type, which no plate reader writes"),
        ("<a><b></a>", "is not XML (mismatched tag: line 1, column 8)"),
        ("", "is not XML (no element found: line 1, column 0)"),
        (
            '<?xml version="1.0" encoding="shift_jis"?><a/>',
            "is XML in an encoding that is not read (multi-byte encodings are not supported)",
        ),
        (
            '<?xml version="1.0" encoding="foo"?><a/>',
            "is XML in an encoding that is not read (unknown encoding: foo)",
        ),
    ],
)
def test_metadata_that_cannot_be_read_is_told(tmp_path: Path, text: str, reason: str) -> None:
    make(tmp_path, f"p/Images/{harmony(1, 1, 1, 1)}", f"p/Images/{harmony(1, 1, 1, 2)}")
    index = tmp_path / "p" / "Images" / "Index.xml"
    index.write_text(text)
    found = discover(tmp_path)
    assert found.notes == (
        "p: a harmony plate of 1 field, 1 well, 2 channels (ch1, ch2)",
        f"{index}: {reason}; the plate is read by the names of its files",
    )


def test_metadata_is_read_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellseg_cli.images.plates.metadata.MAX_XML_BYTES", 9)
    make(tmp_path, f"p/Images/{harmony(1, 1, 1, 1)}", f"p/Images/{harmony(1, 1, 1, 2)}")
    index = tmp_path / "p" / "Images" / "Index.xml"
    index.write_text("<a>1234</a>")
    assert discover(tmp_path).notes[1] == (
        f"{index}: has 11 bytes, more than the 9 that are read; "
        "the plate is read by the names of its files"
    )


# -- IncuCyte -------------------------------------------------------------------------------


def test_incucyte_groups_channels_named_in_the_file(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(
            f"VID12_{channel}_{well}_{image}_{time}.tif"
            for channel in ("Phase", "Green")
            for well in ("A1", "H12")
            for image in (1, 2)
            for time in ("00d00h00m", "02d00h00m", "10d00h00m")
        ),
    )
    found = discover(tmp_path)
    assert ids(found) == [
        f"VID12/{well}/f00{image}t00{t}"
        for well in ("A/01", "H/12")
        for image in (1, 2)
        for t in (0, 1, 2)
    ]
    assert planes(found.fields[2]) == [
        ("VID12_Green_A1_1_10d00h00m.tif", 0, 0),
        ("VID12_Phase_A1_1_10d00h00m.tif", 1, 0),
    ]
    assert found.fields[0].source.channel_names == ("Green", "Phase")


def test_incucyte_groups_channels_named_by_folders(tmp_path: Path) -> None:
    names = [f"VID1_B2_1_{time}.tif" for time in ("2019y12m27d_13h00m", "2020y01m02d_01h00m")]
    make(tmp_path, *(f"Phase/{name}" for name in names), *(f"Red/{name}" for name in names))
    found = discover(tmp_path)
    assert ids(found) == ["VID1/B/02/f001t000", "VID1/B/02/f001t001"]
    assert [Path(f.path).parent.name for f in found.fields[0].source.files] == ["Phase", "Red"]


def test_a_channel_taken_less_often_is_a_fault_unless_another_is_chosen(tmp_path: Path) -> None:
    make(tmp_path, *(f"V_Phase_A1_1_00d0{h}h00m.tif" for h in (0, 1)), "V_Red_A1_1_00d00h00m.tif")
    assert [field.fault for field in discover(tmp_path).fields] == [
        None,
        "is incomplete: without channel Red, which its plate has",
    ]
    phase = discover(tmp_path, planes=Planes(channel=(0,)))
    assert [field.fault for field in phase.fields] == [None, None]


# -- ImageXpress ----------------------------------------------------------------------------


def test_channels_of_one_plane_stand_beside_stacks_of_others(tmp_path: Path) -> None:
    """DAPI: three z and a projection; FITC: a projection; the third channel: one z plane."""
    make(
        tmp_path,
        *(f"P/ZStep_{z}/P_B02_s1_w1.tif" for z in (1, 2, 10)),
        "P/P_B02_s1_w1.tif",
        "P/P_B02_s1_w2.tif",
        "P/ZStep_2/P_B02_s1_w3.tif",
    )
    (field,) = discover(tmp_path).fields
    assert field.fault is None
    assert [(file.channel, file.z) for file in field.source.files] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 1),
    ]
    assert "P/P_B02_s1_w1.tif" not in {
        Path(file.path).relative_to(tmp_path).as_posix() for file in field.source.files
    }


def test_missing_planes_and_doubles_are_faults(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(f"P_B02_s{s}_w{w}.tif" for s in (1, 2) for w in (1, 2)),
        "P_B02_s3_w1.tif",
        "P_B02_s2_w2.png",
    )
    faults = [field.fault for field in discover(tmp_path).fields]
    assert faults == [
        None,
        "two files are the same plane of it: P_B02_s2_w2.png and P_B02_s2_w2.tif",
        "is incomplete: without channel w2, which its plate has",
    ]


def test_two_plates_of_one_folder_are_two(tmp_path: Path) -> None:
    make(tmp_path, *(f"d/{p}_A01_s1_w{w}.tif" for p in ("P1", "P2") for w in (1, 2)))
    assert ids(discover(tmp_path)) == ["d/P1/A/01/f001", "d/P2/A/01/f001"]


def test_two_plates_with_one_id_are_an_error(tmp_path: Path) -> None:
    make(tmp_path, *(f"{d}/P_A01_s1_w{w}.tif" for d in ("x", "x/P") for w in (1, 2)))
    with pytest.raises(InputError) as caught:
        find_fields(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: x/P/P_A01_s1_w1.tif and x/P_A01_s1_w1.tif would both be the field "
        "'x/P/A/01/f001'; rename one, or leave one out with --exclude"
    )


# -- what is no plate -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["A01_s1.tif", "A02_s1.tif"],  # any program may have named these
        ["cell_A01.png", "cell_B01.png"],
        ["SC_one.tif", "DC_two.tif"],
        ["x_A01_s1_w1.tif"],
        ["r1c1.tif", "r1c2.tif"],
        ["x_thumb.png", "y_A01_s1_w1_thumb.png"],
    ],
)
def test_other_folders_stay_as_they_are(tmp_path: Path, names: list[str]) -> None:
    make(tmp_path, *names)
    found = discover(tmp_path)
    assert ids(found) == sorted(name.rpartition(".")[0] for name in names)
    assert {(field.place, field.source.files) for field in found.fields} == {(None, ())}
    assert found.notes == ()


def test_a_folder_that_is_nearly_a_plate_is_told_of(tmp_path: Path) -> None:
    make(tmp_path, "d/P_A01_s1_w1.tif", "d/P_A01_s1_w2.tif", "d/overview.tif")
    found = discover(tmp_path)
    assert ids(found) == ["d/P_A01_s1_w1", "d/P_A01_s1_w2", "d/overview"]
    assert found.notes == (
        "d: 2 of 3 images have names of the pattern imagexpress, but not d/overview.tif: each "
        "file is a field of its own; --pattern imagexpress groups them",
    )
    asked = discover(tmp_path, pattern="imagexpress")
    assert ids(asked) == ["d/P/A/01/f001", "d/overview"]
    assert asked.notes == (
        "d/P: an imagexpress plate of 1 field, 1 well, 2 channels (w1, w2)",
        "d: 1 image without a name of the pattern imagexpress stays a field of its own, such as "
        "d/overview.tif",
    )


def test_metadata_makes_a_folder_a_plate(tmp_path: Path) -> None:
    make(tmp_path, "P_A01_s1.tif", "P_A02_s1.tif", "overview.tif")
    (tmp_path / "P.HTD").write_bytes(b'"HTSInfoFile", Version 1.0\r\n"XWells", 2\r\n"Waves", FALSE')
    found = discover(tmp_path)
    assert ids(found) == ["P/A/01/f001", "P/A/02/f001", "overview"]
    assert found.notes[0] == "P: an imagexpress plate of 2 fields, 2 wells, 1 channel (w1)"


def test_plates_can_be_switched_off(tmp_path: Path) -> None:
    make(tmp_path, "P_A01_s1_w1.tif", "P_A01_s1_w2.tif")
    assert ids(discover(tmp_path, pattern="none")) == ["P_A01_s1_w1", "P_A01_s1_w2"]


def test_a_pattern_that_fits_nothing_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a.tif", "b.tif")
    with pytest.raises(InputError) as caught:
        find_fields(tmp_path, pattern="harmony")
    assert str(caught.value) == (
        f"{tmp_path}: none of 2 images has a name of the pattern harmony; the first is a.tif"
    )


def test_a_time_point_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, *(f"V_Phase_A1_1_00d0{h}h00m.tif" for h in (0, 1)))
    with pytest.raises(InputError) as caught:
        find_fields(tmp_path, planes=Planes(t=2))
    assert str(caught.value) == ("--t 2 is no time point of the plates: they have 2, 0 to 1")


# -- own patterns ---------------------------------------------------------------------------


def test_an_own_pattern_groups_across_folders(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(
            f"run1/t{t}/chan_{channel}/pl-9_b3_pos{field}_z{z}.tif"
            for t in (5, 10)
            for channel in ("gfp", "bf")
            for field in ("7", "left")
            for z in (4, 8)
        ),
        "run1/notes.png",
    )
    pattern = (
        r"t(?P<t>\d+)/chan_(?P<channel>\w+)/(?P<plate>[^_]+)_(?P<well>[a-h]\d+)"
        r"_pos(?P<field>\w+)_z(?P<z>\d)\.tif$"
    )
    found = discover(tmp_path, pattern=pattern)
    assert ids(found) == [
        "pl-9/B/03/f007t000",
        "pl-9/B/03/f007t001",
        "pl-9/B/03/leftt000",
        "pl-9/B/03/leftt001",
        "run1/notes",
    ]
    assert found.fields[1].place == Place("pl-9", "B", "03", "f007", 1)
    assert found.fields[1].source.files == tuple(
        PlaneFile(str(tmp_path / f"run1/t10/chan_{name}/pl-9_b3_pos7_z{z}.tif"), c, z // 4 - 1)
        for c, name in enumerate(("bf", "gfp"))
        for z in (4, 8)
    )
    assert found.fields[1].source.channel_names == ("bf", "gfp")


def test_an_own_pattern_without_wells_groups_channels(tmp_path: Path) -> None:
    make(tmp_path, *(f"d/im{n}_c{c}.png" for n in (1, 2) for c in (0, 1)))
    found = discover(tmp_path, pattern=r"im(?P<field>\d)_c(?P<channel>\d)")
    assert ids(found) == ["d/f001", "d/f002"]
    assert [field.place for field in found.fields] == [None, None]
    assert planes(found.fields[0]) == [("im1_c0.png", 0, 0), ("im1_c1.png", 1, 0)]


def test_rows_and_columns_may_be_numbers(tmp_path: Path) -> None:
    make(tmp_path, "r27_c3_f1.tif", "r2_c12_f1.tif")
    found = discover(tmp_path, pattern=r"r(?P<row>\d+)_c(?P<column>\d+)_f(?P<field>\d+)")
    name = tmp_path.name
    assert ids(found) == [f"{name}/AA/03/f001", f"{name}/B/12/f001"]


KNOWN = (
    "the groups it may have are plate, well, row, column, field, channel, z, t, "
    r"such as (?P<well>[A-H]\d\d)"
)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "imagexpres",
            "--pattern imagexpres is none of imagexpress, harmony, cellvoyager, incucyte, none, "
            f"and as a regular expression it has no group; {KNOWN}",
        ),
        (
            "(?P<well",
            "--pattern '(?P<well' is no regular expression (missing >, unterminated name at "
            "position 4), nor one of imagexpress, harmony, cellvoyager, incucyte, none; " + KNOWN,
        ),
        (r"(?P<well>\w\d)(?P<site>\d)", f"--pattern has the unknown group site; {KNOWN}"),
        (r"(?P<channel>\d)", f"--pattern has neither the group well nor field; {KNOWN}"),
        (
            r"(?P<row>[A-H])",
            "--pattern needs both of the groups row and column, or well instead",
        ),
        (
            r"(?P<field>(\w+_?)+)x",
            r"--pattern '(?P<field>(\w+_?)+)x' repeats a group that has a repetition in it, "
            "which may take for ever; leave one of the two repetitions out",
        ),
        ("x" * 501, "--pattern has 501 characters, more than the 500 it may have"),
        (
            r"(?P<well>a\w)",
            "--pattern finds the well 'ab' in ab; a well is letters and a number, such as B02",
        ),
        (r"(?P<field>a)(?P<z>b)", "--pattern finds the z 'b' in ab, which is no number"),
        (
            r"(?P<row>a)(?P<column>b)",
            "--pattern finds the row 'a' and column 'b' in ab",
        ),
    ],
)
def test_patterns_that_cannot_be(tmp_path: Path, pattern: str, message: str) -> None:
    make(tmp_path, "ab.tif", "abc.tif")
    with pytest.raises(ConfigError) as caught:
        find_fields(tmp_path, pattern=pattern)
    assert str(caught.value).replace(".tif", "") == message


# -- laws -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    keys=st.sets(
        st.tuples(
            st.sampled_from("ABP"),
            st.integers(1, 24),
            st.integers(1, 30),
            st.integers(1, 3),
            st.integers(1, 12),
            st.integers(1, 3),
        ),
        min_size=2,
        max_size=40,
    ),
    data=st.data(),
)
def test_no_file_is_lost_or_used_twice(
    tmp_path_factory: pytest.TempPathFactory,
    keys: set[tuple[str, int, int, int, int, int]],
    data: st.DataObject,
) -> None:
    """Every file of any set of planes is in exactly one field, at the place of its name."""
    root = tmp_path_factory.mktemp("plate")
    order = data.draw(st.permutations(sorted(keys)))
    for row, column, field, t, z, channel in order:
        name = f"P_{row}{column:02d}_T{t:04d}F{field:03d}L01A01Z{z:02d}C{channel:02d}.tif"
        (root / name).touch()
    fields = find_fields(root)
    seen = [Path(file.path).name for one in fields for file in one.source.files]
    assert sorted(seen) == sorted(path.name for path in root.iterdir())
    times = {key[3] for key in keys}
    for one in fields:
        assert one.place is not None
        stated = (one.place.row, int(one.place.column), int(one.place.field[1:]))
        for file in one.source.files:
            told = re.match(r"P_(\w)(\d\d)_T(\d+)F(\d+)", Path(file.path).name)
            assert told is not None
            assert stated == (told[1], int(told[2]), int(told[4]))
            assert one.place.t == (int(told[3]) - 1 if len(times) > 1 else None)
