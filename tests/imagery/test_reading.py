"""What is read is what lies in the file, or is refused by name; what is written is whole."""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from support.rasters import aux_beside, palette, write_raster

from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.errors import DataError, MachineError
from mapsage_kaggle.imagery import reading
from mapsage_kaggle.imagery.reading import Georeference, Pixels, ReadOptions, open_picture
from mapsage_kaggle.imagery.submission import check_submission, write_submission
from mapsage_kaggle.imagery.writing import Labels, overlay, write_png, write_tiff

LABELS = Labels(classes=EARTHVQA_CLASSES, palette=EARTHVQA_PALETTE, numbers=tuple(range(1, 9)), no_data=0)
TRANSFORM = from_origin(500_000.0, 3_400_000.0, 0.3, 0.3)


def noise(*shape: int, seed: int = 0, high: int = 256, dtype: Any = np.uint8) -> Any:
    return np.random.RandomState(seed).randint(0, high, shape).astype(dtype)


def read(path: Path, options: ReadOptions | None = None) -> Pixels:
    with open_picture(path, options or ReadOptions()) as picture:
        return picture.read(0, picture.height)


def save_tiff(path: Path, bands: Any, **profile: Any) -> Path:
    return write_raster(path, bands, **{"crs": "EPSG:32650", "transform": TRANSFORM} | profile)


# --- reading ---------------------------------------------------------------------------------------------


def test_a_picture_is_told_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    rgb = noise(5, 7, 3)
    Image.fromarray(rgb).save(tmp_path / "one.jpg", format="PNG")

    found = read(tmp_path / "one.jpg")

    np.testing.assert_array_equal(found.rgb, rgb)
    assert found.valid is None


def test_grey_is_repeated_and_a_palette_looked_up(tmp_path: Path) -> None:
    grey = noise(5, 7)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    palette = Image.fromarray(grey % 4).convert("P")
    palette.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    palette.save(tmp_path / "palette.png")

    np.testing.assert_array_equal(read(tmp_path / "grey.png").rgb, np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(read(tmp_path / "palette.png").rgb, np.asarray(palette.convert("RGB")))


def test_what_is_transparent_has_no_data(tmp_path: Path) -> None:
    rgba = noise(6, 6, 4, seed=1)
    rgba[..., 3] = 255
    rgba[2, 3, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "alpha.png")

    found = read(tmp_path / "alpha.png")

    assert found.valid is not None
    assert np.argwhere(~found.valid).tolist() == [[2, 3]]
    assert found.rgb[2, 3].tolist() == [0, 0, 0]
    assert found.rgb[0, 0].tolist() == rgba[0, 0, :3].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_refused_with_what_was_found_until_the_range_is_told(
    tmp_path: Path, channels: int
) -> None:
    import cv2

    deep = noise(8, 8, channels, high=2001, dtype=np.uint16)
    deep[0, 0], deep[0, 1] = 0, 2000
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), deep[..., ::-1])

    with pytest.raises(
        DataError, match=r"deep.png holds (uint16|int32) samples from 0 to 2000.*--value-range"
    ):
        read(path)
    found = read(path, ReadOptions(value_range=(0, 2000)))

    expected = np.rint(np.broadcast_to(deep, (8, 8, 3)) * (255 / 2000))
    np.testing.assert_allclose(found.rgb, expected, atol=1)


@pytest.mark.parametrize(("kind", "channels"), [(4, 2), (6, 4)], ids=["grey", "colours"])
def test_what_is_transparent_in_sixteen_bits_has_no_data(tmp_path: Path, kind: int, channels: int) -> None:
    deep = noise(6, 6, channels, high=2001, dtype=np.uint16)
    deep[..., -1] = 65535
    deep[2, 3, -1] = 0
    write_deep_png(tmp_path / "alpha.png", deep, kind)

    found = read(tmp_path / "alpha.png", ReadOptions(value_range=(0, 2000)))
    chosen = read(tmp_path / "alpha.png", ReadOptions(value_range=(0, 2000), bands=(1,)))

    assert found.valid is not None
    assert np.argwhere(~found.valid).tolist() == [[2, 3]]
    expected = np.rint(np.broadcast_to(deep[..., :-1], (6, 6, 3)) * (255 / 2000))
    expected[2, 3] = 0
    np.testing.assert_allclose(found.rgb, expected, atol=1)
    np.testing.assert_allclose(chosen.rgb, np.stack([expected[..., 0]] * 3, -1), atol=1)


def write_deep_png(path: Path, samples: Any, kind: int) -> None:
    """Write a PNG of 16 bits, of a kind as the format numbers them; OpenCV writes none of grey and alpha."""
    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>not found</html>", "no known image format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tile_17.png"
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"tile_17\.png .*{message}|tile_17\.png {message}"):
        read(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(stream, format=kind)
    path = tmp_path / "cut.png"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])

    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image"):
        read(path)


