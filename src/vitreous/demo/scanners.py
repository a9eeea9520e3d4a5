"""The four invented scanners and the three sites.

Axes: D frame (slow scan), H row (depth into the eye), W column (fast scan).
"""

from dataclasses import dataclass
from typing import Literal

Compression = Literal["none", "rle", "jpeg-ls"]


@dataclass(frozen=True)
class Scanner:
    """How one device turns reflectivity into a file.

    Args:
        manufacturer, model: names for the manifest and the DICOM header; no real product is meant.
        region: anatomic region of its protocol, part of the file name.
        num_frames, num_rows, num_columns: size of a volume (D, H, W).
        width_mm, height_mm: scanned field, fast and slow direction.
        depth_mm: depth range of one A-scan.
        looks: independent speckle patterns averaged in one voxel (shape of the gamma distribution); 1 is
            fully developed speckle, large is smooth.
        noise_floor: mean of the additive detector noise, in units of reflectivity.
        lateral_blur, axial_blur: share of a voxel's light that comes from each neighbour, in [0, 1/3].
        floor_db, range_db: the window of the logarithmic display: `floor_db` maps to 0, `floor_db + range_db` to 1.
        gamma: exponent of the grey curve after the window.
        roll_off_db_per_mm: loss of sensitivity with depth.
        jitter_mm: standard deviation of axial motion between neighbouring frames.
        bits: bits stored per voxel. 16-bit files carry rescale slope and intercept.
        compression: of the DICOM file.
    """

    manufacturer: str
    model: str
    region: str
    num_frames: int
    num_rows: int
    num_columns: int
    width_mm: float
    height_mm: float
    depth_mm: float
    looks: float
    noise_floor: float
    lateral_blur: float
    axial_blur: float
    floor_db: float
    range_db: float
    gamma: float
    roll_off_db_per_mm: float
    jitter_mm: float
    bits: Literal[8, 16]
    compression: Compression

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres in the order (D, H, W)."""
        return (
            round(self.height_mm / self.num_frames, 6),
            round(self.depth_mm / self.num_rows, 6),
            round(self.width_mm / self.num_columns, 6),
        )


SCANNERS: dict[str, Scanner] = {
    # the everyday spectral-domain device: moderate speckle, straight logarithmic display
    "aurora": Scanner(
        "Northlight",
        "Aurora 100",
        "macula",
        32,
        112,
        128,
        6.0,
        6.0,
        1.00,
        looks=4.0,
        noise_floor=0.0040,
        lateral_blur=0.20,
        axial_blur=0.10,
        floor_db=-25.0,
        range_db=27.0,
        gamma=1.00,
        roll_off_db_per_mm=1.5,
        jitter_mm=0.006,
        bits=8,
        compression="rle",
    ),
    # eye tracking and averaging: little speckle, high contrast, dark background, fewer frames
    "borealis": Scanner(
        "Northlight",
        "Borealis T",
        "macula",
        24,
        128,
        112,
        6.0,
        4.8,
        1.05,
        looks=14.0,
        noise_floor=0.0020,
        lateral_blur=0.10,
        axial_blur=0.05,
        floor_db=-22.0,
        range_db=24.0,
        gamma=1.35,
        roll_off_db_per_mm=2.5,
        jitter_mm=0.002,
        bits=8,
        compression="none",
    ),
    # an older fast device: heavy speckle and noise, bright washed-out background, motion
    "cirro": Scanner(
        "Weatherglass",
        "Cirro II",
        "macula",
        40,
        96,
        128,
        6.0,
        6.0,
        1.15,
        looks=2.0,
        noise_floor=0.0120,
        lateral_blur=0.25,
        axial_blur=0.15,
        floor_db=-28.0,
        range_db=31.0,
        gamma=0.80,
        roll_off_db_per_mm=3.0,
        jitter_mm=0.012,
        bits=8,
        compression="jpeg-ls",
    ),
    # swept source, wide field that includes the optic disc, deep penetration, 16 bit
    "delta": Scanner(
        "Weatherglass",
        "Delta W",
        "wide_field",
        28,
        120,
        128,
        9.0,
        7.0,
        1.35,
        looks=6.0,
        noise_floor=0.0050,
        lateral_blur=0.15,
        axial_blur=0.10,
        floor_db=-27.0,
        range_db=30.0,
        gamma=0.95,
        roll_off_db_per_mm=0.4,
        jitter_mm=0.005,
        bits=16,
        compression="none",
    ),
}


@dataclass(frozen=True)
class Site:
    """A clinic: how often it is drawn, what its devices are like, and what it does to the signal.

    Args:
        share: of the participants, where class does not decide.
        scanner_weights: how often a participant's first scanner is each of `SCANNERS`, in their order.
        gain_db: added to the signal of every volume of this site.
        jitter_factor: multiplies the scanners' axial motion.
    """

    share: float
    scanner_weights: tuple[float, float, float, float]
    gain_db: float
    jitter_factor: float


SITES: dict[str, Site] = {
    "harbour": Site(0.40, (0.40, 0.20, 0.20, 0.20), 0.0, 1.0),
    "meadow": Site(0.35, (0.20, 0.40, 0.20, 0.20), 1.0, 0.8),
    "summit": Site(0.25, (0.20, 0.20, 0.40, 0.20), -1.5, 1.5),
}

SITE_OF_GRADE = ("harbour", "meadow", "meadow", "summit")
"""The site that a class goes to as far as ``confounding.site`` decides."""
