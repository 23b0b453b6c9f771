"""`python -m node` is the same as `swarm`."""

from node.cli.app import main

if __name__ == "__main__":
    main()
