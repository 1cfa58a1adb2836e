"""The preview, pixel by pixel: position, side, size and scale of the label."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from volseg.config import Label
from volseg.data.grid.geometry import Geometry
from volseg.errors import GridError
from volseg.report.colours import label_colours
from volseg.report.preview import _Page, _volume_text, save_preview

GREEN = (0, 255, 0)
PAGE = (0x11, 0x14, 0x18)
LABEL = Label(name="Target", value=3, colour=GREEN)
RAS_SHAPE = (24, 30, 20)


def stored(array: np.ndarray, codes: str, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, Geometry]:
    """A RAS+ array as a scan stored in another axis order would hold it."""
    ras = np.diag([*spacing_mm, 1.0])
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    reoriented = nib.orientations.apply_orientation(array, transform)
    affine = ras @ nib.orientations.inv_ornt_aff(transform, array.shape)
    return reoriented, Geometry(reoriented.shape, affine)


def right_anterior_superior(shape=RAS_SHAPE) -> np.ndarray:
    """A block near the patient's right, front and top, value 3."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[16:22, 20:28, 14:18] = 3
    return labels


def render(tmp_path, labels, codes="RAS", spacing_mm=(1.0, 1.0, 1.0), image=None, shown=(LABEL,), **options):
    """The picture as (rows, columns, 3) uint8."""
    image = np.full(labels.shape, 100, dtype=np.int16) if image is None else image
    reoriented, geometry = stored(labels, codes, spacing_mm)
    save_preview(stored(image, codes, spacing_mm)[0], reoriented, geometry, shown, tmp_path / "view.png", **options)
    return (matplotlib.image.imread(tmp_path / "view.png")[..., :3] * 255).round().astype(int)


