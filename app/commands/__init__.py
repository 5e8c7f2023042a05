"""One module per subcommand: flags become a public call, its answer is printed."""
