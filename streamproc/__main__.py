"""`python -m streamproc`: the same as the console script."""

from streamproc.cli.main import main

main()
