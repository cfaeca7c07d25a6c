"""The command that lists encoders."""

from __future__ import annotations

import typer

from pmmrec.cli.options import AsJson, show_json
from pmmrec.terminal import errors_for_people, show

app = typer.Typer()


@app.command("encoders")
def encoders(as_json: AsJson = False) -> None:
    """List the architectures that can encode texts, images or both: pooling, adapters, caches, refusals."""
    from pmmrec.report.encoder_matrix import encoder_facts, encoders_tables

    with errors_for_people():
        facts = encoder_facts()
        show_json({"encoders": facts}) if as_json else show(*encoders_tables(facts))
