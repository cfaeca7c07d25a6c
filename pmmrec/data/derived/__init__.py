"""Make new domains from others: samples of one, and several as one."""
