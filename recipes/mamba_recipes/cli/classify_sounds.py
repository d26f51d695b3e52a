"""`mamba-apps classify` on sounds: their classes, what is heard when, what the classifier sees."""

from __future__ import annotations

import json
import logging
import re
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_apps.errors import UserError
from mamba_recipes.cli.classified import as_json, header, table
from mamba_recipes.cli.errors import DONE, WRONG_INPUT, one_line
from mamba_recipes.cli.targets import check_target

if TYPE_CHECKING:
    from mamba_apps.audio.tagging import AudioTagger

_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}


def run(arguments: Namespace, folder: Path) -> int:
    """Classify a sound or a folder of them with the model saved in ``folder``."""
    every = None if arguments.every is None else seconds_of(arguments.every)
    if every is None and arguments.out is not None:
        raise UserError("--out names a timeline, and none was asked for", "give --every 1s")
    if every is not None and arguments.embeddings is not None:
        raise UserError("--every and --embeddings are both given", "give one of them")
    if arguments.embeddings is not None:
        if arguments.embeddings.suffix.lower() != ".npz":
            what = f"--embeddings {arguments.embeddings}: they are written as NPZ"
            raise UserError(what, "give a name that ends in .npz")
        check_target("--embeddings", arguments.embeddings)

    from mamba_apps.audio.tagging import AudioTagger, BadSoundsError

    # each sound's own notes say it
    logging.getLogger("mamba_datasets.audio.resampling").setLevel(logging.ERROR)
    tagger = AudioTagger.load(folder)
    header(arguments.path, tagger.model, sum(p.numel() for p in tagger.network.parameters()), tagger.labels)
    try:
        if every is not None:
            return _timeline(tagger, arguments, every)
        return _embeddings(tagger, arguments) if arguments.embeddings is not None else _tags(tagger, arguments)
    except BadSoundsError as error:
        for problem in error.problems:
            print(f"mamba-apps: error: {one_line(problem)}", file=sys.stderr)
        return WRONG_INPUT


def seconds_of(text: str) -> float:
    """Read "1s", "0.5", "500ms", "2min" or "1h".

    Raises:
        UserError: It is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise UserError(f"--every {text!r} is not understood", "write it like 1s, 500ms or 2min")
    return float(match[1]) * _UNITS[match[2]]


def _tags(tagger: AudioTagger, arguments: Namespace) -> int:
    _say_others(arguments.path)
    found = tagger.tag_files(arguments.path, top=arguments.top)
    _say(arguments.path, [(tags.sound, note) for tags in found for note in tags.notes])
    if arguments.json:
        sounds = [
            {"sound": tags.sound, "seconds": tags.seconds, "classes": as_json(tags.classes), "notes": list(tags.notes)}
            for tags in found
        ]
        print(json.dumps({"model": str(arguments.model), "sounds": sounds}, indent=1, ensure_ascii=False))
    else:
        print(table((tags.sound, tags.classes) for tags in found))
    return DONE


def _timeline(tagger: AudioTagger, arguments: Namespace, every: float) -> int:
    source: Path = arguments.path
    if source.is_dir():
        raise UserError(f"{source} is a folder, and a timeline is of one sound", "name a file")
    out = arguments.out or Path(f"{source.stem}_timeline.csv")
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out {out}: a timeline is written as CSV", "give a name that ends in .csv")
    picture = out.with_suffix(".png")
    check_target("--out", out, [source])
    timeline = tagger.timeline(source, every=every)
    _say(source, [(str(source), note) for note in timeline.notes])
    timeline.to_csv(out)
    timeline.plot(picture)
    if arguments.json:
        best = zip(timeline.start_R.tolist(), timeline.end_R.tolist(), timeline.top, strict=True)
        rows = [
            {"start_s": start, "end_s": end, "label": label, "probability": probability}
            for start, end, (label, probability) in best
        ]
        document = {"model": str(arguments.model), "sound": str(source), "timeline": str(out), "picture": str(picture)}
        print(json.dumps({**document, "rows": rows}, indent=1, ensure_ascii=False))
    else:
        print(f"{out}\n{picture}")
    return DONE


def _embeddings(tagger: AudioTagger, arguments: Namespace) -> int:
    import os

    import numpy as np

    from mamba_apps.training.files import storage_error, temporary_beside, writing

    out: Path = arguments.embeddings
    _say_others(arguments.path)
    paths, embedding_ND = tagger.embed_files(arguments.path)
    try:
        with temporary_beside(out) as temporary:
            with writing(temporary) as file:
                np.savez(file, paths=np.array(paths), embeddings=embedding_ND)
            os.replace(temporary, out)
    except OSError as error:
        raise storage_error("write the embeddings", out, error) from error
    count, width = embedding_ND.shape
    if arguments.json:
        print(json.dumps({"model": str(arguments.model), "embeddings": str(out), "shape": [count, width]}, indent=1))
    else:
        print(f"{out}: {count} x {width}")
    return DONE


def _say(source: Path, notes: Iterable[tuple[str, str]]) -> None:
    """Write each note of sounds once to stderr; of a folder, with the sound, or how many it holds for and the first."""
    sounds: dict[str, list[str]] = {}
    for sound, note in notes:
        sounds.setdefault(note, []).append(sound)
    for note, named in sounds.items():
        if source.is_dir():
            note = f"{named[0]}: {note}" if len(named) == 1 else f"{note} ({len(named)} sounds, the first {named[0]})"
        print(note, file=sys.stderr, flush=True)


def _say_others(source: Path) -> None:
    """Write to stderr how many files of a folder have no sound's ending, as these are not heard."""
    from mamba_datasets.audio.read import SOUND

    if not source.is_dir():
        return
    files = (path for path in sorted(source.rglob("*")) if not path.name.startswith(".") and not SOUND.names(path.name))
    others = [path for path in files if path.is_file()]
    if others:
        endings = " ".join(SOUND.suffixes)
        print(f"not heard, as they end in none of {endings}: {len(others)}, the first {others[0]}", file=sys.stderr)
