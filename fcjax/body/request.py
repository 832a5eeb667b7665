"""What a user asks of the body: pose, shape, view and framing, checked, and drawn on demand."""

import numbers
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcjax.body.camera import Camera, frame_full, frame_upper
from fcjax.body.charts import embedded_charts
from fcjax.body.embedded import SMPL_JOINTS, ShapedBody, embedded_model, skin
from fcjax.body.maps import BodyMaps, mesh_maps
from fcjax.body.poses import pose
from fcjax.body.rotations import as_rotation_matrices, rotation_vectors

SLIDERS = ("gender", "age", "height", "weight", "muscle", "proportions")
LEGS = range(5, 15)  # parts that an upper-body framing leaves out


@dataclass(frozen=True)
class Body:
    """A person in a pose before a camera, on the embedded body.

    Every field is plain data, so a request can be stored as JSON (`asdict`) and made again from it.

    Raises ValueError for an unknown pose (naming the nearest), for values outside their range and for NaN.
    """

    pose: str = "standing"
    """A name from `fcjax.body.POSES`; ignored where `joint_rotations` are given."""
    gender: float = 0.0
    """0 female, 1 male."""
    age: float = 0.0
    """0 young adult, 1 old."""
    height: float = 0.5
    """This and the next three from 0 to 1, 0.5 average."""
    weight: float = 0.5
    """A mild change on average muscles, a great one on weak or strong ones."""
    muscle: float = 0.5
    proportions: float = 0.5
    """0 uncommon, 1 idealised."""
    view: float = 0.0
    """Degrees that the camera walks around the person towards their left side."""
    framing: Literal["full", "upper"] = "full"
    """The whole person, or head, trunk and arms."""
    elevation: float = 0.0
    """Degrees that the camera rises, -89 to 89."""
    distance: float | None = None
    """Metres from a perspective camera to the person; None is weak perspective, an infinitely distant camera."""
    joint_rotations: Any = None
    """SMPL's 24 joint rotations, axis-angle (24, 3) or (72,), or matrices (24, 3, 3); kept as tuples of axis-angle."""

    def __post_init__(self) -> None:
        if not isinstance(self.pose, str):
            raise ValueError(
                f"pose is {self.pose!r}; expected a name such as 'walking' (numbers go to joint_rotations)"
            )
        object.__setattr__(self, "pose", pose(self.pose).name)
        for name in SLIDERS:
            self._check(name, 0, 1)
        self._check("view", -3600, 3600)
        self._check("elevation", -89, 89)
        if self.distance is not None:
            self._check("distance", 0.5, 1000)
        if self.framing not in ("full", "upper"):
            raise ValueError(f"framing is {self.framing!r}; expected 'full' or 'upper'")
        if self.joint_rotations is not None:
            try:
                given = np.asarray(self.joint_rotations, np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"joint_rotations are not an array of numbers: {error}") from None
            matrices = as_rotation_matrices(given, len(SMPL_JOINTS))
            if matrices.ndim != 3:
                raise ValueError(f"joint_rotations have shape {given.shape}; expected one pose, not a batch")
            vectors = given.reshape(-1, 3) if given.size == 72 else rotation_vectors(matrices)
            object.__setattr__(self, "joint_rotations", tuple(tuple(map(float, vector)) for vector in vectors))

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
            raise ValueError(f"{name} is {value!r}; expected a number from {low} to {high}")
        object.__setattr__(self, name, float(value))

    @property
    def rotations(self) -> Float[ndarray, "24 3"]:
        """Joint rotations from SMPL's T-pose, axis-angle."""
        return pose(self.pose).rotations if self.joint_rotations is None else np.array(self.joint_rotations)

    def shaped(self) -> ShapedBody:
        """The body's shape in its rest pose."""
        return embedded_model().shape(**{name: getattr(self, name) for name in SLIDERS})

    def posed(self) -> Float[ndarray, "v 3"]:
        """The skin's vertices, metres; triangles are `embedded_model().faces["body"]`."""
        model = embedded_model()
        shaped, skin_range = self.shaped(), model.ranges["body"]
        transforms = model.bone_transforms(shaped, self.rotations)
        return skin(shaped.vertices[skin_range], model.weights[skin_range], transforms)

    def camera(self, height: int, width: int) -> Camera:
        """The camera of the asked view and framing, for an image of that size."""
        return self._camera(self.posed(), height, width)

    def _camera(self, posed: Float[ndarray, "v 3"], height: int, width: int) -> Camera:
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, numbers.Integral) or not 8 <= value <= 16384:
                raise ValueError(f"the image's {name} is {value!r}; expected whole pixels from 8 to 16384")
        if self.framing == "full":
            return frame_full(posed, height, width, self.view, self.elevation, self.distance)
        shown = embedded_model().faces["body"][~np.isin(embedded_charts().part, LEGS)]
        return frame_upper(posed[np.unique(shown)], height, width, self.view, self.elevation, self.distance)

    def render(self, height: int, width: int) -> BodyMaps:
        """The body's maps as images of `height` x `width` pixels."""
        posed = self.posed()
        camera = self._camera(posed, height, width)
        return mesh_maps(posed, embedded_model().faces["body"], embedded_charts(), camera, height, width)

    def asdict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; `Body(**fields)` makes the same request again."""
        return asdict(self)
