"""What a label is, in codes: what its model states, SNOMED CT where its name means a structure beyond doubt, or a name.

A wrong code is worse than none, so names are compared whole: kidney_left is the kidney with the modifier left, but
"kidney area" is a code of our own that says no more than this name. Case, _, - and spaces make no difference.
"""

import hashlib
import re
from typing import NamedTuple

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from volseg.config import CodedName, Label
from volseg.dicom.objects import name_of, one_line

PRIVATE_SCHEME = "99VOLSEG"
PRIVATE_SCHEME_NAME = "volseg: labels by their names, measurements and flags"
# Parts of the spine and their number of vertebrae; a sixth lumbar one has no code.
_SPINE = (("C", 7), ("T", 12), ("L", 5))
# Names of structures by the keyword of their code in pydicom. Those that come in pairs may have a side.
_PAIRED = {
    "Kidney": ("kidney",),
    "AdrenalGland": ("adrenal gland",),
    "Lung": ("lung",),
    "UpperLobeOfLung": ("lung upper lobe", "upper lobe of lung"),
    "LowerLobeOfLung": ("lung lower lobe", "lower lobe of lung"),
    "SubclavianArtery": ("subclavian artery",),
    "CommonCarotidArtery": ("common carotid artery",),
    "InternalCarotidArtery": ("internal carotid artery",),
    "ExternalCarotidArtery": ("external carotid artery",),
    "BrachiocephalicVein": ("brachiocephalic vein",),
    "IliacArtery": ("iliac artery",),
    "IliacVein": ("iliac vein", "iliac vena"),
    "CommonIliacArtery": ("common iliac artery",),
    "CommonIliacVein": ("common iliac vein",),
    "Humerus": ("humerus",),
    "Scapula": ("scapula",),
    "Clavicle": ("clavicle", "clavicula"),
    "Femur": ("femur",),
    "Tibia": ("tibia",),
    "Fibula": ("fibula",),
    "Patella": ("patella",),
    "Ulna": ("ulna",),
    "Rib": ("rib", *(f"rib {number}" for number in range(1, 13))),
    "HipJoint": ("hip joint",),
    "Hippocampus": ("hippocampus",),
    "Amygdala": ("amygdala",),
    "Thalamus": ("thalamus",),
    "CaudateNucleus": ("caudate nucleus", "caudate"),
    "Putamen": ("putamen",),
    "LateralVentricle": ("lateral ventricle",),
    "CerebralWhiteMatter": ("cerebral white matter",),
    "ParotidGland": ("parotid gland", "parotid"),
    "SubmandibularGland": ("submandibular gland",),
    "Eyeball": ("eyeball", "eye ball"),
    "OpticNerve": ("optic nerve",),
    "Ovary": ("ovary",),
    "Testis": ("testis",),
    "Ureter": ("ureter",),
}
_SINGLE = {
    "Spleen": ("spleen",),
    "Gallbladder": ("gallbladder", "gall bladder"),
    "Liver": ("liver",),
    "Stomach": ("stomach",),
    "Pancreas": ("pancreas",),
    "MiddleLobeOfRightLung": ("lung middle lobe right", "right lung middle lobe", "middle lobe of right lung"),
    "Esophagus": ("esophagus", "oesophagus"),
    "Trachea": ("trachea",),
    "Thyroid": ("thyroid gland", "thyroid"),
    "SmallIntestine": ("small bowel", "small intestine"),
    "LargeIntestine": ("large bowel", "large intestine"),
    "Duodenum": ("duodenum",),
    "Colon": ("colon",),
    "Rectum": ("rectum",),
    "Bladder": ("urinary bladder", "bladder"),
    "Prostate": ("prostate",),
    "PeripheralZoneOfTheProstate": ("prostate peripheral zone", "peripheral zone of prostate"),
    "TransitionZoneOfTheProstate": ("prostate transition zone", "transition zone of prostate"),
    "Uterus": ("uterus",),
    "Sacrum": ("sacrum",),
    "Sternum": ("sternum",),
    "Skull": ("skull",),
    "CostalCartilage": ("costal cartilages", "costal cartilage"),
    "Heart": ("heart",),
    "LeftAtrium": ("left atrium", "heart atrium left"),
    "RightAtrium": ("right atrium", "heart atrium right"),
    "LeftVentricle": ("heart ventricle left", "left ventricle of heart"),
    "RightVentricle": ("heart ventricle right", "right ventricle of heart"),
    "LeftAuricularAppendage": ("atrial appendage left", "left atrial appendage"),
    "Aorta": ("aorta",),
    "AscendingAorta": ("ascending aorta",),
    "DescendingAorta": ("descending aorta",),
    "AorticArch": ("aortic arch",),
    "AbdominalAorta": ("abdominal aorta",),
    "ThoracicAorta": ("thoracic aorta",),
    "PulmonaryArtery": ("pulmonary artery",),
    "PulmonaryVein": ("pulmonary vein",),
    "BrachiocephalicTrunk": ("brachiocephalic trunk",),
    "SuperiorVenaCava": ("superior vena cava",),
    "InferiorVenaCava": ("inferior vena cava",),
    "PortalVein": ("portal vein",),
    "SplenicVein": ("splenic vein",),
    "HepaticVein": ("hepatic vein",),
    "SpinalCord": ("spinal cord",),
    "Brain": ("brain",),
    "Cerebellum": ("cerebellum",),
    "ThirdVentricle": ("third ventricle",),
    "FourthVentricle": ("fourth ventricle",),
    "OpticChiasm": ("optic chiasm",),
    **{
        f"{level}Vertebra": (f"vertebrae {level.lower()}", f"vertebra {level.lower()}", f"{level.lower()} vertebra")
        for level in (f"{part}{number}" for part, last in _SPINE for number in range(1, last + 1))
    },
}
# Alterations; after the name of a structure they lie in it: liver tumour.
_ALTERED = {
    "Neoplasm": ("tumor", "tumour", "neoplasm", "cancer"),
    "Lesion": ("lesion",),
    "Cyst": ("cyst",),
    "Nodule": ("nodule",),
    "Edema": ("edema", "oedema"),
    "Necrosis": ("necrosis",),
}
# Parts that have no code of their own, by the keywords of the whole and of the place in it.
_PLACED = {
    name: ("Hippocampus", place)
    for place in ("Anterior", "Posterior")
    for name in (f"hippocampus {place.lower()}", f"{place.lower()} hippocampus")
}