def panels(picture: np.ndarray) -> list[tuple[slice, slice]]:
    """Rows and columns of the axial, coronal and sagittal panel, found in a picture without labels.

    The scan in it is black, which nothing else on the page is.
    """
    black = (picture == 0).all(axis=2)
    columns = np.flatnonzero(black.any(axis=0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    found = []
    for group in groups:
        rows = np.flatnonzero(black[:, group[0] : group[-1] + 1].any(axis=1))
        found.append((slice(rows[0], rows[-1] + 1), slice(group[0], group[-1] + 1)))
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> list[tuple[slice, slice]]:
    """The panels of a scan of RAS_SHAPE with 1 mm voxels."""
    return panels(render(tmp_path_factory.mktemp("places"), np.zeros(RAS_SHAPE, dtype=np.uint8)))


def box(mask: np.ndarray) -> list[float]:
    """Top, bottom, left and right of the mask, as fractions of the panel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return [rows[0] / height, (rows[-1] + 1) / height, columns[0] / width, (columns[-1] + 1) / width]


def is_green(picture: np.ndarray) -> np.ndarray:
    return picture[..., 1] > picture[..., 0] + 40


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LIA", "SAR"])
def test_patient_right_is_on_the_left_however_the_scan_is_stored(tmp_path, places, codes):
    picture = render(tmp_path, right_anterior_superior(), codes)
    assert len(places) == 3
    # The block spans R 16..22 of 24, A 20..28 of 30, S 14..18 of 20; right and anterior on the left, up is A or S.
    across_right, across_front = (2 / 24, 8 / 24), (2 / 30, 10 / 30)
    up_front, up_top = (2 / 30, 10 / 30), (2 / 20, 6 / 20)
    expected = [(*up_front, *across_right), (*up_top, *across_right), (*up_top, *across_front)]
    for (rows, columns), fractions in zip(places, expected, strict=True):
        assert box(is_green(picture[rows, columns])) == pytest.approx(fractions, abs=0.015)


@pytest.mark.parametrize("codes", ["IRP"])
def test_the_stored_order_changes_no_pixel(tmp_path, codes):
    image = np.random.default_rng(0).normal(size=RAS_SHAPE).astype(np.float32)
    straight = render(tmp_path, right_anterior_superior(), "RAS", image=image)
    assert np.array_equal(render(tmp_path, right_anterior_superior(), codes, image=image), straight)


def test_panels_have_true_proportions(tmp_path):
    spacing = (0.7, 1.1, 3.0)
    width_mm, depth_mm, height_mm = np.multiply(RAS_SHAPE, spacing)
    where = panels(render(tmp_path, np.zeros(RAS_SHAPE, dtype=np.uint8), spacing_mm=spacing))
    pixels = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in where]
    scale = pixels[0][0] / depth_mm
    for found, expected in zip(
        pixels, [(depth_mm, width_mm), (height_mm, width_mm), (height_mm, depth_mm)], strict=True
    ):
        assert found == pytest.approx(np.multiply(expected, scale), abs=2)


def test_the_label_is_transparent_inside_and_opaque_at_its_outline_and_nowhere_else(tmp_path, places):
    labels = right_anterior_superior()
    rows, columns = places[0]
    axial = render(tmp_path, labels)[rows, columns]
    height, width = axial.shape[:2]
    inside = axial[height * 6 // 30, width * 5 // 24]
    assert inside.tolist() == pytest.approx([0, 0.38 * 255, 0], abs=3)
    assert (axial == GREEN).all(axis=2).any()
    outside = axial.copy()
    outside[int(height * 1.5 / 30) : int(height * 10.5 / 30), int(width * 1.5 / 24) : int(width * 8.5 / 24)] = 0
    assert outside.max() == 0


def test_values_that_are_not_shown_are_not_drawn(tmp_path, places):
    rows = places[0][0]
    assert not is_green(render(tmp_path, right_anterior_superior() * 2)[rows]).any()


def test_each_plane_is_the_fullest_slice_and_the_middle_one_of_equals(tmp_path, places):
    image = np.zeros(RAS_SHAPE, dtype=np.float32)
    labels = np.zeros(RAS_SHAPE, dtype=np.uint8)
    labels[4:9, 5:9, 3:8] = 3
    labels[4:9, 10:15, 11] = 3  # S 11 has 25 voxels, the others 20
    image[:, :, 11] = 1.0  # so that the axial panel is white
    image[6, :, :] = 1.0  # R 4..8 tie: the middle is 6
    axial, _, sagittal = (render(tmp_path, labels, image=image)[place] for place in places)
    assert (axial[5, 5] == 255).all()
    assert (sagittal[5, 5] == 255).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(RAS_SHAPE, dtype=np.uint8),
        np.full(RAS_SHAPE, np.nan),
        np.where(np.arange(20) > 3, np.inf, 1.0) * np.ones(RAS_SHAPE),
    ],
)
def test_no_foreground_and_constant_or_non_finite_images(tmp_path, places, image):
    picture = render(tmp_path, np.zeros(RAS_SHAPE, dtype=np.int32), image=image)
    rows = places[0][0]
    assert not is_green(picture)[rows].any()
    assert picture[2, 2].tolist() == list(PAGE)


def test_grey_runs_from_the_first_to_the_99th_percentile(tmp_path, places):
    image = np.broadcast_to(np.arange(24.0)[:, None, None] ** 2, RAS_SHAPE).copy()
    rows, columns = places[0]
    axial = render(tmp_path, np.zeros(RAS_SHAPE, dtype=np.uint8), image=image)[rows, columns]
    width = axial.shape[1]
    centres = [axial[axial.shape[0] // 2, int((23 - index + 0.5) * width / 24), 0] for index in (0, 12, 23)]
    # The 1st percentile is 0 and the 99th 529: each value holds 1/24 of the voxels.
    assert centres == pytest.approx([0, 255 * 144 / 529, 255], abs=3)


def test_reference_adds_a_dashed_outline_of_the_same_colour(tmp_path, places):
    labels = right_anterior_superior()
    reference = np.roll(labels, -8, axis=0)
    rows, columns = places[0]
    alone = render(tmp_path, labels)[rows, columns]
    compared = render(tmp_path, labels, reference=reference)[rows, columns]
    added = (compared != alone).any(axis=2)
    assert box(added) == pytest.approx([2 / 30, 10 / 30, 10 / 24, 16 / 24], abs=0.015)
    edge = compared[compared.shape[0] * 6 // 30 - 40 : compared.shape[0] * 6 // 30 + 40]
    line = is_green(edge[:, int(compared.shape[1] * 10 / 24)])
    changes = np.count_nonzero(np.diff(line.astype(int)))
    assert changes >= 6  # a solid line would not change


def test_legend_lists_the_largest_labels_when_not_all_fit():
    shown = [Label(name=f"organ {value}", value=value) for value in range(1, 41)]
    volumes_ml = np.roll(np.arange(1.0, 41.0), 5)
    page = _Page(np.array([100.0, 100.0, 100.0]), len(shown), "")
    page.legend(shown, volumes_ml, np.array(label_colours(shown)) / 255)
    written = [text.get_text() for text in page.figure.texts if text.get_text()]
    # 3 columns of 6: the 17 largest, in their own order, and the number of the others.
    large = [(label.name, volume) for label, volume in zip(shown, volumes_ml, strict=True) if volume > 40 - 17]
    assert written == [*(f"{name}  {volume:.1f} mL" for name, volume in large), "and 23 smaller"]


def test_without_a_known_size_there_are_no_volumes_and_no_scale():
    page = _Page(np.array([100.0, 100.0, 100.0]), 1, "")
    page.legend([LABEL], np.array([12.0]), np.array(label_colours([LABEL])) / 255, is_size_known=False)
    page.footer("", is_size_known=False)
    written = [text.get_text() for text in page.figure.texts if text.get_text()]
    assert written[:2] == ["Target  - mL", "size in mm unknown"]
    assert not any(text.endswith(" mm") for text in written)


@pytest.mark.parametrize(
    ("volume_ml", "text"),
    [(0, "0.00"), (0.01234, "0.0123"), (1.7, "1.70"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1,234")],
)
def test_volumes_have_three_digits(volume_ml, text):
    assert _volume_text(volume_ml) == text


@pytest.mark.parametrize("shape", [(1, 1, 1), (60, 60, 1), (2, 90, 3)])
def test_extreme_shapes_long_names_and_dollar_signs(tmp_path, shape):
    shown = [Label(name="$a_very_long_name$ " * 5, value=value) for value in range(1, 3)]
    shown[1] = Label(name="$\\frac", value=2)
    picture = render(tmp_path, np.ones(shape, dtype=np.uint8), shown=shown, title="$scan_{")
    assert 300 < picture.shape[0] < 1200
    assert 800 < picture.shape[1] < 1500


def test_no_labels_at_all(tmp_path):
    assert not is_green(render(tmp_path, np.ones(RAS_SHAPE, dtype=np.uint8), shown=())).any()


@pytest.mark.parametrize("wrong", ["image", "labels", "reference"])
def test_arrays_of_another_shape_are_rejected_by_name(tmp_path, wrong):
    arrays = {name: np.zeros(RAS_SHAPE, dtype=np.uint8) for name in ("image", "labels", "reference")}
    arrays[wrong] = np.zeros((2, 3, 4), dtype=np.uint8)
    with pytest.raises(GridError, match=rf"{wrong} has shape \(2, 3, 4\), expected \(24, 30, 20\)"):
        save_preview(geometry=Geometry(RAS_SHAPE, np.eye(4)), shown=[LABEL], path=tmp_path / "view.png", **arrays)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs_data
def test_a_real_scan(tmp_path, data_folder):
    folder = data_folder / "Task04_Hippocampus"
    image, labels = (nib.load(folder / part / "hippocampus_003.nii.gz") for part in ("imagesTr", "labelsTr"))
    shown = [Label(name="Anterior", value=1, colour=(255, 0, 0)), Label(name="Posterior", value=2, colour=GREEN)]
    geometry = Geometry(image.shape, image.affine)
    save_preview(
        np.asanyarray(image.dataobj), np.asanyarray(labels.dataobj).astype(int), geometry, shown, tmp_path / "view.png"
    )
    picture = (matplotlib.image.imread(tmp_path / "view.png")[..., :3] * 255).round().astype(int)
    axial = picture[:600, :400]
    red, green = ((axial == colour).all(axis=2) for colour in ((255, 0, 0), GREEN))
    rows = [np.flatnonzero(mask.any(axis=1)).mean() for mask in (red, green)]
    assert rows[0] < rows[1]  # anterior is up
    assert all(mask.sum() > 50 for mask in (red, green))
    assert set(itertools.chain(*[path.suffixes for path in tmp_path.iterdir()])) == {".png"}


def test_pictures_drawn_in_threads_equal_pictures_drawn_alone(tmp_path):
    labels = right_anterior_superior()
    names = ["alone", *(f"thread {index}" for index in range(4))]

    def draw(name: str) -> bytes:
        path = tmp_path / f"{name}.png"
        save_preview(labels * 30, labels, Geometry(RAS_SHAPE, np.eye(4)), [LABEL], path, title="same")
        return path.read_bytes()

    alone = draw(names[0])
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(draw, names[1:])) == {alone}
