"""``python -m fusionkit``."""

from fusionkit.cli import main

main()