class SegmentCodes(NamedTuple):
    """A label in codes.

    Args:
        category: the kind of thing, such as an anatomical structure.
        type: the thing itself.
        modifiers: of the type, such as its side.
        region: the structure that an alteration lies in, if its name says so.
        region_modifiers: of the region, such as its side.
    """

    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()
    region: Code | None = None
    region_modifiers: tuple[Code, ...] = ()

    @property
    def private(self) -> bool:
        """Whether a code of our own is among them."""
        return PRIVATE_SCHEME in (self.category.scheme_designator, self.type.scheme_designator)


def codes_of(label: Label) -> SegmentCodes:
    """The codes of a label: those that its model states, else those that its name means, else a private one."""
    known = _known(_words(label.name))
    if label.code is None:
        name = label.name if one_line(label.name) else name_of(label)
        return known or SegmentCodes(_private("label of a model"), _private(name))
    stated = label.code
    return SegmentCodes(
        _code(stated.category) if stated.category else _category(stated, known),
        _code(stated),
        (_code(stated.modifier),) if stated.modifier else (),
    )


def _known(name: str) -> SegmentCodes | None:
    """The codes of a name in words; None if it is not known whole."""
    if found := _structure(name):
        return SegmentCodes(codes.SCT.AnatomicalStructure, *found)
    rest, sides = _without_sides(name)
    *place, last = rest.split(" ")
    if last not in _BY_NAME_ALTERED:
        return None
    altered = _sct(_BY_NAME_ALTERED[last])
    if not place and not sides:
        return SegmentCodes(_ABNORMAL, altered)
    region = _structure(" ".join([*place, *sides]))
    return region and SegmentCodes(_ABNORMAL, altered, (), *region)


def _structure(name: str) -> tuple[Code, tuple[Code, ...]] | None:
    """The code of an anatomical structure and its modifiers; None if the name is not known whole."""
    if name in _BY_NAME:
        return _sct(_BY_NAME[name]), ()
    rest, sides = _without_sides(name)
    modifiers = tuple(_SIDES[side] for side in sides)
    if len(sides) > 1:
        return None
    if rest in _PLACED:
        keyword, place = _PLACED[rest]
        return _sct(keyword), (*modifiers, _sct(place))
    return (_sct(_BY_NAME_PAIRED[rest]), modifiers) if rest in _BY_NAME_PAIRED else None


def _without_sides(name: str) -> tuple[str, list[str]]:
    """A name without the words left and right, and those."""
    words = name.split(" ")
    return " ".join(word for word in words if word not in _SIDES), [word for word in words if word in _SIDES]


def _words(name: str) -> str:
    """A name in lower case with single spaces between its words."""
    return " ".join(re.split(r"[\s_\-]+", name.strip().lower()))


def _by_name(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: keyword for keyword, names in table.items() for name in names}


def _sct(keyword: str) -> Code:
    """The code of SNOMED CT with a keyword."""
    code: Code = getattr(codes.SCT, keyword)
    return code


def _code(stated: CodedName) -> Code:
    return Code(stated.value, stated.scheme, stated.meaning)


def _category(stated: CodedName, known: SegmentCodes | None) -> Code:
    """The category of a stated code without one: that of the same code where it is known, else a private one."""
    if known and (known.type.value, known.type.scheme_designator) == (stated.value, stated.scheme):
        return known.category
    here = (stated.value, stated.scheme)
    for keywords, category in (((*_PAIRED, *_SINGLE), codes.SCT.AnatomicalStructure), (_ALTERED, _ABNORMAL)):
        if any((one.value, one.scheme_designator) == here for one in map(_sct, keywords)):
            return category
    return _private("label of a model")


def _private(name: str) -> Code:
    """A code of our own for a name: the same name has the same value in all models."""
    value = hashlib.sha256(name.encode()).hexdigest()[:12].upper()
    return Code(f"N-{value}", PRIVATE_SCHEME, one_line(name))


_ABNORMAL: Code = codes.SCT.MorphologicallyAbnormalStructure
_SIDES: dict[str, Code] = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_BY_NAME, _BY_NAME_PAIRED, _BY_NAME_ALTERED = _by_name(_SINGLE), _by_name(_PAIRED), _by_name(_ALTERED)
