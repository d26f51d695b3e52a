"""Sounds for classification: a table that names files, or parts of them, with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mamba_datasets.audio.clips import ClipSet
from mamba_datasets.audio.layouts.table import scan_table
from mamba_datasets.audio.read import Channel
from mamba_datasets.report import Collector


class AudioTable(ClipSet):
    """Sounds that a CSV file lists: a row a clip.

    Columns: a path and a label; where they are there, start and end in seconds (empty for the file's own), split, fold,
    and group, which is what clips have in common that folds must not tear apart. Other columns are passed over.

    Args:
        table: The CSV file, in UTF-8, with a line of column names; tabs instead of commas in one named .tsv.
        rate: Samples a second that come out; a sound of another rate is resampled, and the log says so.
        root: The folder that paths start from and must not leave; None for the table's.
        classes: The classes in the order of their indices; None takes the sorted labels.
        class_map: Instead of these, a file with a row a class: columns index, name and, if any, mid.
        multilabel: Whether a cell holds any number of labels.
        separator: What stands between them.
        columns: Which column is which, where their names do not tell: `{"label": "species"}`; names in braces make a
            pattern, `{"path": "audio/fold{fold}/{id}.wav"}`, and None passes a column over, `{"start": None}`.
        leave_out: The list of broken files that `mamba-apps check ROOT --set table=TABLE --write-broken FILE` wrote;
            these are passed over.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: A row cannot be used: its path leaves the root or is not there, its label is none of the classes or
            missing, its times are no times, or it repeats another one. The first such row is named.
    """

    def __init__(
        self,
        table: str | Path,
        *,
        rate: int,
        root: str | Path | None = None,
        classes: Sequence[str] | None = None,
        class_map: str | Path | None = None,
        multilabel: bool = False,
        separator: str = ";",
        columns: Mapping[str, str | None] | None = None,
        leave_out: str | Path | None = None,
        channel: Channel = "mean",
    ) -> None:
        sink = Collector(table)
        scan = scan_table(
            table,
            sink,
            root=root,
            classes=classes,
            class_map=class_map,
            multilabel=multilabel,
            separator=separator,
            columns=columns,
            leave_out=leave_out,
        )
        options = {"multilabel": multilabel, "source": table, "notes": sink.notes}
        super().__init__(scan.places, scan.classes, rate=rate, channel=channel, **options)  # type: ignore[arg-type]
