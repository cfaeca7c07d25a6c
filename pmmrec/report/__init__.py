"""Reports: present the results of runs to people."""
