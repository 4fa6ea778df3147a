"""Up to the trained students: BRIDGE's and those of the baselines that the config compares it with.

The arguments are those of ``bridge-ray run``; what is done already is skipped. See README.md in this folder.
"""

import sys

from bridge_ray import cli

if __name__ == "__main__":
    cli.main("run", *sys.argv[1:], "--until", "train_direct_labels")
