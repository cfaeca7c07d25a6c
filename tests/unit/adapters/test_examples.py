"""The examples in the docstrings of the adapters run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from pmmrec.adapters import bottleneck, peft_kinds
from pmmrec.adapters.plan import AdapterPlan, adapt
from pmmrec.context import BuildContext
from pmmrec.users.transformer import TransformerConfig, TransformerUserEncoder


@pytest.mark.parametrize(("module", "num_examples"), [(bottleneck, 6), (peft_kinds, 9)])
def test_the_examples_of_every_kind_run(module: ModuleType, num_examples: int) -> None:
    names = {"AdapterPlan": AdapterPlan, "adapt": adapt}
    ran = 0
    for example in doctest.DocTestFinder().find(module, extraglobs=names):
        example.globs["users"] = TransformerUserEncoder(TransformerConfig(num_layers=1), BuildContext(8))
        result = doctest.DocTestRunner().run(example)
        assert result.failed == 0
        ran += result.attempted
    assert ran == num_examples
