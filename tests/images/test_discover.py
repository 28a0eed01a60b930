"""Which files become fields, under which ids, and what is said when none does."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import InputError
from cellseg_cli.images.discover import Field, discover, find_fields
from cellseg_cli.images.source import Place, Source


def make(root: Path, *names: str) -> Path:
    """Make empty files; discovery never opens one."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(source: str | Path, **filters: list[str]) -> list[str]:
    return [field.id for field in find_fields(source, **filters)]


def message(source: str | Path, **filters: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        find_fields(source, **filters)
    return str(caught.value)


def test_a_folder_gives_every_image_below_it_sorted_by_id(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "a/z.TIF", "a/b/c.ome.tif", "a/y.jpeg", "c.bmp", "d.OME.TIFF", "e.JPG")
    assert find_fields(tmp_path) == (
        Field("a/b/c", Source(tmp_path / "a/b/c.ome.tif")),
        Field("a/y", Source(tmp_path / "a/y.jpeg")),
        Field("a/z", Source(tmp_path / "a/z.TIF")),
        Field("b", Source(tmp_path / "b.png")),
        Field("c", Source(tmp_path / "c.bmp")),
        Field("d", Source(tmp_path / "d.OME.TIFF")),
        Field("e", Source(tmp_path / "e.JPG")),
    )


def test_only_the_image_suffix_leaves_the_id(tmp_path: Path) -> None:
    assert ids(make(tmp_path, "well.A1.s1.png", "x.tar.tif")) == ["well.A1.s1", "x.tar"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.png", ".b.png", ".cache/c.png", "d/.e/f.png")
    assert ids(tmp_path) == ["a"]
    assert ids(f"{tmp_path}/**") == ["a"]


def test_folders_named_like_images_are_folders(tmp_path: Path) -> None:
    assert ids(make(tmp_path, "x.png/y.png")) == ["x.png/y"]


def test_one_file_is_one_field_whatever_its_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a/b.tif", "a/c.dat", "a/d[1].png")
    assert find_fields(tmp_path / "a/b.tif") == (Field("b", Source(tmp_path / "a/b.tif")),)
    assert ids(tmp_path / "a/c.dat") == ["c"]
    assert ids(tmp_path / "a/d[1].png") == ["d[1]"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a", "b"]),
        ("*", ["a", "b", "c"]),
        ("p?/*.png", ["p1/d", "p2/d"]),
        ("p[2-9]/*", ["p2/d"]),
        ("p[!2]/*", ["p1/d"]),
        ("**/d.png", ["p1/d", "p2/d", "q/r/d"]),
        ("**", ["a", "b", "c", "p1/d", "p2/d", "q/r/d"]),
        ("q/**", ["r/d"]),
        ("q/**/*.png", ["r/d"]),
    ],
)
def test_a_glob_is_relative_to_its_fixed_part(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    make(tmp_path, "a.png", "b.png", "c.tif", "e.txt", "p1/d.png", "p2/d.png", "q/r/d.png")
    assert ids(f"{tmp_path}/{pattern}") == expected


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.png"], [], ["a", "p/c", "p/q/d_thumb"]),
        ([], ["*_thumb*"], ["a", "b", "p/c"]),
        (["p/*"], [], ["p/c"]),
        (["p/**"], [], ["p/c", "p/q/d_thumb"]),
        (["p/**", "b.tif"], ["**/q/*"], ["b", "p/c"]),
        ([], ["p"], ["a", "b"]),
        ([], ["p/**"], ["a", "b"]),
        ([], ["**/q/**"], ["a", "b", "p/c"]),
    ],
)
def test_include_and_exclude(
    tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    make(tmp_path, "a.png", "b.tif", "p/c.png", "p/q/d_thumb.png")
    assert ids(tmp_path, include=include, exclude=exclude) == expected
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    (tmp_path / "list.txt").write_text("\n".join(files))
    assert ids(tmp_path / "list.txt", include=include, exclude=exclude) == expected


def test_a_list_file_names_files_relative_to_its_folder(tmp_path: Path) -> None:
    make(tmp_path, "a/b.png", "a/c d.tif", "a/e.png")
    (tmp_path / "list.lst").write_text(
        "# chosen by hand\n\na/c d.tif   # out of focus?\n./a/../a/b.png\n"
    )
    assert find_fields(tmp_path / "list.lst") == (
        Field("a/b", Source(tmp_path / "a/b.png")),
        Field("a/c d", Source(tmp_path / "a/c d.tif")),
    )


def test_a_list_of_files_elsewhere_is_relative_to_their_common_folder(tmp_path: Path) -> None:
    make(tmp_path, "data/p1/a.png", "data/p2/a.png", "lists/x.txt")
    (tmp_path / "lists/x.txt").write_text(f"../data/p1/a.png\n{tmp_path}/data/p2/a.png\n")
    assert ids(tmp_path / "lists/x.txt") == ["p1/a", "p2/a"]


def test_link_loops_end_and_linked_folders_are_entered(tmp_path: Path) -> None:
    make(tmp_path, "root/a.png", "root/p/b.png", "elsewhere/c.png")
    (tmp_path / "root/p/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/self").symlink_to(tmp_path / "root/self")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "root")
    assert ids(tmp_path / "root") == ["a", "linked/c", "p/b"]


