"""Phase 1, the free part: the TA answers every question several times; no teacher is asked.

The arguments are those of ``bridge-ray run``; what is done already is skipped. See README.md in this folder.
"""

import sys

from bridge_ray import cli

if __name__ == "__main__":
    cli.main("run", *sys.argv[1:], "--until", "score")