def by_bands(path: Path) -> None:
    reading.read_bands(path, 4, ReadOptions(), blue_first=True)


def by_a_pipeline(path: Path) -> None:
    with reading.open_loaded(path, np.ones((64, 64, 4), np.uint8), blue_first=True):
        pass


@pytest.mark.parametrize(
    ("opened", "kind"), [(by_bands, np.uint8), (by_a_pipeline, np.uint8), (read, np.uint16)]
)
def test_a_truncated_geotiff_is_refused_by_name_however_it_is_read(
    tmp_path: Path, opened: Any, kind: Any
) -> None:
    bands = noise(4, 64, 64, dtype=kind)
    path = save_tiff(tmp_path / "cut.tif", bands, photometric="RGB", alpha="unspecified", nodata=7)
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(DataError, match=r"cut\.tif cannot be read as an image: lines 0 to 64 are damaged"):
        opened(path)


def test_a_geotiff_keeps_its_georeference_and_its_no_data(tmp_path: Path) -> None:
    bands = noise(3, 20, 30, seed=2)
    bands[:, :, :4] = 7
    path = save_tiff(tmp_path / "scene.tif", bands, nodata=7, photometric="RGB")

    with open_picture(path) as picture:
        assert picture.georeference is not None
        assert picture.georeference.transform == TRANSFORM
        assert picture.georeference.crs.to_epsg() == 32650
        found = picture.read(5, 9)

    assert found.rgb.shape == (4, 30, 3)
    assert found.valid is not None
    assert not found.valid[:, :4].any()
    np.testing.assert_array_equal(found.rgb[:, 4:], np.moveaxis(bands, 0, -1)[5:9, 4:])


def test_four_bands_without_a_meaning_are_refused_until_they_are_chosen(tmp_path: Path) -> None:
    bands = noise(4, 8, 8)
    path = save_tiff(tmp_path / "four.tif", bands, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.undefined] * 4

    with pytest.raises(DataError, match=r"four.tif has 4 bands .*--bands"):
        read(path)
    with pytest.raises(DataError, match="not band 5"):
        read(path, ReadOptions(bands=(5, 2, 1)))
    found = read(path, ReadOptions(bands=(4, 3, 2)))

    np.testing.assert_array_equal(found.rgb, np.moveaxis(bands[[3, 2, 1]], 0, -1))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("bands", [(3, 2, 1), (2,), (4, 4, 1)])
def test_bands_of_a_picture_are_the_named_ones_whatever_lies_beside(
    tmp_path: Path, beside: bool, bands: tuple[int, ...]
) -> None:
    rgba = noise(6, 6, 4, high=255) + 1
    Image.fromarray(rgba).save(tmp_path / "a.png")
    if beside:
        aux_beside(tmp_path / "a.png", "")

    found = read(tmp_path / "a.png", ReadOptions(bands=bands)).rgb

    wanted = [band - 1 for band in bands] if len(bands) == 3 else [bands[0] - 1] * 3
    np.testing.assert_array_equal(found, rgba[..., wanted])
    with pytest.raises(DataError, match="not band 5"):
        read(tmp_path / "a.png", ReadOptions(bands=(5, 2, 1)))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_palette_of_a_tiff_is_looked_up_whatever_its_bits(tmp_path: Path, kind: Any) -> None:
    highest = np.iinfo(kind).max
    path = save_tiff(tmp_path / "a.tif", np.array([[[0, 3, highest]]], kind), photometric="palette")
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {0: (1, 2, 3), 3: (40, 50, 60), int(highest): (70, 80, 90)})

    assert read(path).rgb.tolist() == [[[1, 2, 3], [40, 50, 60], [70, 80, 90]]]


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_a_palette_beside_a_tiff_is_looked_up_or_the_image_refused_by_name(tmp_path: Path, kind: Any) -> None:
    path = save_tiff(tmp_path / "a.tif", np.array([[[0, 1, 300]]], kind))
    aux_beside(path, palette((1, 2, 3, 255), (40, 50, 60, 255)))

    if kind is np.uint16:
        assert read(path).rgb.tolist() == [[[1, 2, 3], [40, 50, 60], [0, 0, 0]]]
    else:
        with pytest.raises(DataError, match="holds int32 samples from 0 to 300"):
            read(path)


