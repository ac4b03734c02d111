"""`python -m pathline` is `pathline`."""

from pathline.cli.main import main

main()
