"""Sweeps: many runs over a space of config fields with Ray Tune, none of which pays or waits for what another has."""
