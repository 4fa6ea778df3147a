"""Accuracy against spend, for BRIDGE and its baselines at several budgets and seeds.

The arguments are those of ``bridge-ray frontier``; interrupted and submitted again, it goes on. See README.md here.
"""

import sys

from bridge_ray import cli

if __name__ == "__main__":
    cli.main("frontier", *sys.argv[1:])
