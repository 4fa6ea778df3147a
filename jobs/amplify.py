"""Explain a whole corpus with a teacher assistant that is there already: no teacher, no selection, no students.

The arguments are those of ``bridge-ray amplify``; interrupted and submitted again, it goes on. See README.md here.
"""

import sys

from bridge_ray import cli

if __name__ == "__main__":
    cli.main("amplify", *sys.argv[1:])
