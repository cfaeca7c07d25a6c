"""Make a small world of three platforms, to try all programs without real data."""
# B users, N items of a platform, K topics, G styles.

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pmmrec.data.demo_pictures import LOOKS, NO_TOPIC, Subjects, draw
from pmmrec.data.demo_titles import STYLE_WORDS, TOPIC_WORDS, WORDINGS, write_title
from pmmrec.data.write import new_folder
from pmmrec.errors import DataError
from pmmrec.progress import Progress
from pmmrec.settings import Config

SOURCES, TARGET = ("bazaar", "gallery"), "boutique"
PREFIXES = {"bazaar": "bz", "gallery": "ga", "boutique": "bo"}
NUM_TOPICS, NUM_STYLES = len(TOPIC_WORDS), len(STYLE_WORDS)

# On a ring of topics in random order, each topic leads to the topics this many places on. No two steps add up to the
# whole ring, so no topic leads back; all topics are reached equally often.
STEPS_ON = (1, 5, 11)
STEP_SHARES = (0.5, 0.3, 0.2)
SECOND_TOPIC_SHARE = 0.25  # of an item that has two
ZIPF_EXPONENT = 0.5
FEWEST_VISITS, MOST_VISITS, STOP_CHANCE = 6, 20, 0.2
WORLD_BEGINS_S, YEAR_S, HOUR_S = 1_672_531_200, 31_536_000, 3600
DRAWN_AT_ONCE = 128
LAST_RESORT = 1e-12  # weight of any unseen item, for users who have seen every item that could follow


class DemoWorldConfig(Config):
    """Sizes and habits of the demo world."""

    seed: int = Field(default=7, ge=0, description="All random draws depend on it.")
    source_users: int = Field(default=1500, ge=1, description="Users of each of the two sources.")
    source_items: int = Field(default=500, ge=NUM_TOPICS, description="Items of each of the two sources.")
    target_users: int = Field(default=700, ge=1)
    target_items: int = Field(default=400, ge=NUM_TOPICS)
    image_side: int = Field(default=64, ge=16, le=512, description="Pixels.")
    follow: float = Field(
        default=0.77, ge=0, le=1, description="Chance that a user follows the graph of topics; otherwise popularity."
    )
    style_leak: float = Field(
        default=0.1, gt=0, le=1, description="Weight of an item in a style that the user does not want."
    )
    vague_titles: float = Field(default=0.15, ge=0, le=1, description="Share of titles that tell no topic.")
    vague_images: float = Field(default=0.15, ge=0, le=1, description="Share of images that are faint and noisy.")
    without_text: float = Field(default=0.025, ge=0, le=0.5)
    without_image: float = Field(default=0.025, ge=0, le=0.5)


@dataclass(frozen=True)
class DemoPlatform:
    """One platform with its hidden variables, which are never written to disk; for tests."""

    name: str
    item_id: tuple[str, ...]
    title: tuple[str, ...]  # "" where the item has none
    has_image_N: NDArray[np.bool_]
    subjects: Subjects
    next_GNN: NDArray[np.float64]  # chance of the next item (last) after an item, for users of a style
    visits: tuple[NDArray[np.int64], ...]  # of each user: rows of items in order, none twice


def write_demo_world(
    folder: Path, config: DemoWorldConfig | None = None, progress: Progress | None = None
) -> dict[str, Path]:
    """Write `items.csv`, `interactions.csv` and `images/ITEM.jpg` for each platform; name -> its folder.

    The files look like those of a user: only titles and pixels show the topics and styles of items. Raises DataError
    when the folder of a platform exists.
    """
    config = config or DemoWorldConfig()
    folders = {name: folder / name for name in (*SOURCES, TARGET)}
    for path in folders.values():
        if path.exists():
            raise DataError(f"{path}: exists already; remove it or choose another folder for the demo world")
    for name, path in folders.items():
        with new_folder(path) as (unfinished, _):
            _write_platform(unfinished, imagine_platform(name, config), config, progress)
    return folders


