"""How one artifact is built: one file per stage, each a spec and a function."""
