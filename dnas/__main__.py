"""``python -m dnas``: the command line, also where the script is not on the path."""

from dnas.commands.starting import main

if __name__ == "__main__":
    main()
