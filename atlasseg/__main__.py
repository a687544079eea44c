"""``python -m atlasseg`` is the command ``atlasseg``."""

from atlasseg.cli import main

if __name__ == "__main__":
    main()
