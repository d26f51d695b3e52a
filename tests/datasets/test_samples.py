"""The samples that the package ships."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.samples import load_digits, load_metro_traffic, metro_traffic_path
from mamba_datasets.series import WindowDataset


def test_metro_traffic() -> None:
    read = load_metro_traffic()
    raw = pd.read_csv(metro_traffic_path(), parse_dates=["datetime"])
    assert read.ids == ["metro_traffic"]
    one = read.series[0]
    assert list(one.index) == list(raw["datetime"])
    np.testing.assert_array_equal(one.observed, raw["traffic_volume"].notna())
    assert (~one.observed).sum() == 104
    np.testing.assert_array_equal(one.y[one.observed], raw["traffic_volume"].dropna().to_numpy(dtype=np.float32))
    lost = np.flatnonzero(~one.observed)
    np.testing.assert_array_equal(one.y[lost[lost >= 168]], one.y[lost[lost >= 168] - 168])
    assert read.past_names == ("temp", "rain_1h", "snow_1h", "clouds_all")
    assert read.future_names[:2] == ("hour_sin", "hour_cos")
    assert read.future_names[-3:] == ("holiday", "holiday_before", "holiday_after")
    assert all(np.isfinite(values).all() for values in (one.y, one.past, one.future))
    assert "104 of 17520 targets" in read.notes[0]


def test_windows_of_the_protocol() -> None:
    """Every hourly origin of the last 12 weeks whose 24 hours lie inside, with four weeks of lookback."""
    read = load_metro_traffic()
    first = read.series[0].index[-1] + pd.Timedelta(hours=1) - pd.Timedelta(weeks=12)
    windows = WindowDataset(read, 672, 24, origins=(first, None))
    assert len(windows) == 12 * 7 * 24 - 23
    assert windows.horizon_index(0)[0] == first
    assert windows.horizon_index(len(windows) - 1)[-1] == read.series[0].index[-1]


def test_missing_hours_are_refused_where_asked() -> None:
    with pytest.raises(DataError, match="104 such rows"):
        load_metro_traffic(missing="error")
    assert load_metro_traffic(missing="seasonal").observed.all()


def test_digits() -> None:
    images, digits = load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert np.bincount(digits).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images[0].tolist()[0] == [0, 0, 80, 207, 143, 16, 0, 0]  # 5, 13, 9, 1 sixteenths
