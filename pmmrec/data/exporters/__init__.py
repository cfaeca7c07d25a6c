"""Write a domain as files that other programs read, and that `pmmrec data import` reads again."""
