"""A card says what a checkpoint is, and obeys nothing that users wrote into it."""

import yaml

from pmmrec.zoo.card import CardDomain, escaped, fenced, make_card

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
        "tags": ["recommendation", "food: hot", "- evil"],
    }


def test_the_card_tells_data_parts_results_recipe_and_use() -> None:
    text = card(results="| HR@10 |\n|---|\n| 0.1 |", commands=["pmmrec evaluate demo"])
    assert "| hm\\_women | 1,200 | 345 | 6,789 | text, image |" in text
    assert "| text\\_encoder | hf\\_text |" in text
    assert "| 0.1 |" in text
    assert "```yaml\nseed: 1\n```" in text
    assert "AutoModel.from_pretrained(folder / 'text_encoder')" in text
    assert "AutoModel.from_pretrained(folder / 'fusion')" not in text
    assert "```sh\npmmrec evaluate demo\n```" in text


def test_the_python_in_a_card_is_python() -> None:
    code = card(name="it's").split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_names_of_users_cannot_bring_markup_or_rows() -> None:
    evil = "<script>x</script> [a](http://b) | **c**\n# d"
    text = card(domains=[CardDomain(evil, 1, 1, 1, ("text",))], results="<img src=x>", summary=evil, name=evil)
    outside_code, _, _ = text.partition("```")
    assert outside_code.count("&lt;script&gt;") == 3
    assert "<" not in outside_code
    assert "\n# d" not in text
    assert escaped(evil) == r"&lt;script&gt;x&lt;/script&gt; \[a\]\(http://b\) \| \*\*c\*\* \# d"


def test_a_recipe_cannot_end_its_own_fence() -> None:
    assert fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"
    assert "\n# out" in card(recipe="x\n```\n# out")
    assert "````yaml\nx\n```\n# out\n````" in card(recipe="x\n```\n# out")
