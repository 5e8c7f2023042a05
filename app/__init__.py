"""The command line and the what-if explorer."""
