"""Up to the corpus explained: select and buy, teach the TA, and let it write a rationale for every row.

The arguments are those of ``bridge-ray run``; what is done already is skipped. See README.md in this folder.
"""

import sys

from bridge_ray import cli

if __name__ == "__main__":
    cli.main("run", *sys.argv[1:], "--until", "amplify")
