"""How published try-on tables measure pictures: one `Protocol` for each script whose numbers are compared with.

The same pictures give SSIM 0.880 to 0.893 and LPIPS 0.007 to 0.096 by these scripts, so every number needs its
protocol's name beside it. SSIM is Wang et al.'s (fcjax.metrics.ssim), LPIPS version 0.1 on [-1, 1] (the scripts say so
in two ways: scaled beforehand, or normalize=True for [0, 1]), FID and KID by clean-fid's resize.
"""

import dataclasses
import io
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image, ImageFilter

from fcjax.metrics.pictures import psnr
from fcjax.metrics.ssim import Border, grey, ssim

if TYPE_CHECKING:
    from fcjax.metrics.lpips import Network

Metric = Literal["ssim", "psnr", "lpips", "fid", "kid"]
PAIRWISE: tuple[Metric, ...] = ("ssim", "psnr", "lpips")
"""Figures of one picture and its truth."""
DISTRIBUTION: tuple[Metric, ...] = ("fid", "kid")
"""Figures of all pictures together."""

RGB = UInt8[ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What a script does to pictures before it compares them, and by what.

    height, width: of compared pictures. Without a width the aspect is kept; without both, the truth is brought to the
    prediction's own size. jpeg: what was changed or is no JPEG yet goes through one at Pillow's default quality.
    pastes: predictions are blended into the person outside the mask, where masks are given. reference: what FID and
    KID see, the compared pictures ("resized") or both as they are stored ("native").
    """

    name: str
    height: int | None
    width: int | None
    resample: Literal["lanczos", "bilinear"]
    jpeg: bool
    pastes: bool
    colours: Literal["rgb", "grey"]
    border: Border
    lpips: "Network"
    lpips_size: tuple[int, int] | None
    reference: Literal["resized", "native"]
    kid_scale: float
    metrics: tuple[Metric, ...]
    fid_resize: str = "clean"

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width at which a prediction of this shape is compared."""
        rows, columns = shape[:2]
        if self.height is None:
            return rows, columns
        return self.height, (columns * self.height // rows if self.width is None else self.width)

    def alone(self, picture: RGB, stored_as_jpeg: bool = False) -> UInt8[ndarray, "H W 3"]:
        """One picture as it is compared, by its own shape."""
        return self._stored(self._resized(picture, *self.size(picture.shape)), picture, stored_as_jpeg)

    def pair(
        self,
        prediction: RGB,
        truth: UInt8[ndarray, "h2 w2 3"],
        mask: Bool[ndarray, "h3 w3"] | None = None,
        stored_as_jpeg: tuple[bool, bool] = (False, False),
    ) -> tuple[UInt8[ndarray, "H W 3"], UInt8[ndarray, "H W 3"]]:
        """Both pictures as they are compared, at the size of the prediction (`size`).

        mask: True where the prediction counts; elsewhere the person is pasted back. ValueError where the protocol does
        not paste. stored_as_jpeg: of either picture's file.
        """
        size = self.size(prediction.shape)
        if mask is not None and not self.pastes:
            raise ValueError(f"{self.name} compares predictions as they are: leave the masks out")
        made, person = self._resized(prediction, *size), self._resized(truth, *size)
        shown = made if mask is None else pasted(made, person, mask)
        before = prediction if mask is None else None
        return self._stored(shown, before, stored_as_jpeg[0]), self._stored(person, truth, stored_as_jpeg[1])

    def _stored(self, picture: RGB, before: RGB | None, as_jpeg: bool) -> RGB:
        """Through a JPEG, where the script saves one: of what it changed, and of what is none yet."""
        return picture if not self.jpeg or (as_jpeg and picture is before) else through_jpeg(picture)

    def _resized(self, picture: RGB, height: int, width: int) -> UInt8[ndarray, "H W 3"]:
        if picture.shape[:2] == (height, width):
            return picture
        how = Image.Resampling.LANCZOS if self.resample == "lanczos" else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(picture).resize((width, height), how))

    def similarity(self, prediction: RGB, truth: RGB) -> dict[str, float]:
        """SSIM, and PSNR in decibels (infinite for equal pictures), of a `pair`."""
        shown = (grey(prediction), grey(truth)) if self.colours == "grey" else (prediction, truth)
        return {"ssim": ssim(*shown, border=self.border), "psnr": psnr(prediction, truth)}

    def for_lpips(self, picture: RGB) -> UInt8[ndarray, "H W 3"]:
        """What LPIPS sees of one picture of a `pair`."""
        return picture if self.lpips_size is None else self._resized(picture, *self.lpips_size)

    def check(self, metrics: tuple[Metric, ...]) -> None:
        """ValueError for a metric that the script does not define."""
        undefined = [metric for metric in metrics if metric not in (*self.metrics, "psnr")]
        if undefined:
            raise ValueError(
                f"{self.name} defines no {' and no '.join(undefined)}: leave that out of --metrics, or take another "
                "protocol"
            )


def pasted(prediction: RGB, person: RGB, mask: Bool[ndarray, "h2 w2"]) -> RGB:
    """The prediction inside the blurred mask, the person outside: CatVTON's repaint, which rounds down."""
    height, width = prediction.shape[:2]
    radius = height // 50
    radius += radius % 2 == 0
    scaled = Image.fromarray(np.uint8(255) * mask).resize((width, height), Image.Resampling.NEAREST)
    share = np.asarray(scaled.filter(ImageFilter.GaussianBlur(radius)))[..., None] / 255
    return (person * (1 - share) + prediction * share).astype(np.uint8)


def through_jpeg(picture: RGB) -> RGB:
    """The picture saved as JPEG at Pillow's default quality and read again."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG")
    return np.asarray(Image.open(buffer))


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # CatVTON's eval.py and inference.py --repaint, whose table the paper's baselines equal: the truth is resized
        # by LANCZOS to the height of the predictions and saved as JPEG again, as the predictions are; torchmetrics of
        # no named version (in July 2024, when its figures appeared, it left the border out: --ssim-border crop); LPIPS
        # squeeze; clean-fid on the resized truth; KID times 1000.
        Protocol(
            "catvton-512", 512, None, "lanczos", True, True, "rgb", "reflect", "squeeze", None, "resized", 1000.0,
            ("ssim", "lpips", "fid", "kid"),
        ),
        # LaDI-VTON's val_metrics.py: torchvision's default resize of 8-bit pictures, torchmetrics 0.11.4 with range 1,
        # LPIPS alex; clean-fid "clean" of the stored files, the truth at its native size; KID as it is.
        Protocol(
            "ladi-512", 512, 384, "bilinear", False, False, "rgb", "crop", "alex", None, "native", 1.0,
            ("ssim", "lpips", "fid", "kid"),
        ),
        # PromptDresser at 1024x768: torchmetrics, LPIPS alex, clean-fid, KID as it is. Pictures of that size are not
        # resized. Choice: others are, as by LaDI-VTON.
        Protocol(
            "promptdresser-1024", 1024, 768, "bilinear", False, False, "rgb", "reflect", "alex", None, "native", 1.0,
            ("ssim", "lpips", "fid", "kid"),
        ),
        # HR-VITON's evaluate.py: the truth by bilinear to the predictions' 1024, 512 or 256 rows; scikit-image's SSIM
        # of grey 8-bit pictures, Gaussian window, population covariance; LPIPS alex at 128x128.
        Protocol(
            "hrviton", None, None, "bilinear", False, False, "grey", "crop", "alex", (128, 128), "native", 1.0,
            ("ssim", "lpips"),
        ),
    )
}  # fmt: skip