def test_bands_of_sixteen_bits_and_of_grey_are_the_named_ones(tmp_path: Path) -> None:
    import cv2

    deep, grey = noise(8, 8, 3, high=2001, dtype=np.uint16), noise(8, 8)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)  # blue first
    cv2.imwrite(str(tmp_path / "grey.png"), grey)

    found = read(tmp_path / "deep.png", ReadOptions(bands=(3, 2, 1), value_range=(0, 2000)))

    np.testing.assert_allclose(found.rgb, np.rint(deep * (255 / 2000)), atol=1)
    np.testing.assert_array_equal(
        read(tmp_path / "grey.png", ReadOptions(bands=(1,))).rgb, np.stack([grey] * 3, -1)
    )
    with pytest.raises(DataError, match="has 1 bands"):
        read(tmp_path / "grey.png", ReadOptions(bands=(3, 2, 1)))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_value_range_leaves_eight_bits_as_they_are(tmp_path: Path, name: str) -> None:
    rgb = noise(6, 6, 3)
    Image.fromarray(rgb).save(tmp_path / name)

    np.testing.assert_array_equal(read(tmp_path / name, ReadOptions(value_range=(300, 3000))).rgb, rgb)


def test_a_float_scene_with_nan_has_no_data_there(tmp_path: Path) -> None:
    bands = np.linspace(0, 1, 300, dtype=np.float32).reshape(3, 10, 10)
    bands[1, 4, 4] = np.nan
    path = save_tiff(tmp_path / "float.tif", bands, photometric="RGB")

    with pytest.raises(DataError, match="float32 samples from 0 to 1"):
        read(path)
    found = read(path, ReadOptions(value_range=(0, 1)))

    assert found.valid is not None
    assert np.argwhere(~found.valid).tolist() == [[4, 4]]


def test_a_plain_tiff_is_read_without_rasterio_and_a_georeferenced_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = noise(5, 5, 3)
    Image.fromarray(rgb).save(tmp_path / "plain.tif")
    save_tiff(tmp_path / "geo.tif", np.moveaxis(rgb, -1, 0))
    monkeypatch.setitem(sys.modules, "rasterio", None)

    np.testing.assert_array_equal(read(tmp_path / "plain.tif").rgb, rgb)
    with pytest.raises(MachineError, match=r"rasterio is needed .*mapsage-kaggle\[geo\]"):
        read(tmp_path / "geo.tif")


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_picture_too_large_to_hold_is_read_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rgb, path = noise(40, 30, 3), tmp_path / f"large.{kind}"
    Image.fromarray(rgb).save(path, lossless=True)
    monkeypatch.setattr(reading, "HOLD_AT_MOST_PIXELS", 1000)

    with open_picture(path) as picture:
        parts = [picture.read(top, top + 10).rgb for top in range(0, 40, 10)]

    np.testing.assert_array_equal(np.concatenate(parts), rgb)
    assert not picture.is_tiff


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_too_large_to_hold_is_refused_by_name_where_it_is_to_be_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(noise(40, 30, 3)).save(tmp_path / "large.jpg", exif=exif)
    assert read(tmp_path / "large.jpg").rgb.shape == ((40, 30, 3) if orientation == 1 else (30, 40, 3))
    monkeypatch.setattr(reading, "HOLD_AT_MOST_PIXELS", 1000)

    if orientation == 1:
        assert read(tmp_path / "large.jpg").rgb.shape == (40, 30, 3)
    else:
        with pytest.raises(
            DataError, match=r"large\.jpg is to be turned \(EXIF orientation 6\).*-auto-orient"
        ):
            read(tmp_path / "large.jpg")


# --- what is named ---------------------------------------------------------------------------------------


def vrt_of(folder: Path, scene: Path) -> Path:
    (folder / "scene.vrt").write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{scene}'
            f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    return folder / "scene.vrt"


def envi_of(folder: Path, scene: Path) -> Path:
    with rasterio.open(scene) as source:
        kept = ("width", "height", "count", "dtype", "crs", "transform")
        profile = {key: source.profile[key] for key in kept}
        with rasterio.open(folder / "scene.bsq", "w", driver="ENVI", **profile) as target:
            target.write(source.read())
    return folder / "scene.bsq"


def zip_of(folder: Path, scene: Path) -> Path:
    with zipfile.ZipFile(folder / "scenes.zip", "w") as archive:
        archive.write(scene, "below/scene.tif")
    return Path(f"/vsizip/{folder}/scenes.zip/below/scene.tif")


@pytest.mark.parametrize("made", [vrt_of, envi_of, zip_of])
def test_whatever_gdal_reads_is_read_where_it_is_named(tmp_path: Path, made: Any) -> None:
    bands = noise(3, 20, 30)
    path = made(tmp_path, save_tiff(tmp_path / "scene.tif", bands))

    with open_picture(path, ReadOptions(is_named=True)) as picture:
        assert picture.is_tiff
        np.testing.assert_array_equal(np.moveaxis(picture.read(0, 20).rgb, -1, 0), bands)


