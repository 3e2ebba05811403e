"""The command line: one module per subcommand of `disranker`; cli.py lists them."""
