"""Which way of transfer helps."""
