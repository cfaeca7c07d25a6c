"""Write the titles of the three platforms of the demo world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Of each topic: three words that all platforms use, then one that only bazaar, gallery, boutique uses.
TOPIC_WORDS = (
    ("coffee", "espresso", "roast", "mug", "moka", "cafetiere"),
    ("tea", "infusion", "leaf", "teapot", "matcha", "samovar"),
    ("tent", "campfire", "trail", "lantern", "bivouac", "canopy"),
    ("bicycle", "saddle", "pedal", "helmet", "velodrome", "tandem"),
    ("garden", "seedling", "herb", "trowel", "terrarium", "topiary"),
    ("bread", "dough", "oven", "flour", "brioche", "patisserie"),
    ("guitar", "chord", "melody", "amplifier", "acoustic", "mandolin"),
    ("yoga", "stretch", "balance", "mat", "lotus", "pilates"),
    ("fishing", "river", "bait", "rod", "angler", "flyreel"),
    ("fabric", "thread", "needle", "bobbin", "tapestry", "embroidery"),
    ("chess", "puzzle", "board", "dice", "gambit", "backgammon"),
    ("telescope", "planet", "orbit", "starmap", "nebula", "astrolabe"),
    ("cat", "kitten", "whisker", "litter", "feline", "catnip"),
    ("dog", "puppy", "leash", "kennel", "hound", "poodle"),
    ("swim", "pool", "goggle", "flipper", "lagoon", "snorkel"),
    ("ski", "snow", "slope", "boot", "alpine", "chalet"),
    ("clay", "pottery", "glaze", "bowl", "ceramic", "porcelain"),
    ("engine", "motor", "wheel", "garage", "roadster", "coupe"),
    ("camera", "lens", "shutter", "tripod", "portrait", "tintype"),
    ("novel", "story", "chapter", "paperback", "folio", "almanac"),
    ("perfume", "scent", "blossom", "soap", "musk", "cologne"),
    ("robot", "circuit", "sensor", "battery", "android", "automaton"),
    ("train", "railway", "station", "locomotive", "tram", "funicular"),
    ("noodle", "rice", "broth", "wok", "ramen", "udon"),
)
# Of each style: the word that all platforms use, then that of bazaar, gallery, boutique.
STYLE_WORDS = (
    ("red", "cherry", "vermilion", "rouge"),
    ("yellow", "lemon", "ochre", "saffron"),
    ("green", "lime", "viridian", "olive"),
    ("turquoise", "aqua", "cyan", "seafoam"),
    ("blue", "denim", "ultramarine", "indigo"),
    ("purple", "grape", "violet", "lilac"),
)
NUM_SHARED_WORDS = 3
SHARE_WITH_ENDING = 0.3
SHARE_WITH_STYLE = 0.65
FEWEST_WORDS, MOST_WORDS = 4, 8


@dataclass(frozen=True)
class Wording:
    """The words and the order of words in the titles of one platform."""

    column: int  # index of its own word in a topic or style
    endings: tuple[str, ...]  # appended to a shared word, so that only sub-words reveal it
    fillers: tuple[str, ...]
    order: tuple[str, ...]  # of the groups "filler", "style", "topic"; a second "filler" takes half of them
    is_capitalised: bool


WORDINGS: Mapping[str, Wording] = {
    "bazaar": Wording(
        column=0,
        endings=("kit", "set", "pack"),
        fillers=("new", "cheap", "best", "sale", "original", "fast", "bundle", "deal", "pro", "outlet"),
        order=("filler", "style", "topic", "filler"),
        is_capitalised=False,
    ),
    "gallery": Wording(
        column=1,
        endings=("scape", "craft"),
        fillers=("study", "untitled", "series", "limited", "print", "edition", "framed", "contemporary", "canvas"),
        order=("topic", "filler", "style"),
        is_capitalised=True,
    ),
    "boutique": Wording(
        column=2,
        endings=("line", "chic"),
        fillers=("handmade", "little", "exclusive", "gift", "atelier", "fine", "soft", "collection", "charming"),
        order=("style", "filler", "topic"),
        is_capitalised=False,
    ),
}


def write_title(
    wording: Wording, topic: int, second_topic: int | None, style: int, *, is_vague: bool, rng: np.random.Generator
) -> str:
    """A title of 4 to 8 words; a vague one has no word of its topics."""
    topic_words = [] if is_vague else _topic_words(wording, topic, int(rng.integers(2, 4)), rng)
    if second_topic is not None and not is_vague:
        topic_words += _topic_words(wording, second_topic, 1, rng)
    names = (STYLE_WORDS[style][0], STYLE_WORDS[style][1 + wording.column])
    style_words = [str(rng.choice(names))] if rng.random() < SHARE_WITH_STYLE else []
    said = len(topic_words) + len(style_words)
    num_fillers = int(rng.integers(max(FEWEST_WORDS - said, 1), MOST_WORDS - said - 1))
    fillers = [str(word) for word in rng.choice(wording.fillers, size=num_fillers, replace=False)]
    is_split = wording.order.count("filler") == 2
    first_fillers = (num_fillers + 1) // 2 if is_split else num_fillers
    groups = {
        "topic": [topic_words],
        "style": [style_words],
        "filler": [fillers[:first_fillers], fillers[first_fillers:]],
    }
    words = [word for name in wording.order for word in groups[name].pop(0)]
    title = " ".join(words)
    return title.title() if wording.is_capitalised else title


def _topic_words(wording: Wording, topic: int, num_words: int, rng: np.random.Generator) -> list[str]:
    shared, own = TOPIC_WORDS[topic][:NUM_SHARED_WORDS], TOPIC_WORDS[topic][NUM_SHARED_WORDS + wording.column]
    words = [str(word) for word in rng.choice((*shared, own), size=num_words, replace=False)]
    has_ending = rng.random(num_words) < SHARE_WITH_ENDING
    return [
        word + str(rng.choice(wording.endings)) if ends and word != own else word
        for word, ends in zip(words, has_ending, strict=True)
    ]
