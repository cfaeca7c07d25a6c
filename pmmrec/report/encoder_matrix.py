"""The architectures that encoders of texts, of images and of both read, and what each of them can do here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pmmrec.adapters import adapters
from pmmrec.encoders import joint_layouts, text_layouts, timm_layouts, vision_layouts
from pmmrec.encoders.trainable import Layout, pools_of
from pmmrec.tables import PlainTable

TRANSFORMERS, TIMM = "transformers", "timm"
TEXTS, IMAGES, BOTH = "texts", "images", "both"
COLUMNS = ["architecture", "library", "reads", "pool", "adapters", "rows", "prefix cache", "checkpointing"]
ANY_DEPTH, ALL_FROZEN = "any depth", "all frozen"
NO_CACHE, OF_IMAGES = "no: reads both at once", "of its vision encoder"
BOTH_VECTORS = "both, joined"
# Models that share an architecture.
FAMILIES: Mapping[str, str] = {
    "ConvNeXt": "ConvNeXt v1, v2",
    "Eva": "EVA-02, DINOv3",
    "MobileNetV3": "MobileNet v3, v4",
    "VisionTransformer": "ViT, DeiT, DINOv2, MAE, SigLIP",
    "gemma3_text": "Gemma 3, EmbeddingGemma",
    "nomic_bert": "Nomic Embed",
    "qwen3": "Qwen3, Qwen3-Embedding",
    "siglip_text_model": "SigLIP, SigLIP 2",
    "siglip_vision_model": "SigLIP, SigLIP 2",
    "siglip2_vision_model": "SigLIP 2 NaFlex",
    "vit_mae": "MAE",
    "xlm-roberta": "XLM-R, multilingual E5, BGE-M3",
}


@dataclass(frozen=True)
class EncoderFacts:
    """What an architecture can do, or why it is refused."""

    architecture: str
    library: str
    reads: str
    models: str | None = None  # that share it
    refused: str | None = None  # the reason; None: every row without one is tested
    pools: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    rows: str | None = None  # packed, or padded to the longest; None: images alone
    prefix_cache: str | None = None  # which states of the frozen part are kept, or why there are none
    checkpoints: bool = False  # whether activations of trained blocks can be computed again

    def cells(self) -> list[str]:
        """The row of a table."""
        name = f"{self.architecture} ({self.models})" if self.models else self.architecture
        told = (*(", ".join(some) or "none" for some in (self.pools, self.adapters)), self.rows or "-")
        checkpoints = "yes" if self.checkpoints else "no"
        return [name, self.library, self.reads, *told, self.prefix_cache or "-", checkpoints]


def encoder_facts() -> list[EncoderFacts]:
    """Every architecture that is read, and those that are refused for a reason: of texts, of images, of both."""
    return [*_texts(), *_images(), *_timm(), *_joint()]


def encoders_tables(facts: list[EncoderFacts]) -> list[PlainTable]:
    """The table of what is read and tested, and that of what is refused."""
    read = [one for one in facts if one.refused is None]
    refused = [[one.architecture, one.library, one.reads, one.refused] for one in facts if one.refused is not None]
    return [
        PlainTable(f"{len(read)} architectures, each tested", COLUMNS, [one.cells() for one in read]),
        PlainTable("Refused", ["architecture", "library", "reads", "why"], refused),
    ]


def _texts() -> Iterator[EncoderFacts]:
    for name, layout in sorted(text_layouts.LAYOUTS.items()):
        pools = pools_of(layout, has_cls=not layout.is_causal or name == "gemma3_text", has_last=True)
        rows = "packed" if layout.packs else "padded"
        yield _read(name, TRANSFORMERS, TEXTS, layout, pools, rows)
    yield from _refused(text_layouts.REFUSED, TRANSFORMERS, TEXTS)


def _images() -> Iterator[EncoderFacts]:
    for name, layout in sorted(vision_layouts.LAYOUTS.items()):
        yield _read(name, TRANSFORMERS, IMAGES, layout, pools_of(layout, has_cls=layout.num_prefix_tokens > 0))
    yield from _refused(vision_layouts.REFUSED, TRANSFORMERS, IMAGES)


def _timm() -> Iterator[EncoderFacts]:
    for name, layout in sorted(timm_layouts.LAYOUTS.items()):
        yield _read(name, TIMM, IMAGES, layout, pools_of(layout, has_cls=layout.output == "tokens"))
    yield from _refused(timm_layouts.REFUSED, TIMM, IMAGES)


def _joint() -> Iterator[EncoderFacts]:
    for name, layout in sorted({**joint_layouts.LAYOUTS, **joint_layouts.VISUAL_LAYOUTS}.items()):
        pools = (BOTH_VECTORS,) if layout.is_two_vectors else ("cls", "mean", "pooler")
        cache = OF_IMAGES if name in joint_layouts.VISUAL_LAYOUTS else NO_CACHE
        yield replace(_read(name, TRANSFORMERS, BOTH, layout, pools, "padded"), prefix_cache=cache)
    refused = {name: why for name, why in joint_layouts.REFUSED.items() if name not in joint_layouts.VISUAL_LAYOUTS}
    yield from _refused(refused, TRANSFORMERS, BOTH)


def _read(
    name: str, library: str, reads: str, layout: Layout, pools: tuple[str, ...], rows: str | None = None
) -> EncoderFacts:
    return EncoderFacts(
        name,
        library,
        reads,
        models=FAMILIES.get(name),
        pools=pools,
        adapters=() if layout.sites is None else tuple(entry.name for entry in adapters),
        rows=rows,
        prefix_cache=ALL_FROZEN if layout.block_call is None else ANY_DEPTH,
        checkpoints=layout.checkpoints,
    )


def _refused(reasons: Mapping[str, str], library: str, reads: str) -> Iterator[EncoderFacts]:
    for name, reason in sorted(reasons.items()):
        yield EncoderFacts(name, library, reads, refused=reason)
