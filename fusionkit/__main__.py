"""``python -m fusionkit``."""

from fusionkit.cli.main import main

main()