def test_a_file_of_a_folder_may_not_lead_to_others(tmp_path: Path) -> None:
    path = vrt_of(tmp_path, save_tiff(tmp_path / "scene.tif", noise(3, 20, 30))).rename(
        tmp_path / "image.tif"
    )

    with pytest.raises(DataError, match="no known image format"):
        read(path)


# --- writing ---------------------------------------------------------------------------------------------


def test_a_geotiff_is_written_from_strips_of_any_height(tmp_path: Path) -> None:
    bands = noise(2, 1100, 40)
    place = Georeference(crs=rasterio.CRS.from_epsg(32650), transform=TRANSFORM)
    strips = [bands[:, :100], bands[:, 100:900], bands[:, 900:]]

    write_tiff(
        tmp_path / "out" / "map.tif", strips, height=1100, width=40, num_bands=2, georeference=place,
        no_data=0, descriptions=("one", "two"),
    )  # fmt: skip

    with rasterio.open(tmp_path / "out" / "map.tif") as found:
        np.testing.assert_array_equal(found.read(), bands)
        assert (found.crs.to_epsg(), found.transform, found.nodata) == (32650, TRANSFORM, 0)
        assert found.descriptions == ("one", "two")


def test_a_mask_carries_its_colours_where_the_format_can(tmp_path: Path) -> None:
    mask = noise(1, 20, 20, high=9)
    write_tiff(
        tmp_path / "mask.tif", [mask], height=20, width=20, num_bands=1, georeference=None, no_data=0,
        palette=LABELS.colours(),
    )  # fmt: skip

    with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "mask.tif") as found:
        np.testing.assert_array_equal(found.read(), mask)
        assert found.colormap(1)[2][:3] == EARTHVQA_PALETTE[1]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(b"before")

    def strips() -> Any:
        yield noise(1, 600, 20)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_tiff(path, strips(), height=1200, width=20, num_bands=1, georeference=None)

    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("map.tif", b"before")]


def test_labels_are_the_data_sets_own_and_no_data_stays() -> None:
    classes = noise(4, 4, high=8)
    valid = np.ones((4, 4), bool)
    valid[0, 0] = False

    mask = LABELS.values(classes, valid)

    assert mask[0, 0] == 0
    np.testing.assert_array_equal(mask[valid], classes[valid] + 1)


def test_an_overlay_mixes_the_class_colour_with_the_image_and_leaves_no_data() -> None:
    rgb = np.full((1, 2, 3), 100, np.uint8)

    mixed = overlay(rgb, np.array([[2, 0]], np.uint8), LABELS)

    assert mixed[0].tolist() == [[177, 50, 50], [100, 100, 100]]


# --- submission ------------------------------------------------------------------------------------------


def submitted(folder: Path, **masks: Any) -> tuple[Path, dict[str, Path]]:
    paths = {}
    for name, mask in masks.items():
        paths[f"{name}.png"] = folder / f"{name}.png"
        write_png(paths[f"{name}.png"], mask)
    write_submission(folder / "submission.zip", paths)
    return folder / "submission.zip", paths


def test_a_complete_submission_is_accepted_and_is_the_same_each_time(tmp_path: Path) -> None:
    archive, paths = submitted(tmp_path, a=noise(4, 6, high=8) + 1, b=noise(4, 6, high=8) + 1)
    first = archive.read_bytes()

    check_submission(archive, {"a.png": (6, 4), "b.png": (6, 4)}, LABELS)
    write_submission(archive, paths)

    assert archive.read_bytes() == first
    with zipfile.ZipFile(archive) as content:
        assert content.namelist() == ["a.png", "b.png"]


def test_everything_wrong_with_a_submission_is_named(tmp_path: Path) -> None:
    archive, _ = submitted(
        tmp_path,
        small=np.ones((4, 5), np.uint8), value=np.array([[0, 9]], np.uint8),
        extra=np.ones((2, 2), np.uint8), colour=np.ones((2, 2, 3), np.uint8),
    )  # fmt: skip

    with pytest.raises(DataError) as caught:
        check_submission(
            archive,
            {"small.png": (6, 4), "value.png": (2, 1), "gone.png": (1, 1), "colour.png": (2, 2)},
            LABELS,
        )

    text = str(caught.value)
    assert "problems: 5" in text
    assert "gone.png: missing" in text
    assert "extra.png: belongs to no image" in text
    assert "small.png: 5 x 4, expected 6 x 4" in text
    assert "value.png: values 0, 9, expected 1 to 8" in text
    assert "colour.png: 2 x 2 x 3, expected 2 x 2" in text
