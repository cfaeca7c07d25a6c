"""The MovieLens releases of GroupLens."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, has_files, importers, is_utf8, required_file
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.settings import PartConfig

GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
LAYOUTS = {"100k": ("u.data", "u.item"), "1m": ("ratings.dat", "movies.dat"), "latest": ("ratings.csv", "movies.csv")}


class MovieLensConfig(PartConfig):
    """MovieLens has no settings: the release is known by its files."""

    type: Literal["movielens"] = "movielens"


@importers.register("movielens", MovieLensConfig)
class MovieLens(Kind):
    """MovieLens: 100k, 1m and 10m, and those with csv files (latest, 20m, 25m, 32m).

    Texts are titles, in the later releases with genres. Ratings are kept as interactions: `--min-rating 4` leaves out
    the low ones.
    """

    expects = "u.data, u.item (100k) | ratings.dat, movies.dat (1m, 10m) | ratings.csv, movies.csv (latest, 20m, 25m)"

    def recognise(self) -> str | None:
        return next((", ".join(names) for names in LAYOUTS.values() if has_files(self.folder, *names)), None)

    def inputs(self) -> Inputs:
        release = next(release for release, names in LAYOUTS.items() if has_files(self.folder, *names))
        ratings, movies = (required_file(self.folder, name) for name in LAYOUTS[release])
        if release == "latest":
            columns = {"user_id": "userId", "item_id": "movieId", "text": "{title}. {genres}"}
            return Inputs(movies, ratings, columns)
        sign, further = ("|", ("released", "video", "url", *GENRES)) if release == "100k" else ("::", ("genres",))
        return Inputs(
            movies,
            ratings,
            {"text": "title" if release == "100k" else "{title}. {genres}"},
            TextFormat(
                delimiter=sign, encoding=_encoding(movies), quote="none", columns=("item_id", "title", *further)
            ),
            TextFormat(
                delimiter="\t" if release == "100k" else "::",
                quote="none",
                columns=("user_id", "item_id", "rating", "timestamp"),
            ),
        )


def _encoding(movies: Path) -> str:
    """10m is UTF-8; earlier releases are Latin-1, in which any bytes are text."""
    return "utf-8" if is_utf8(movies) else "latin-1"
