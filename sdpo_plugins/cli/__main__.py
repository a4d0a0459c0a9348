"""`python -m sdpo_plugins.cli` is `sdpo`."""

from sdpo_plugins.cli import main

if __name__ == "__main__":
    main()