def imagine_platform(name: str, config: DemoWorldConfig) -> DemoPlatform:
    """One platform of the demo world with its hidden variables; the same for the same name and settings."""
    rng = _rng(config, name, "items")
    num_items = config.target_items if name == TARGET else config.source_items
    is_vague_title_N = rng.random(num_items) < config.vague_titles
    fate_N = rng.random(num_items)  # one draw decides both, so that no item lacks text and image
    has_text_N, has_image_N = fate_N >= config.without_text, fate_N < 1 - config.without_image
    subjects = _imagine_subjects(num_items, config, rng)
    wording = WORDINGS[name]
    titles = []
    for row in range(num_items):
        second = int(subjects.second_topic_N[row])
        title = write_title(
            wording,
            int(subjects.topic_N[row]),
            None if second == NO_TOPIC else second,
            int(subjects.style_N[row]),
            is_vague=bool(is_vague_title_N[row]),
            rng=rng,
        )
        titles.append(title if has_text_N[row] else "")
    next_GNN, start_GKN = _chances(subjects, config, rng)
    return DemoPlatform(
        name=name,
        item_id=tuple(f"{PREFIXES[name]}-{row + 1:05d}" for row in range(num_items)),
        title=tuple(titles),
        has_image_N=has_image_N,
        subjects=subjects,
        next_GNN=next_GNN,
        visits=tuple(_walk(next_GNN, start_GKN, name, config)),
    )


def topic_graph(config: DemoWorldConfig) -> NDArray[np.float64]:
    """`(K, K)` chance of the next topic (column) after a topic (row): the same on all platforms."""
    ring_K = _rng(config, "world", "graph").permutation(NUM_TOPICS)
    graph_KK = np.zeros((NUM_TOPICS, NUM_TOPICS))
    for steps, share in zip(STEPS_ON, STEP_SHARES, strict=True):
        graph_KK[ring_K, np.roll(ring_K, -steps)] = share
    return graph_KK


def _imagine_subjects(num_items: int, config: DemoWorldConfig, rng: np.random.Generator) -> Subjects:
    topic_N = rng.permutation(np.arange(num_items) % NUM_TOPICS)
    other_N = (topic_N + rng.integers(1, NUM_TOPICS, num_items)) % NUM_TOPICS
    return Subjects(
        topic_N=topic_N,
        second_topic_N=np.where(rng.random(num_items) < 0.4, other_N, NO_TOPIC),
        style_N=rng.integers(0, NUM_STYLES, num_items),
        is_vague_N=rng.random(num_items) < config.vague_images,
    )


