"""Every registered part passes the checks of its family."""

from __future__ import annotations

from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.fusion import fusions
from pmmrec.models import item_encoders, scorers
from pmmrec.objectives import objectives
from pmmrec.testing import conformance
from pmmrec.users import user_encoders

test_text_encoders = conformance(text_encoders)
test_vision_encoders = conformance(vision_encoders)
test_fusions = conformance(fusions)
test_item_encoders = conformance(item_encoders)
test_user_encoders = conformance(user_encoders)
test_scorers = conformance(scorers)
test_objectives = conformance(objectives)
