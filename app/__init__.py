"""The command line, and later the explorer: no mathematics of their own."""
