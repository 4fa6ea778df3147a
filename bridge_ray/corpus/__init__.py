"""Sources -> examples -> splits. ``load.load`` reads a corpus, ``splits.split`` makes its table."""