def _chances(
    subjects: Subjects, config: DemoWorldConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Chance of an item after an item, `(G, N, N)`, and of an item of a topic, `(G, K, N)`; G is the user's style."""
    num_items = len(subjects.topic_N)
    popularity_N = (1.0 + rng.permutation(num_items) // NUM_TOPICS) ** -ZIPF_EXPONENT
    has_second_N = subjects.second_topic_N != NO_TOPIC
    mixture_NK = np.zeros((num_items, NUM_TOPICS))
    mixture_NK[np.arange(num_items), subjects.topic_N] = 1 - SECOND_TOPIC_SHARE * has_second_N
    mixture_NK[has_second_N, subjects.second_topic_N[has_second_N]] = SECOND_TOPIC_SHARE
    is_style_GN = np.arange(NUM_STYLES)[:, None] == subjects.style_N
    appeal_GN = popularity_N * np.where(is_style_GN, 1.0, config.style_leak)
    of_topic_GKN = mixture_NK.T * appeal_GN[:, None]
    of_topic_GKN /= of_topic_GKN.sum(-1, keepdims=True)
    followed_GNN = (mixture_NK @ topic_graph(config)) @ of_topic_GKN
    next_GNN = config.follow * followed_GNN + (1 - config.follow) * popularity_N / popularity_N.sum()
    return next_GNN, of_topic_GKN


def _walk(
    next_GNN: NDArray[np.float64], start_GKN: NDArray[np.float64], name: str, config: DemoWorldConfig
) -> Iterator[NDArray[np.int64]]:
    """Rows of the items that each user visits, none twice; all users advance one item at a time."""
    rng = _rng(config, name, "users")
    num_users = config.target_users if name == TARGET else config.source_users
    num_visits_B = (FEWEST_VISITS - 1 + rng.geometric(STOP_CHANCE, num_users)).clip(max=MOST_VISITS)
    style_B, taste_B = rng.integers(0, NUM_STYLES, num_users), rng.integers(0, NUM_TOPICS, num_users)
    users_B = np.arange(num_users)
    is_unseen_BN = np.ones((num_users, next_GNN.shape[-1]), dtype=bool)
    visits_BV = np.zeros((num_users, MOST_VISITS), dtype=np.int64)
    chance_BN = start_GKN[style_B, taste_B]
    for visit in range(MOST_VISITS):
        reached_BN = np.cumsum((chance_BN + LAST_RESORT) * is_unseen_BN, axis=1)
        aim_B1 = rng.random((num_users, 1)) * reached_BN[:, -1:]
        row_B = (reached_BN[:, :-1] <= aim_B1).sum(1)
        visits_BV[:, visit] = row_B
        is_unseen_BN[users_B, row_B] = False
        chance_BN = next_GNN[style_B, row_B]
    return (visits_BV[user, : num_visits_B[user]] for user in users_B)


def _write_platform(folder: Path, platform: DemoPlatform, config: DemoWorldConfig, progress: Progress | None) -> None:
    (folder / "images").mkdir()
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        items = csv.writer(file, lineterminator="\n")
        items.writerow(["item_id", "text"])
        items.writerows(zip(platform.item_id, platform.title, strict=True))
    with (folder / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        interactions = csv.writer(file, lineterminator="\n")
        interactions.writerow(["user_id", "item_id", "timestamp"])
        interactions.writerows(_log(platform, config))
    _write_images(folder / "images", platform, config, progress)


def _log(platform: DemoPlatform, config: DemoWorldConfig) -> list[tuple[str, str, int]]:
    """User, item and time (s) of each visit, ordered by time over all users."""
    rng = _rng(config, platform.name, "times")
    log = []
    for user, visits in enumerate(platform.visits):
        begin_s = WORLD_BEGINS_S + int(rng.integers(YEAR_S))
        time_s = begin_s + np.cumsum(1 + rng.exponential(9 * HOUR_S, len(visits)).astype(np.int64))
        user_id = f"{PREFIXES[platform.name]}-user-{user + 1:05d}"
        log += [(user_id, platform.item_id[row], int(at_s)) for row, at_s in zip(visits, time_s, strict=True)]
    return sorted(log, key=lambda visit: (visit[2], visit[0]))


def _write_images(folder: Path, platform: DemoPlatform, config: DemoWorldConfig, progress: Progress | None) -> None:
    rng = _rng(config, platform.name, "images")
    look, num_items = LOOKS[platform.name], len(platform.item_id)
    for begin in range(0, num_items, DRAWN_AT_ONCE):
        rows = slice(begin, min(begin + DRAWN_AT_ONCE, num_items))
        pixels_NHWC = draw(look, platform.subjects[rows], config.image_side, rng)
        for item_id, has_image, pixels_HWC in zip(
            platform.item_id[rows], platform.has_image_N[rows], pixels_NHWC, strict=True
        ):
            if has_image:
                Image.fromarray(pixels_HWC).save(folder / f"{item_id}.jpg", quality=look.jpeg_quality)
        if progress is not None:
            progress(f"images of {platform.name}", rows.stop, num_items)


def _rng(config: DemoWorldConfig, name: str, purpose: str) -> np.random.Generator:
    """A separate stream for each purpose, so that more users do not change the items."""
    return np.random.default_rng([config.seed, zlib.crc32(f"{name}/{purpose}".encode())])
