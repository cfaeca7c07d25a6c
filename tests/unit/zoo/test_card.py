"""A card describes a checkpoint and escapes everything that users wrote."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from pmmrec.zoo.card import CardDomain, CardFigure, escaped, fenced, make_card

DOMAIN = CardDomain("hm_women", num_users=1200, num_items=345, num_interactions=6789, modalities=("text", "image"))
PARTS = {"text_encoder": "hf_text", "fusion": "merge_attention"}


def card(**changes: object) -> str:
    settings: dict[str, object] = {
        "name": "demo",
        "system": "pmmrec",
        "summary": "A small one.",
        "parts": PARTS,
        "domains": [DOMAIN],
        "recipe": "seed: 1\n",
    }
    return make_card(**{**settings, **changes})  # type: ignore[arg-type]


def test_the_front_matter_is_yaml_that_the_hub_reads() -> None:
    text = card(licence="mit", tags=["food: hot", "- evil"])
    _, head, _ = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "pmmrec",
        "tags": ["recommendation", "pmmrec", "food: hot", "- evil"],
        "datasets": ["hm_women"],
    }


def test_the_hubs_own_parser_reads_every_figure_with_its_interval(tmp_path: Path) -> None:
    figures = [
        CardFigure("hm_women", "hr@10", 0.125, 0.1, 0.15, level=0.95, num_users=1200),
        CardFigure("hm_women", "ndcg@10", 0.0625, 0.05, 0.07, level=0.95, num_users=1200),
        CardFigure("films", "hr@10", 0.5, 0.4, 0.6, level=0.95, num_users=7),
    ]
    path = tmp_path / "README.md"
    path.write_text(card(name="hf://alice/tiny", figures=figures, base_model="alice/base"), encoding="utf-8")
    data = ModelCard.load(path).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name, data.base_model) == ("apache-2.0", "pmmrec", "alice/base")
    assert data.datasets == ["hm_women"]
    assert data.model_name == "hf://alice/tiny"
    found = [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value, r.metric_args) for r in data.eval_results]
    assert found == [
        ("hm_women", "test", "hr@10", 0.125, {"interval": [0.1, 0.15], "level": 0.95, "users": 1200}),
        ("hm_women", "test", "ndcg@10", 0.0625, {"interval": [0.05, 0.07], "level": 0.95, "users": 1200}),
        ("films", "test", "hr@10", 0.5, {"interval": [0.4, 0.6], "level": 0.95, "users": 7}),
    ]
    assert data.to_dict() == metadata_load(path)  # what the parser would write is what we wrote


def test_figures_that_are_not_finite_are_left_out() -> None:
    text = card(figures=[CardFigure("hm_women", "hr@10", float("nan"), 0, 0, level=0.95, num_users=0)])
    assert "model-index" not in text


def test_the_card_has_data_parts_results_recipe_and_usage() -> None:
    text = card(results="| HR@10 |\n|---|\n| 0.1 |", commands=["pmmrec evaluate demo"])
    assert "| hm\\_women | 1,200 | 345 | 6,789 | text, image |" in text
    assert "| text\\_encoder | hf\\_text |" in text
    assert "| 0.1 |" in text
    assert "```yaml\nseed: 1\n```" in text
    assert "text_encoder = AutoModel.from_pretrained(part('text_encoder'))" in text
    assert "AutoModel.from_pretrained(part('fusion'))" not in text
    assert "fusion_tensors = load_file(part('fusion') / 'part.safetensors')" in text
    assert "```sh\npmmrec evaluate demo\n```" in text


def test_the_python_code_in_a_card_compiles() -> None:
    code = card(name="it's").split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_markup_in_names_is_escaped() -> None:
    evil = "<script>x</script> [a](http://b) | **c**\n# d"
    told = {"domains": [CardDomain(evil, 1, 1, 1, ("text",))], "summary": evil, "name": evil}
    text = card(results="<img src=x>", figures=[CardFigure(evil, "hr@10", 0, 0, 0, level=0.95, num_users=1)], **told)
    outside_code, _, _ = text.partition("```")
    assert outside_code.count("&lt;script&gt;") == 3
    assert "<" not in outside_code
    assert "\n# d" not in text
    assert escaped(evil) == r"&lt;script&gt;x&lt;/script&gt; \[a\]\(http://b\) \| \*\*c\*\* \# d"


def test_a_recipe_cannot_end_its_own_fence() -> None:
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"
    assert "\n# out" in card(recipe="x\n```\n# out")
    assert "````yaml\nx\n```\n# out\n````" in card(recipe="x\n```\n# out")
