"""Evidence: what is measured on real data, declared in a plan, kept in small files, shown on one page."""
