"""The run's logged metrics as `metrics.csv`, continued where a resumed run goes on."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mamba_apps.training.files import storage_error, write_text

METRICS_NAME = "metrics.csv"


class MetricsFile(Logger):
    """Append every logged row to `metrics.csv`; a metric that appears later becomes a further column.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = run_dir / METRICS_NAME
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Name of the experiment: there is one a folder."""
        return ""

    @property
    def version(self) -> str:
        """Version of the experiment: there is one a folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write nothing: hyper-parameters are in the checkpoints and in the saved model's card."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take one row.

        Args:
            metrics: Values by name.
            step: Optimizer steps done before it.
        """
        self._pending.append({"step": step, **metrics})

    @rank_zero_only
    def save(self) -> None:
        """Write the rows taken so far.

        Raises:
            UserError: The disk is full or the folder read-only.
        """
        rows, self._pending = self._pending, []
        new = [name for row in rows for name in row if name not in self._columns]
        try:
            if new:
                # order of first appearance; the rows written so far have no value there
                self._columns += dict.fromkeys(new)
                self._rewrite(self._read() + rows)
            elif rows:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)
        except OSError as error:
            raise storage_error("write the metrics to", self.path, error) from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left at the end of a run."""
        if self._pending:
            self.save()

    @rank_zero_only
    def start(self, step: int) -> None:
        """Begin a run: keep only the rows of the first steps.

        Args:
            step: Optimizer steps done so far; 0 begins an empty file.

        Raises:
            UserError: The disk is full or the folder read-only.
        """
        self._pending = []
        try:
            rows = [row for row in self._read() if row["step"].isdigit() and int(row["step"]) < step]
            self._columns = list(rows[0]) if rows else []
            if rows:
                self._rewrite(rows)
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error("write the metrics to", self.path, error) from error

    def _read(self) -> list[dict[str, str]]:
        """Return the rows of the file but for a last one cut short by a killed process."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(whole.splitlines()))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        lines = [_csv_line(self._columns)]
        lines += [_csv_line([row.get(name, "") for name in self._columns]) for row in rows]
        write_text(self.path, "".join(lines))


def _csv_line(values: list[Any]) -> str:
    from io import StringIO

    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
