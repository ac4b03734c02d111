"""The command line: `pathline sample`, `pathline replay` and what belongs to them."""
