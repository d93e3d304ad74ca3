"""`python -m octavo_client`: the `octavo` command, where the package is on the path but not installed."""

from octavo_client.cli.main import main

if __name__ == "__main__":
    main()