def test_a_broken_link_is_a_field_that_fails_later(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert ids(tmp_path) == ["a"]
    assert ids(tmp_path / "a.png") == ["a"]


def test_pipes_are_no_fields(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert ids(tmp_path) == ["a"]


def test_two_files_of_one_id_are_an_error_that_names_both(tmp_path: Path) -> None:
    make(tmp_path, "p/a.png", "p/a.tif", "b.png")
    assert message(tmp_path) == (
        f"{tmp_path}: p/a.png and p/a.tif would both be the field 'p/a'; "
        f"rename one, or leave one out with --exclude"
    )
    assert ids(tmp_path, exclude=["*.tif"]) == ["b", "p/a"]
    make(tmp_path, "b.bmp", "b.jpg")
    assert message(tmp_path) == (
        f"{tmp_path}: b.bmp and b.jpg would both be the field 'b' (and 2 more such files); "
        f"rename one, or leave one out with --exclude"
    )


SOUGHT = "(.png .jpg .jpeg .bmp .tif .tiff)"


def test_nothing_found_says_what_is_there_instead(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path}: no image found {SOUGHT}; there: no file at all"
    make(tmp_path, "a.txt", "b/c.TXT", "b/d.csv", "README")
    assert message(tmp_path) == (
        f"{tmp_path}: no image found {SOUGHT}; "
        f"there: 4 other files: .txt (2), .csv (1), no suffix (1)"
    )
    make(tmp_path, "e.png")
    assert message(tmp_path, include=["*.tif"]) == (
        f"{tmp_path}: no image found {SOUGHT}; "
        f"there: 4 other files: .txt (2), .csv (1), no suffix (1); "
        f"1 image left out by --include and --exclude"
    )
    assert message(f"{tmp_path}/b/*.png") == (
        f"{tmp_path}/b/*.png: no image found {SOUGHT}; there: 2 other files: .csv (1), .txt (1)"
    )
    assert message(f"{tmp_path}/*.tif") == (
        f"{tmp_path}/*.tif: no image found {SOUGHT}; "
        f"there: 3 other files: .txt (1), images that do not match (1), no suffix (1)"
    )


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    assert message(tmp_path / "no") == f"{tmp_path}/no: there is no such file or folder"
    assert message(f"{tmp_path}/no/*.png") == (
        f"{tmp_path}/no/*.png: there is no such folder: {tmp_path}/no"
    )


def test_faults_in_a_list_file(tmp_path: Path) -> None:
    listed = make(tmp_path, "a.png", "d.png/x", "list.txt") / "list.txt"
    listed.write_text("# nothing\n")
    assert message(listed) == f"{listed}: no image found {SOUGHT}; there: no file at all"
    listed.write_text("a.png\n\nb.png\n")
    assert message(listed) == f"{listed}: line 3 names b.png, which is not there"
    listed.write_text("a.png\nd.png\n")
    assert message(listed) == f"{listed}: line 2 names d.png, which is a folder"
    listed.write_text("a.png\n./a.png\n")
    assert message(listed) == f"{listed}: line 2 names ./a.png again (first in line 1)"
    listed.write_bytes(b"\xff\xfe\x00a")
    assert message(listed) == f"{listed}: the list is not UTF-8 text; one path a line"


def test_a_folder_that_cannot_be_listed_is_an_error_unless_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert message(tmp_path) == (
        f"{tmp_path}/locked: the folder cannot be listed (Permission denied); "
        f"mend its permissions or leave it out with --exclude"
    )
    assert ids(tmp_path, exclude=["locked/**"]) == ["a"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"a\xff.png")).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert message(tmp_path) == (
        f"{tmp_path}: the file name 'a\\udcff.png' is not UTF-8; rename it"
    )


def test_a_glob_that_is_none(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    assert re.fullmatch(
        r"the glob '\[z-a\]' cannot be understood: bad character range z-a.*",
        message(tmp_path, include=["[z-a]"]),
    )


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(names=st.sets(st.text("abAB01 .-_é", min_size=1, max_size=6), min_size=1, max_size=8))
def test_ids_are_the_paths_without_suffix_in_order(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    plain = {name for name in names if not name.startswith(".") and name.strip() == name}
    root = make(tmp_path_factory.mktemp("any"), *(f"{name}.png" for name in plain), "z/always.tif")
    assert ids(root) == sorted([*plain, "z/always"])


def test_real_plates_are_found_whole(real_data: Path) -> None:
    plates = find_fields(real_data / "plates", pattern="none")
    on_disk = [
        p for p in (real_data / "plates").rglob("*") if p.suffix.lower() in (".tif", ".tiff")
    ]
    assert {field.path for field in plates} == set(on_disk)
    thumbs = find_fields(real_data / "plates", include=["*_thumb*"])
    assert {field.path for field in thumbs} == {p for p in on_disk if "_thumb" in p.name}
    assert "odd_tiffs/ometypes_ome" in {field.id for field in plates}
    assert {field.place for field in plates} == {None}


def test_an_empty_source_is_not_the_working_folder() -> None:
    assert message("") == ("the source of images is empty; give a file, a folder, a glob or a list")


# -- OME-Zarr -------------------------------------------------------------------------------


def group(folder: Path, **attributes: object) -> None:
    """A group of zarr 2 with these attributes; there is no array in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text(json.dumps(attributes))


def test_zarr_groups_give_their_images_and_are_not_walked(tmp_path: Path) -> None:
    group(tmp_path / "a" / "one.ome.zarr", multiscales=[{}])
    make(tmp_path, "a/one.ome.zarr/thumbnail.png", "b.png")
    plate = tmp_path / "screen.zarr"
    group(plate, plate={"name": "P7", "wells": [{"path": "B/02"}]})
    group(plate / "B" / "02", well={"images": [{"path": "0"}, {"path": "1"}]})
    found = discover(tmp_path)
    assert [(field.id, field.path, field.place) for field in found.fields] == [
        ("a/one", tmp_path / "a" / "one.ome.zarr", None),
        ("b", tmp_path / "b.png", None),
        ("screen/B/02/0", plate / "B" / "02" / "0", Place("P7", "B", "02", "0")),
        ("screen/B/02/1", plate / "B" / "02" / "1", Place("P7", "B", "02", "1")),
    ]
    assert ids(plate) == ["screen/B/02/0", "screen/B/02/1"]
    assert ids(tmp_path / "a" / "one.ome.zarr") == ["one"]
    assert ids(f"{tmp_path}/a/*.zarr") == ["one"]
    assert ids(tmp_path, exclude=["*.zarr"]) == ["b"]
    (tmp_path / "list.txt").write_text("a/one.ome.zarr\nb.png\n")
    assert ids(tmp_path / "list.txt") == ["a/one", "b"]


def test_a_zarr_group_without_images_is_a_fault_and_a_store_no_source(tmp_path: Path) -> None:
    group(tmp_path / "other.zarr")
    group(tmp_path / "emb.zarr")
    make(tmp_path, "emb.zarr/.cellseg/x", "a.png")
    found = discover(tmp_path)
    assert [field.id for field in found.fields] == ["a", "other"]
    assert found.fields[1].fault == (
        f"{tmp_path}/other.zarr: is zarr, but neither an OME-Zarr image nor a plate"
    )
    assert found.notes == ("emb.zarr is a store of cellseg and left out",)
    assert message(tmp_path / "other.zarr") == found.fields[1].fault
    shutil.rmtree(tmp_path / "other.zarr")
    (tmp_path / "a.png").unlink()
    assert message(tmp_path) == f"{tmp_path}/emb.zarr is a store of cellseg, no source of images"
