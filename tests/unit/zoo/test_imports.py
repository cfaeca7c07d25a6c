"""The modules of the zoo import one another in one direction."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_no_module_of_the_zoo_imports_itself_through_others() -> None:
    graph = grimp.build_graph("pmmrec", cache_dir=None)
    assert graph.direct_import_exists(importer="pmmrec.cli.zoo", imported="pmmrec.zoo.hub")  # inside a function
    modules = {name for name in graph.modules if name.startswith("pmmrec.zoo.")}
    imports = {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}
    assert imports["pmmrec.zoo.checkpoint"] >= {"pmmrec.zoo.folder", "pmmrec.zoo.hub", "pmmrec.zoo.base"}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules of a cycle
