"""The console script `ratlip`: one module per subcommand, thin shells over the library.
Each adds its options to a parser and returns an exit code."""
