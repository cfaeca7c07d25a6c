"""The zoo: checkpoints made of parts, plans to transfer them, places to find them."""
