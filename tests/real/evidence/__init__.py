"""Evidence: measure a plan of cells on real data, keep results in small files, and show them on one page."""
