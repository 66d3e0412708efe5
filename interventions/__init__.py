"""Changes to a running model that come out again; nothing here knows detectors."""
