"""What labels are in codes: known structures, stated codes, and names of which nothing more is known."""

import json

import pytest
from pydicom.sr.codedict import codes

import volseg.dicom.codes as tables
from volseg.config import Label, LabelCode
from volseg.dicom.codes import PRIVATE_SCHEME, codes_of

LEFT, RIGHT = codes.SCT.Left, codes.SCT.Right
ANATOMY, ABNORMAL = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure


def of(name, code=None):
    return codes_of(Label(name=name, value=1, code=code))


@pytest.mark.parametrize(
    ("name", "value", "modifiers"),
    [
        ("kidney_left", "64033007", (LEFT,)),
        ("Kidney Right", "64033007", (RIGHT,)),
        ("left kidney", "64033007", (LEFT,)),
        ("Kidney", "64033007", ()),
        ("spleen", "78961009", ()),
        ("adrenal_gland_left", "23451007", (LEFT,)),
        ("lung_upper_lobe_left", "45653009", (LEFT,)),
        ("lung_middle_lobe_right", "72481006", ()),
        ("vertebrae_L1", "66794005", ()),
        ("vertebrae_T12", "23215003", ()),
        ("vertebrae_C7", "87391001", ()),
        ("rib_left_11", "113197003", (LEFT,)),
        ("iliac_vena_right", "244411005", (RIGHT,)),
        ("clavicula_left", "51299004", (LEFT,)),
        ("heart_atrium_left", "82471001", ()),
        ("small_bowel", "30315005", ()),
        ("hippocampus anterior", "5366008", (codes.SCT.Anterior,)),
        ("left posterior hippocampus", "5366008", (LEFT, codes.SCT.Posterior)),
        ("oesophagus", "32849002", ()),
    ],
)
def test_a_known_structure(name, value, modifiers):
    found = of(name)
    assert (found.type.value, found.type.scheme_designator) == (value, "SCT")
    assert (found.category, found.modifiers, found.region, found.private) == (ANATOMY, modifiers, None, False)


@pytest.mark.parametrize(
    ("name", "value", "region", "sides"),
    [
        ("Tumour", "108369006", None, ()),
        ("cancer", "108369006", None, ()),
        ("edema", "79654002", None, ()),
        ("kidney_cyst_left", "367643001", codes.SCT.Kidney, (LEFT,)),
        ("liver lesion", "52988006", codes.SCT.Liver, ()),
        ("left lung nodule", "27925004", codes.SCT.Lung, (LEFT,)),
    ],
)
def test_an_alteration_is_no_anatomical_structure(name, value, region, sides):
    found = of(name)
    assert (found.category, found.type.value, found.modifiers) == (ABNORMAL, value, ())
    assert (found.region, found.region_modifiers) == (region, sides)


@pytest.mark.parametrize(
    "name",
    [
        "Anterior", "L1", "TZ", "kidneys", "kidney area", "left", "liver left", "left left kidney", "left right kidney",
        "hip_left", "mass", "Tissue", "Organ", "vertebrae_L6", "vertebrae_T13", "tumor left", "not kidney", "kidney 2",
        "portal_vein_and_splenic_vein", "", "left spleen lesion", "organ lesion", "kidney/left",
    ],
)  # fmt: skip
def test_any_other_name_is_a_code_of_its_own_that_says_no_more(name):
    found = of(name)
    assert found.private
    assert found.category.scheme_designator == found.type.scheme_designator == PRIVATE_SCHEME
    assert found.type.meaning == (name or "label 1")
    assert "Tissue" not in found.category.meaning
    assert "Organ" not in found.category.meaning


def test_private_codes_are_told_apart_by_the_whole_name_and_fit_dicom():
    names = ["a" * 64, "a" * 65, "A" * 64, "back\\slash", "line\nbreak", "Läsion 病変"]
    found = [of(name).type for name in names]
    assert len({one.value for one in found}) == len(names)
    assert all(len(one.value) <= 16 and 0 < len(one.meaning) <= 64 for one in found)
    assert not any("\\" in one.meaning or "\n" in one.meaning for one in found)
    assert of("a" * 64) == of("a" * 64)


def test_every_name_of_the_tables_is_known_once_and_has_a_code():
    listed = [
        name
        for table in (tables._PAIRED, tables._SINGLE, tables._ALTERED)
        for names in table.values()
        for name in names
    ]
    assert len(listed) == len(set(listed)) > 100
    assert not any(of(name).private for name in listed)


@pytest.mark.parametrize("keyword", [*tables._PAIRED, *tables._SINGLE])
def test_a_code_means_what_its_name_says(keyword):
    """The meaning in SNOMED CT shares a word with each name that leads to it."""
    same = {
        "oesophagus": "esophagus", "bowel": "intestine", "gall": "gallbladder", "clavicula": "clavicle",
        "vena": "vein", "parotid": "parotid", "atrial": "auricular", "cartilages": "cartilage", "ball": "eyeball",
        "vertebrae": "vertebra",
    }  # fmt: skip
    meaning = getattr(codes.SCT, keyword).meaning.lower().split()
    for name in {**tables._PAIRED, **tables._SINGLE}[keyword]:
        assert {same.get(word, word) for word in name.split()} & set(meaning), name


def test_a_stated_code_comes_before_the_name():
    code = LabelCode(value="41216001", scheme="SCT", meaning="Prostate")
    found = of("kidney_left", code)
    assert (found.type.value, found.category, found.modifiers) == ("41216001", ANATOMY, ())


def test_a_stated_code_with_category_and_modifier():
    code = LabelCode.model_validate(
        {
            "value": "C12345", "scheme": "NCIt", "meaning": "Thing",
            "category": {"value": "123037004", "scheme": "SCT", "meaning": "Body structure"},
            "modifier": {"value": "7771000", "scheme": "SCT", "meaning": "Left"},
        }
    )  # fmt: skip
    found = of("x", code)
    assert (found.type.value, found.category.value, found.modifiers) == ("C12345", "123037004", (LEFT,))


def test_a_stated_code_that_is_not_known_has_no_guessed_category():
    found = of("x", LabelCode(value="C12345", scheme="NCIt", meaning="Thing"))
    assert (found.type.scheme_designator, found.category.scheme_designator) == ("NCIt", PRIVATE_SCHEME)


def test_a_stated_alteration_keeps_its_category():
    assert of("x", LabelCode(value="52988006", scheme="SCT", meaning="Lesion")).category == ABNORMAL


@pytest.mark.parametrize(
    "change", [{"value": ""}, {"value": "1" * 17}, {"meaning": "a\\b"}, {"meaning": " "}, {"x": 1}]
)
def test_a_code_that_dicom_cannot_hold_is_rejected(change):
    with pytest.raises(ValueError, match="LabelCode"):
        LabelCode.model_validate({"value": "1", "scheme": "SCT", "meaning": "Thing"} | change)


def test_a_label_without_a_code_is_written_as_before():
    """Older versions reject keys that they do not know."""
    assert "code" not in Label(name="a", value=1).model_dump(mode="json")
    code = LabelCode(value="1", scheme="SCT", meaning="Thing")
    label = Label(name="a", value=1, code=code)
    assert Label.model_validate(json.loads(label.model_dump_json())) == label
