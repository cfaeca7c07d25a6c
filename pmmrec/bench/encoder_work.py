"""The useful work of encoders of texts and images whose blocks the formulas describe."""
# Shapes: R rows given to one encoder.

from __future__ import annotations

from torch import nn

from pmmrec.adapters import Host
from pmmrec.bench.flops import Ints, Work, learns, linear_map, stack_work
from pmmrec.encoders import Encoder
from pmmrec.encoders.prefix import CanBeCut
from pmmrec.encoders.vision_hf import HFVision
from pmmrec.feed_forward import ActivatedLinear

# Architectures by where their blocks normalise; all others are counted by torch's counter, one item at a time.
POST_NORM = ("BertModel", "CamembertModel", "DistilBertModel", "ElectraModel", "RobertaModel", "XLMRobertaModel")
PRE_NORM = ("CLIPVisionModel", "CLIPVisionTransformer", "DeiTModel", "Dinov2Model", "ViTModel")


def known_work(encoder: Encoder, length_R: Ints, *, is_kept: bool) -> Work | None:
    """The work of an encoder with projection and head, over rows of these lengths; None where no formula describes it.

    `is_kept`: the states of its frozen blocks are kept, so it begins at the lowest block that is trained.
    """
    host = encoder.host
    if host is None:
        return None
    is_known = host.architecture in (*POST_NORM, *PRE_NORM) and _has_known_layers(host)
    projection = getattr(encoder, "projection", None)
    if not isinstance(projection, nn.Linear) or not (is_known or (is_kept and not learns(host.module))):
        return None
    blocks, works = [host.sub(name) for name in host.blocks], []
    flows = False
    if is_kept:
        first = next((place for place, block in enumerate(blocks) if learns(block)), len(blocks))
        blocks = blocks[first:]
    else:
        flows = next(host.module.parameters()).requires_grad  # of the embeddings, which are registered first
        works += [_before(encoder, layer, length_R, flows=flows) for layer in _layers_before(host)]
    if blocks and host.sites is not None:
        is_pre_norm = host.architecture in PRE_NORM
        works.append(stack_work(blocks, _entries(host), length_R, input_learns=flows, is_pre_norm=is_pre_norm))
    flows = flows or any(learns(block) for block in blocks)
    pools_first = isinstance(encoder, CanBeCut) and encoder.pools_first
    works.append(linear_map(projection, float(len(length_R) if pools_first else length_R.sum()), input_learns=flows))
    head = getattr(encoder, "head", None)
    rows = len(length_R) + (0.0 if pools_first else float(length_R.sum()))  # the whole of each row, and every token
    for layer in [] if head is None else [one for one in head if isinstance(one, nn.Linear)]:
        works.append(linear_map(layer, rows, input_learns=True))
    return Work.total(works)


def num_patches(encoder: HFVision) -> int:
    """Patches that the convolution at the bottom cuts out of an image."""
    convolution = next(module for module in encoder.backbone.modules() if isinstance(module, nn.Conv2d))
    return (encoder.pixel_spec.size // int(convolution.stride[0])) ** 2


def _before(encoder: Encoder, layer: nn.Linear | nn.Conv2d, length_R: Ints, *, flows: bool) -> Work:
    if isinstance(layer, nn.Conv2d) and isinstance(encoder, HFVision):
        return linear_map(layer, len(length_R) * num_patches(encoder), input_learns=False)
    return linear_map(layer, float(length_R.sum()), input_learns=flows)


def _layers_before(host: Host) -> list[nn.Linear | nn.Conv2d]:
    """Layers with products below the blocks."""
    inside = {id(module) for name in host.blocks for module in host.sub(name).modules()}
    return [one for one in host.module.modules() if isinstance(one, nn.Linear | nn.Conv2d) and id(one) not in inside]


def _has_known_layers(host: Host) -> bool:
    """Whether every block is made of six plain linear layers, without adapters or gates."""
    for name in host.blocks:
        block = host.sub(name)
        num_layers = sum(type(module) in (nn.Linear, ActivatedLinear) for module in block.modules())
        num_matrices = sum(parameter.dim() > 1 for parameter in block.parameters())
        if (num_layers, num_matrices) != (6, 6):
            return False
    return True


def _entries(host: Host) -> str:
    """Pattern of the layers that make queries, keys and values."""
    return "" if host.sites is None else f"{host.sites.query_value}|{host.sites.key_value}"
