"""The frame of an image: as its file stores it, or upright by its EXIF orientation. Annotations that give a size decide."""

from pathlib import Path

from PIL import Image

from fusionkit.data.images import ORIENTATION, Decoded
from fusionkit.errors import DataError

Size = tuple[int, int]
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = 5  # from this orientation on width and height change places


def fits(one: Size, other: Size) -> bool:
    """Whether two sizes are of one picture at two scales, each side of which was rounded."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))


def framed(found: Decoded, said: Size | None, upright: bool = False) -> Decoded:
    """The image in the frame that annotations of the size `said` are about; `upright` where they cannot tell.

    A size tells only between two frames that differ: an image that stands on its head is as the file stores it.
    """
    orientation = getattr(found.image, "info", {}).get(ORIENTATION, 1)
    turned = found.size[::-1] if orientation >= ON_ITS_SIDE else found.size
    if said is not None and turned != found.size:
        upright = said == turned or (said != found.size and fits(turned, said) and not fits(found.size, said))
    if not upright or orientation not in TURNS:
        return found
    return Decoded(found.image.transpose(TURNS[orientation]), turned)


def require_fit(size: Size, said: Size | None, path: Path) -> None:
    """Raise DataError where boxes on an image of this size are annotated on one of other proportions; (0, 0) is not known."""
    if said is not None and all(size) and not fits(size, said):
        raise DataError(
            f"{path} is {size[0]} x {size[1]} pixels, which its annotations' {said[0]} x {said[1]} are no scale of, nor turned: "
            "their boxes are of another picture; correct the annotations' width and height, or take the original image"
        )
