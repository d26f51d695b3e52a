"""Small data sets that the package has: real ones, whose licences stand in NOTICE.md beside them, and made sounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    import numpy as np

    from mamba_datasets.samples.sounds import sounds_path, write_sounds
    from mamba_datasets.series.data import SeriesSet

__all__ = ["metro_traffic_path", "load_metro_traffic", "load_digits", "sounds_path", "write_sounds"]


def metro_traffic_path() -> Path:
    """Return the path of the hourly traffic sample: Interstate 94, Minnesota, October 2016 to September 2018."""
    return Path(__file__).with_name("metro_traffic.csv")


def load_metro_traffic(missing: Literal["error", "mask", "seasonal"] = "mask") -> SeriesSet:
    """Read the hourly traffic sample.

    The target is `traffic_volume` (vehicles an hour). Past covariates are `temp` (kelvin), `rain_1h` and `snow_1h` (mm)
    and `clouds_all` (percent), known up to the present only; known ahead are the calendar and the federal holidays of
    the United States.

    Args:
        missing: What to do about the 104 hours without a record, as in `read_series`; "mask"
            fills them from a week before, "seasonal" from a day before, as some lie in the first week.

    Returns:
        One series, "metro_traffic", of 17,520 hours.
    """
    from mamba_datasets.series.read import read_series

    read = read_series(
        metro_traffic_path(),
        freq="h",
        time_col="datetime",
        target_col="traffic_volume",
        past=("temp", "rain_1h", "snow_1h", "clouds_all"),
        missing=missing,
        season=168 if missing == "mask" else 24,
    )
    return read.with_calendar(holidays="US")


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's handwritten digits.

    Returns:
        1,797 grey images (1797, 8, 8), bytes from 0 (paper) to 255 (ink), and their digits (1797,), from 0 to 9.
    """
    import numpy as np

    rows = np.loadtxt(Path(__file__).with_name("digits.csv"), delimiter=",", dtype=np.uint8)
    # the file counts the black ones of 16 pixels
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


# What makes sounds needs soundfile.
__getattr__, __dir__ = lazily(__name__, {"sounds_path": "sounds", "write_sounds": "sounds"})
