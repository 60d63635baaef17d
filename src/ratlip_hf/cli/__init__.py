"""The console script `ratlip`: one module per verb, thin shells over the library.
Each verb adds its options to a parser and returns an exit code."""
