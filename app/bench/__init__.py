"""`interp bench`: what things cost on this machine, beside what others use."""
