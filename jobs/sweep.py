"""Many runs over a space of config fields, under one cap.

The arguments are those of ``bridge-ray sweep``; trials that have ended are not repeated. See README.md in this folder.
"""

import sys

from bridge_ray import cli

if __name__ == "__main__":
    cli.main("sweep", *sys.argv[1:])
