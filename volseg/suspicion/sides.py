"""Whether labels that exist once on the left and once on the right lie on the side that their names state."""

from volseg.data.grid.geometry import Geometry
from volseg.planning.sides import left_right_pairs
from volseg.suspicion.places import Places


def mismatched_sides(places: Places, geometry: Geometry) -> set[str]:
    """The names of labels that lie to the right of their right partner, and of these partners, in patient coordinates.

    Only names tell sides, such as "kidney_left" and "kidney_right".

    Args:
        places: of the labels of a result.
        geometry: of its label image.
    """
    right = {name: float(geometry.affine[0, :3] @ centre) for name, centre in places.centres.items()}
    wrong = [pair for pair in left_right_pairs(right) if right[pair[0]] > right[pair[1]]]
    return {name for pair in wrong for name in pair}
